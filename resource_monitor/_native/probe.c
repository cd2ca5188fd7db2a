/* Reads limits and usage from kept file descriptors: the arithmetic of every kind of limit, and which one bites first.
 * Leaves finding and opening the files to Python. No Python API, no allocation, no global state: callers may be on any
 * thread, with or without the GIL, each on entries of its own. */

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "probe.h"
#include "text.h"

/* A v1 "no limit" is LONG_MAX rounded down to pages (mm/page_counter.c, PAGE_COUNTER_MAX); pages are at most 64 KiB. */
#define V1_UNLIMITED (0x7fffffffffffffffULL - 0xffffULL)

/* memory.stat has 60-odd lines at the most and meminfo as many, so 16 KiB holds either whole. */
enum { TEXT_SIZE = 16384 };

/* Neither a descriptor nor the -errno of opening one. */
#define NO_FILE INT_MIN

enum { INACTIVE_FILE, ACTIVE_FILE, MAPPED, SHMEM, DIRTY, WRITEBACK, SLAB, HIERARCHICAL, STAT_KEYS };

/* One pass over the entries. The last larger file stays here, and what the last memory.stat says: neighbours that speak
 * of the same cgroup share it. */
struct pass {
    int tier;
    u64 mem_total;      /* of the machine: a cgroup limit of more is none; lxcfs shows the limit itself for it */
    u64 least_visible;  /* the smallest value that a visible v1 level sets */
    int swapless;       /* the machine has no swap, so that limits with it decide nothing */
    const rm_limit *below; /* the last cgroup whose reclaimable part was read */
    int stat_fd;
    int stat_error;
    u64 stat[STAT_KEYS];
    int text_fd;
    ssize_t text_length;
    char text[TEXT_SIZE];
};

/* v1's bare keys count the one cgroup alone, the total_ ones its children too, as its usage does
 * (Documentation/admin-guide/cgroup-v1/memory.rst, section 5.2). It has no key for reclaimable slab, v2 none for the
 * least limit of all ancestors. */
static const char *const stat_keys[2][STAT_KEYS] = {
    {"total_inactive_file", "total_active_file", "total_mapped_file", "total_shmem", "total_dirty", "total_writeback",
     "", "hierarchical_memory_limit"},
    {"inactive_file", "active_file", "file_mapped", "shmem", "file_dirty", "file_writeback", "slab_reclaimable"},
};

/* The part of a cgroup's usage that the kernel would free before it kills, in bytes, from memory.stat's figures in the
 * order of the enum above. `low` counts clean pages on the inactive list alone, as kubelet's working set does; `all`
 * adds the active list without what is mapped (program code: evicting it freezes the program) and half of the slab
 * that calls itself reclaimable, much of which is pinned by open files. Anonymous memory and tmpfs count nowhere. */
void rm_reclaimable(int version, const u64 *stat, u64 *low, u64 *all)
{
    u64 busy = plus(stat[DIRTY], stat[WRITEBACK]);
    u64 mapped_file = minus(stat[MAPPED], stat[SHMEM]);
    u64 wide = minus(plus(stat[INACTIVE_FILE], stat[ACTIVE_FILE]), plus(busy, mapped_file));
    *low = minus(stat[INACTIVE_FILE], busy);
    *all = plus(wide > *low ? wide : *low, version == 2 ? stat[SLAB] / 2 : 0);
}

static void failed(rm_limit *limit, int file, int error)
{
    limit->state = error == ENOENT ? RM_UNLIMITED : RM_UNREADABLE;
    limit->error = error;
    limit->failed_file = file;
}

static int read_integer(int fd, u64 *value)
{
    char text[64];
    ssize_t length = rm_read_text(fd, text, sizeof text);
    if (length < 0)
        return (int)-length;
    return rm_parse_integer(text, (size_t)length, value);
}

/* `count` numbers separated by blanks or tabs: statm, file-nr. */
static int read_numbers(int fd, u64 *values, int count)
{
    char text[256];
    ssize_t length = rm_read_text(fd, text, sizeof text);
    if (length < 0)
        return (int)-length;
    const char *at = text, *end = text + length;
    for (int i = 0; i < count; i++) {
        while (at < end && (*at == ' ' || *at == '\t'))
            at++;
        if (rm_take_number(&at, end, &values[i]))
            return EBADMSG;
    }
    return 0;
}

