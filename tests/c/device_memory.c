/* Device memory: device_memory DIRECTORY, of a mount with 4 MiB of it. */

#include "check.h"

#include <errno.h>

enum { MIB = 1 << 20 };

int main(int argc, char **argv) {
  ASSERT(argc == 2);
  struct peerfs_session *owner = start(argv[1]), *peer = start(argv[1]);
  struct peerfs_devmem *memory, *large;
  struct peerfs_file *file, *shared;
  struct peerfs_mapping *mapping, *theirs;
  struct peerfs_moved moved;
  uint64_t bytes, word = 0;
  bool migrated;
  size_t done;
  OK(peerfs_session_allocate_devmem(owner, MIB - 1, 0600, &memory));
  OK(peerfs_devmem_bytes(memory, &bytes));
  ASSERT(bytes == MIB && peerfs_devmem_id(memory) != 0);
  OK(peerfs_devmem_is_migrated(memory, &migrated));
  ASSERT(!migrated);

  /* The owner's device writes, a peer's device adds, the processor reads. */
  OK(peerfs_devmem_map(memory, 0, 0, PEERFS_MAP_WRITE, &mapping));
  OK(peerfs_mapping_write(mapping, 0, "\7\0\0\0\0\0\0\0", 8, &moved));
  ASSERT(moved.direct_window == 8);
  OK(peerfs_session_open_devmem(peer, peerfs_devmem_id(memory), true, &shared));
  OK(peerfs_session_map(peer, shared, 0, 0, PEERFS_MAP_WRITE | PEERFS_MAP_ATOMIC, &theirs));
  OK(peerfs_mapping_fetch_add_u64(theirs, 0, 1, &word));
  ASSERT(word == 7);
  OK(peerfs_devmem_file(memory, &file));
  OK(peerfs_file_read(file, 0, &word, 8, &done));
  ASSERT(done == 8 && word == 8);

  OK(peerfs_devmem_grow(memory, 2 * MIB));
  OK(peerfs_file_size(file, &bytes));
  ASSERT(bytes == 2 * MIB);
  OK(peerfs_file_read(file, 2 * MIB - 8, &word, 8, &done));
  ASSERT(done == 8 && word == 0);
  REFUSED(PEERFS_SYSTEM, peerfs_devmem_grow(memory, MIB));
  ASSERT(peerfs_last_errno() == EINVAL);
  REFUSED(PEERFS_SYSTEM, peerfs_session_allocate_devmem(owner, 64 * MIB, 0600, &large));
  ASSERT(peerfs_last_errno() == EFBIG);

  uint64_t id = peerfs_devmem_id(memory);
  OK(peerfs_devmem_free(memory));
  REFUSED(PEERFS_SYSTEM, peerfs_session_open_devmem(peer, id, false, &shared));
  ASSERT(peerfs_last_errno() == ENOENT);
  peerfs_file_close(file);
  peerfs_file_close(shared);
  OK(peerfs_mapping_unmap(theirs, NULL));
  OK(peerfs_mapping_unmap(mapping, NULL));
  peerfs_session_close(owner);
  peerfs_session_close(peer);
  return 0;
}
