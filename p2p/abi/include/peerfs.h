/* SPDX-License-Identifier: Apache-2.0 OR MIT */

#ifndef PEERFS_H
#define PEERFS_H

/* Made from the crate peerfs-abi. Do not edit; see p2p/abi/tests/header.rs. */

#include <stdint.h>
#include <sys/ioctl.h>

#define PEERFS_IOC_INFO _IOWR(PEERFS_IOCTL_TYPE, 1, struct peerfs_info)
#define PEERFS_IOC_QUERY _IOWR(PEERFS_IOCTL_TYPE, 2, struct peerfs_map)
#define PEERFS_IOC_MAP _IOWR(PEERFS_IOCTL_TYPE, 3, struct peerfs_map)
#define PEERFS_IOC_UNMAP _IOWR(PEERFS_IOCTL_TYPE, 4, struct peerfs_unmap)
#define PEERFS_IOC_REVOKE _IOWR(PEERFS_IOCTL_TYPE, 5, struct peerfs_revoke)
#define PEERFS_IOC_REFLINK _IOWR(PEERFS_IOCTL_TYPE, 8, struct peerfs_reflink)
#define PEERFS_IOC_READ_BY_SERVER _IOWR(PEERFS_IOCTL_TYPE, 10, struct peerfs_read_by_server)
#define PEERFS_IOC_COPY _IOWR(PEERFS_IOCTL_TYPE, 11, struct peerfs_copy)
#define PEERFS_IOC_CONTEXT _IOWR(PEERFS_IOCTL_TYPE, 6, struct peerfs_context)
#define PEERFS_IOC_ACK _IOWR(PEERFS_IOCTL_TYPE, 7, struct peerfs_ack)
#define PEERFS_IOC_DEVICE_MEMORY _IOWR(PEERFS_IOCTL_TYPE, 9, struct peerfs_device_memory)

#define PEERFS_MAP_PIN 1u
#define PEERFS_MAP_WRITE 2u
#define PEERFS_MAP_ATOMIC 4u
#define PEERFS_MAP_QUERY 8u

#define PEERFS_IMPORTER_DYNAMIC 1u
#define PEERFS_IMPORTER_WRITE 2u
#define PEERFS_IMPORTER_ATOMIC 4u

/* The name of a reason. NULL for an unknown code. */
static inline const char *peerfs_reason_name(uint32_t code) {
  switch (code) {
  case 1: return "NotRegularFile";
  case 2: return "Hole";
  case 3: return "Unwritten";
  case 4: return "BeyondEof";
  case 5: return "Misaligned";
  case 6: return "PageCacheDirty";
  case 7: return "PageCached";
  case 8: return "CpuWriter";
  case 9: return "SharedExtent";
  case 10: return "Policy";
  case 11: return "ReadOnly";
  case 12: return "Busy";
  case 32: return "NoAperture";
  case 33: return "ApertureFull";
  case 34: return "NoGrantObject";
  case 35: return "WriteForbidden";
  case 36: return "AtomicUnsupported";
  case 37: return "PinQuota";
  case 38: return "DeviceResetting";
  case 39: return "MediaError";
  case 64: return "NoPeerPath";
  case 65: return "DmaMaskExceeded";
  case 66: return "IommuRejected";
  case 67: return "NotifierRequired";
  case 68: return "ImporterQuota";
  case 69: return "StaleContext";
  default: return 0;
  }
}

