/* The allocation guard: stands in front of CPython's allocators and refuses what would cross the floor, so that one
 * handler gets a MemoryError where the kernel would have killed the process.
 *
 * It wraps the RAW domain, through which every block of more than 512 bytes goes, the arenas of pymalloc, and the other
 * two domains where they bypass RAW (PYTHONMALLOC=malloc). RAW may be used without the GIL and on any thread: no Python
 * API beyond this file's installing and announcing, no allocation. What C libraries take from malloc themselves is not
 * seen here, only in the usage that the next check reads.
 *
 * The fast path counts down a budget: bytes that may pass before usage is read again. A small part of what is left above
 * the floor is small enough for several processes on one limit, and large enough to make checks rare. */

#define _GNU_SOURCE
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "probe.h"
#include "guard.h"
#include "text.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

enum {
    LARGE = 288 << 10,          /* refused at the floor; below it (event loops read into 256 KiB), at half of it, */
    SMALL_SHARE = 2,
    TINY = 512,                 /* pymalloc's own sizes; CPython 3.12 and 3.13 were seen to crash for want of one, */
    TINY_SHARE = 4,             /* so that these are refused later still; */
    SERVER_SHARE = 8,           /* the server's own work has all but this part: see rm_guard_place */
    SERVER_LARGE = 2 << 20,     /* nor are its buffers large below this: gunicorn 27 reads 1 MiB of a body at a time */
    OBJECT_MOST = 512,          /* bytes: the largest blocks that pymalloc serves */
    TIMED = 64 << 10,           /* from this size on a budget also grows old, */
    SLICE = 2 << 20,            /* at which is looked once for so many bytes: to ask for the time is not free either */
    BUDGET_LEAST = 64 << 10,
    BUDGET_MOST = 256 << 20,
    BUDGET_SHARE = 8,
    RECYCLED_SHARE = 4,         /* the same, where what the last budget allowed was given back meanwhile */
    CHARGED_SHARE = 128,        /* blocks smaller than this part of what is left may stay untouched: see charge() */
    GRACE_SHARE = 128,          /* of what is left, after a refusal, for those who deal with it */
    CACHE_LINE = 64,            /* bytes, of most processors; with another the fast path is slower, no more */
    HELPFUL = 1 << 20,          /* relief that brings less did not help */
};
#define FULL_INTERVAL 100000000LL       /* ns: limits may be changed at any time */
#define REREAD_INTERVAL 1000000LL       /* ns: a reading of what is reclaimable that did not help is not repeated sooner */
#define RELIEF_INTERVAL 1000000LL       /* ns: nor is relief: who was refused gives back what saves the next; */
#define BLIND_INTERVAL 5000000LL        /* where it is blind, that is twice as late each time */
#define BLIND_INTERVAL_MOST 250000000LL
#define ANNOUNCE_INTERVAL 1000000000LL
#define TURN_WAIT 100000L               /* ns: between two tries to have a turn, */
#define TURN_TRIES 1000                 /* and so many tries, for a process that has it may be stopped */
#define AGE_LEAST 1000000LL
#define AGE_MOST 50000000LL
#define ENDLESS (INT64_MAX / 2)
#define COUNTED_MOST (INT64_MAX / 4)             /* larger blocks are no address space's */

/* CPython's structs, outside of the limited API but unchanged since 3.5 (Include/cpython/pymem.h, objimpl.h). */
typedef struct {
    void *ctx;
    void *(*malloc)(void *ctx, size_t size);
    void *(*calloc)(void *ctx, size_t nelem, size_t elsize);
    void *(*realloc)(void *ctx, void *ptr, size_t new_size);
    void (*free)(void *ctx, void *ptr);
} allocator_t;
typedef struct {
    void *ctx;
    void *(*alloc)(void *ctx, size_t size);
    void (*free)(void *ctx, void *ptr, size_t size);
} arena_allocator_t;
enum domain { RAW, MEM, OBJ, DOMAINS };

enum { LOOK = 1 << 8 }; /* one more rm_guard_event, kept from Python: to see to it that we stay_linked() */

static struct {
    void (*get)(int domain, allocator_t *allocator);
    void (*set)(int domain, allocator_t *allocator);
    void (*get_arena)(arena_allocator_t *allocator);
    void (*set_arena)(arena_allocator_t *allocator);
    void *(*malloc[DOMAINS])(size_t size);
    void (*free[DOMAINS])(void *ptr);
    const char *(*name)(void);
} python;

