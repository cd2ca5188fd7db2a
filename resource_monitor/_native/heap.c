/* Which allocator serves this process's malloc, what it holds, asking it to give back what it does not need, and its own
 * report. Nothing is linked or opened: jemalloc uses static TLS and must be there from the start (LD_PRELOAD) or not at
 * all. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

#include "probe.h"
#include "text.h"

/* mallopt(3) of glibc, by whose numbers it is asked where glibc is what serves malloc; musl's header has none. */
#ifndef M_MMAP_THRESHOLD
#define M_TRIM_THRESHOLD (-1)
#define M_MMAP_THRESHOLD (-3)
#endif

/* MALLCTL_ARENAS_ALL of jemalloc >= 5.0: the index that stands for all arenas merged (jemalloc(3)). */
#define ALL_ARENAS "4096"

enum { EPOCH, ALLOCATED, ACTIVE, METADATA, RESIDENT, MAPPED_BYTES, RETAINED, PDIRTY, PURGE, MIBS };
static const char *const mib_names[MIBS] = {
    "epoch", "stats.allocated", "stats.active", "stats.metadata", "stats.resident", "stats.mapped", "stats.retained",
    "stats.arenas." ALL_ARENAS ".pdirty", "arena." ALL_ARENAS ".purge",
};

/* struct mallinfo2 of glibc >= 2.33 (mallinfo2(3)); declared here because older headers lack it. */
struct mallinfo2_s {
    size_t arena, ordblks, smblks, hblks, hblkhd, usmblks, fsmblks, uordblks, fordblks, keepcost;
};

static struct jemalloc {
    int (*mallctl)(const char *, void *, size_t *, void *, size_t);
    int (*nametomib)(const char *, size_t *, size_t *);
    int (*bymib)(const size_t *, size_t, void *, size_t *, void *, size_t);
    void (*print)(void (*)(void *, const char *), void *, const char *);
    size_t mib[MIBS][5], mib_length[MIBS];
    size_t page;
} jemalloc;

static struct {
    int (*trim)(size_t);
    int (*option)(int, int);
    struct mallinfo2_s (*info)(void);
    int (*print)(int, FILE *);
} glibc;

static struct { /* microsoft/mimalloc, include/mimalloc.h */
    void (*collect)(bool);
    void (*process_info)(size_t *, size_t *, size_t *, size_t *, size_t *, size_t *, size_t *, size_t *);
    void (*print)(void (*)(const char *, void *), void *);
} mimalloc;

static struct { /* gperftools, src/gperftools/malloc_extension_c.h */
    void (*release)(void);
    int (*property)(const char *, size_t *);
    void (*print)(char *, int);
} tcmalloc;

static struct {
    int kind;
    bool has_statistics;
    const void *base;
    char object[512];
} heap;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* The function `name` if it lives in the same object as the malloc that everyone gets: a jemalloc that a library
 * brought along for itself, and glibc's functions under a preloaded allocator, resolve too but are not the heap. */
static bool beside_malloc(const char *name, void *function)
{
    Dl_info info;
    void *symbol = dlsym(RTLD_DEFAULT, name);
    if (!symbol || !dladdr(symbol, &info) || info.dli_fbase != heap.base)
        return false;
    memcpy(function, &symbol, sizeof symbol);
    return true;
}

static bool detect_jemalloc(void)
{
    if (!beside_malloc("mallctl", &jemalloc.mallctl) || !beside_malloc("mallctlnametomib", &jemalloc.nametomib) ||
        !beside_malloc("mallctlbymib", &jemalloc.bymib) || !beside_malloc("malloc_stats_print", &jemalloc.print))
        return false;
    size_t size = sizeof jemalloc.page;
    heap.kind = RM_HEAP_JEMALLOC;
    heap.has_statistics = jemalloc.mallctl("arenas.page", &jemalloc.page, &size, NULL, 0) == 0;
    for (int i = 0; i < MIBS; i++) {
        jemalloc.mib_length[i] = sizeof jemalloc.mib[i] / sizeof *jemalloc.mib[i];
        /* a jemalloc built with --disable-stats still purges */
        if (jemalloc.nametomib(mib_names[i], jemalloc.mib[i], &jemalloc.mib_length[i]) && i != PURGE)
            heap.has_statistics = false;
    }
    return true;
}

static bool detect_mimalloc(void)
{
    if (!beside_malloc("mi_collect", &mimalloc.collect) || !beside_malloc("mi_process_info", &mimalloc.process_info) ||
        !beside_malloc("mi_stats_print_out", &mimalloc.print))
        return false;
    heap.kind = RM_HEAP_MIMALLOC;
    heap.has_statistics = true;
    return true;
}