/* What is the case. NULL for an unknown code. */
static inline const char *peerfs_reason_text(uint32_t code) {
  switch (code) {
  case 1: return "only regular files have blocks to map";
  case 2: return "no blocks are allocated here";
  case 3: return "the blocks are preallocated but were never written";
  case 4: return "the range lies beyond the end of the file";
  case 5: return "direct mappings start and end on 4096-byte boundaries (or at the end of the file)";
  case 6: return "dirty pages of the range are in the page cache and could not be written back";
  case 7: return "pages of the range are in the page cache and the policy is respect-cache";
  case 8: return "a cached handle of the file is open for writing and may write behind the importer's back";
  case 9: return "the blocks are shared with another file, which must not be written in place, nor pinned";
  case 10: return "direct mapping is switched off for this file or mount";
  case 11: return "the file handle or the mount is read-only";
  case 12: return "the range is being revoked, or pinned, or was used by the CPU each time the map was tried";
  case 32: return "the storage device has no aperture";
  case 33: return "no room is left in the aperture";
  case 34: return "the kernel has no object that could hand this memory to a process and take it back";
  case 35: return "the aperture or the importer does not allow peer writes";
  case 36: return "not every part of the path can do atomic operations";
  case 37: return "the quota for pinned mappings is used up";
  case 38: return "the storage device is being reset";
  case 39: return "the storage device cannot read or write these blocks";
  case 64: return "no peer-to-peer path leads from the importer to the storage device";
  case 65: return "the importer cannot address this memory";
  case 66: return "the IOMMU refused the mapping";
  case 67: return "the importer cannot honour revocation, so it may hold only pinned mappings";
  case 68: return "the importer holds as many mappings as it may";
  case 69: return "the context belongs to another address space, or has ended";
  default: return 0;
  }
}

/* What a person can do about it. NULL for an unknown code. */
static inline const char *peerfs_reason_remedy(uint32_t code) {
  switch (code) {
  case 1: return "ask for a regular file";
  case 2: return "write the range first (blocks that are only allocated are Unwritten)";
  case 3: return "write the range first; zeros will do";
  case 4: return "extend the file first";
  case 5: return "align the range to 4096 bytes";
  case 6: return "call fsync on the file, or close its shared mappings";
  case 7: return "drop them (POSIX_FADV_DONTNEED) or set the policy to prefer";
  case 8: return "close the other handles of the file";
  case 9: return "copy the range first (rewrite it), or map read-only, without PIN, while the other file is not mapped";
  case 10: return "setfattr -n user.peerfs.direct -v prefer FILE, or mount with -o direct=prefer";
  case 11: return "open the file for writing on a writable mount";
  case 12: return "try again later; keep CPU and device access to the range apart; `peerfs mappings` shows pins";
  case 32: return "mount with --cmb SIZE (software CMB), or use a device with CMB or PMR";
  case 33: return "unmap other ranges, or mount with a larger --cmb and enough locked memory (ulimit -l)";
  case 34: return "use an importer inside the server, or the software CMB (mount with --cmb SIZE); in a container see peerfs info, limits";
  case 35: return "map read-only";
  case 36: return "map without ATOMIC";
  case 37: return "end other pins, or map without PIN";
  case 38: return "try again later";
  case 39: return "see the server's log; restore the file from a copy";
  case 64: return "see peerfs topology for the hop that refuses, and what to do about it";
  case 65: return "use an importer with a wider DMA mask";
  case 66: return "see the kernel log for the IOMMU's reason";
  case 67: return "map with PIN";
  case 68: return "unmap other ranges";
  case 69: return "make a new context after exec or fork";
  default: return 0;
  }
}

/* The reason that a bit of `refusals` stands for. 0 for an unknown bit. */
static inline uint32_t peerfs_reason_of_bit(uint32_t bit) {
  switch (bit) {
  case 0: return 1;
  case 1: return 2;
  case 2: return 3;
  case 3: return 4;
  case 4: return 5;
  case 5: return 6;
  case 6: return 7;
  case 7: return 8;
  case 8: return 9;
  case 9: return 10;
  case 10: return 11;
  case 11: return 12;
  case 12: return 32;
  case 13: return 33;
  case 14: return 34;
  case 15: return 35;
  case 16: return 36;
  case 17: return 37;
  case 18: return 38;
  case 19: return 39;
  case 20: return 64;
  case 21: return 65;
  case 22: return 66;
  case 23: return 67;
  case 24: return 68;
  case 25: return 69;
  default: return 0;
  }
}