static allocator_t original[DOMAINS];
static arena_allocator_t original_arena;
static bool linked[DOMAINS], arena_linked;      /* our functions stand in the chain, perhaps below another's */
static size_t (*usable_size)(void *);           /* NULL where blocks are not malloc's own */

static _Atomic int64_t budget = ENDLESS;
static _Atomic int64_t granted = ENDLESS;       /* all budgets so far: without what is left of the last, what passed */
static _Atomic int64_t fresh_until = INT64_MAX;
static _Atomic int64_t no_arenas_until;
static _Atomic size_t charged_from = SIZE_MAX;  /* blocks of this size and more are checked and charged one by one */
static _Atomic unsigned int refuse_every;
static _Atomic bool untold;
static __thread u64 thread_refusals;
static __thread int place;                      /* an rm_guard_place */
static __thread bool forking;                   /* between the fork handlers */
static __thread bool inside;                    /* an allocation made on behalf of a check must not be checked */

/* Everything below is held by `lock`. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    bool active;
    rm_guard_watch watch;
    rm_outcome outcome;
    void (*event)(int);
    int events;
    int64_t full_at, reclaimable_at, relief_due, blind_interval, announce_due;
    u64 floor;
    u64 left, granted;              /* as of the last check that set a budget: room above the floor, and the budget */
    unsigned int injected;
    u64 *published;
    rm_guard_statistics statistics;
} guard;

/* While this thread forks it holds the lock, and others' fork handlers may run Python before ours gives it back:
 * uvloop's does in the child, where it would wait for ever. */
static void take_lock(void)
{
    if (!forking)
        pthread_mutex_lock(&lock);
}

static void release_lock(void)
{
    if (!forking)
        pthread_mutex_unlock(&lock);
}

static void set_budget(int64_t bytes)
{
    atomic_fetch_add(&granted, bytes - atomic_exchange(&budget, bytes));
}

static int64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* ---- the check ---- */

static void stay_linked(void);

static int announce(void *unused)
{
    (void)unused;
    take_lock();
    int events = guard.events;
    void (*event)(int) = guard.event;
    guard.events = 0;
    release_lock();
    stay_linked();
    if (events & ~LOOK && event)
        event(events & ~LOOK);
    return 0;
}

/* Have Python told by the next tell(). The lock is held. */
static void raise_event(int event)
{
    if (!(guard.events & event)) {
        guard.events |= event;
        atomic_store_explicit(&untold, true, memory_order_relaxed);
    }
}

/* Tell Python, at a point where it may run code, on its main thread. Not under the lock: CPython has one of its own for
 * this, for which it may let go of the GIL. */
static void tell(void)
{
    if (atomic_load_explicit(&untold, memory_order_relaxed) && atomic_exchange(&untold, false) &&
        Py_AddPendingCall(announce, NULL))
        atomic_store(&untold, true); /* its queue is full; the next check tries again */
}

/* 0, or ESTALE in a child that was forked a moment ago, or had no descriptors for files of its own, and tries again. */
static int read_limits(int tier, int64_t now)
{
    int error = rm_read(guard.watch.limits, guard.watch.count, tier, guard.watch.owner, guard.watch.margin, &guard.outcome);
    guard.statistics.checks++;
    if (error && tier == RM_DECISIVE) {
        guard.full_at = now;
        raise_event(RM_GUARD_MOVED);
    }
    if (error || tier == RM_USAGE)
        return error;
    guard.reclaimable_at = now;
    if (tier != RM_DECISIVE)
        return 0;
    guard.statistics.full_checks++;
    guard.full_at = now;
    raise_event(LOOK);
    u64 limit = guard.outcome.tightest;
    u64 share = guard.watch.floor_share;
    u64 floor = limit == NO_LIMIT ? 0 : limit / 1000000 * share + limit % 1000000 * share / 1000000;
    floor = floor < guard.watch.floor_least ? guard.watch.floor_least : floor;
    guard.floor = floor > guard.watch.floor_most ? guard.watch.floor_most : floor;
    bool removed = guard.outcome.failed != RM_NONE && guard.watch.limits[guard.outcome.failed].error == ENODEV;
    bool moved = guard.watch.membership_fd >= 0 &&
        !rm_same_content(guard.watch.membership_fd, guard.watch.membership, guard.watch.membership_length);
    if (removed || moved)
        raise_event(RM_GUARD_MOVED);
    return 0;
}

