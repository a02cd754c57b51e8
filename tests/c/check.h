/* What the test programs share: a wrong answer ends them, with its line and the library's message. */

#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "peerfs_client.h"

#define ASSERT(condition) check((condition) ? 0 : 1, 0, #condition, __FILE__, __LINE__)
#define OK(call) check((call), PEERFS_OK, #call, __FILE__, __LINE__)
#define REFUSED(code, call) check((call), (code), #call, __FILE__, __LINE__)

static inline void check(int found, int wanted, const char *what, const char *file, int line) {
  if (found == wanted)
    return;
  fprintf(stderr, "%s:%d: %s answers %d, not %d: %s\n", file, line, what, found, wanted, peerfs_last_error());
  exit(1);
}

enum { PAGE = 4096 };

/* A new file with pages of 1, 2, 3 ..., written past the page cache. */
static inline struct peerfs_file *make(const char *directory, const char *name, unsigned pages) {
  char path[4096];
  unsigned char page[PAGE];
  struct peerfs_file *file;
  snprintf(path, sizeof path, "%s/%s", directory, name);
  FILE *made = fopen(path, "w");
  ASSERT(made && fclose(made) == 0);
  OK(peerfs_file_open(path, true, &file));
  for (unsigned i = 0; i < pages; i++) {
    memset(page, (int)i + 1, PAGE);
    OK(peerfs_file_write(file, (uint64_t)i * PAGE, page, PAGE));
  }
  return file;
}

/* The one session that most programs need. */
static inline struct peerfs_session *start(const char *directory) {
  struct peerfs_session *session;
  OK(peerfs_session_open(directory, NULL, &session));
  return session;
}

static inline struct peerfs_mapping *map(struct peerfs_session *session, struct peerfs_file *file, uint32_t flags) {
  struct peerfs_mapping *mapping;
  OK(peerfs_session_map(session, file, 0, 0, flags, &mapping));
  return mapping;
}

/* Counts revocations. */
static inline void count(const struct peerfs_revocation *revocation, void *data) {
  (void)revocation;
  __atomic_fetch_add((int *)data, 1, __ATOMIC_SEQ_CST);
}

#endif