/* The name of a trigger. NULL for an unknown code. */
static inline const char *peerfs_trigger_name(uint32_t code) {
  switch (code) {
  case 1: return "Truncate";
  case 2: return "Punch";
  case 3: return "Unlink";
  case 4: return "CpuAccess";
  case 5: return "AperturePressure";
  case 6: return "Relocation";
  case 7: return "Administrator";
  case 8: return "ClientGone";
  case 9: return "Unmount";
  case 10: return "DeviceEvent";
  case 11: return "PolicyChange";
  case 12: return "Unmap";
  case 13: return "Reflink";
  default: return 0;
  }
}

/* The name of a path. NULL for an unknown code. */
static inline const char *peerfs_path_name(uint32_t code) {
  switch (code) {
  case 0: return "fallback";
  case 1: return "direct-window";
  case 2: return "direct-bar";
  default: return 0;
  }
}

// Version of everything in this crate. A server refuses another one.
#define PEERFS_ABI_VERSION 1

// Allocates `bytes` of zeros, charged to the calling process. They end with the session.
#define PEERFS_DEVICE_MEMORY_ALLOCATE 1

// Ends an allocation; its mappings are revoked first.
#define PEERFS_DEVICE_MEMORY_FREE 2

// Grows an allocation to `bytes`; the new part is zero.
#define PEERFS_DEVICE_MEMORY_GROW 3

// Only answers.
#define PEERFS_DEVICE_MEMORY_LOOK 4

// ioctl type byte of peerfs.
#define PEERFS_IOCTL_TYPE 191

// Segments in one answer.
#define PEERFS_SEGMENTS_MAX 200

// Grants in one acknowledgement.
#define PEERFS_ACKS_MAX 64

// Longest importer name, in bytes, including a terminating NUL.
#define PEERFS_NAME_MAX 32

// Longest PCI address, in bytes, including a terminating NUL.
#define PEERFS_PCI_ADDRESS_MAX 16

// Most bytes of one PEERFS_IOC_READ_BY_SERVER.
#define PEERFS_READ_BY_SERVER_MAX (16 << 20)

// Most bytes of one PEERFS_IOC_COPY.
#define PEERFS_COPY_MAX (16 << 20)

// A window that may be revoked at any moment.
#define PEERFS_GRANT_WINDOW 1

// A pin: a sealed memory file of its own.
#define PEERFS_GRANT_PINNED_MEMFD 2

// A pin: a dma-buf made by udmabuf over such a file.
#define PEERFS_GRANT_PINNED_DMABUF 3

// Every mapping of the mount (owner of the mount only); the range does not count.
#define PEERFS_REVOKE_WHOLE_MOUNT 1

// Pins too, by force (owner of the mount only).
#define PEERFS_REVOKE_PINS 2

// One mapping, by its number in the ledger, instead of a range (owner of the mount only); no other flag beside it.
// Windows that others hold as well end for them too.
#define MAPPING 4

// Open the grant's file in the control directory and mmap it.
#define PEERFS_TRANSPORT_PASSTHROUGH 1

// Ask for a descriptor on the Unix socket peerfs_context.socket_path.
#define PEERFS_TRANSPORT_SOCKET 2

// On the source, open for reading: answers its name. Who has it may clone the file while it is open.
#define PEERFS_REFLINK_NAME_SOURCE 1

// On the destination: clones the range.
#define PEERFS_REFLINK_CLONE 2

// Into the file. Without it, out of the file.
#define PEERFS_COPY_FROM_IMPORTER 1

// What the importer's namespace got, by this call or earlier ones, is durable when the call returns.
#define PEERFS_COPY_SYNC 2

// Places for counters by reason (`Reason::slot`). Place 0 is for what was direct when it was mapped, and was revoked
// since.
#define PEERFS_REASON_SLOTS 32

// First field of every message.
#define PEERFS_SOCKET_MAGIC 1883657009

