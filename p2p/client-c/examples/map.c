/*
 * Maps a file, reads it by address under a guard, revokes the mapping as an administrator would, hears of it,
 * and reads the same bytes by fallback. Needs the right to revoke: run it as the owner of the mount.
 *
 *     cc -o map map.c $(pkg-config --cflags --libs peerfs)
 *     ./map DIRECTORY FILE
 */

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "peerfs_client.h"

enum { PIECE = 4096 };

static int fail(const char *what) {
  fprintf(stderr, "map: %s: %s\n", what, peerfs_last_error());
  return 1;
}

/* Runs on the library's thread, before the revocation is acknowledged. */
static void on_revoke(const struct peerfs_revocation *revocation, void *data) {
  (void)revocation;
  atomic_fetch_add((atomic_int *)data, 1);
}

/* Reads by address: what was read counts only if the guard was valid afterwards. */
static int read_by_address(struct peerfs_mapping *mapping, unsigned char *bytes) {
  struct peerfs_guard *guard;
  if (peerfs_mapping_access(mapping, 0, PIECE, &guard) != PEERFS_OK)
    return 0;
  memcpy(bytes, peerfs_guard_address(guard), PIECE);
  int valid = peerfs_guard_still_valid(guard);
  if (valid)
    peerfs_guard_count(guard, PIECE);
  peerfs_guard_release(guard);
  return valid;
}

int main(int argc, char **argv) {
  static unsigned char first[PIECE], second[PIECE];
  static atomic_int heard;
  struct peerfs_file *file;
  struct peerfs_session *session;
  struct peerfs_mapping *mapping;
  struct peerfs_moved moved;
  struct peerfs_revoked revoked;
  if (argc != 3) {
    fprintf(stderr, "usage: map DIRECTORY FILE\n");
    return 2;
  }
  if (peerfs_file_open(argv[2], false, &file) != PEERFS_OK)
    return fail(argv[2]);
  if (peerfs_session_open(argv[1], NULL, &session) != PEERFS_OK)
    return fail(argv[1]);
  if (peerfs_session_map(session, file, 0, 0, 0, &mapping) != PEERFS_OK)
    return fail(argv[2]);
  if (peerfs_mapping_on_revoke(mapping, on_revoke, &heard) != PEERFS_OK)
    return fail(argv[2]);
  if (!read_by_address(mapping, first))
    return fail("the first piece is not direct");

  /* The answer comes after the acknowledgement, so the callback has run by then. */
  if (peerfs_file_revoke(file, 0, 0, &revoked) != PEERFS_OK)
    return fail("revoke");
  if (read_by_address(mapping, second)) {
    fprintf(stderr, "map: the address was given out again after the revocation\n");
    return 1;
  }
  if (peerfs_mapping_read(mapping, 0, second, PIECE, &moved) != PEERFS_OK)
    return fail(argv[2]);
  printf("%" PRIu64 " revoked, %d heard, %" PRIu64 " bytes by fallback, %s\n", revoked.grants, atomic_load(&heard),
         moved.fallback, memcmp(first, second, PIECE) ? "different" : "the same bytes");
  if (peerfs_mapping_unmap(mapping, &moved) != PEERFS_OK)
    return fail("unmap");
  printf("%" PRIu64 " bytes directly, %" PRIu64 " by fallback\n", moved.direct_window + moved.direct_bar,
         moved.fallback);
  peerfs_session_close(session);
  peerfs_file_close(file);
  return 0;
}