static bool detect_tcmalloc(void)
{
    if (!beside_malloc("MallocExtension_ReleaseFreeMemory", &tcmalloc.release) ||
        !beside_malloc("MallocExtension_GetNumericProperty", &tcmalloc.property) ||
        !beside_malloc("MallocExtension_GetStats", &tcmalloc.print))
        return false;
    heap.kind = RM_HEAP_TCMALLOC;
    heap.has_statistics = true;
    return true;
}

static bool detect_glibc(void)
{
    const char *(*version)(void);
    if (!beside_malloc("gnu_get_libc_version", &version) || !beside_malloc("malloc_trim", &glibc.trim) ||
        !beside_malloc("malloc_info", &glibc.print) || !beside_malloc("mallopt", &glibc.option))
        return false;
    heap.kind = RM_HEAP_GLIBC;
    heap.has_statistics = beside_malloc("mallinfo2", &glibc.info);
    return true;
}

/* The object that serves malloc. A position-dependent executable that takes malloc's address (Debian's python3 does)
 * gives it an entry of its own PLT for all the process (System V ABI, "Function Addresses"), so that malloc seems to live
 * in the executable. malloc_usable_size comes with every malloc, and no interpreter takes its address. */
static bool find_malloc(Dl_info *info)
{
    Dl_info program;
    void *symbol = dlsym(RTLD_DEFAULT, "malloc");
    if (!symbol || !dladdr(symbol, info))
        return false;
    if (!dladdr((void *)getauxval(AT_ENTRY), &program) || program.dli_fbase != info->dli_fbase)
        return true;
    symbol = dlsym(RTLD_DEFAULT, "malloc_usable_size");
    return !symbol || dladdr(symbol, info);
}