/* The file into the pass's text unless it is there already. */
static int load(struct pass *pass, int fd)
{
    if (fd < 0)
        return -fd;
    if (pass->text_fd != fd) {
        pass->text_fd = fd;
        pass->text_length = rm_read_text(fd, pass->text, sizeof pass->text);
    }
    return pass->text_length < 0 ? (int)-pass->text_length : 0;
}

static int load_keys(struct pass *pass, int fd, const char *const *keys, int count, int needed, u64 *values)
{
    int error = load(pass, fd);
    if (error)
        return error;
    int found = rm_parse_keys(pass->text, (size_t)pass->text_length, keys, count, values);
    if (found < 0)
        return -found;
    return found < needed ? EBADMSG : 0;
}

static int is_v1(int kind) { return kind == RM_CGROUP_V1 || kind == RM_CGROUP_V1_SWAP || kind == RM_CGROUP_V1_HIDDEN; }

/* The entry's memory.stat into the pass, 0 for what it does not hold; without one nothing is reclaimable. */
static int load_stat(rm_limit *limit, struct pass *pass)
{
    if (pass->stat_fd != limit->stat_fd) {
        memset(pass->stat, 0, sizeof pass->stat);
        pass->stat[HIERARCHICAL] = NO_LIMIT;
        pass->stat_fd = limit->stat_fd;
        int v1 = is_v1(limit->kind);
        pass->stat_error = load_keys(
            pass, limit->stat_fd, stat_keys[v1 ? 0 : 1], v1 ? STAT_KEYS : HIERARCHICAL, 0, pass->stat);
    }
    if (pass->stat_error && pass->stat_error != ENOENT) {
        failed(limit, RM_STAT_FILE, pass->stat_error);
        return -1;
    }
    return 0;
}

static void read_reclaimable(rm_limit *limit, struct pass *pass)
{
    limit->at_least = 0;
    if (load_stat(limit, pass))
        return;
    rm_reclaimable(is_v1(limit->kind) ? 1 : 2, pass->stat, &limit->reclaimable_low, &limit->reclaimable);
    pass->below = limit;
}

/* Whether a cgroup above all visible ones sets a limit: every memory.stat below tells the least of all ancestors, so that
 * the top's is read only where another tells of less than what is visible. */
static int is_limited_above(rm_limit *limit, struct pass *pass)
{
    int told = pass->tier != RM_FULL && pass->stat_fd != NO_FILE && pass->stat[HIERARCHICAL] != NO_LIMIT;
    if (!told || pass->stat[HIERARCHICAL] < pass->least_visible)
        if (load_stat(limit, pass))
            return 0;
    limit->value = pass->stat[HIERARCHICAL];
    limit->state = limit->value >= pass->least_visible || limit->value > pass->mem_total ? RM_UNLIMITED : RM_LIMITED;
    return limit->state == RM_LIMITED;
}

static void read_usage(rm_limit *limit)
{
    int error = read_integer(limit->usage_fd, &limit->used);
    if (error)
        failed(limit, RM_USAGE_FILE, error);
}

/* The limit itself. Whether there is one. The kernel keeps one with swap from being less than the one without, and where
 * there is no swap as much is charged to both. */
static int read_cgroup_limit(rm_limit *limit, struct pass *pass)
{
    if (limit->kind == RM_CGROUP_V1_HIDDEN)
        return is_limited_above(limit, pass);
    if (limit->kind == RM_CGROUP_V1_SWAP && pass->swapless) {
        limit->state = RM_UNLIMITED;
        return 0;
    }
    int error = read_integer(limit->limit_fd, &limit->value);
    if (error) {
        failed(limit, RM_LIMIT_FILE, error);
        return 0;
    }
    if (limit->kind == RM_CGROUP_V1 && limit->value < pass->least_visible)
        pass->least_visible = limit->value;
    limit->state = limit->value >= V1_UNLIMITED || limit->value > pass->mem_total ? RM_UNLIMITED : RM_LIMITED;
    return limit->state == RM_LIMITED;
}

/* The cgroups come from the process's own upwards, so that what is reclaimable below can be reclaimed here too. Whether
 * the cgroup is limited, and its usage is to be read. */
static int is_limited_cgroup(rm_limit *limit, struct pass *pass)
{
    if (pass->tier == RM_USAGE)
        return 1;
    if (pass->tier >= RM_DECISIVE && !read_cgroup_limit(limit, pass))
        return 0;
    if (pass->tier == RM_FULL || !pass->below || pass->stat_fd == limit->stat_fd) {
        read_reclaimable(limit, pass);
    } else {
        limit->reclaimable = pass->below->reclaimable;
        limit->reclaimable_low = pass->below->reclaimable_low;
        limit->at_least = 1;
    }
    return limit->state == RM_LIMITED;
}

