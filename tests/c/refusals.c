/* Arguments that cannot be are refused, and never crash the program: refusals DIRECTORY */

#include "check.h"

#include <sys/wait.h>
#include <unistd.h>

#define NO(call) REFUSED(PEERFS_INVALID_ARGUMENT, call)

static void without_object(void) {
  uint64_t number;
  uint32_t small;
  size_t room = 0, done;
  bool yes;
  void *address;
  struct peerfs_info info;
  struct peerfs_moved moved;
  struct peerfs_file *file;
  struct peerfs_mapping *mapping;
  struct peerfs_guard *guard;
  struct peerfs_devmem *memory;
  struct peerfs_addresses *addresses;
  NO(peerfs_file_size(NULL, &number));
  NO(peerfs_file_info(NULL, &info));
  NO(peerfs_file_read(NULL, 0, NULL, 0, &done));
  NO(peerfs_file_write(NULL, 0, NULL, 0));
  NO(peerfs_file_query(NULL, NULL, 0, 0, 0, NULL, &room, &small));
  NO(peerfs_file_reflink_from(NULL, NULL, 0, 0, 0, &number));
  NO(peerfs_file_revoke(NULL, 0, 0, NULL));
  NO(peerfs_file_revoke_pins(NULL, 0, 0, NULL));
  NO(peerfs_file_revoke_mount(NULL, NULL));
  NO(peerfs_file_revoke_mount_pins(NULL, NULL));
  NO(peerfs_session_query(NULL, NULL, 0, 0, 0, NULL, &room, &small));
  NO(peerfs_session_map(NULL, NULL, 0, 0, 0, &mapping));
  NO(peerfs_session_map_address(NULL, NULL, 0, 0, &addresses));
  NO(peerfs_session_allocate_devmem(NULL, 1, 0600, &memory));
  NO(peerfs_session_open_devmem(NULL, 1, false, &file));
  NO(peerfs_importer_cpu(NULL));
  NO(peerfs_mapping_range(NULL, &number, &number));
  NO(peerfs_mapping_pieces(NULL, NULL, &room));
  NO(peerfs_mapping_pins(NULL, NULL, &room));
  NO(peerfs_mapping_fallback_bytes(NULL, 0, &number));
  NO(peerfs_mapping_moved(NULL, &moved));
  NO(peerfs_mapping_report(NULL));
  NO(peerfs_mapping_on_revoke(NULL, count, NULL));
  NO(peerfs_mapping_access(NULL, 0, 1, &guard));
  NO(peerfs_guard_load_word(NULL, 0, &number));
  NO(peerfs_addresses_read(NULL, NULL, NULL, 0, NULL));
  NO(peerfs_addresses_write(NULL, NULL, NULL, 0, NULL));
  NO(peerfs_addresses_stretches(NULL, NULL, &room));
  NO(peerfs_addresses_pieces(NULL, NULL, NULL, &room));
  NO(peerfs_addresses_moved(NULL, &moved));
  NO(peerfs_addresses_access(NULL, NULL, 1, &guard));
  NO(peerfs_addresses_on_revoke(NULL, count, NULL));
  NO(peerfs_addresses_release(NULL, NULL, 1));
  NO(peerfs_addresses_renew(NULL, NULL, 1));
  NO(peerfs_addresses_munmap(NULL, NULL, 1));
  NO(peerfs_addresses_mprotect(NULL, NULL, 1, 0));
  NO(peerfs_addresses_mremap(NULL, NULL, 1, 1, &address));
  NO(peerfs_devmem_bytes(NULL, &number));
  NO(peerfs_devmem_is_migrated(NULL, &yes));
  NO(peerfs_devmem_grow(NULL, 1));
  NO(peerfs_devmem_file(NULL, &file));
  NO(peerfs_devmem_map(NULL, 0, 0, 0, &mapping));
  NO(peerfs_reserve(PAGE, NULL, NULL));
  ASSERT(peerfs_mapping_id(NULL) == 0 && peerfs_mapping_retry_after_ms(NULL) == 0 && peerfs_devmem_id(NULL) == 0);
  ASSERT(peerfs_session_context_id(NULL) == 0 && peerfs_session_deadline_ms(NULL) == 0);
  ASSERT(peerfs_session_revocations(NULL) == 0 && peerfs_guard_length(NULL) == 0 && peerfs_guard_path(NULL) == 0);
  ASSERT(!peerfs_guard_address(NULL) && !peerfs_guard_address_for_writing(NULL) && !peerfs_guard_still_valid(NULL));
  peerfs_guard_count(NULL, 1);
}

static void give_back_nothing(void) {
  peerfs_file_close(NULL);
  peerfs_session_close(NULL);
  peerfs_guard_release(NULL);
  peerfs_addresses_close(NULL);
  OK(peerfs_mapping_unmap(NULL, NULL));
  OK(peerfs_devmem_free(NULL));
}