static void relieve(int64_t now)
{
    u64 before = guard.outcome.headroom, dirty = 0;
    bool blind = rm_heap_dirty(&dirty) != 0;
    guard.relief_due = now + (blind ? guard.blind_interval : RELIEF_INTERVAL);
    if (!blind && dirty < HELPFUL)
        return;
    if (rm_heap_relieve() || read_limits(RM_RECLAIMABLE, now))
        return;
    bool helped = guard.outcome.headroom >= before + HELPFUL;
    guard.statistics.reliefs++;
    guard.statistics.relieved += minus(guard.outcome.headroom, before);
    /* what the allocator itself calls dirty is cheap to ask for; blind trimming has to earn its next turn */
    guard.blind_interval = helped ? BLIND_INTERVAL : guard.blind_interval * 2;
    if (guard.blind_interval > BLIND_INTERVAL_MOST)
        guard.blind_interval = BLIND_INTERVAL_MOST;
    guard.relief_due = now_ns() + (blind ? guard.blind_interval : RELIEF_INTERVAL);
}

/* Refuse, and leave a small budget for what follows: unwinding, the server's answer, a log line. It shrinks with what is
 * left, so that a thousand refusals do not add up to the kernel's kill. */
static bool refuse(size_t size, u64 headroom, bool small, int64_t now)
{
    u64 above = minus(headroom, guard.floor / SMALL_SHARE) / BUDGET_SHARE, grace = headroom / GRACE_SHARE;
    u64 next = above > grace ? above : grace;
    thread_refusals++;
    guard.statistics.refusals++;
    guard.statistics.small_refusals += small;
    guard.statistics.refused_size = size;
    guard.statistics.refused_headroom = headroom;
    if (size <= COUNTED_MOST)
        atomic_fetch_sub(&granted, (int64_t)size);
    set_budget(next > BUDGET_MOST ? BUDGET_MOST : (int64_t)next);
    if (now >= guard.announce_due) {
        guard.announce_due = now + ANNOUNCE_INTERVAL;
        raise_event(RM_GUARD_REFUSED);
    }
    return false;
}

/* Of the floor one part in so many is to be left: all of it by what is large. */
static int share_of(size_t size, bool arena)
{
    bool small = size < LARGE || arena;
    /* A thread that never said where it is may be a pool's that does the app's work, or one that must not die of what a
     * request takes, such as that by which a worker of uvicorn tells its supervisor that it lives. */
    if (place != RM_IN_SERVER)
        return !small ? 1 : size <= TINY || (place == RM_ANYWHERE && !arena) ? TINY_SHARE : SMALL_SHARE;
    if (small)
        return SERVER_SHARE;
    /* Buffers end where the app's small steps do: they may be those of a task that the app left to the event loop, and
     * none may take what tiny blocks need. One that cannot be charged is large. */
    return size < SERVER_LARGE && usable_size ? SMALL_SHARE : 1;
}

static void publish(void)
{
    u64 passed = rm_guard_passed();
    /* each whole, for the reader is another process: what stands there is right when both say so */
    __atomic_store_n(&guard.published[0], passed, __ATOMIC_RELAXED);
    __atomic_store_n(&guard.published[1], ~passed, __ATOMIC_RELEASE);
}

/* Whether a block of `size` bytes, of which `held` are there already, may be taken, where such a share of the floor is to be
 * left; sets the next budget, and `charged` when it takes so large a part of what is left that it is to be charged at once.
 * The lock is held. */
