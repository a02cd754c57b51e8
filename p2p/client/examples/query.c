/*
 * Asks the server, range by range, which way the bytes of a file would go.
 * Nothing changes. Uses the ioctl only, no library:
 *
 *     cc -I p2p/abi/include -o query p2p/client/examples/query.c
 *     ./query FILE
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "peerfs.h"

static void print_segments(const struct peerfs_map *answer) {
  for (uint32_t i = 0; i < answer->segment_count; i++) {
    const struct peerfs_segment *segment = &answer->segments[i];
    const char *path = peerfs_path_name(segment->path);
    const char *reason = peerfs_reason_name(segment->reason);
    printf("%16" PRIu64 " %16" PRIu64 " %-14s %s\n", segment->file_offset, segment->length,
           path ? path : "unknown", reason ? reason : "-");
  }
}

/* Calls until the answer is complete: one call answers at most PEERFS_SEGMENTS_MAX segments. */
static int query(int fd) {
  static struct peerfs_map request;
  uint64_t offset = 0, length = 0;
  do {
    memset(&request, 0, sizeof request);
    request.abi_version = PEERFS_ABI_VERSION;
    request.flags = PEERFS_MAP_QUERY;
    request.offset = offset;
    request.length = length;
    request.file_fd = fd;
    if (ioctl(fd, PEERFS_IOC_QUERY, &request) < 0)
      return -1;
    if (request.segment_count > PEERFS_SEGMENTS_MAX ||
        (request.next_offset <= offset && request.next_offset < request.end_offset)) {
      errno = EPROTO;
      return -1;
    }
    print_segments(&request);
    offset = request.next_offset;
    length = request.end_offset - offset;
  } while (offset < request.end_offset);
  return 0;
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: query FILE\n");
    return 2;
  }
  int fd = open(argv[1], O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) {
    fprintf(stderr, "query: cannot open %s: %s\n", argv[1], strerror(errno));
    return 1;
  }
  printf("%16s %16s %-14s %s\n", "OFFSET", "LENGTH", "PATH", "REASON");
  if (query(fd) < 0) {
    const char *hint = errno == ENOTTY ? ": it is not on a peerfs mount" : "";
    fprintf(stderr, "query: cannot query %s: %s%s\n", argv[1], strerror(errno), hint);
    return 1;
  }
  close(fd);
  return 0;
}