// Why a range falls back. The numbers are part of the ABI.
enum peerfs_reason
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Only regular files have blocks to map.
  PEERFS_REASON_NOT_REGULAR_FILE = 1,
  // No blocks are allocated here.
  PEERFS_REASON_HOLE = 2,
  // The blocks are preallocated but were never written.
  PEERFS_REASON_UNWRITTEN = 3,
  // The range lies beyond the end of the file.
  PEERFS_REASON_BEYOND_EOF = 4,
  // Direct mappings start and end on 4096-byte boundaries (or at the end of the file).
  PEERFS_REASON_MISALIGNED = 5,
  // Dirty pages of the range are in the page cache and could not be written back.
  PEERFS_REASON_PAGE_CACHE_DIRTY = 6,
  // Pages of the range are in the page cache and the policy is respect-cache.
  PEERFS_REASON_PAGE_CACHED = 7,
  // A cached handle of the file is open for writing and may write behind the importer's back.
  PEERFS_REASON_CPU_WRITER = 8,
  // The blocks are shared with another file: they must not be written in place, nor pinned.
  PEERFS_REASON_SHARED_EXTENT = 9,
  // Direct mapping is switched off for this file or mount.
  PEERFS_REASON_POLICY = 10,
  // The file handle or the mount is read-only.
  PEERFS_REASON_READ_ONLY = 11,
  // The range is being revoked, or pinned, or was used by the CPU each time the map was tried.
  PEERFS_REASON_BUSY = 12,
  // The storage device has no aperture.
  PEERFS_REASON_NO_APERTURE = 32,
  // No room is left in the aperture.
  PEERFS_REASON_APERTURE_FULL = 33,
  // The kernel has no object that could hand this memory to a process and take it back.
  PEERFS_REASON_NO_GRANT_OBJECT = 34,
  // The aperture or the importer does not allow peer writes.
  PEERFS_REASON_WRITE_FORBIDDEN = 35,
  // Not every part of the path can do atomic operations.
  PEERFS_REASON_ATOMIC_UNSUPPORTED = 36,
  // The quota for pinned mappings is used up.
  PEERFS_REASON_PIN_QUOTA = 37,
  // The storage device is being reset.
  PEERFS_REASON_DEVICE_RESETTING = 38,
  // The storage device cannot read or write these blocks.
  PEERFS_REASON_MEDIA_ERROR = 39,
  // No peer-to-peer path leads from the importer to the storage device.
  PEERFS_REASON_NO_PEER_PATH = 64,
  // The importer cannot address this memory.
  PEERFS_REASON_DMA_MASK_EXCEEDED = 65,
  // The IOMMU refused the mapping.
  PEERFS_REASON_IOMMU_REJECTED = 66,
  // The importer cannot honour revocation, so it may hold only pinned mappings.
  PEERFS_REASON_NOTIFIER_REQUIRED = 67,
  // The importer holds as many mappings as it may.
  PEERFS_REASON_IMPORTER_QUOTA = 68,
  // The context belongs to another address space, or has ended.
  PEERFS_REASON_STALE_CONTEXT = 69,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum peerfs_reason peerfs_reason;
#else
typedef uint32_t peerfs_reason;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Why a direct mapping ended. The numbers are part of the ABI.
enum peerfs_trigger
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // The file was shortened.
  PEERFS_TRIGGER_TRUNCATE = 1,
  // Blocks of the range were freed or zeroed.
  PEERFS_TRIGGER_PUNCH = 2,
  // The last link and handle of the file went away.
  PEERFS_TRIGGER_UNLINK = 3,
  // A program used the range through the page cache.
  PEERFS_TRIGGER_CPU_ACCESS = 4,
  // Another request needed the aperture space.
  PEERFS_TRIGGER_APERTURE_PRESSURE = 5,
  // The blocks of the range changed place.
  PEERFS_TRIGGER_RELOCATION = 6,
  // An administrator revoked it.
  PEERFS_TRIGGER_ADMINISTRATOR = 7,
  // The client that held it ended.
  PEERFS_TRIGGER_CLIENT_GONE = 8,
  // The filesystem is being unmounted.
  PEERFS_TRIGGER_UNMOUNT = 9,
  // The storage device was reset, removed or reported a media error, or the way to it changed.
  PEERFS_TRIGGER_DEVICE_EVENT = 10,
  // The policy of the file or mount changed.
  PEERFS_TRIGGER_POLICY_CHANGE = 11,
  // The client gave it back.
  PEERFS_TRIGGER_UNMAP = 12,
  // The blocks of the range became shared with another file.
  PEERFS_TRIGGER_REFLINK = 13,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum peerfs_trigger peerfs_trigger;