static bool check(size_t size, size_t held, int share, bool *charged)
{
    size_t more = size - held;
    bool small = share > 1;
    int64_t now = now_ns();
    unsigned int every = atomic_load_explicit(&refuse_every, memory_order_relaxed);
    *charged = false;
    if (!guard.active) {
        set_budget(ENDLESS);
        atomic_store_explicit(&fresh_until, INT64_MAX, memory_order_relaxed);
        atomic_store_explicit(&charged_from, SIZE_MAX, memory_order_relaxed);
        return true;
    }
    if (guard.published)
        publish();
    /* CPython 3.12 and 3.13 do not outlive the refusal of every frame or coroutine */
    if (every && size > OBJECT_MOST && ++guard.injected % every == 0) {
        refuse(size, guard.outcome.headroom, small, now);
        set_budget(0);
        return false;
    }
    u64 floor = guard.floor / share;
    u64 needed = more > NO_LIMIT - floor ? NO_LIMIT : more + floor;
    int tier = now - guard.full_at >= FULL_INTERVAL ? RM_DECISIVE : RM_USAGE;
    if (read_limits(tier, now)) {
        set_budget(SLICE);
        return true;
    }
    /* Beyond what is free, the room is page cache that the kernel must reclaim first, which may have gone since; and
     * where even that falls short, some may have come. */
    if (guard.outcome.free < needed && guard.reclaimable_at != now &&
        (guard.outcome.headroom >= needed || now - guard.reclaimable_at >= REREAD_INTERVAL))
        read_limits(RM_RECLAIMABLE, now);
    if (guard.outcome.headroom < needed && now >= guard.relief_due)
        relieve(now);
    u64 headroom = guard.outcome.headroom;
    if (headroom < needed)
        return refuse(size, headroom, small, now);

    /* what passes unchecked may be anyone's, so that below the app's floor nothing does */
    u64 left = minus(headroom, more + guard.floor / SMALL_SHARE);
    bool recycled = minus(guard.left, left) < guard.granted / 4;
    u64 next = left / (recycled ? RECYCLED_SHARE : BUDGET_SHARE);
    size_t from = left / CHARGED_SHARE > TIMED ? left / CHARGED_SHARE : TIMED;
    /* another library's hook below us may want the GIL, for which nobody may wait who holds the lock */
    *charged = more >= from && usable_size;
    atomic_store_explicit(&charged_from, usable_size ? from : SIZE_MAX, memory_order_relaxed);
    next = next > BUDGET_MOST ? BUDGET_MOST : next < BUDGET_LEAST ? (left < BUDGET_LEAST ? left : BUDGET_LEAST) : next;
    guard.left = left;
    guard.granted = next;
    u64 age = left / (4 * (guard.watch.speed / 1000000000 + 1));
    age = age > AGE_MOST ? AGE_MOST : age < AGE_LEAST ? AGE_LEAST : age;
    set_budget(every ? 0 : (int64_t)next);
    atomic_store_explicit(&fresh_until, now + (int64_t)age, memory_order_relaxed);
    return true;
}

/* As covered() for larger sizes, whose budget also grows old. */
__attribute__((noinline)) static bool covered_timed(size_t size)
{
    if (size > COUNTED_MOST)
        return false;
    int64_t before = atomic_fetch_sub_explicit(&budget, (int64_t)size, memory_order_relaxed), after = before - (int64_t)size;
    return after >= 0 && size < atomic_load_explicit(&charged_from, memory_order_relaxed) &&
        (before / SLICE == after / SLICE || now_ns() < atomic_load_explicit(&fresh_until, memory_order_relaxed));
}

/* The fast path: true when the budget covers `size`. Small sizes are counted without a locked instruction: a count that
 * another thread overwrites is a few bytes lost. What it takes comes first and together, for a request allocates tens of
 * times, and what it needs of the processor's cache is taken from the app. */
static inline bool covered(size_t size)
{
    if (__builtin_expect(size >= TIMED, 0))
        return covered_timed(size);
    int64_t left = atomic_load_explicit(&budget, memory_order_relaxed) - (int64_t)size;
    atomic_store_explicit(&budget, left, memory_order_relaxed);
    return __builtin_expect(left >= 0, 1);
}

/* Have a block charged now: untouched pages count nowhere, and the next check would give the same room away again. Small
 * blocks are spared that: of those it takes more than CHARGED_SHARE at once, all waiting to be filled, to do harm. */
static void charge(void *block, size_t size)
{
    enum { PAGES = 1024 };
    unsigned char resident[PAGES];
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t start = ((uintptr_t)block + page - 1) & ~(page - 1), end = ((uintptr_t)block + size) & ~(page - 1);
    int saved = errno;
    for (uintptr_t length; start < end; start += length) {
        length = end - start < PAGES * page ? end - start : PAGES * page;
        /* most blocks are memory that was used before: to ask costs a tenth of populating it again */
        if (!mincore((void *)start, length, resident) && !memchr(resident, 0, length / page))
            continue;
        if (madvise((void *)start, length, MADV_POPULATE_WRITE)) {
            for (volatile char *at = (volatile char *)start; at < (volatile char *)(start + length); at += page)
                *at = *at; /* Linux before 5.14 */
        }
    }
    errno = saved;
}