static void read_cgroup(rm_limit *limit, struct pass *pass)
{
    if (is_limited_cgroup(limit, pass))
        read_usage(limit);
}

/* lxcfs may hide the machine's swap in meminfo, but not from the system call. */
static int has_no_swap(void)
{
    struct sysinfo machine;
    return !sysinfo(&machine) && !machine.totalswap;
}

static void read_host(rm_limit *limit, struct pass *pass)
{
    static const char *const keys[] = {"MemTotal:", "MemAvailable:", "SwapTotal:"};
    u64 values[3] = {0, 0, NO_LIMIT};
    int error = load_keys(pass, limit->usage_fd, keys, 3, 2, values);
    if (error) {
        failed(limit, RM_USAGE_FILE, error);
        return;
    }
    pass->swapless = pass->tier == RM_DECISIVE && !values[2] && has_no_swap();
    limit->value = values[0];
    limit->used = minus(values[0], values[1]);
    limit->state = RM_LIMITED;
}

/* CommitLimit binds in mode 2 of vm.overcommit_memory alone (Documentation/mm/overcommit-accounting.rst). */
static void read_commit(rm_limit *limit, struct pass *pass)
{
    static const char *const keys[] = {"CommitLimit:", "Committed_AS:"};
    u64 values[2] = {0}, mode;
    int error;
    if (pass->tier >= RM_DECISIVE) {
        if ((error = read_integer(limit->limit_fd, &mode))) {
            failed(limit, RM_LIMIT_FILE, error);
            return;
        }
        if (mode != 2) {
            limit->state = RM_UNLIMITED;
            return;
        }
    }
    if ((error = load_keys(pass, limit->usage_fd, keys, 2, 2, values))) {
        failed(limit, RM_USAGE_FILE, error);
        return;
    }
    limit->value = values[0];
    limit->used = values[1];
    limit->state = RM_LIMITED;
}

static int own_rlimit(int resource, u64 *value)
{
    struct rlimit own;
    if (getrlimit(resource, &own))
        return errno;
    *value = own.rlim_cur == RLIM_INFINITY ? NO_LIMIT : own.rlim_cur;
    return 0;
}

/* The soft limit on `resource`, in the file called `name`, into `value`; 1 when the entry is settled: unlimited, or
 * unreadable. */
static int settled_by_rlimit(rm_limit *limit, struct pass *pass, int resource, const char *name)
{
    int error;
    if (pass->tier < RM_DECISIVE)
        return 0;
    if (limit->limit_fd == RM_OWN_RLIMIT)
        error = own_rlimit(resource, &limit->value);
    else if (!(error = load(pass, limit->limit_fd)))
        error = rm_parse_rlimit(pass->text, (size_t)pass->text_length, name, &limit->value);
    if (error) {
        failed(limit, RM_LIMIT_FILE, error);
        return 1;
    }
    limit->state = limit->value == NO_LIMIT ? RM_UNLIMITED : RM_LIMITED;
    return limit->state == RM_UNLIMITED;
}

/* statm: size resident shared text lib data dirty, in pages (man 5 proc_pid_statm). */
static void read_statm(rm_limit *limit, struct pass *pass)
{
    enum { SIZE, RESIDENT, SHARED, TEXT, LIB, DATA, FIELDS };
    u64 pages[FIELDS];
    int field = RESIDENT, error;
    if (limit->kind != RM_DECLARED) {
        field = limit->kind == RM_ADDRESS_SPACE ? SIZE : DATA;
        if (field == SIZE ? settled_by_rlimit(limit, pass, RLIMIT_AS, "Max address space")
                          : settled_by_rlimit(limit, pass, RLIMIT_DATA, "Max data size"))
            return;
    }
    if ((error = read_numbers(limit->usage_fd, pages, field + 1))) {
        failed(limit, RM_USAGE_FILE, error);
        return;
    }
    limit->used = pages[field] * (u64)sysconf(_SC_PAGESIZE);
    limit->state = RM_LIMITED;
}

static void counted(rm_limit *limit, long count)
{
    if (count < 0) {
        failed(limit, RM_USAGE_FILE, (int)-count);
        return;
    }
    limit->used = (u64)count;
    limit->state = RM_LIMITED;
}