#else
typedef uint32_t peerfs_trigger;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Which way bytes went (path attestation).
enum peerfs_path
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Main memory filled by the filesystem.
  PEERFS_PATH_FALLBACK = 0,
  // A software aperture in memory.
  PEERFS_PATH_DIRECT_WINDOW = 1,
  // A device's PCI BAR.
  PEERFS_PATH_DIRECT_BAR = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum peerfs_path peerfs_path;
#else
typedef uint32_t peerfs_path;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// A set of reasons. Bit n stands for the n-th of `Reason::ALL`, so the lowest bit is the first in pipeline order.
struct ReasonSet;

// A set of triggers. Bit n stands for the trigger with code n.
struct TriggerSet;

// A stretch of a file and how the importer reaches it.
struct peerfs_segment {
  // Offset in the file, bytes.
  uint64_t file_offset;
  // Length, bytes.
  uint64_t length;
  // enum peerfs_path: 0 fallback, 1 direct-window, 2 direct-bar.
  uint32_t path;
  // enum peerfs_reason of a fallback, 0 when direct.
  uint32_t reason;
  // The grant to open and mmap (PEERFS_IOC_MAP, direct), else 0.
  uint64_t grant_id;
  // Offset of the segment inside the grant, bytes.
  uint64_t grant_offset;
  // Size of the grant, bytes: what to mmap.
  uint64_t grant_length;
  // Offset of the first block on the storage device, bytes (PEERFS_IOC_QUERY, direct), else 0.
  uint64_t device_offset;
  // Index of the grant's sequence number in the sequence page.
  uint32_t sequence_slot;
  // What the grant is (PEERFS_GRANT_*; PEERFS_IOC_MAP, direct), else 0.
  uint32_t grant_kind;
  // Value of the sequence number while the grant is valid.
  uint64_t sequence;
  // Every reason that would refuse this stretch, not only the first (PEERFS_IOC_QUERY): bit n stands for the
  // n-th of them, in the order of their codes.
  uint32_t refusals;
  // What could end a mapping of this stretch later (PEERFS_IOC_QUERY): bit n stands for trigger n.
  uint32_t triggers;
};

// Argument of PEERFS_IOC_QUERY and PEERFS_IOC_MAP.
struct peerfs_map {
  // In: PEERFS_ABI_VERSION.
  uint32_t abi_version;
  // In: PEERFS_MAP_*.
  uint32_t flags;
  // In: context for PEERFS_IOC_MAP; for PEERFS_IOC_QUERY a context or 0 (then `importer` counts).
  uint64_t context_id;
  // In: start of the range, bytes.
  uint64_t offset;
  // In: length of the range, bytes; 0 means to the end of the file.
  uint64_t length;
  // In (PEERFS_IOC_QUERY without context): name of the importer, NUL-padded; empty means `cpu`.
  uint8_t importer[PEERFS_NAME_MAX];
  // In: number of the descriptor this ioctl is called on; the server looks at the file's page cache through it.
  // PEERFS_IOC_MAP answers EBADF without it.
  int32_t file_fd;
  // Explicit padding, zero.
  uint32_t reserved;
  // In: 0, or the mapping to add to. Out (PEERFS_IOC_MAP): the mapping.
  uint64_t mapping_id;
  // Out: where the answer ends; continue there until it reaches `end_offset`.
  uint64_t next_offset;
  // Out: end of the range, bytes (with `length` 0 the end of the file).
  uint64_t end_offset;
  // Out: segments filled in.
  uint32_t segment_count;
  // Out: after a refused map, milliseconds after which it is worth trying again.
  uint32_t retry_after_ms;
  // Out.
  struct peerfs_segment segments[PEERFS_SEGMENTS_MAX];
};