static void detect(void)
{
    Dl_info info;
    if (!find_malloc(&info))
        return;
    heap.base = info.dli_fbase;
    strncpy(heap.object, info.dli_fname ? info.dli_fname : "", sizeof heap.object - 1);
    (void)(detect_jemalloc() || detect_mimalloc() || detect_tcmalloc() || detect_glibc());
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

/* Whether rm_heap_read has figures: 0 or 1. */
int rm_heap_has_statistics(void)
{
    rm_heap_detect();
    return heap.has_statistics;
}

static u64 jemalloc_size(int which)
{
    size_t value = 0, size = sizeof value;
    jemalloc.bymib(jemalloc.mib[which], jemalloc.mib_length[which], &value, &size, NULL, 0);
    return value;
}

/* jemalloc's statistics stand still until epoch is written (jemalloc(3), "epoch"). */
static void jemalloc_refresh(void)
{
    unsigned long long epoch = 1;
    jemalloc.bymib(jemalloc.mib[EPOCH], jemalloc.mib_length[EPOCH], NULL, NULL, &epoch, sizeof epoch);
}

static u64 tcmalloc_size(const char *property)
{
    size_t value = 0;
    return tcmalloc.property(property, &value) ? value : 0;
}

/* Bytes that the allocator holds unused and would give back at once if asked. 0, or ENOTSUP when it cannot tell. */
int rm_heap_dirty(u64 *dirty)
{
    switch (rm_heap_detect()) {
    case RM_HEAP_JEMALLOC:
        if (!heap.has_statistics)
            return ENOTSUP;
        jemalloc_refresh();
        *dirty = jemalloc_size(PDIRTY) * jemalloc.page;
        return 0;
    case RM_HEAP_TCMALLOC:
        *dirty = tcmalloc_size("tcmalloc.pageheap_free_bytes");
        return 0;
    default:
        return ENOTSUP;
    }
}

/* 0, or ENOTSUP when the allocator does not tell. */
int rm_heap_read(rm_heap_statistics *out)
{
    memset(out, 0, sizeof *out);
    rm_heap_detect();
    if (!heap.has_statistics)
        return ENOTSUP;
    switch (heap.kind) {
    case RM_HEAP_JEMALLOC:
        jemalloc_refresh();
        out->allocated = jemalloc_size(ALLOCATED);
        out->active = jemalloc_size(ACTIVE);
        out->metadata = jemalloc_size(METADATA);
        out->resident = jemalloc_size(RESIDENT);
        out->mapped = jemalloc_size(MAPPED_BYTES);
        out->retained = jemalloc_size(RETAINED);
        out->dirty = jemalloc_size(PDIRTY) * jemalloc.page;
        return 0;
    case RM_HEAP_MIMALLOC: {
        /* what is committed is all that it tells while running */
        size_t commit = 0;
        mimalloc.process_info(NULL, NULL, NULL, NULL, NULL, &commit, NULL, NULL);
        out->mapped = commit;
        return 0;
    }
    case RM_HEAP_TCMALLOC:
        out->allocated = out->active = tcmalloc_size("generic.current_allocated_bytes");
        out->mapped = tcmalloc_size("generic.heap_size");
        out->retained = tcmalloc_size("tcmalloc.pageheap_unmapped_bytes");
        out->dirty = tcmalloc_size("tcmalloc.pageheap_free_bytes");
        out->resident = minus(out->mapped, out->retained);
        return 0;
    default: {
        struct mallinfo2_s info = glibc.info();
        out->allocated = out->active = info.uordblks + info.hblkhd;
        out->mapped = out->resident = info.arena + info.hblkhd;
        out->dirty = info.fordblks;
        return 0;
    }
    }
}

/* Prepare for a limit of so many bytes. What a thread frees on glibc goes to the top of its arena, which malloc_trim
 * leaves alone (malloc/malloc.c, mtrim), and free gives back only what is beyond a threshold that grows with the blocks
 * that were freed, to 64 MiB an arena: in a small limit a few threads keep all of it. So blocks that are large for this
 * limit are mapped on their own, and a top is kept as small, unless the user chose otherwise. 32 MiB is the most that
 * glibc would come to by itself. */
void rm_heap_prepare(u64 limit)
{
    enum { LEAST = 2 << 20, MOST = 32 << 20, SHARE = 128 };
    const char *tunables = getenv("GLIBC_TUNABLES");
    if (rm_heap_detect() != RM_HEAP_GLIBC || limit == NO_LIMIT || getenv("MALLOC_TRIM_THRESHOLD_") ||
        getenv("MALLOC_MMAP_THRESHOLD_") || (tunables && strstr(tunables, "glibc.malloc")))
        return;
    u64 large = limit / SHARE < LEAST ? LEAST : limit / SHARE > MOST ? MOST : limit / SHARE;
    glibc.option(M_MMAP_THRESHOLD, (int)large);
    glibc.option(M_TRIM_THRESHOLD, (int)large);
}

/* Whether a block has a mapping of its own, which grows where it is, without a copy: on glibc the word before it says so
 * (malloc/malloc.c, IS_MMAPPED and mremap_chunk). */
int rm_heap_remaps(const void *block)
{
    enum { IS_MMAPPED = 2 };
    return rm_heap_detect() == RM_HEAP_GLIBC && ((const size_t *)block)[-1] & IS_MMAPPED;
}

/* Give unused memory back to the kernel. 0, an errno of jemalloc's, or ENOTSUP when the allocator offers no way. */
int rm_heap_relieve(void)
{
    switch (rm_heap_detect()) {
    case RM_HEAP_JEMALLOC:
        return jemalloc.bymib(jemalloc.mib[PURGE], jemalloc.mib_length[PURGE], NULL, NULL, NULL, 0);
    case RM_HEAP_GLIBC:
        glibc.trim(0);
        return 0;
    case RM_HEAP_MIMALLOC:
        mimalloc.collect(true); /* of the calling thread's heap alone */
        return 0;
    case RM_HEAP_TCMALLOC:
        tcmalloc.release();
        return 0;
    default:
        return ENOTSUP;
    }
}

static void write_all(int fd, const char *text)
{
    size_t left = strlen(text);
    while (left) {
        ssize_t wrote = write(fd, text, left);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0)
            return;
        text += wrote;
        left -= (size_t)wrote;
    }
}

static void write_jemalloc(void *fd, const char *text) { write_all(*(int *)fd, text); }
static void write_mimalloc(const char *text, void *fd) { write_all(*(int *)fd, text); }

/* Write the allocator's own report to `fd`. 0, an errno, or ENOTSUP when it has none. */
int rm_heap_report(int fd)
{
    char text[32768];
    switch (rm_heap_detect()) {
    case RM_HEAP_JEMALLOC:
        jemalloc.print(write_jemalloc, &fd, NULL);
        return 0;
    case RM_HEAP_MIMALLOC:
        mimalloc.print(write_mimalloc, &fd);
        return 0;
    case RM_HEAP_TCMALLOC:
        tcmalloc.print(text, sizeof text);
        write_all(fd, text);
        return 0;
    case RM_HEAP_GLIBC: {
        int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        FILE *file = copy < 0 ? NULL : fdopen(copy, "w");
        if (!file)
            return errno;
        glibc.print(0, file);
        return fclose(file) ? errno : 0;
    }
    default:
        return ENOTSUP;
    }
}