/* file-nr: allocated, allocated but unused (always 0), maximum (Documentation/admin-guide/sysctl/fs.rst). */
static void read_system_files(rm_limit *limit)
{
    u64 values[3];
    int error = read_numbers(limit->usage_fd, values, 3);
    if (error) {
        failed(limit, RM_USAGE_FILE, error);
        return;
    }
    limit->used = minus(values[0], values[1]);
    limit->value = values[2];
    limit->state = RM_LIMITED;
}

static void read_pids(rm_limit *limit, struct pass *pass)
{
    int error;
    if (pass->tier >= RM_DECISIVE) {
        if ((error = read_integer(limit->limit_fd, &limit->value))) {
            failed(limit, RM_LIMIT_FILE, error);
            return;
        }
        limit->state = limit->value == NO_LIMIT ? RM_UNLIMITED : RM_LIMITED;
        if (limit->state == RM_UNLIMITED)
            return;
    }
    if ((error = read_integer(limit->usage_fd, &limit->used)))
        failed(limit, RM_USAGE_FILE, error);
}

/* loadavg: three averages, running/all tasks, last pid (man 5 proc_loadavg). */
static void read_system_tasks(rm_limit *limit, struct pass *pass)
{
    char text[128];
    int error;
    if (pass->tier >= RM_DECISIVE && (error = read_integer(limit->limit_fd, &limit->value))) {
        failed(limit, RM_LIMIT_FILE, error);
        return;
    }
    ssize_t length = rm_read_text(limit->usage_fd, text, sizeof text);
    const char *slash = length < 0 ? NULL : memchr(text, '/', (size_t)length);
    const char *at = slash ? slash + 1 : NULL;
    error = length < 0 ? (int)-length : !at ? EBADMSG : rm_take_number(&at, text + length, &limit->used);
    limit->state = RM_LIMITED;
    if (error)
        failed(limit, RM_USAGE_FILE, error);
}

static void read_entry(rm_limit *limit, struct pass *pass)
{
    switch (limit->kind) {
    case RM_HOST:
        read_host(limit, pass);
        break;
    case RM_COMMIT:
        read_commit(limit, pass);
        break;
    case RM_DECLARED:
    case RM_ADDRESS_SPACE:
    case RM_DATA:
        read_statm(limit, pass);
        break;
    case RM_OPEN_FILES:
        if (!settled_by_rlimit(limit, pass, RLIMIT_NOFILE, "Max open files"))
            counted(limit, rm_count_entries(limit->usage_fd));
        break;
    case RM_SYSTEM_FILES:
        read_system_files(limit);
        break;
    case RM_PIDS:
        read_pids(limit, pass);
        break;
    case RM_USER_PROCESSES: /* walks all of /proc: too dear where limits are kept */
        if (pass->tier >= RM_DECISIVE && !settled_by_rlimit(limit, pass, RLIMIT_NPROC, "Max processes"))
            counted(limit, rm_count_tasks(limit->usage_fd, limit->uid));
        break;
    case RM_SYSTEM_TASKS:
        read_system_tasks(limit, pass);
        break;
    default:
        read_cgroup(limit, pass);
    }
}

u64 rm_headroom(const rm_limit *limit)
{
    return minus(limit->value, minus(limit->used, limit->reclaimable));
}

u64 rm_headroom_low(const rm_limit *limit)
{
    return minus(limit->value, minus(limit->used, limit->reclaimable_low));
}

static int counts_address_space(int kind) { return kind == RM_ADDRESS_SPACE || kind == RM_DATA || kind == RM_COMMIT; }

/* Whether the next entry is the same cgroup's limit that counts swap too. */
static int is_of_a_pair(const rm_limit *limit, const rm_limit *end)
{
    return limit->kind == RM_CGROUP_V1 && limit + 1 < end && limit[1].kind == RM_CGROUP_V1_SWAP;
}

/* Whether that one cannot have more left: with swap never less is used. */
static int counts_for_both(const rm_limit *limit, const rm_limit *end)
{
    return is_of_a_pair(limit, end) && limit[1].state == RM_LIMITED && limit[1].value <= limit->value;
}

/* A cgroup's two limits. What is charged between two readings counts for both, and shall not make the second seem the
 * nearer one: the first's usage is read last, where it can matter. */
