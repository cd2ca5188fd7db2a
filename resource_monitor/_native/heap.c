/* Which allocator serves this process's malloc, what it holds, and asking it to give back what it does not need.
 * Nothing is linked or opened: jemalloc uses static TLS and must be there from the start (LD_PRELOAD) or not at all. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/auxv.h>

#include "probe.h"

typedef unsigned long long u64;

/* MALLCTL_ARENAS_ALL of jemalloc >= 5.0: the index that stands for all arenas merged (jemalloc(3)). */
#define ALL_ARENAS "4096"

typedef int (*mallctl_t)(const char *, void *, size_t *, void *, size_t);
typedef int (*nametomib_t)(const char *, size_t *, size_t *);
typedef int (*bymib_t)(const size_t *, size_t, void *, size_t *, void *, size_t);

/* struct mallinfo2 of glibc >= 2.33 (mallinfo2(3)); declared here because older headers lack it. */
struct mallinfo2_s {
    size_t arena, ordblks, smblks, hblks, hblkhd, usmblks, fsmblks, uordblks, fordblks, keepcost;
};

enum { EPOCH, ALLOCATED, ACTIVE, METADATA, RESIDENT, MAPPED_BYTES, RETAINED, PDIRTY, PURGE, MIBS };
static const char *const mib_names[MIBS] = {
    "epoch", "stats.allocated", "stats.active", "stats.metadata", "stats.resident", "stats.mapped", "stats.retained",
    "stats.arenas." ALL_ARENAS ".pdirty", "arena." ALL_ARENAS ".purge",
};

static struct {
    int kind;
    char object[512];
    bymib_t bymib;
    size_t mib[MIBS][5], mib_length[MIBS];
    size_t page;
    int has_statistics;
    int (*malloc_trim)(size_t);
    struct mallinfo2_s (*mallinfo2)(void);
} heap;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* The address of `name` if it lives in the same object as the malloc that everyone gets: a jemalloc that a library
 * brought along for itself, and glibc's functions under a preloaded allocator, resolve too but are not the heap. */
static void *beside_malloc(const char *name, const void *malloc_base)
{
    Dl_info info;
    void *symbol = dlsym(RTLD_DEFAULT, name);
    return symbol && dladdr(symbol, &info) && info.dli_fbase == malloc_base ? symbol : NULL;
}

/* The object that serves malloc. A position-dependent executable that takes malloc's address (Debian's python3 does)
 * gives it an entry of its own PLT for all the process (System V ABI, "Function Addresses"), so that malloc seems to live
 * in the executable. malloc_usable_size comes with every malloc, and no interpreter takes its address. */
static int find_malloc(Dl_info *info)
{
    Dl_info program;
    void *symbol = dlsym(RTLD_DEFAULT, "malloc");
    if (!symbol || !dladdr(symbol, info))
        return 0;
    if (!dladdr((void *)getauxval(AT_ENTRY), &program) || program.dli_fbase != info->dli_fbase)
        return 1;
    symbol = dlsym(RTLD_DEFAULT, "malloc_usable_size");
    return !symbol || dladdr(symbol, info);
}

static void detect(void)
{
    Dl_info info;
    if (!find_malloc(&info))
        return;
    strncpy(heap.object, info.dli_fname ? info.dli_fname : "", sizeof heap.object - 1);

    mallctl_t mallctl;
    nametomib_t nametomib;
    *(void **)&mallctl = beside_malloc("mallctl", info.dli_fbase);
    *(void **)&nametomib = beside_malloc("mallctlnametomib", info.dli_fbase);
    *(void **)&heap.bymib = beside_malloc("mallctlbymib", info.dli_fbase);
    if (mallctl && nametomib && heap.bymib) {
        size_t size = sizeof heap.page;
        heap.kind = RM_HEAP_JEMALLOC;
        heap.has_statistics = mallctl("arenas.page", &heap.page, &size, NULL, 0) == 0;
        for (int i = 0; i < MIBS; i++) {
            heap.mib_length[i] = sizeof heap.mib[i] / sizeof *heap.mib[i];
            /* a jemalloc built with --disable-stats still purges */
            if (nametomib(mib_names[i], heap.mib[i], &heap.mib_length[i]) && i != PURGE)
                heap.has_statistics = 0;
        }
        return;
    }
    *(void **)&heap.malloc_trim = beside_malloc("malloc_trim", info.dli_fbase);
    *(void **)&heap.mallinfo2 = beside_malloc("mallinfo2", info.dli_fbase);
    if (heap.malloc_trim && beside_malloc("gnu_get_libc_version", info.dli_fbase)) {
        heap.kind = RM_HEAP_GLIBC;
        heap.has_statistics = heap.mallinfo2 != NULL;
    }
}

/* The kind of the allocator that serves malloc; looked for once a process. */
int rm_heap_detect(void)
{
    pthread_once(&once, detect);
    return heap.kind;
}

/* The path of the object that serves malloc, "" when the dynamic linker does not say. */
const char *rm_heap_object(void)
{
    rm_heap_detect();
    return heap.object;
}

static u64 jemalloc_size(int which)
{
    size_t value = 0, size = sizeof value;
    heap.bymib(heap.mib[which], heap.mib_length[which], &value, &size, NULL, 0);
    return value;
}

/* jemalloc's statistics stand still until epoch is written (jemalloc(3), "epoch"). */
static void jemalloc_refresh(void)
{
    unsigned long long epoch = 1;
    heap.bymib(heap.mib[EPOCH], heap.mib_length[EPOCH], NULL, NULL, &epoch, sizeof epoch);
}

/* Bytes that the allocator holds unused and would give back at once if asked. 0, or ENOTSUP when it cannot tell. */
int rm_heap_dirty(u64 *dirty)
{
    if (rm_heap_detect() != RM_HEAP_JEMALLOC || !heap.has_statistics)
        return ENOTSUP;
    jemalloc_refresh();
    *dirty = jemalloc_size(PDIRTY) * heap.page;
    return 0;
}

/* 0, or ENOTSUP when the allocator does not tell. */
int rm_heap_read(rm_heap_statistics *out)
{
    memset(out, 0, sizeof *out);
    rm_heap_detect();
    if (!heap.has_statistics)
        return ENOTSUP;
    if (heap.kind == RM_HEAP_JEMALLOC) {
        jemalloc_refresh();
        out->allocated = jemalloc_size(ALLOCATED);
        out->active = jemalloc_size(ACTIVE);
        out->metadata = jemalloc_size(METADATA);
        out->resident = jemalloc_size(RESIDENT);
        out->mapped = jemalloc_size(MAPPED_BYTES);
        out->retained = jemalloc_size(RETAINED);
        out->dirty = jemalloc_size(PDIRTY) * heap.page;
        return 0;
    }
    struct mallinfo2_s info = heap.mallinfo2();
    out->allocated = info.uordblks + info.hblkhd;
    out->active = out->allocated;
    out->mapped = info.arena + info.hblkhd;
    out->resident = out->mapped;
    out->dirty = info.fordblks;
    return 0;
}

/* Give unused memory back to the kernel. 0, an errno of jemalloc's, or ENOTSUP when the allocator offers no way. */
int rm_heap_relieve(void)
{
    switch (rm_heap_detect()) {
    case RM_HEAP_JEMALLOC:
        return heap.bymib(heap.mib[PURGE], heap.mib_length[PURGE], NULL, NULL, NULL, 0);
    case RM_HEAP_GLIBC:
        heap.malloc_trim(0);
        return 0;
    default:
        return ENOTSUP;
    }
}
