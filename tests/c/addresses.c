/* Mapping by address: addresses DIRECTORY */

#define _GNU_SOURCE
#include "check.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGES = 8, SIZE = PAGES * PAGE };

static unsigned char *map_for_the_processor(const char *directory) {
  char path[4096];
  snprintf(path, sizeof path, "%s/shared", directory);
  int fd = open(path, O_RDONLY);
  void *address = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
  ASSERT(fd >= 0 && address != MAP_FAILED && close(fd) == 0);
  return address;
}

/* The page that the device reads at an address. */
static int read_page(struct peerfs_addresses *addresses, const unsigned char *at, struct peerfs_moved *moved) {
  unsigned char byte;
  OK(peerfs_addresses_read(addresses, at, &byte, 1, moved));
  return byte;
}

static void looks(struct peerfs_addresses *addresses, const unsigned char *start) {
  struct peerfs_stretch stretches[2];
  struct peerfs_piece piece;
  struct peerfs_moved moved;
  size_t room = 2;
  OK(peerfs_addresses_stretches(addresses, stretches, &room));
  ASSERT(room == 1 && stretches[0].address == (uintptr_t)start && stretches[0].length == SIZE);
  ASSERT(stretches[0].backing == PEERFS_BACKING_FILE && stretches[0].inode != 0 && stretches[0].file_offset == 0);
  ASSERT(stretches[0].why[0] == 0);
  room = 1;
  OK(peerfs_addresses_pieces(addresses, start + PAGE, &piece, &room));
  ASSERT(room == 1 && piece.length == SIZE && piece.path == PEERFS_PATH_DIRECT_WINDOW);
  REFUSED(PEERFS_INVALID_ARGUMENT, peerfs_addresses_pieces(addresses, start + SIZE, &piece, &room));
  ASSERT(read_page(addresses, start + PAGE, &moved) == 2 && moved.direct_window == 1);
  OK(peerfs_addresses_moved(addresses, &moved));
  ASSERT(moved.direct_window == 1);
}

static void guards(struct peerfs_addresses *addresses, unsigned char *start) {
  struct peerfs_guard *guard;
  OK(peerfs_addresses_access(addresses, start + 2 * PAGE, PAGE, &guard));
  ASSERT(peerfs_guard_path(guard) == PEERFS_PATH_DIRECT_WINDOW && peerfs_guard_length(guard) == PAGE);
  ASSERT(*(const unsigned char *)peerfs_guard_address(guard) == 3 && peerfs_guard_still_valid(guard));
  REFUSED(PEERFS_ADDRESS_IN_USE, peerfs_addresses_release(addresses, start, SIZE));
  REFUSED(PEERFS_ADDRESS_IN_USE, peerfs_addresses_munmap(addresses, start, PAGE));
  peerfs_guard_release(guard);

  OK(peerfs_addresses_release(addresses, start, PAGE));
  unsigned char byte;
  REFUSED(PEERFS_ADDRESS_CHANGED, peerfs_addresses_read(addresses, start, &byte, 1, NULL));
  OK(peerfs_addresses_renew(addresses, start, SIZE));
  ASSERT(read_page(addresses, start, NULL) == 1);
}

static void changes(struct peerfs_addresses *addresses, unsigned char *start) {
  unsigned char byte;
  void *moved_to;
  OK(peerfs_addresses_munmap(addresses, start + 3 * PAGE, PAGE));
  REFUSED(PEERFS_ADDRESS, peerfs_addresses_read(addresses, start + 3 * PAGE, &byte, 1, NULL));
  ASSERT(read_page(addresses, start, NULL) == 1 && read_page(addresses, start + 4 * PAGE, NULL) == 5);

  OK(peerfs_addresses_mprotect(addresses, start, PAGE, PROT_NONE));
  REFUSED(PEERFS_ADDRESS, peerfs_addresses_read(addresses, start, &byte, 1, NULL));
  ASSERT(read_page(addresses, start + PAGE, NULL) == 2);
  OK(peerfs_addresses_mprotect(addresses, start, PAGE, PROT_READ));
  ASSERT(read_page(addresses, start, NULL) == 1);
  REFUSED(PEERFS_SYSTEM, peerfs_addresses_mprotect(addresses, start, PAGE, PROT_READ | PROT_WRITE));
  ASSERT(peerfs_last_errno() != 0 && read_page(addresses, start, NULL) == 1);

  OK(peerfs_addresses_mremap(addresses, start + 4 * PAGE, 4 * PAGE, 2 * PAGE, &moved_to));
  ASSERT(moved_to == start + 4 * PAGE && read_page(addresses, start + 5 * PAGE, NULL) == 6);
  REFUSED(PEERFS_ADDRESS, peerfs_addresses_read(addresses, start + 6 * PAGE, &byte, 1, NULL));
}

static void revocation(struct peerfs_session *session, struct peerfs_file *file, unsigned char *start) {
  struct peerfs_addresses *addresses;
  struct peerfs_revoked revoked;
  struct peerfs_moved moved;
  int heard = 0;
  OK(peerfs_session_map_address(session, start, 3 * PAGE, 0, &addresses));
  OK(peerfs_addresses_on_revoke(addresses, count, &heard));
  OK(peerfs_file_revoke(file, 0, 0, &revoked));
  ASSERT(revoked.grants >= 1 && revoked.enforced == 0);
  ASSERT(read_page(addresses, start + PAGE, &moved) == 2 && moved.fallback == 1);

  struct peerfs_guard *guard;
  OK(peerfs_addresses_renew(addresses, start, 3 * PAGE));
  OK(peerfs_addresses_access(addresses, start, PAGE, &guard));
  peerfs_addresses_close(addresses);
  ASSERT(heard == (int)revoked.grants && !peerfs_guard_still_valid(guard));
  peerfs_guard_release(guard);
}

static void reservation(void) {
  struct peerfs_placement low = {.low = 1 << 20, .high = 1ull << 40, .alignment = PAGE, .top_down = true};
  void *place;
  OK(peerfs_reserve(SIZE, &low, &place));
  ASSERT((uintptr_t)place + SIZE <= 1ull << 40 && munmap(place, SIZE) == 0);
  low.alignment = 3;
  REFUSED(PEERFS_ADDRESS, peerfs_reserve(SIZE, &low, &place));
}

int main(int argc, char **argv) {
  ASSERT(argc == 2);
  struct peerfs_file *file = make(argv[1], "shared", PAGES);
  struct peerfs_session *session = start(argv[1]);
  struct peerfs_addresses *addresses;
  unsigned char *start = map_for_the_processor(argv[1]), byte = 0;
  OK(peerfs_session_map_address(session, start, SIZE, 0, &addresses));
  looks(addresses, start);
  REFUSED(PEERFS_READ_ONLY, peerfs_addresses_write(addresses, start, &byte, 1, NULL));
  guards(addresses, start);
  changes(addresses, start);
  peerfs_addresses_close(addresses);
  revocation(session, file, start);
  reservation();
  peerfs_session_close(session);
  peerfs_file_close(file);
  return 0;
}