static void read_pair(rm_limit *limit, struct pass *pass)
{
    int limited = is_limited_cgroup(limit, pass);
    read_cgroup(limit + 1, pass);
    if (limited && (pass->tier == RM_FULL || !counts_for_both(limit, limit + 2)))
        read_usage(limit);
}

static void take_in(const rm_limit *limit, int index, rm_outcome *outcome)
{
    u64 headroom = rm_headroom(limit);
    if (limit->value < outcome->tightest)
        outcome->tightest = limit->value;
    if (counts_address_space(limit->kind) && headroom < outcome->fixed)
        outcome->fixed = headroom;
    if (headroom < outcome->headroom) {
        outcome->least = index;
        outcome->headroom = headroom;
        outcome->free = minus(limit->value, limit->used);
    }
}

static void judge(const rm_limit *limits, int count, int tier, rm_outcome *outcome)
{
    *outcome = (rm_outcome){RM_NONE, RM_NONE, NO_LIMIT, NO_LIMIT, NO_LIMIT, NO_LIMIT};
    for (int i = 0; i < count; i++) {
        const rm_limit *limit = &limits[i];
        if (limit->state == RM_UNREADABLE && outcome->failed == RM_NONE)
            outcome->failed = i;
        if (limit->state == RM_LIMITED && limit->kind != RM_CGROUP_V2_HIGH &&
            (tier == RM_FULL || !counts_for_both(limit, limits + count)))
            take_in(limit, i, outcome);
    }
}

/* Of a cgroup's two limits that bite at the same time the one without swap is told: it was left out as the other stands
 * for it. */
static void look_at_neighbour(rm_limit *limits, int count, rm_outcome *outcome)
{
    if (outcome->least <= 0 || !counts_for_both(&limits[outcome->least - 1], limits + count))
        return;
    rm_limit *second = &limits[outcome->least], *first = second - 1;
    if (first->state != RM_LIMITED)
        return;
    first->reclaimable = second->reclaimable; /* of the same file */
    first->reclaimable_low = second->reclaimable_low;
    first->at_least = second->at_least;
    read_usage(first);
    if (first->state == RM_LIMITED && rm_headroom(first) <= outcome->headroom) {
        outcome->least--;
        outcome->headroom = rm_headroom(first);
        outcome->free = minus(first->value, first->used);
    } else if (first->state == RM_UNREADABLE && outcome->failed == RM_NONE) {
        outcome->failed = outcome->least - 1;
    }
}

/* Read the entries anew. 0, or ESTALE without having read when this is not the process `owner`: an inherited /proc/self
 * descriptor still speaks of the parent. The host's entry, when there is one, stands first: a cgroup limit of more than
 * the machine has is no limit. Where limits are kept, entries are left out that had more than `margin` beyond the least
 * headroom: as long as less than that can be used up before limits are read again, they cannot be the ones that bite. A
 * reading goes on until the reclaimable part of the one that bites first is its own: the others have at least what they
 * were taken for, and cannot be the ones either. */
int rm_read(rm_limit *limits, int count, int tier, int owner, u64 margin, rm_outcome *outcome)
{
    struct pass pass;
    u64 far = minus(NO_LIMIT, margin) > outcome->headroom ? outcome->headroom + margin : NO_LIMIT;
    if (getpid() != owner)
        return ESTALE;
    pass.tier = tier;
    pass.mem_total = pass.least_visible = NO_LIMIT;
    pass.swapless = 0;
    pass.below = NULL;
    pass.text_fd = pass.stat_fd = NO_FILE;
    for (rm_limit *limit = limits; limit < limits + count; limit++) {
        if (tier != RM_FULL && limit->kind == RM_CGROUP_V2_HIGH)
            continue;
        if (tier >= RM_DECISIVE && is_of_a_pair(limit, limits + count)) {
            read_pair(limit++, &pass);
            continue;
        }
        if (tier >= RM_DECISIVE || (limit->state == RM_LIMITED && rm_headroom(limit) <= far &&
                                    !counts_for_both(limit, limits + count)))
            read_entry(limit, &pass);
        if (limit->kind == RM_HOST && limit->state == RM_LIMITED)
            pass.mem_total = limit->value;
    }
    judge(limits, count, tier, outcome);
    while (outcome->least != RM_NONE && limits[outcome->least].at_least) {
        read_reclaimable(&limits[outcome->least], &pass);
        judge(limits, count, tier, outcome);
    }
    if (tier == RM_DECISIVE)
        look_at_neighbour(limits, count, outcome);
    return 0;
}
