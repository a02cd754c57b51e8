/* Files, sessions, mappings, guards, pins and revocations: mappings DIRECTORY, of a mount with room for pins. */

#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <time.h>

enum { PAGES = 16, SIZE = PAGES * PAGE };

static int has_reason(uint32_t refusals, uint32_t reason) {
  for (uint32_t bit = 0; bit < 32; bit++)
    if (refusals >> bit & 1 && peerfs_reason_of_bit(bit) == reason)
      return 1;
  return 0;
}

static void files(struct peerfs_session *session, struct peerfs_file *file, struct peerfs_file *other) {
  uint64_t bytes, shared;
  uint32_t retry;
  size_t room = 4, done;
  struct peerfs_piece pieces[4];
  unsigned char byte;
  OK(peerfs_file_size(file, &bytes));
  ASSERT(bytes == SIZE);

  /* A hole of one page, then a page with blocks. */
  OK(peerfs_file_write(other, PAGE, "x", 1));
  OK(peerfs_file_query(other, NULL, 0, 0, 0, pieces, &room, &retry));
  ASSERT(room == 2 && retry == 0 && pieces[0].reason == PEERFS_REASON_HOLE);
  ASSERT(has_reason(pieces[0].refusals, PEERFS_REASON_HOLE) && pieces[0].triggers == 0);
  ASSERT(pieces[1].path == PEERFS_PATH_DIRECT_WINDOW && pieces[1].refusals == 0);
  ASSERT(pieces[1].triggers >> PEERFS_TRIGGER_TRUNCATE & 1 && pieces[1].triggers >> PEERFS_TRIGGER_ADMINISTRATOR & 1);
  /* To an importer that cannot be revoked a hole is refused for more than one reason. */
  room = 4;
  OK(peerfs_file_query(other, "static", 0, PAGE, 0, pieces, &room, NULL));
  ASSERT(room == 1 && has_reason(pieces[0].refusals, PEERFS_REASON_HOLE));
  ASSERT(has_reason(pieces[0].refusals, PEERFS_REASON_NOTIFIER_REQUIRED));
  room = 4;
  OK(peerfs_session_query(session, other, 0, PAGE, 0, pieces, &room, &retry));
  ASSERT(room == 1 && retry == 0 && pieces[0].reason == PEERFS_REASON_HOLE);

  struct peerfs_guard *guard;
  struct peerfs_mapping *mapping = map(session, other, 0);
  REFUSED(PEERFS_FALLBACK, peerfs_mapping_access(mapping, 0, PAGE, &guard));
  ASSERT(peerfs_last_reason() == PEERFS_REASON_HOLE);
  OK(peerfs_mapping_unmap(mapping, NULL));

  OK(peerfs_file_reflink_from(other, file, 2 * PAGE, 0, PAGE, &shared));
  ASSERT(shared == PAGE);
  OK(peerfs_file_read(other, 5, &byte, 1, &done));
  ASSERT(done == 1 && byte == 3);
  REFUSED(PEERFS_SYSTEM, peerfs_file_reflink_from(other, file, 1, 0, PAGE, NULL));
}

static void counters(struct peerfs_session *session, struct peerfs_file *file) {
  static unsigned char bytes[SIZE];
  struct peerfs_moved moved;
  struct peerfs_info before, after;
  uint64_t fallback;
  struct peerfs_mapping *mapping = map(session, file, 0);
  OK(peerfs_file_info(file, &before));
  ASSERT(peerfs_mapping_id(mapping) != 0 && before.file_mappings >= 1 && before.deadline_ms == 100);
  OK(peerfs_mapping_read(mapping, 0, bytes, SIZE, NULL));
  OK(peerfs_mapping_moved(mapping, &moved));
  ASSERT(moved.direct_window == SIZE && moved.fallback == 0);
  OK(peerfs_mapping_report(mapping));
  OK(peerfs_file_info(file, &after));
  ASSERT(after.file_bytes_direct == before.file_bytes_direct + SIZE);

  OK(peerfs_file_revoke(file, 0, 0, NULL));
  OK(peerfs_mapping_read(mapping, 0, bytes, PAGE, &moved));
  ASSERT(moved.fallback == PAGE && bytes[0] == 1);
  OK(peerfs_mapping_fallback_bytes(mapping, 0, &fallback));
  ASSERT(fallback == PAGE);
  OK(peerfs_mapping_unmap(mapping, &moved));
  ASSERT(moved.direct_window == SIZE && moved.fallback == PAGE);
  OK(peerfs_file_info(file, &after));
  ASSERT(after.file_fallback[0] == before.file_fallback[0] + PAGE);
}