/* Other processes on the same limit read the same usage. One after the other has its turn to read it and have a block
 * charged: a lock on the usage file that all of them have open. The descriptor to give to end_turn, or -1 without one. */
static int begin_turn(void)
{
    if (guard.outcome.least == RM_NONE)
        return -1;
    const rm_limit *limit = &guard.watch.limits[guard.outcome.least];
    if (limit->kind == RM_CGROUP_V1_SWAP)
        limit--; /* which of a cgroup's two limits is the nearer one may look different to each */
    if (limit->kind < RM_CGROUP_V1 || limit->kind > RM_CGROUP_V2_HIGH || limit->usage_fd < 0)
        return -1;
    for (int i = 0; i < TURN_TRIES; i++) {
        if (!flock(limit->usage_fd, LOCK_EX | LOCK_NB))
            return limit->usage_fd;
        if (errno != EWOULDBLOCK)
            return -1;
        nanosleep(&(struct timespec){0, TURN_WAIT}, NULL);
    }
    return -1;
}

static void end_turn(int turn)
{
    if (turn >= 0)
        flock(turn, LOCK_UN);
}

/* ---- the wrapped allocators ---- */

enum operation { MALLOC, CALLOC, REALLOC, ARENA };

static void *perform(enum operation operation, const allocator_t *from, void *block, size_t count, size_t size)
{
    switch (operation) {
    case MALLOC:
        return from->malloc(from->ctx, size);
    case CALLOC:
        return from->calloc(from->ctx, count, size);
    case REALLOC:
        return from->realloc(from->ctx, block, size);
    default:
        return original_arena.alloc(original_arena.ctx, size);
    }
}

static void *checked(enum operation operation, const allocator_t *from, void *block, size_t count, size_t size)
{
    size_t bytes = count * size, held = 0;
    int share = share_of(bytes, operation == ARENA);
    bool charged = false;
    if (inside)
        return perform(operation, from, block, count, size);
    if (operation == REALLOC && block) {
        /* shrinking never fails; where growth cannot be told from it, only what is large is worth the risk */
        size_t usable = usable_size ? usable_size(block) : 0;
        if (usable_size ? bytes <= usable : share > 1)
            return perform(operation, from, block, count, size);
        if (usable_size && rm_heap_remaps(block)) /* elsewhere both may be there for a moment */
            held = usable;
    }
    inside = true;
    take_lock();
    bool granted = check(bytes, held, share, &charged);
    void *result = NULL;
    if (charged) {
        bool again;
        int turn = begin_turn();
        if (turn >= 0)
            granted = check(bytes, held, share, &again); /* others had theirs meanwhile */
        if (granted && (result = perform(operation, from, block, count, size)))
            charge(result, bytes);
        end_turn(turn);
    }
    release_lock();
    if (operation == ARENA && !granted)
        atomic_store_explicit(&no_arenas_until, now_ns() + REREAD_INTERVAL, memory_order_relaxed);
    if (granted && !charged)
        result = perform(operation, from, block, count, size);
    tell();
    inside = false;
    return result;
}

static bool overflows(size_t count, size_t size) { return size && count > SIZE_MAX / size; }

#define WRAP(domain)                                                                                                   \
    __attribute__((aligned(CACHE_LINE))) static void *domain##_malloc(void *ctx, size_t size)                          \
    {                                                                                                                  \
        const allocator_t *from = &original[domain];                                                                   \
        (void)ctx;                                                                                                     \
        return covered(size) ? from->malloc(from->ctx, size) : checked(MALLOC, from, NULL, 1, size);                   \
    }                                                                                                                  \
    static void *domain##_calloc(void *ctx, size_t count, size_t size)                                                 \
    {                                                                                                                  \
        const allocator_t *from = &original[domain];                                                                   \
        (void)ctx;                                                                                                     \
        return overflows(count, size) || covered(count * size) ? from->calloc(from->ctx, count, size)                  \
                                                               : checked(CALLOC, from, NULL, count, size);             \
    }                                                                                                                  \
    static void *domain##_realloc(void *ctx, void *block, size_t size)                                                 \
    {                                                                                                                  \
        const allocator_t *from = &original[domain];                                                                   \
        (void)ctx;                                                                                                     \
        return covered(size) ? from->realloc(from->ctx, block, size) : checked(REALLOC, from, block, 1, size);         \
    }