// Argument of PEERFS_IOC_UNMAP.
struct peerfs_unmap {
  // In: PEERFS_ABI_VERSION.
  uint32_t abi_version;
  // In: 0 ends the mapping; 1 only adds the byte counts.
  uint32_t report_only;
  // In.
  uint64_t mapping_id;
  // In: bytes the importer moved through a software aperture since the last report.
  uint64_t bytes_direct_window;
  // In: bytes it moved through a device's BAR since the last report.
  uint64_t bytes_direct_bar;
  // In: bytes it moved by fallback since the last report: at n for the n-th reason, in the order of their codes;
  // at 0 what was direct when it was mapped, and was revoked since.
  uint64_t bytes_fallback[PEERFS_REASON_SLOTS];
};

// Argument of PEERFS_IOC_REVOKE.
struct peerfs_revoke {
  // In: PEERFS_ABI_VERSION.
  uint32_t abi_version;
  // In: PEERFS_REVOKE_*.
  uint32_t flags;
  // In: start of the range, bytes.
  uint64_t offset;
  // In: length, bytes; 0 means to the end.
  uint64_t length;
  // Out: grants that were revoked.
  uint64_t revoked;
  // Out: time to the cut, microseconds.
  uint64_t latency_us;
  // Out: grants that had to be cut without an acknowledgement.
  uint64_t enforced;
  // Out: pins that were cut.
  uint64_t pins_cut;
  // Out: pins whose memory is a dma-buf, which nothing can cut: the file goes on without them, and what their
  // importers write later is discarded.
  uint64_t pins_detached;
  // In: the mapping, with PEERFS_REVOKE_MAPPING; ENOENT if there is none. Else 0.
  uint64_t mapping_id;
};

// Argument of PEERFS_IOC_CONTEXT.
struct peerfs_context {
  // In: PEERFS_ABI_VERSION.
  uint32_t abi_version;
  // In: PEERFS_IMPORTER_*.
  uint32_t importer_flags;
  // In: name of the importer, NUL-padded; empty means `cpu`.
  uint8_t importer[PEERFS_NAME_MAX];
  // In: bits of address the importer can put on the bus.
  uint32_t dma_bits;
  // In: bits of virtual address the importer can use.
  uint32_t va_bits;
  // In: the importer's page size, bytes.
  uint32_t page_bytes;
  // In: a descriptor of the caller's own `/proc/self/mem`, opened read-only; it stays the caller's.
  // A server that may open the caller's memory itself does so instead.
  int32_t mem_fd;
  // Out: the context, never reused on this volume.
  uint64_t context_id;
  // Out: grant of the sequence page: an array of u64, slot 0 is non-zero once the server is gone.
  uint64_t sequence_grant_id;
  // Out: size of the sequence page, bytes.
  uint64_t sequence_bytes;
  // Out: how to get grants (PEERFS_TRANSPORT_*).
  uint32_t transport;
  // Out: how long an importer may take to acknowledge a revocation, milliseconds.
  uint32_t deadline_ms;
  // Out: path of the grant socket, NUL-padded, for PEERFS_TRANSPORT_SOCKET.
  uint8_t socket_path[108];
  // In: PCI address of the importer (`0000:01:00.0`), NUL-padded; empty: it is software and needs no peer path.
  uint8_t pci_address[PEERFS_PCI_ADDRESS_MAX];
  // Explicit padding, zero.
  uint32_t reserved;
};

