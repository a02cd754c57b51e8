/*
 * Asks, piece by piece, which way the bytes of a file would go. Nothing changes.
 *
 *     cc -o query query.c $(pkg-config --cflags --libs peerfs)
 *     ./query FILE
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "peerfs_client.h"

static int fail(const char *what) {
  fprintf(stderr, "query: %s: %s\n", what, peerfs_last_error());
  return 1;
}

static void print_piece(const struct peerfs_piece *piece) {
  const char *path = peerfs_path_name(piece->path);
  const char *reason = peerfs_reason_name(piece->reason);
  const char *remedy = peerfs_reason_remedy(piece->reason);
  printf("%12" PRIu64 " %12" PRIu64 " %-14s %s%s%s\n", piece->file_offset, piece->length,
         path ? path : "unknown", reason ? reason : "-", remedy ? ": " : "", remedy ? remedy : "");
  for (uint32_t bit = 0; bit < 32; bit++) {
    uint32_t other = peerfs_reason_of_bit(bit);
    if (piece->refusals >> bit & 1 && other && other != piece->reason)
      printf("%40s also %s: %s\n", "", peerfs_reason_name(other), peerfs_reason_remedy(other));
  }
}

int main(int argc, char **argv) {
  struct peerfs_file *file;
  size_t known = 0, count;
  uint32_t retry_after_ms;
  if (argc != 2) {
    fprintf(stderr, "usage: query FILE\n");
    return 2;
  }
  if (peerfs_file_open(argv[1], false, &file) != PEERFS_OK)
    return fail(argv[1]);
  /* How many pieces there are, then the pieces; the file may change in between. */
  if (peerfs_file_query(file, NULL, 0, 0, 0, NULL, &known, NULL) != PEERFS_OK)
    return fail(argv[1]);
  struct peerfs_piece *pieces = calloc(known ? known : 1, sizeof *pieces);
  count = known;
  if (!pieces || peerfs_file_query(file, NULL, 0, 0, 0, pieces, &count, &retry_after_ms) != PEERFS_OK)
    return fail(argv[1]);
  printf("%12s %12s %-14s %s\n", "OFFSET", "LENGTH", "PATH", "REASON");
  for (size_t i = 0; i < count && i < known; i++)
    print_piece(&pieces[i]);
  if (retry_after_ms)
    printf("worth another try in %" PRIu32 " ms\n", retry_after_ms);
  free(pieces);
  peerfs_file_close(file);
  return 0;
}
