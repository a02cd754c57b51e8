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
 * people, of the same thread. Results are stored through pointers, and only on success. Objects are handed over
 * through a pointer to a pointer and must be given back exactly once, in any order; a NULL object is refused, or, when
 * given back, ignored. In a child made by fork(2) a session and all that comes from it answer PEERFS_STALE_CONTEXT.
 *
 * Threads. Every object (file, session, mapping, guard, addresses, device memory) may be used by any number of threads
 * at once, and be given back by another thread than the one that made it; but only when no thread uses it any more,
 * callbacks apart. The last error, its number and its reason are each thread's own. What is passed by pointer (buffers,
 * arrays, results) is the caller's, and of one call only.
 *
 * Callbacks. They run on the session's own thread, one at a time for each session, with the program's signals blocked.
 * Giving a mapping (or addresses) back waits until a callback of it that runs has returned, so that afterwards nothing
 * uses its `data`: hold no lock then that the callback takes. The callback may use the mapping until it returns. It may
 * itself give mappings back, also its own: then it does not wait for itself, nor for a callback of another session
 * that waits for it; a mapping that was given back so, by a callback that another one waits for, must not be used by
 * either afterwards.
 */

// What a call answers. peerfs_last_error() names the object and what to do.
enum peerfs_code {
  // It worked.
  PEERFS_OK = 0,
  // The file or directory is on no peerfs mount, or is none that a device can map.
  PEERFS_NOT_PEERFS = 1,
  // The session belongs to another process (this one is a child made by fork(2)) or has ended: open a new one.
  PEERFS_STALE_CONTEXT = 2,
  // The server of the mount has gone: nothing of it may be used any more.
  PEERFS_SERVER_GONE = 3,
  // The direct mapping was taken back: read and write by copying, or map again.
  PEERFS_REVOKED = 4,
  // The range was never direct; peerfs_last_reason() tells why.
  PEERFS_FALLBACK = 5,
  // The range is direct, but in several pieces: ask for each of peerfs_mapping_pieces().
  PEERFS_SPLIT = 6,
  // The range is empty or leaves what it has to lie in.
  PEERFS_RANGE = 7,
  // The mapping was not made with PEERFS_MAP_WRITE.
  PEERFS_READ_ONLY = 8,
  // No atomic operation is possible here; peerfs_last_reason() tells why.
  PEERFS_ATOMIC_UNSUPPORTED = 9,
  // The word is not naturally aligned: its offset is no multiple of its size.
  PEERFS_MISALIGNED = 10,
  // The address cannot be accessed as a mapping for a device, or the placement cannot be.
  PEERFS_ADDRESS = 11,
  // The processor's mapping at the address has changed, so the device has lost it: renew it.
  PEERFS_ADDRESS_CHANGED = 12,
  // An access guard is held at the address: release it first.
  PEERFS_ADDRESS_IN_USE = 13,
  // No free addresses are left inside the limits.
  PEERFS_ADDRESS_SPACE_FULL = 14,
  // A system call, or the server, refused; peerfs_last_errno() has the error number.
  PEERFS_SYSTEM = 15,
  // An argument is NULL or not valid; nothing was done.
  PEERFS_INVALID_ARGUMENT = 16,
  // The library has a bug, which was contained.
  PEERFS_PANIC = 17,
  // Any other failure, such as an answer of the server that this version of the library does not understand.
  PEERFS_OTHER = 18,
};

// What is behind a stretch of addresses.
enum peerfs_backing {
  // A file of the mount, mapped for the device.
  PEERFS_BACKING_FILE = 1,
  // Memory that is no shared mapping of a regular file of the mount: it can be read, by fallback.
  PEERFS_BACKING_MEMORY = 2,
  // Nothing that the device may use: an access is an error.
  PEERFS_BACKING_NOTHING = 3,
  // The processor's mapping ended or changed: so did the device's.
  PEERFS_BACKING_ENDED = 4,
};

// Addresses of this process that a device reaches too.
struct peerfs_addresses;

// Device memory that a session allocated. It ends when it is freed, or with its session; everybody's mappings of it are
// revoked first.
struct peerfs_devmem;

// An open file. Its plain reads and writes go past the page cache.
struct peerfs_file;

// Access to a directly mapped range by address. A revocation waits for it, up to the deadline; after that an access by
// address raises SIGBUS. It may outlive the mapping, but is not valid any more then.
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
  // `enum peerfs_reason` of a fallback, the first in pipeline order, else 0.
  uint32_t reason;
  // Every reason that refuses it, not only the first (query): bit n stands for peerfs_reason_of_bit(n).
  uint32_t refusals;
  // What could end a mapping of it later (query, direct): bit n stands for the `enum peerfs_trigger` n.
  uint32_t triggers;
  // What it is pinned as (map with PEERFS_MAP_PIN, direct): PEERFS_GRANT_PINNED_MEMFD or PEERFS_GRANT_PINNED_DMABUF, else 0.
  uint32_t pin;
};