// Argument of PEERFS_IOC_ACK.
struct peerfs_ack {
  // In: PEERFS_ABI_VERSION.
  uint32_t abi_version;
  // In: how many of `grant_ids` count.
  uint32_t count;
  // In: the grants the importer has stopped using.
  uint64_t grant_ids[PEERFS_ACKS_MAX];
};

// Argument of PEERFS_IOC_REFLINK. Descriptors cannot be passed to a server, and numbers of descriptors or inodes prove
// nothing; so the source is asked first for a name that cannot be guessed, which then stands for it.
//
// EXDEV: no open file of this mount has the name. EINVAL: offsets or length are not multiples of 4096 (but for a
// range that ends where both files end), the range leaves the source, or the two ranges overlap. EISDIR, EBADF (not
// open for reading or writing), ETXTBSY (a pin reaches the source), EFBIG, ENOSPC, EROFS.
struct peerfs_reflink {
  // In: PEERFS_ABI_VERSION.
  uint32_t abi_version;
  // In: what to do (PEERFS_REFLINK_*).
  uint32_t operation;
  // Out of PEERFS_REFLINK_NAME_SOURCE, into PEERFS_REFLINK_CLONE.
  uint64_t source_name;
  // In: start of the range in the source, bytes.
  uint64_t source_offset;
  // In: start of the range in the destination, bytes.
  uint64_t destination_offset;
  // In: length, bytes; 0 means to the end of the source. Out: bytes cloned.
  uint64_t length;
};

// Argument of PEERFS_IOC_READ_BY_SERVER: what no process can be given (the memory of a BAR) is reached inside the server, which
// answers with a checksum and with the ways the bytes went.
//
// EACCES: not open for reading. EBADF: `file_fd` is missing. EINVAL: the range is empty or longer than
// PEERFS_READ_BY_SERVER_MAX. EMFILE: the user has as many sessions as one may. ENOTTY: not a file. EIO.
struct peerfs_read_by_server {
  // In: PEERFS_ABI_VERSION.
  uint32_t abi_version;
  // In: the descriptor this call is made on, as in `Map`.
  int32_t file_fd;
  // In: start of the range, bytes.
  uint64_t offset;
  // In: length, bytes. Out: bytes read, less at the end of the file.
  uint64_t length;
  // In: CRC-32C of what comes before the range, 0 for nothing. Out: with the range.
  uint32_t crc32c;
  // Out: enum peerfs_reason of most of the bytes that fell back; 0 if none did, or what was direct was revoked.
  uint32_t reason;
  // Out: bytes through windows of a software aperture.
  uint64_t bytes_direct_window;
  // Out: bytes through a BAR.
  uint64_t bytes_direct_bar;
  // Out: bytes by fallback.
  uint64_t bytes_fallback;
};

// Argument of PEERFS_IOC_COPY: device to device where that is decided, else through main memory.
//
// EPERM: not the mount's owner. ENXIO: the mount has no such importer. ENODEV: a device is gone. EACCES: the file is not
// open for reading (or, into the file, for writing). EBADF: `file_fd` is missing. EINVAL: the range is longer than PEERFS_COPY_MAX, or its
// start no multiple of the logical block. ERANGE: beyond the end of the namespace. EBUSY: the importer is copying for
// as many as it can. EIO.
struct peerfs_copy {
  // In: PEERFS_ABI_VERSION.
  uint32_t abi_version;
  // In: the descriptor this call is made on, as in `Map`.
  int32_t file_fd;
  // In: the importer, `nvme:` and its PCI address, NUL-padded.
  uint8_t importer[PEERFS_NAME_MAX];
  // In: PEERFS_COPY_*.
  uint32_t flags;
  // Out: size of a logical block of the importer, bytes.
  uint32_t block_bytes;
  // In: start of the range in the file, bytes.
  uint64_t offset;
  // In: length, bytes; with 0 nothing is copied. Out: bytes copied, less at the end of the file.
  uint64_t length;
  // In: the importer's first logical block. One that the range fills only in part gets zeros behind it.
  uint64_t block;
  // Out: bytes through windows of a software aperture.
  uint64_t bytes_direct_window;
  // Out: bytes through a BAR.
  uint64_t bytes_direct_bar;
  // Out: bytes by fallback.
  uint64_t bytes_fallback;
  // Out: those of them that were to go directly, and were revoked first.
  uint64_t bytes_revoked;
  // Out: enum peerfs_reason of most of the other bytes that fell back; 0 if there were none.
  uint32_t reason;
  // Out: how often the importer may have lost what it had not made durable. In, with PEERFS_COPY_SYNC: as the first
  // call answered; EIO if it has done so since.
  uint32_t cache_losses;
};