WRAP(RAW)
WRAP(MEM)
WRAP(OBJ)

/* What is freed is no matter of ours: free and the context stay those of who was there. */
static const allocator_t wrappers[DOMAINS] = {
    {.malloc = RAW_malloc, .calloc = RAW_calloc, .realloc = RAW_realloc},
    {.malloc = MEM_malloc, .calloc = MEM_calloc, .realloc = MEM_realloc},
    {.malloc = OBJ_malloc, .calloc = OBJ_calloc, .realloc = OBJ_realloc},
};

/* pymalloc asks for an arena for each small object that it has no room for, and takes that from RAW when it gets none:
 * thousands of times where a request needs thousands. */
static void *arena_alloc(void *ctx, size_t size)
{
    (void)ctx;
    if (place != RM_IN_SERVER && now_ns() < atomic_load_explicit(&no_arenas_until, memory_order_relaxed)) {
        thread_refusals++;
        return NULL;
    }
    return covered(size) ? original_arena.alloc(original_arena.ctx, size) : checked(ARENA, NULL, NULL, 1, size);
}

/* ---- installing; with the GIL ---- */

static bool find(const char *name, void *function)
{
    void *symbol = dlsym(RTLD_DEFAULT, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

static bool find_python(void)
{
    find("_PyMem_GetCurrentAllocatorName", &python.name); /* private: good to have, not needed */
    return find("PyMem_GetAllocator", &python.get) && find("PyMem_SetAllocator", &python.set) &&
        find("PyObject_GetArenaAllocator", &python.get_arena) && find("PyObject_SetArenaAllocator", &python.set_arena) &&
        find("PyMem_RawMalloc", &python.malloc[RAW]) && find("PyMem_RawFree", &python.free[RAW]) &&
        find("PyMem_Malloc", &python.malloc[MEM]) && find("PyMem_Free", &python.free[MEM]) &&
        find("PyObject_Malloc", &python.malloc[OBJ]) && find("PyObject_Free", &python.free[OBJ]);
}

static void link_domain(int domain)
{
    allocator_t current;
    python.get(domain, &current);
    original[domain] = current;
    /* Setting is a copy of five words that a thread without the GIL may see half done: with the context kept, every
     * mixture of old and new functions works. */
    allocator_t wrapper = wrappers[domain];
    wrapper.ctx = current.ctx;
    wrapper.free = current.free;
    python.set(domain, &wrapper);
    linked[domain] = true;
}

static void unlink_domain(int domain)
{
    allocator_t current;
    python.get(domain, &current);
    /* with another hook on top we stay below it and let everything pass */
    if (linked[domain] && current.malloc == wrappers[domain].malloc) {
        python.set(domain, &original[domain]);
        linked[domain] = false;
    }
}

/* Whether a block that is too large for pymalloc passes us by. It does where the domain has malloc of its own, as MEM and
 * OBJ have under PYTHONMALLOC=malloc, and where nobody calls us any more. */
static bool bypassed(int domain)
{
    enum { ABOVE_PYMALLOC = 4096, MARK = 1 << 30 };
    int64_t kept = atomic_exchange(&budget, MARK);
    void *block = python.malloc[domain](ABOVE_PYMALLOC);
    bool seen = atomic_load(&budget) <= MARK - ABOVE_PYMALLOC;
    python.free[domain](block);
    atomic_store(&budget, kept);
    return !seen;
}

static void before_fork(void)
{
    take_lock();
    forking = true;
}

static void after_fork(void)
{
    forking = false;
    release_lock();
}

static void after_fork_in_child(void)
{
    guard.published = NULL; /* the parent's */
    after_fork();
}

static void register_fork_handlers(void) { pthread_atfork(before_fork, after_fork, after_fork_in_child); }

/* Once, whichever thread comes first: a lock that is given back twice is nobody's. */
static void handle_forks(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_fork_handlers);
}

static void start_watching(const rm_guard_watch *watch)
{
    guard.watch = *watch;
    guard.outcome = (rm_outcome){0};
    guard.full_at = -FULL_INTERVAL;
    guard.blind_interval = BLIND_INTERVAL;
    guard.relief_due = 0;
    if (!read_limits(RM_DECISIVE, now_ns()))
        rm_heap_prepare(guard.outcome.tightest);
}

/* Stand in front of every allocator that is not reached through us: all of them at first, later those where a hook that
 * was there before us put back what it had found. */
void rm_guard_link(void)
{
    PyGILState_STATE state = PyGILState_Ensure();
    /* a debug hook's or another library's block does not start where malloc's does */
    const char *name = python.name ? python.name() : NULL;
    if (name || !linked[RAW])
        usable_size = name && (!strcmp(name, "pymalloc") || !strcmp(name, "malloc")) ? malloc_usable_size : NULL;
    for (int domain = RAW; domain < DOMAINS; domain++)
        if (bypassed(domain))
            link_domain(domain);
    if (!arena_linked) {
        python.get_arena(&original_arena);
        arena_allocator_t wrapper = {original_arena.ctx, arena_alloc, original_arena.free};
        python.set_arena(&wrapper);
        arena_linked = true;
    }
    PyGILState_Release(state);
}

/* tracemalloc, when stopped, puts back what it found when started, whoever came since. CPython has a name for allocators
 * among which is nobody's hook. Where another's is left it may call us, and two that call each other never end. */
static void stay_linked(void)
{
    if (!python.name || !python.name())
        return;
    take_lock();
    bool active = guard.active;
    release_lock();
    if (!active)
        return;
    rm_guard_link();
    set_budget(0);
}

/* Begin to guard by `watch`; `event` is called with rm_guard_event bits when there is something to tell. 0, or ENOSYS
 * where this interpreter does not offer what is needed. */
int rm_guard_install(const rm_guard_watch *watch, void (*event)(int))
{
    if (!find_python())
        return ENOSYS;
    handle_forks();
    rm_guard_link();
    take_lock();
    start_watching(watch);
    guard.event = event;
    guard.active = true;
    release_lock();
    set_budget(0);
    tell();
    return 0;
}

/* Put back what was there before, or, below another's hook, let everything pass. */
void rm_guard_uninstall(void)
{
    PyGILState_STATE state = PyGILState_Ensure();
    take_lock();
    guard.active = false;
    guard.event = NULL;
    release_lock();
    set_budget(ENDLESS);
    atomic_store(&fresh_until, INT64_MAX);
    atomic_store(&charged_from, SIZE_MAX);
    atomic_store(&no_arenas_until, 0);
    for (int domain = RAW; domain < DOMAINS; domain++)
        unlink_domain(domain);
    arena_allocator_t current;
    python.get_arena(&current);
    if (arena_linked && current.alloc == arena_alloc) {
        python.set_arena(&original_arena);
        arena_linked = false;
    }
    PyGILState_Release(state);
}

/* Follow other limits from now on: after a fork, or when the process was moved. */
void rm_guard_watch_now(const rm_guard_watch *watch)
{
    take_lock();
    start_watching(watch);
    release_lock();
    set_budget(0);
    tell();
}

void rm_guard_read(rm_guard_statistics *out)
{
    take_lock();
    *out = guard.statistics;
    out->floor = guard.floor;
    release_lock();
}

/* Where on the calling thread's way through a request it is: the address of an rm_guard_place, which is kept up to date
 * by whoever runs the app. Of a thread that never said so it is not known whether it runs the app. */
int *rm_guard_place(void) { return &place; }

/* How often anything was refused on the calling thread. */
u64 rm_guard_thread_refusals(void) { return thread_refusals; }

/* Bytes that were let pass so far, on all threads: what of usage grows beyond that was taken unseen. Asked after each
 * reading, and so an occasion to see to it that allocations reach us. */
u64 rm_guard_passed(void)
{
    stay_linked();
    return (u64)(atomic_load(&granted) - atomic_load(&budget));
}

void *const rm_guard_functions[3] = {rm_guard_place, rm_guard_thread_refusals, rm_guard_passed};

/* Have every check write what passed so far into passed[0], and its complement into passed[1]; NULL ends it. A child made
 * by fork begins without. */
void rm_guard_publish(u64 *passed)
{
    handle_forks();
    take_lock();
    guard.published = passed;
    release_lock();
}

/* For tests: have every allocation checked, and every n-th that is larger than a small object refused; 0 ends it. */
void rm_guard_refuse_every(unsigned int n)
{
    atomic_store(&refuse_every, n);
    set_budget(0);
}