static void guards(struct peerfs_session *session, struct peerfs_file *file) {
  struct peerfs_guard *guard;
  struct peerfs_revoked revoked;
  uint64_t word;
  int heard = 0;
  struct peerfs_mapping *mapping = map(session, file, 0);
  OK(peerfs_mapping_on_revoke(mapping, count, &heard));
  OK(peerfs_mapping_access(mapping, PAGE, PAGE, &guard));
  ASSERT(peerfs_guard_path(guard) == PEERFS_PATH_DIRECT_WINDOW && peerfs_guard_length(guard) == PAGE);
  ASSERT(*(const unsigned char *)peerfs_guard_address(guard) == 2 && !peerfs_guard_address_for_writing(guard));
  OK(peerfs_guard_load_word(guard, 8, &word));
  ASSERT(word == 0x0202020202020202u && peerfs_guard_still_valid(guard));
  REFUSED(PEERFS_RANGE, peerfs_guard_load_word(guard, PAGE, &word));
  peerfs_guard_count(guard, 8);

  /* Nobody leaves the guard, so the deadline passes. */
  OK(peerfs_file_revoke(file, 0, 0, &revoked));
  ASSERT(revoked.grants == 1 && revoked.enforced == 1 && revoked.latency_us >= 50000);
  REFUSED(PEERFS_REVOKED, peerfs_guard_load_word(guard, 8, &word));
  ASSERT(!peerfs_guard_still_valid(guard));
  OK(peerfs_mapping_unmap(mapping, NULL));
  ASSERT(heard == 1);
  peerfs_guard_release(guard);
}

static void atomics(struct peerfs_session *session, struct peerfs_file *file) {
  uint64_t was;
  uint32_t was32;
  struct peerfs_mapping *mapping = map(session, file, PEERFS_MAP_WRITE | PEERFS_MAP_ATOMIC);
  OK(peerfs_mapping_write(mapping, 0, "\0\0\0\0\0\0\0\0", 8, NULL));
  OK(peerfs_mapping_fetch_add_u64(mapping, 0, 5, &was));
  OK(peerfs_mapping_compare_exchange_u64(mapping, 0, 5, 7, &was));
  ASSERT(was == 5);
  OK(peerfs_mapping_fetch_add_u32(mapping, 0, 1, &was32));
  OK(peerfs_mapping_compare_exchange_u32(mapping, 0, 8, 0x01010101, &was32));
  ASSERT(was32 == 8);
  OK(peerfs_mapping_unmap(mapping, NULL));
}

static void revocations(struct peerfs_session *session, struct peerfs_file *file, struct peerfs_file *other) {
  struct peerfs_revoked revoked;
  int heard = 0;
  struct peerfs_mapping *first = map(session, file, 0), *second = map(session, other, 0);
  OK(peerfs_mapping_on_revoke(first, count, &heard));
  OK(peerfs_mapping_on_revoke(second, count, &heard));
  OK(peerfs_file_revoke_mount(file, &revoked));
  ASSERT(revoked.grants == 2 && revoked.enforced == 0 && revoked.pins_cut == 0 && revoked.pins_detached == 0);
  REFUSED(PEERFS_SYSTEM, peerfs_file_revoke_mapping(file, UINT64_MAX, NULL));
  ASSERT(peerfs_last_errno() == ENOENT);
  OK(peerfs_mapping_unmap(first, NULL));
  OK(peerfs_mapping_unmap(second, NULL));
  /* Nothing calls back any more. */
  ASSERT(heard == 2 && peerfs_session_revocations(session) >= 2);
}

static void end_it(const struct peerfs_revocation *revocation, void *data) {
  ASSERT(revocation->trigger == PEERFS_TRIGGER_ADMINISTRATOR);
  OK(peerfs_mapping_unmap(data, NULL));
}

static void ended_by_its_callback(struct peerfs_session *session, struct peerfs_file *file) {
  struct peerfs_revoked revoked;
  struct peerfs_mapping *mapping = map(session, file, 0);
  OK(peerfs_mapping_on_revoke(mapping, end_it, mapping));
  OK(peerfs_file_revoke(file, 0, 0, &revoked));
  ASSERT(revoked.grants == 1 && revoked.enforced == 0);
}

static void hung(const char *directory, struct peerfs_file *file) {
  struct peerfs_session_options options = {.acknowledge = false};
  struct peerfs_session *session;
  struct peerfs_revoked revoked;
  OK(peerfs_session_open_with(directory, NULL, &options, &session));
  ASSERT(peerfs_session_deadline_ms(session) == 100 && peerfs_session_context_id(session) != 0);
  struct peerfs_mapping *mapping = map(session, file, 0);
  OK(peerfs_file_revoke(file, 0, 0, &revoked));
  ASSERT(revoked.grants == 1 && revoked.enforced == 1);
  OK(peerfs_mapping_unmap(mapping, NULL));
  peerfs_session_close(session);
}

/* Reads through the page cache, which ends mappings that may write. */
static void read_cached(const char *directory) {
  char path[4096], byte;
  snprintf(path, sizeof path, "%s/beside", directory);
  FILE *plain = fopen(path, "r");
  ASSERT(plain && fread(&byte, 1, 1, plain) == 1 && fclose(plain) == 0);
}