// What read(2) on a session returns: one revocation. Read with a buffer of a whole number of these.
struct peerfs_event {
  // The grant to stop using.
  uint64_t grant_id;
  // The mapping it belongs to.
  uint64_t mapping_id;
  // Start of the range in the file, bytes.
  uint64_t file_offset;
  // Length of the range, bytes.
  uint64_t length;
  // enum peerfs_trigger.
  uint32_t trigger;
  // Time left to acknowledge, milliseconds.
  uint32_t deadline_ms;
};

// Argument of PEERFS_IOC_INFO; all out but the version.
struct peerfs_info {
  // In/out: PEERFS_ABI_VERSION.
  uint32_t abi_version;
  // How clients get grants (PEERFS_TRANSPORT_*).
  uint32_t transport;
  // Capacity of the volume, bytes.
  uint64_t capacity_bytes;
  // Free space, bytes.
  uint64_t free_bytes;
  // Size of the aperture, bytes; 0 when there is none.
  uint64_t aperture_bytes;
  // Aperture space in use, bytes.
  uint64_t aperture_used_bytes;
  // Live mappings of the mount.
  uint64_t mappings;
  // Live mappings of this file.
  uint64_t file_mappings;
  // Bytes of this file moved directly, as reported by importers.
  uint64_t file_bytes_direct;
  // Bytes of this file moved by fallback, as reported by importers.
  uint64_t file_bytes_fallback;
  // The same, by reason, as in `Unmap::bytes_fallback`.
  uint64_t file_fallback[PEERFS_REASON_SLOTS];
  // Revocations since the mount.
  uint64_t revocations;
  // Revocations that had to be enforced at the deadline.
  uint64_t revocations_enforced;
  // Revocation deadline, milliseconds.
  uint32_t deadline_ms;
  // Explicit padding, zero.
  uint32_t reserved;
};

// Argument of PEERFS_IOC_DEVICE_MEMORY.
struct peerfs_device_memory {
  // In: PEERFS_ABI_VERSION.
  uint32_t abi_version;
  // In: what is to be done (PEERFS_DEVICE_MEMORY_*).
  uint32_t call;
  // In: the allocation, 0 for `ALLOCATE`. Out: the allocation, as in the name of its file.
  uint64_t id;
  // In: size to allocate or to grow to, bytes. Out: the size, a multiple of 4096; 0 after `FREE`.
  uint64_t bytes;
  // In (`ALLOCATE`): permission bits of the file, for others to open it (0600: none but this user).
  uint32_t mode;
  // Out: 1 while it is in main memory: the device had no room.
  uint32_t migrated;
};

// Asks for the descriptor of a grant.
struct peerfs_request {
  // PEERFS_SOCKET_MAGIC.
  uint32_t magic;
  // PEERFS_ABI_VERSION.
  uint32_t abi_version;
  // The grant, as answered by PEERFS_IOC_MAP or PEERFS_IOC_CONTEXT.
  uint64_t grant_id;
};

// The answer.
struct peerfs_reply {
  // PEERFS_SOCKET_MAGIC.
  uint32_t magic;
  // 0, or an error number (errno.h).
  uint32_t error;
  // The grant asked for.
  uint64_t grant_id;
};

#endif  /* PEERFS_H */