// What a revocation on demand did.
struct peerfs_revoked {
  // Grants that were revoked.
  uint64_t grants;
  // How many of them were cut without an acknowledgement.
  uint64_t enforced;
  // Pins that were cut.
  uint64_t pins_cut;
  // Dma-bufs that lost the file's blocks, while their holders keep the memory.
  uint64_t pins_detached;
  // Time to the cut, microseconds.
  uint64_t latency_us;
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

// How a session behaves.
struct peerfs_session_options {
  // Honour revocations. Without it the session is a hung importer: it hears of revocations and calls back, but keeps its
  // windows and never acknowledges.
  bool acknowledge;
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

// Called on the session's own thread before a revocation is acknowledged. It must not block, nor call what needs an answer
// about the range from the server. It may use and end mappings; see "Callbacks" above.
typedef void (*peerfs_revoke_callback)(const struct peerfs_revocation *revocation, void *data);

// Addresses with one thing behind them.
struct peerfs_stretch {
  // First address.
  uint64_t address;
  // Length, bytes, in whole pages.
  uint64_t length;
  // Inode number of the file (PEERFS_BACKING_FILE), else 0.
  uint64_t inode;
  // Offset in the file of the first address, bytes (PEERFS_BACKING_FILE), else 0.
  uint64_t file_offset;
  // `enum peerfs_backing`.
  uint32_t backing;
  // Why it is no file that is mapped for the device, for people; ends with NUL.
  char why[96];
};

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

// Size of the file, bytes.
enum peerfs_code peerfs_file_size(const struct peerfs_file *file, uint64_t *bytes);

// State of the server and of the file: space, mappings, revocations, and the bytes of the file moved directly and by
// fallback, these also by reason: `file_fallback[n]` is for peerfs_reason_of_bit(n - 1), and `file_fallback[0]` for what
// was direct when it was mapped, and was revoked since. Importers report to it when they unmap, and when they say so.
enum peerfs_code peerfs_file_info(const struct peerfs_file *file,
                                  struct peerfs_info *info);

// Makes a range of `file`, open for writing, share the blocks of `source`, open for reading: nothing is copied until one of
// the two is written. `length` 0 is to the end of the source; everything in multiples of 4096, but for a range that ends
// where both files end. Stores the bytes shared, unless `shared` is NULL. Mappings for writing of the source's range and
// all mappings of the file's range end. PEERFS_SYSTEM with EXDEV when the files are not on one mount, EINVAL when the range
// is misaligned, beyond the source or overlapping, EISDIR, EBADF, ETXTBSY, EFBIG, ENOSPC.
enum peerfs_code peerfs_file_reflink_from(const struct peerfs_file *file,
                                          const struct peerfs_file *source,
                                          uint64_t source_offset,
                                          uint64_t offset,
                                          uint64_t length,
                                          uint64_t *shared);

// The decision table of a range for an importer known by name (NULL: `cpu`); nothing changes. `length` 0 is to the end of
// the file. `count` is the room in `pieces`, and becomes how many there are. `retry_after_ms`, unless NULL, becomes the
// milliseconds after which it is worth asking again because something is PEERFS_REASON_BUSY, else 0.
//
// Strings end with NUL; `pieces` has room for `count`.
enum peerfs_code peerfs_file_query(const struct peerfs_file *file,
                                   const char *importer,
                                   uint64_t offset,
                                   uint64_t length,
                                   uint32_t flags,
                                   struct peerfs_piece *pieces,
                                   size_t *count,
                                   uint32_t *retry_after_ms);

// Revokes every direct mapping of a range, of all processes (`length` 0: to the end). Stores what that did, unless
// `revoked` is NULL. PEERFS_SYSTEM with EPERM for those who may not.
enum peerfs_code peerfs_file_revoke(const struct peerfs_file *file,
                                    uint64_t offset,
                                    uint64_t length,
                                    struct peerfs_revoked *revoked);

// As peerfs_file_revoke, and takes pins of the range back by force. For the owner of the mount only.
enum peerfs_code peerfs_file_revoke_pins(const struct peerfs_file *file,
                                         uint64_t offset,
                                         uint64_t length,
                                         struct peerfs_revoked *revoked);

// Revokes every direct mapping of the mount that the file is on, as peerfs_file_revoke. For the owner of the mount only.
enum peerfs_code peerfs_file_revoke_mount(const struct peerfs_file *file,
                                          struct peerfs_revoked *revoked);

// As peerfs_file_revoke_mount, and takes every pin of the mount back by force.
enum peerfs_code peerfs_file_revoke_mount_pins(const struct peerfs_file *file,
                                               struct peerfs_revoked *revoked);

// Revokes one mapping of the mount the file is on, by its number in `peerfs mappings`: for the owner of the mount only.
// As peerfs_file_revoke; the system's ENOENT where there is no such mapping.
enum peerfs_code peerfs_file_revoke_mapping(const struct peerfs_file *file,
                                            uint64_t mapping,
                                            struct peerfs_revoked *revoked);

// Fills in the software importer `cpu`: no limits, honours revocation. A start for a device of one's own.
enum peerfs_code peerfs_importer_cpu(struct peerfs_importer *importer);

// Registers an importer (NULL: the software importer `cpu`) with the mount that `directory` is in.
//
// Strings end with NUL; pointers are valid or NULL.
enum peerfs_code peerfs_session_open(const char *directory,
                                     const struct peerfs_importer *importer,
                                     struct peerfs_session **session);

// As peerfs_session_open; `options` may be NULL.
//
// Strings end with NUL; pointers are valid or NULL.
enum peerfs_code peerfs_session_open_with(const char *directory,
                                          const struct peerfs_importer *importer,
                                          const struct peerfs_session_options *options,
                                          struct peerfs_session **session);

// Gives a session back. It ends with its last mapping and device memory.
void peerfs_session_close(struct peerfs_session *session);

// Number of the session's context, never used again on this volume; 0 for a NULL session.
uint64_t peerfs_session_context_id(const struct peerfs_session *session);

// How long an importer may take to stop after a revocation, milliseconds; 0 for a NULL session.
uint32_t peerfs_session_deadline_ms(const struct peerfs_session *session);

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
                                      size_t *count,
                                      uint32_t *retry_after_ms);

// Maps a range (`length` 0: to the end of the file). What cannot be direct falls back, which is no error.
enum peerfs_code peerfs_session_map(const struct peerfs_session *session,
                                    const struct peerfs_file *file,
                                    uint64_t offset,
                                    uint64_t length,
                                    uint32_t flags,
                                    struct peerfs_mapping **mapping);

// Ends a mapping and gives it back, whatever the answer. Stores what has moved through it, unless `moved` is NULL. Waits for
// a callback of the mapping that runs, which may use the mapping until it returns; see "Callbacks" above.
//
// The mapping is not given back by another thread too.
enum peerfs_code peerfs_mapping_unmap(struct peerfs_mapping *mapping,
                                      struct peerfs_moved *moved);

// The server's number of the mapping, as in revocations and `peerfs mappings`; 0 for a NULL mapping.
uint64_t peerfs_mapping_id(const struct peerfs_mapping *mapping);

// After a piece was refused because it is PEERFS_REASON_BUSY: milliseconds after which it is worth mapping again, else 0.
uint32_t peerfs_mapping_retry_after_ms(const struct peerfs_mapping *mapping);

// What has moved through the mapping so far.
enum peerfs_code peerfs_mapping_moved(const struct peerfs_mapping *mapping,
                                      struct peerfs_moved *moved);

// Tells the server what has moved since the last report; unmapping does so too.
enum peerfs_code peerfs_mapping_report(const struct peerfs_mapping *mapping);

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

// Calls back with `data`, on the session's own thread, when part of the mapping is revoked, before that is acknowledged. The
// importer has to have stopped, or to hold a guard, when the callback returns. A revocation that came before is not told:
// an access finds out. `data` has to live until peerfs_mapping_unmap() has returned, after which nothing calls back.
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

// Length of the range, bytes; 0 for a NULL guard.
size_t peerfs_guard_length(const struct peerfs_guard *guard);

// The `enum peerfs_path` of bytes that are moved through the guard; PEERFS_PATH_FALLBACK for a NULL guard.
uint32_t peerfs_guard_path(const struct peerfs_guard *guard);

// Loads the word at `index` bytes from the start, a multiple of 8, in one piece, without ever raising SIGBUS:
// PEERFS_REVOKED when the memory was taken away.
enum peerfs_code peerfs_guard_load_word(const struct peerfs_guard *guard,
                                        size_t index,
                                        uint64_t *word);

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

// Ends the device's side and gives it back; the processor's mappings stay. Waits for a callback of it that runs, which may
// use it until it returns; see "Callbacks" above.
//
// The addresses are not given back by another thread too.
void peerfs_addresses_close(struct peerfs_addresses *addresses);

// What is behind the addresses, in order and without gaps. `count` is the room in `stretches`, and becomes how many there
// are.
//
// `stretches` has room for `count`.
enum peerfs_code peerfs_addresses_stretches(const struct peerfs_addresses *addresses,
                                            struct peerfs_stretch *stretches,
                                            size_t *count);

// How each piece of the stretch that has the address was decided when it was mapped; none where it is no file's. `count` is
// the room in `pieces`, and becomes how many there are.
//
// `pieces` has room for `count`.
enum peerfs_code peerfs_addresses_pieces(const struct peerfs_addresses *addresses,
                                         const void *address,
                                         struct peerfs_piece *pieces,
                                         size_t *count);

// What has moved through the files' mappings that are alive.
enum peerfs_code peerfs_addresses_moved(const struct peerfs_addresses *addresses,
                                        struct peerfs_moved *moved);

// Takes the device's address of a range, as peerfs_mapping_access. While the guard is held, what changes the processor's
// mapping of the range through the library answers PEERFS_ADDRESS_IN_USE; a change behind the library's back shows in
// peerfs_guard_still_valid().
enum peerfs_code peerfs_addresses_access(const struct peerfs_addresses *addresses,
                                         const void *address,
                                         size_t length,
                                         struct peerfs_guard **guard);

// Calls back as peerfs_mapping_on_revoke when part of what is mapped at this moment is revoked: call it again for what is
// renewed later. `data` has to live until peerfs_addresses_close() has returned, after which nothing calls back.
enum peerfs_code peerfs_addresses_on_revoke(const struct peerfs_addresses *addresses,
                                            peerfs_revoke_callback callback,
                                            void *data);

// Ends the device's side of every stretch that has one of these addresses, whole, before the program changes the processor's
// in a way that has no call here. An access answers PEERFS_ADDRESS_CHANGED from now on. PEERFS_ADDRESS_IN_USE while a guard
// is held there; nothing is ended then.
enum peerfs_code peerfs_addresses_release(const struct peerfs_addresses *addresses,
                                          const void *address,
                                          size_t length);

// Takes up again what is mapped at these addresses now.
enum peerfs_code peerfs_addresses_renew(const struct peerfs_addresses *addresses,
                                        const void *address,
                                        size_t length);

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

// munmap(2), the device's side first; what is left is taken up again.
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

// mremap(2) with MREMAP_MAYMOVE, the device's side first; it follows to the new addresses. The new address is stored once the
// mapping has moved, even if the device's side could not be taken up again.
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

// Allocates `bytes` of zeroed device memory, rounded up to 4096; `mode` has the permission bits with which others may open
// it (0600: none but this user). PEERFS_SYSTEM with ENODEV when the mount has none, ENOMEM when it is used up, EDQUOT at a
// limit, EFBIG for more than the device has.
enum peerfs_code peerfs_session_allocate_devmem(const struct peerfs_session *session,
                                                uint64_t bytes,
                                                uint32_t mode,
                                                struct peerfs_devmem **memory);

// Opens device memory that any session allocated, by its number, if its permissions allow. It is mapped, read, written and
// queried as a file. PEERFS_SYSTEM with what open(2) answers, ENOENT when it was freed.
enum peerfs_code peerfs_session_open_devmem(const struct peerfs_session *session,
                                            uint64_t id,
                                            bool writable,
                                            struct peerfs_file **file);

// Frees device memory and gives it back, whatever the answer; where freeing failed it ends with the session.
enum peerfs_code peerfs_devmem_free(struct peerfs_devmem *memory);

// Its number N, by which another session opens it; its file is `.peerfs/devmem-N` in the mount. 0 for NULL.
uint64_t peerfs_devmem_id(const struct peerfs_devmem *memory);

// The file behind it, open for reading and writing, for everything that takes one; to be closed like any file.
enum peerfs_code peerfs_devmem_file(const struct peerfs_devmem *memory,
                                    struct peerfs_file **file);

// Size now, bytes.
enum peerfs_code peerfs_devmem_bytes(const struct peerfs_devmem *memory, uint64_t *bytes);

// Is it in main memory at present, because the device had no room? It is served as before then, but by fallback.
enum peerfs_code peerfs_devmem_is_migrated(const struct peerfs_devmem *memory,
                                           bool *migrated);

// Grows it to `bytes`; the new part is zero. Mappings stay, where it need not move. As peerfs_session_allocate_devmem, and
// EINVAL for fewer bytes than it has.
enum peerfs_code peerfs_devmem_grow(const struct peerfs_devmem *memory,
                                    uint64_t bytes);

// Maps a range (`length` 0: to the end) for the session that allocated it, as peerfs_session_map does a file's.
enum peerfs_code peerfs_devmem_map(const struct peerfs_devmem *memory,
                                   uint64_t offset,
                                   uint64_t length,
                                   uint32_t flags,
                                   struct peerfs_mapping **mapping);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* PEERFS_CLIENT_H */