/* A range that processor and device fight over is refused for a while; whoever waits as long as told gets it. */
static void contested(const char *directory, struct peerfs_session *session, struct peerfs_file *file) {
  struct peerfs_piece piece;
  uint32_t left, shown;
  for (int round = 0, waited = 0; round < 1000; round++) {
    size_t room = 1;
    struct peerfs_mapping *mapping = map(session, file, PEERFS_MAP_WRITE);
    OK(peerfs_mapping_pieces(mapping, &piece, &room));
    left = peerfs_mapping_retry_after_ms(mapping);
    ASSERT(room == 1 && (piece.reason == PEERFS_REASON_BUSY) == (left > 0));
    if (left > 0) {
      OK(peerfs_session_query(session, file, 0, 0, PEERFS_MAP_WRITE, &piece, &room, &shown));
      ASSERT(room == 1 && shown <= left);
      struct timespec wait = {.tv_sec = left / 1000, .tv_nsec = (long)(left % 1000) * 1000000};
      ASSERT(nanosleep(&wait, NULL) == 0);
      waited = 1;
    } else if (!waited) {
      read_cached(directory);
    }
    OK(peerfs_mapping_unmap(mapping, NULL));
    if (waited && left == 0)
      return;
  }
  ASSERT(!"it is mapped and revoked without end, or always refused");
}

/* A pinned mapping. The server may still count a handle that was closed just now. */
static struct peerfs_mapping *pin(struct peerfs_session *rigid, struct peerfs_file *file) {
  time_t start = time(NULL);
  for (;;) {
    struct peerfs_piece piece;
    size_t room = 1;
    struct peerfs_mapping *mapping = map(rigid, file, PEERFS_MAP_PIN);
    OK(peerfs_mapping_pieces(mapping, &piece, &room));
    ASSERT(room >= 1);
    if (piece.reason == 0) {
      ASSERT(piece.pin == PEERFS_GRANT_PINNED_MEMFD || piece.pin == PEERFS_GRANT_PINNED_DMABUF);
      return mapping;
    }
    ASSERT(time(NULL) < start + 30 && (piece.reason == PEERFS_REASON_CPU_WRITER || piece.reason == PEERFS_REASON_BUSY));
    OK(peerfs_mapping_unmap(mapping, NULL));
  }
}

static void pins(const char *directory, struct peerfs_session *session, struct peerfs_file *file) {
  struct peerfs_importer importer;
  struct peerfs_session *rigid;
  struct peerfs_revoked revoked;
  struct peerfs_piece piece;
  struct peerfs_pin held;
  size_t room = 1;
  OK(peerfs_importer_cpu(&importer));
  ASSERT(importer.dma_bits == 64 && importer.page_bytes == 4096 && importer.flags & PEERFS_IMPORTER_DYNAMIC);
  importer.name = "rigid";
  importer.flags = PEERFS_IMPORTER_WRITE;
  OK(peerfs_session_open(directory, &importer, &rigid));
  for (int whole_mount = 0; whole_mount < 2; whole_mount++) {
    struct peerfs_mapping *pinned = pin(rigid, file);
    OK(peerfs_mapping_pins(pinned, &held, &room));
    ASSERT(room == 1 && held.length >= SIZE && held.fd >= 0);

    struct peerfs_mapping *refused = map(session, file, 0);
    OK(peerfs_mapping_pieces(refused, &piece, &room));
    ASSERT(room == 1 && piece.reason == PEERFS_REASON_BUSY);
    OK(peerfs_mapping_unmap(refused, NULL));

    if (whole_mount)
      OK(peerfs_file_revoke_mount_pins(file, &revoked));
    else
      OK(peerfs_file_revoke_pins(file, 0, 0, &revoked));
    ASSERT(revoked.pins_cut + revoked.pins_detached == 1);
    OK(peerfs_mapping_unmap(pinned, NULL));
  }
  peerfs_session_close(rigid);
}

int main(int argc, char **argv) {
  ASSERT(argc == 2);
  struct peerfs_session *session = start(argv[1]);
  struct peerfs_file *file = make(argv[1], "file", PAGES), *other = make(argv[1], "other", 0);
  struct peerfs_file *beside = make(argv[1], "beside", 1);
  // `file` shares a block with its clone, and a pin has blocks of its own.
  struct peerfs_file *pinned = make(argv[1], "pinned", PAGES);
  ASSERT(peerfs_session_deadline_ms(session) == 100);
  files(session, file, other);
  counters(session, file);
  guards(session, file);
  atomics(session, file);
  revocations(session, file, beside);
  ended_by_its_callback(session, file);
  hung(argv[1], file);
  contested(argv[1], session, beside);
  pins(argv[1], session, pinned);
  peerfs_session_close(session);
  peerfs_file_close(file);
  peerfs_file_close(other);
  peerfs_file_close(beside);
  peerfs_file_close(pinned);
  return 0;
}