static void wrong_values(const char *directory, struct peerfs_session *session, struct peerfs_file *file) {
  struct peerfs_importer importer;
  struct peerfs_session *refused;
  struct peerfs_mapping *mapping;
  struct peerfs_piece piece;
  struct peerfs_addresses *addresses;
  struct peerfs_devmem *memory;
  uint64_t word;
  size_t room = 1;
  char byte;
  NO(peerfs_session_open(NULL, NULL, &refused));
  NO(peerfs_session_open("\xff", NULL, &refused));
  NO(peerfs_session_open(directory, NULL, NULL));
  OK(peerfs_importer_cpu(&importer));
  importer.flags = UINT32_MAX;
  NO(peerfs_session_open(directory, &importer, &refused));
  OK(peerfs_importer_cpu(&importer));
  importer.name = "a name that is longer than 31 bytes";
  NO(peerfs_session_open(directory, &importer, &refused));
  OK(peerfs_importer_cpu(&importer));
  importer.pci_address = "0000:01:00.0 and more";
  NO(peerfs_session_open(directory, &importer, &refused));

  NO(peerfs_session_map(session, file, 0, 0, UINT32_MAX, &mapping));
  NO(peerfs_session_map(session, file, 1, UINT64_MAX, 0, &mapping));
  NO(peerfs_session_map(session, file, 0, 0, 0, NULL));
  NO(peerfs_file_query(file, NULL, 0, 0, 0, &piece, NULL, NULL));
  NO(peerfs_file_query(file, NULL, 0, 0, 0, NULL, &room, NULL));
  NO(peerfs_file_query(file, "a name that is longer than 31 bytes", 0, 0, 0, &piece, &room, NULL));
  NO(peerfs_file_revoke(file, UINT64_MAX, 2, NULL));
  NO(peerfs_file_read(file, 0, NULL, 1, &room));
  NO(peerfs_file_read(file, 0, &byte, SIZE_MAX, &room));
  NO(peerfs_file_size(file, NULL));
  NO(peerfs_file_info(file, NULL));
  NO(peerfs_session_allocate_devmem(session, PAGE, 0600, NULL));
  REFUSED(PEERFS_SYSTEM, peerfs_session_allocate_devmem(session, UINT64_MAX, 0600, &memory));
  REFUSED(PEERFS_ADDRESS, peerfs_session_map_address(session, (void *)-1, SIZE_MAX, 0, &addresses));
  REFUSED(PEERFS_ADDRESS, peerfs_session_map_address(session, &byte, 0, 0, &addresses));

  OK(peerfs_session_map(session, file, 0, 0, 0, &mapping));
  struct peerfs_guard *guard;
  NO(peerfs_mapping_on_revoke(mapping, NULL, NULL));
  NO(peerfs_mapping_access(mapping, 1, UINT64_MAX, &guard));
  NO(peerfs_mapping_access(mapping, 0, 1, NULL));
  NO(peerfs_mapping_moved(mapping, NULL));
  REFUSED(PEERFS_RANGE, peerfs_mapping_access(mapping, 0, 0, &guard));
  REFUSED(PEERFS_READ_ONLY, peerfs_mapping_fetch_add_u64(mapping, 0, 1, &word));
  OK(peerfs_mapping_access(mapping, 0, PAGE, &guard));
  NO(peerfs_guard_load_word(guard, 0, NULL));
  REFUSED(PEERFS_RANGE, peerfs_guard_load_word(guard, SIZE_MAX, &word));
  REFUSED(PEERFS_RANGE, peerfs_guard_load_word(guard, 1, &word));
  peerfs_guard_release(guard);
  OK(peerfs_mapping_unmap(mapping, NULL));

  OK(peerfs_session_map_address(session, &byte, 1, 0, &addresses));
  NO(peerfs_addresses_on_revoke(addresses, NULL, NULL));
  NO(peerfs_addresses_release(addresses, (void *)-1, SIZE_MAX));
  REFUSED(PEERFS_ADDRESS, peerfs_addresses_munmap(addresses, &byte, 0));
  peerfs_addresses_close(addresses);
}

/* What a child made by fork(2) does with its parent's objects is refused too. */
static void in_a_child(struct peerfs_session *session, struct peerfs_file *file) {
  struct peerfs_mapping *mapping = map(session, file, 0), *refused;
  struct peerfs_devmem *memory;
  int status;
  pid_t child = fork();
  if (child == 0) {
    REFUSED(PEERFS_STALE_CONTEXT, peerfs_session_map(session, file, 0, 0, 0, &refused));
    REFUSED(PEERFS_STALE_CONTEXT, peerfs_session_allocate_devmem(session, PAGE, 0600, &memory));
    REFUSED(PEERFS_STALE_CONTEXT, peerfs_mapping_report(mapping));
    REFUSED(PEERFS_STALE_CONTEXT, peerfs_mapping_unmap(mapping, NULL));
    peerfs_session_close(session);
    _exit(0);
  }
  ASSERT(child > 0 && waitpid(child, &status, 0) == child && status == 0);
  OK(peerfs_mapping_unmap(mapping, NULL));
}

int main(int argc, char **argv) {
  ASSERT(argc == 2);
  without_object();
  give_back_nothing();
  struct peerfs_session *session = start(argv[1]);
  struct peerfs_file *file = make(argv[1], "refused", 2);
  wrong_values(argv[1], session, file);
  in_a_child(session, file);
  peerfs_session_close(session);
  peerfs_file_close(file);
  return 0;
}
