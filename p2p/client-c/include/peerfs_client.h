/* SPDX-License-Identifier: Apache-2.0 OR MIT */

#ifndef PEERFS_CLIENT_H
#define PEERFS_CLIENT_H

/* Made from the crate peerfs-client-c. Do not edit; see p2p/client-c/tests/header.rs. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "peerfs.h"

/*
 * The client library of peerfs: libpeerfs. Link with `pkg-config --cflags --libs peerfs`.
 *
 * Every call that can fail answers PEERFS_OK or an error code; peerfs_last_error() then has a message for
 * people, of the same thread. Results are stored through pointers, and only on success. Objects are made by
 * _open, _map and _access and must be given back exactly once; a NULL object is refused, or, when given back,
 * ignored. Objects may be used by several threads at once, unless they are being given back. In a child made by
 * fork(2) a session and all that comes from it answer PEERFS_STALE_CONTEXT.
 */

// What a call answers.
enum peerfs_code {
  // It worked.
  PEERFS_OK = 0,
  // The object is on no peerfs mount.
  PEERFS_NOT_PEERFS = 1,
  // The session belongs to another process or has ended.
  PEERFS_STALE_CONTEXT = 2,
  // The server of the mount has gone.
  PEERFS_SERVER_GONE = 3,
  // The direct mapping was taken back.
  PEERFS_REVOKED = 4,
  // The range was never direct; peerfs_last_reason() tells why.
  PEERFS_FALLBACK = 5,
  // The range is direct, but in several pieces.
  PEERFS_SPLIT = 6,
  // The range is empty or leaves what it has to lie in.
  PEERFS_RANGE = 7,
  // The mapping was not made for writing.
  PEERFS_READ_ONLY = 8,
  // No atomic operation is possible here; peerfs_last_reason() tells why.
  PEERFS_ATOMIC_UNSUPPORTED = 9,
  // The word is not naturally aligned.
  PEERFS_MISALIGNED = 10,
  // The address cannot be accessed as a mapping for a device.
  PEERFS_ADDRESS = 11,
  // The processor's mapping at the address has changed.
  PEERFS_ADDRESS_CHANGED = 12,
  // An access guard is held at the address.
  PEERFS_ADDRESS_IN_USE = 13,
  // No free addresses are left inside the limits.
  PEERFS_ADDRESS_SPACE_FULL = 14,
  // A system call failed; peerfs_last_errno() has its error number.
  PEERFS_SYSTEM = 15,
  // An argument is NULL or not valid.
  PEERFS_INVALID_ARGUMENT = 16,
  // The library has a bug, which was contained.
  PEERFS_PANIC = 17,
  // Any other failure.
  PEERFS_OTHER = 18,
};

// Addresses of this process that a device reaches too.
struct peerfs_addresses;

// An open file. Its plain reads and writes go past the page cache.
struct peerfs_file;

// Access to a directly mapped range by address. A revocation waits for it, up to the deadline; after that an access by
// address raises SIGBUS.
struct peerfs_guard;

// A mapped range of a file.
struct peerfs_mapping;

// An importer bound to this process. It has a thread of its own that answers revocations.
struct peerfs_session;

// A piece of a file and how the importer reaches it.
struct peerfs_piece {
  // Offset in the file, bytes.
  uint64_t file_offset;
  // Length, bytes.
  uint64_t length;
  // Where it lies on the storage device, bytes (query, direct), else 0.
  uint64_t device_offset;
  // `enum peerfs_path`.
  uint32_t path;
  // `enum peerfs_reason` of a fallback, else 0.
  uint32_t reason;
};

// An importer: what a program says about the device it maps for.
struct peerfs_importer {
  // Name, at most 31 bytes; NULL means `cpu`.
  const char *name;
  // PCI address such as `0000:01:00.0`; NULL for software.
  const char *pci_address;
  // PEERFS_IMPORTER_* flags. Without PEERFS_IMPORTER_DYNAMIC it cannot honour revocation and may hold only pins.
  uint32_t flags;
  // Bits of address it can put on the bus.
  uint32_t dma_bits;
  // Bits of virtual address it can use.
  uint32_t va_bits;
  // Its page size, bytes.
  uint32_t page_bytes;
};

