/* File handles (name_to_handle_at(2)), as NFS servers use them.
 *
 *   handles take FILE           prints the file's handle
 *   handles read MOUNT HANDLE   prints what the file of the handle has in it, or "errno N"
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

union handle {
    struct file_handle head;
    unsigned char bytes[sizeof(struct file_handle) + MAX_HANDLE_SZ];
};

static int take(const char *file)
{
    union handle handle = {.head = {.handle_bytes = MAX_HANDLE_SZ}};
    int mount;
    if (name_to_handle_at(AT_FDCWD, file, &handle.head, &mount, 0) != 0) {
        perror("name_to_handle_at");
        return 1;
    }
    for (size_t at = 0; at < sizeof handle.head + handle.head.handle_bytes; at++)
        printf("%02x", handle.bytes[at]);
    return 0;
}

static int read_by(const char *mount, const char *text)
{
    union handle handle = {0};
    for (size_t at = 0; at < sizeof handle && sscanf(text + 2 * at, "%2hhx", &handle.bytes[at]) == 1; at++)
        ;
    char content[256];
    errno = 0;
    int file = open_by_handle_at(open(mount, O_RDONLY), &handle.head, O_RDONLY);
    ssize_t length = file < 0 ? -1 : read(file, content, sizeof content);
    if (length < 0)
        printf("errno %d", errno);
    else
        printf("%.*s", (int)length, content);
    return 0;
}

int main(int count, char **arguments)
{
    if (count == 3 && strcmp(arguments[1], "take") == 0)
        return take(arguments[2]);
    if (count == 4 && strcmp(arguments[1], "read") == 0)
        return read_by(arguments[2], arguments[3]);
    return 2;
}
