/* A CUDA driver without a GPU, for the tests: the calls that peerfs makes, on memory of the process. Kernels run when
 * they are waited for. Addresses of the GPU are not those of the processor, and each call wants the context of its thread, as
 * with the real driver. What is called goes to the file $FAKE_CUDA_LOG, one call a line.
 *
 * FAKE_CUDA_VERSION (12000), FAKE_CUDA_COUNT (1), FAKE_CUDA_READ_ONLY (1) say what the driver is; FAKE_CUDA_FAIL names a call
 * that answers CUDA_ERROR_NOT_SUPPORTED. */

#define _GNU_SOURCE
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, NO_DEVICE = 100, INVALID_CONTEXT = 201, NOT_SUPPORTED = 801 };

/* Between an address of the processor and the GPU's. */
#define GPU_OFFSET (1ull << 52)
#define QUEUE_MAX 1024

static char context, module, function;
static _Thread_local void *current;
static struct { uint64_t to, from, length; } queue[QUEUE_MAX];
static int queued;

static int setting(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

__attribute__((format(printf, 1, 2))) static void note(const char *format, ...) {
    const char *path = getenv("FAKE_CUDA_LOG");
    FILE *log = path ? fopen(path, "a") : NULL;
    if (!log)
        return;
    va_list values;
    va_start(values, format);
    vfprintf(log, format, values);
    va_end(values);
    fclose(log);
}

/* What a call answers that needs the context. */
static int entered(const char *call) {
    const char *fails = getenv("FAKE_CUDA_FAIL");
    if (current != &context)
        return INVALID_CONTEXT;
    return fails && !strcmp(fails, call) ? NOT_SUPPORTED : SUCCESS;
}

#define ENTER() \
    do { int answer = entered(__func__); if (answer) return answer; } while (0)

static void *host(uint64_t address) { return (void *)(uintptr_t)(address - GPU_OFFSET); }

int cuGetErrorString(int error, const char **text) {
    *text = error == NOT_SUPPORTED ? "operation not supported" : "an error";
    return SUCCESS;
}

int cuDriverGetVersion(int *version) { *version = setting("FAKE_CUDA_VERSION", 12000); return SUCCESS; }
int cuInit(unsigned flags) { (void)flags; return setting("FAKE_CUDA_COUNT", 1) ? SUCCESS : NO_DEVICE; }
int cuDeviceGetCount(int *count) { *count = setting("FAKE_CUDA_COUNT", 1); return SUCCESS; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return SUCCESS; }
int cuDeviceGetName(char *name, int length, int device) { (void)device; snprintf(name, length, "Fake GPU"); return SUCCESS; }

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case 33: *value = 0xa1; break;                              /* PCI_BUS_ID */
    case 113: *value = setting("FAKE_CUDA_READ_ONLY", 1); break; /* READ_ONLY_HOST_REGISTER_SUPPORTED */
    default: *value = 0;
    }
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **made, int device) { (void)device; *made = &context; return SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; note("release\n"); return SUCCESS; }
int cuCtxGetCurrent(void **now) { *now = current; return SUCCESS; }
int cuCtxSetCurrent(void *next) { current = next; return SUCCESS; }

int cuModuleLoadData(void **loaded, const void *image) {
    ENTER();
    *loaded = &module;
    return strstr(image, ".entry peerfs_copy(") ? SUCCESS : INVALID_VALUE;
}

int cuModuleGetFunction(void **found, void *in, const char *name) {
    ENTER();
    *found = &function;
    return in == &module && !strcmp(name, "peerfs_copy") ? SUCCESS : INVALID_VALUE;
}

int cuModuleUnload(void *loaded) { ENTER(); note("unload\n"); return loaded == &module ? SUCCESS : INVALID_VALUE; }

int cuMemHostRegister_v2(void *start, size_t length, unsigned flags) {
    ENTER();
    if ((uintptr_t)start % 4096 || length % 4096)
        return INVALID_VALUE;
    note("register %zu flags %u\n", length, flags);
    return SUCCESS;
}

int cuMemHostGetDevicePointer_v2(uint64_t *address, void *start, unsigned flags) {
    ENTER();
    *address = (uintptr_t)start + GPU_OFFSET;
    return flags ? INVALID_VALUE : SUCCESS;
}

int cuMemHostUnregister(void *start) {
    ENTER();
    unsigned char resident;
    int mapped = !mincore(start, 4096, &resident);
    note("unregister %s, %d kernels\n", mapped ? "mapped" : "unmapped", queued);
    return SUCCESS;
}

int cuMemAlloc_v2(uint64_t *address, size_t length) {
    ENTER();
    *address = (uintptr_t)aligned_alloc(4096, (length + 4095) & ~4095ull) + GPU_OFFSET;
    return SUCCESS;
}

int cuMemFree_v2(uint64_t address) { ENTER(); free(host(address)); note("free\n"); return SUCCESS; }
int cuMemsetD8_v2(uint64_t address, unsigned char byte, size_t length) { ENTER(); memset(host(address), byte, length); return SUCCESS; }
int cuMemHostAlloc(void **start, size_t length, unsigned flags) { ENTER(); (void)flags; *start = malloc(length); return SUCCESS; }
int cuMemFreeHost(void *start) { ENTER(); free(start); note("free host\n"); return SUCCESS; }

int cuLaunchKernel(void *kernel, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz, unsigned shared,
                   void *stream, void **arguments, void **extra) {
    ENTER();
    if (kernel != &function || !x || y != 1 || z != 1 || !threads || ty != 1 || tz != 1 || shared || stream || extra)
        return INVALID_VALUE;
    if (queued == QUEUE_MAX)
        return NOT_SUPPORTED;
    memcpy(&queue[queued].to, arguments[0], 8);
    memcpy(&queue[queued].from, arguments[1], 8);
    memcpy(&queue[queued].length, arguments[2], 8);
    note("launch %llu\n", (unsigned long long)queue[queued++].length);
    return SUCCESS;
}

int cuStreamSynchronize(void *stream) {
    ENTER();
    for (int i = 0; i < queued; i++)
        memcpy(host(queue[i].to), host(queue[i].from), queue[i].length);
    queued = 0;
    note("synchronize\n");
    return stream ? INVALID_VALUE : SUCCESS;
}

int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t length) {
    ENTER();
    memcpy(host(to), from, length);
    note("upload %zu\n", length);
    return SUCCESS;
}

int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t length) {
    ENTER();
    memcpy(to, host(from), length);
    note("download %zu\n", length);
    return SUCCESS;
}