// Bytes moved, by path.
struct peerfs_moved {
  // Through a software aperture in memory.
  uint64_t direct_window;
  // Through a device's BAR.
  uint64_t direct_bar;
  // Through the filesystem.
  uint64_t fallback;
};

// A pin: memory with pieces of a file in it.
struct peerfs_pin {
  // What of the file the first byte of the memory is.
  uint64_t file_offset;
  // Size of the memory, bytes; what lies between the pieces reads as zeros.
  uint64_t length;
  // PEERFS_GRANT_PINNED_MEMFD or PEERFS_GRANT_PINNED_DMABUF.
  uint32_t kind;
  // The mapping's own descriptor: duplicate it to keep it longer than the mapping.
  int32_t fd;
};

// What is told when a direct mapping ends.
struct peerfs_revocation {
  // The mapping.
  uint64_t mapping_id;
  // Start of the range in the file, bytes.
  uint64_t file_offset;
  // Length of the range, bytes.
  uint64_t length;
  // `enum peerfs_trigger`; 0 for one newer than this library.
  uint32_t trigger;
  // How long the importer may take to stop, milliseconds.
  uint32_t deadline_ms;
};

// Called on the library's own thread before a revocation is acknowledged. It must not block.
typedef void (*peerfs_revoke_callback)(const struct peerfs_revocation *revocation, void *data);

