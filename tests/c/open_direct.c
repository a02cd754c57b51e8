/* Preloaded by tests/acceptance/fsx: a program that knows no O_DIRECT opens files below $OPEN_DIRECT with it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int open64(const char *path, int flags, ...)
{
    const char *below = getenv("OPEN_DIRECT");
    va_list rest;
    va_start(rest, flags);
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    if (below && !strncmp(path, below, strlen(below)))
        flags |= O_DIRECT;
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