// Where a range of addresses may be placed.
struct peerfs_placement {
  // First address allowed.
  uint64_t low;
  // One past the last address allowed.
  uint64_t high;
  // What the address is a multiple of: a power of two, at least 4096.
  uint64_t alignment;
  // Take the highest address that fits, not the lowest.
  bool top_down;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// What went wrong in the last call of this thread that failed, and what to do. Valid until the next call that fails.
const char *peerfs_last_error(void);

// Error number of the system call that failed last in this thread, else 0.
int32_t peerfs_last_errno(void);

// The `enum peerfs_reason` of this thread's last failure, else 0.
uint32_t peerfs_last_reason(void);

// Opens an existing file, for writing too if wanted.
//
// Strings end with NUL; pointers are valid or NULL.
enum peerfs_code peerfs_file_open(const char *path, bool writable, struct peerfs_file **file);

// Gives a file back. Mappings of it live on.
void peerfs_file_close(struct peerfs_file *file);

// Reads through the filesystem until the buffer is full or the file ends; stores the bytes read.
//
// The buffer has `length` bytes.
enum peerfs_code peerfs_file_read(const struct peerfs_file *file,
                                  uint64_t offset,
                                  void *buffer,
                                  size_t length,
                                  size_t *done);

// Writes all bytes through the filesystem.
//
// The buffer has `length` bytes.
enum peerfs_code peerfs_file_write(const struct peerfs_file *file,
                                   uint64_t offset,
                                   const void *buffer,
                                   size_t length);

// The decision table of a range for an importer known by name (NULL: `cpu`); nothing changes. `length` 0 is to the end of
// the file. `count` is the room in `pieces`, and becomes how many there are.
//
// Strings end with NUL; `pieces` has room for `count`.
enum peerfs_code peerfs_file_query(const struct peerfs_file *file,
                                   const char *importer,
                                   uint64_t offset,
                                   uint64_t length,
                                   uint32_t flags,
                                   struct peerfs_piece *pieces,
                                   size_t *count);

// Revokes every direct mapping of a range, of all processes (`length` 0: to the end); stores how many grants that were.
enum peerfs_code peerfs_file_revoke(const struct peerfs_file *file,
                                    uint64_t offset,
                                    uint64_t length,
                                    uint64_t *grants);

// Registers an importer (NULL: the software importer `cpu`) with the mount that `directory` is in.
//
// Strings end with NUL; pointers are valid or NULL.
enum peerfs_code peerfs_session_open(const char *directory,
                                     const struct peerfs_importer *importer,
                                     struct peerfs_session **session);

// Gives a session back. It ends with its last mapping.
void peerfs_session_close(struct peerfs_session *session);

// Revocations that the session has heard of.
uint64_t peerfs_session_revocations(const struct peerfs_session *session);

// The decision table of a range for this session's importer, as peerfs_file_query.
//
// `pieces` has room for `count`.
enum peerfs_code peerfs_session_query(const struct peerfs_session *session,
                                      const struct peerfs_file *file,
                                      uint64_t offset,
                                      uint64_t length,
                                      uint32_t flags,
                                      struct peerfs_piece *pieces,
                                      size_t *count);

// Maps a range (`length` 0: to the end of the file). What cannot be direct falls back, which is no error.
enum peerfs_code peerfs_session_map(const struct peerfs_session *session,
                                    const struct peerfs_file *file,
                                    uint64_t offset,
                                    uint64_t length,
                                    uint32_t flags,
                                    struct peerfs_mapping **mapping);

// Ends a mapping and gives it back, whatever the answer. Stores what has moved through it, unless `moved` is NULL.
enum peerfs_code peerfs_mapping_unmap(struct peerfs_mapping *mapping,
                                      struct peerfs_moved *moved);

// The range in the file, bytes.
enum peerfs_code peerfs_mapping_range(const struct peerfs_mapping *mapping,
                                      uint64_t *start,
                                      uint64_t *end);

// How each piece was decided when it was mapped. `count` is the room in `pieces`, and becomes how many there are.
//
// `pieces` has room for `count`.
enum peerfs_code peerfs_mapping_pieces(const struct peerfs_mapping *mapping,
                                       struct peerfs_piece *pieces,
                                       size_t *count);

// The pins behind a mapping made with PEERFS_MAP_PIN. `count` is the room in `pins`, and becomes how many there are. A pin
// lives until its last holder is gone, whoever that is.
//
// `pins` has room for `count`.
enum peerfs_code peerfs_mapping_pins(const struct peerfs_mapping *mapping,
                                     struct peerfs_pin *pins,
                                     size_t *count);

// Bytes that fell back so far for a reason (`enum peerfs_reason`), or, for 0, because they were revoked after they had
// been mapped.
enum peerfs_code peerfs_mapping_fallback_bytes(const struct peerfs_mapping *mapping,
                                               uint32_t reason,
                                               uint64_t *bytes);

// Reads from the file offset on until the buffer is full or the file ends. What is revoked on the way is read through the
// filesystem. Stores what was read by which path, unless `moved` is NULL.
//
// The buffer has `length` bytes.
enum peerfs_code peerfs_mapping_read(const struct peerfs_mapping *mapping,
                                     uint64_t offset,
                                     void *buffer,
                                     size_t length,
                                     struct peerfs_moved *moved);

// Writes all bytes at the file offset, with the same promise as peerfs_mapping_read.
//
// The buffer has `length` bytes.
enum peerfs_code peerfs_mapping_write(const struct peerfs_mapping *mapping,
                                      uint64_t offset,
                                      const void *buffer,
                                      size_t length,
                                      struct peerfs_moved *moved);

// Calls back with `data`, on the library's thread, when part of the mapping is revoked, before that is acknowledged. The
// importer has to have stopped, or to hold a guard, when the callback returns. `data` has to live until the mapping is
// given back and a callback that runs then has returned.
enum peerfs_code peerfs_mapping_on_revoke(const struct peerfs_mapping *mapping,
                                          peerfs_revoke_callback callback,
                                          void *data);

// Takes the address of a directly mapped range. PEERFS_FALLBACK or PEERFS_REVOKED when it is not direct (any more).
enum peerfs_code peerfs_mapping_access(const struct peerfs_mapping *mapping,
                                       uint64_t offset,
                                       uint64_t length,
                                       struct peerfs_guard **guard);

// Adds to the u64 at the file offset, atomically among all importers, and stores what it was. An error means that nothing
// was added; after PEERFS_REVOKED map again and repeat.
enum peerfs_code peerfs_mapping_fetch_add_u64(const struct peerfs_mapping *mapping,
                                              uint64_t offset,
                                              uint64_t value,
                                              uint64_t *was);

// As peerfs_mapping_fetch_add_u64.
enum peerfs_code peerfs_mapping_fetch_add_u32(const struct peerfs_mapping *mapping,
                                              uint64_t offset,
                                              uint32_t value,
                                              uint32_t *was);

// Stores `wanted` in the u64 at the file offset if it is `current`, atomically, and stores in `was` what it was.
enum peerfs_code peerfs_mapping_compare_exchange_u64(const struct peerfs_mapping *mapping,
                                                     uint64_t offset,
                                                     uint64_t current,
                                                     uint64_t wanted,
                                                     uint64_t *was);

// As peerfs_mapping_compare_exchange_u64.
enum peerfs_code peerfs_mapping_compare_exchange_u32(const struct peerfs_mapping *mapping,
                                                     uint64_t offset,
                                                     uint32_t current,
                                                     uint32_t wanted,
                                                     uint32_t *was);

// Start address, for reading; NULL for a NULL guard.
const void *peerfs_guard_address(const struct peerfs_guard *guard);

// Start address, for writing; NULL when not mapped with PEERFS_MAP_WRITE.
void *peerfs_guard_address_for_writing(const struct peerfs_guard *guard);

// Was everything done through the guard until now done on the file's own bytes? What was read before counts only if so.
bool peerfs_guard_still_valid(const struct peerfs_guard *guard);

// Adds bytes moved by address to what the mapping reports.
void peerfs_guard_count(const struct peerfs_guard *guard, uint64_t bytes);

// Gives a guard back.
void peerfs_guard_release(struct peerfs_guard *guard);

// Maps for the device what the processor has mapped at `length` bytes from `address` on: shared mappings of files of the
// mount. Where the processor's mapping ends or changes the device's ends too, at the latest before its next access.
enum peerfs_code peerfs_session_map_address(const struct peerfs_session *session,
                                            const void *address,
                                            size_t length,
                                            uint32_t flags,
                                            struct peerfs_addresses **addresses);

// Ends the device's side and gives it back; the processor's mappings stay.
void peerfs_addresses_close(struct peerfs_addresses *addresses);

// The device reads at an address. PEERFS_ADDRESS_CHANGED when the processor's mapping is another one now.
//
// The buffer has `length` bytes.
enum peerfs_code peerfs_addresses_read(const struct peerfs_addresses *addresses,
                                       const void *address,
                                       void *buffer,
                                       size_t length,
                                       struct peerfs_moved *moved);

// The device writes at an address, as peerfs_addresses_read.
//
// The buffer has `length` bytes.
enum peerfs_code peerfs_addresses_write(const struct peerfs_addresses *addresses,
                                        const void *address,
                                        const void *buffer,
                                        size_t length,
                                        struct peerfs_moved *moved);

// munmap(2), the device's side first.
//
// As for munmap(2): nobody uses the memory any more.
enum peerfs_code peerfs_addresses_munmap(const struct peerfs_addresses *addresses,
                                         void *address,
                                         size_t length);

// mprotect(2), the device's side first; it is taken up again as far as the new protection allows.
//
// As for mprotect(2).
enum peerfs_code peerfs_addresses_mprotect(const struct peerfs_addresses *addresses,
                                           void *address,
                                           size_t length,
                                           int32_t protection);

// mremap(2) with MREMAP_MAYMOVE, the device's side first; it follows to the new addresses.
//
// As for mremap(2): nobody uses the old addresses any more.
enum peerfs_code peerfs_addresses_mremap(const struct peerfs_addresses *addresses,
                                         void *address,
                                         size_t old_length,
                                         size_t new_length,
                                         void **new_address);

// Reserves `length` bytes (whole pages) of free addresses inside the limits, without access, for a mapping that is to have
// the same address for the processor and a device: replace it with mmap(2) and MAP_FIXED. It is the caller's to unmap.
// Nothing that is mapped is ever replaced, whatever other threads map meanwhile.
enum peerfs_code peerfs_reserve(size_t length,
                                const struct peerfs_placement *placement,
                                void **address);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* PEERFS_CLIENT_H */
