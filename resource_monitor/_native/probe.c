/* Reads limits and usage from kept file descriptors. Owns the parsing of the kernel's integer and "key value" files
 * and the arithmetic of the reclaimable part; leaves finding and opening the files to Python. No Python API, no
 * allocation, no global state: callers may be on any thread, with or without the GIL, each on entries of its own. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "probe.h"

typedef unsigned long long u64;

#define NO_LIMIT (~0ULL)
/* A v1 "no limit" is LONG_MAX rounded down to pages (mm/page_counter.c, PAGE_COUNTER_MAX); pages are at most 64 KiB. */
#define V1_UNLIMITED (0x7fffffffffffffffULL - 0xffffULL)

/* memory.stat has 60-odd lines at the most and meminfo as many, so 16 KiB holds either whole. */
enum { TEXT_SIZE = 16384 };

static u64 minus(u64 a, u64 b) { return a > b ? a - b : 0; }

/* The whole file from its start, NUL-terminated; its length, or -errno. A negative fd is an errno of its own. */
static ssize_t read_text(int fd, char *text, size_t size)
{
    size_t length = 0;
    if (fd < 0)
        return fd;
    while (length < size - 1) {
        ssize_t got = pread(fd, text + length, size - 1 - length, (off_t)length);
        if (got < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        if (got == 0)
            break;
        length += (size_t)got;
    }
    text[length] = 0;
    return (ssize_t)length;
}

/* The decimal number at *at, which is moved past it; 0, or EBADMSG when there is none or it does not fit. */
static int take_number(const char **at, const char *end, u64 *value)
{
    const char *p = *at;
    u64 n = 0;
    if (p == end || *p < '0' || *p > '9')
        return EBADMSG;
    for (; p < end && *p >= '0' && *p <= '9'; p++) {
        u64 digit = (u64)(*p - '0');
        if (n > (NO_LIMIT - digit) / 10)
            return EBADMSG;
        n = n * 10 + digit;
    }
    *at = p;
    *value = n;
    return 0;
}

/* A file that holds one number, "max" or "-1" (both: no limit, value ~0). 0 or EBADMSG. */
int rm_parse_integer(const char *text, size_t length, u64 *value)
{
    const char *end = text + length;
    while (end > text && (end[-1] == '\n' || end[-1] == ' '))
        end--;
    length = (size_t)(end - text);
    if ((length == 3 && !memcmp(text, "max", 3)) || (length == 2 && !memcmp(text, "-1", 2))) {
        *value = NO_LIMIT;
        return 0;
    }
    if (take_number(&text, end, value) || text != end)
        return EBADMSG;
    return 0;
}

/* Lines of "key value [unit]": values[i] gets the value of keys[i] and stays as it is where the key is absent. A unit
 * of kB multiplies by 1024. The number of keys found, or -EBADMSG when a wanted key has no number behind it. */
int rm_parse_keys(const char *text, size_t length, const char *const *keys, int count, u64 *values)
{
    const char *end = text + length;
    int found = 0;
    while (text < end) {
        const char *line_end = memchr(text, '\n', (size_t)(end - text));
        if (!line_end)
            line_end = end;
        const char *space = memchr(text, ' ', (size_t)(line_end - text));
        if (space) {
            size_t key_length = (size_t)(space - text);
            for (int i = 0; i < count; i++) {
                if (strncmp(keys[i], text, key_length) || keys[i][key_length])
                    continue;
                const char *at = space;
                u64 value;
                while (at < line_end && *at == ' ')
                    at++;
                if (take_number(&at, line_end, &value))
                    return -EBADMSG;
                if (line_end - at >= 3 && !memcmp(at, " kB", 3)) {
                    if (value > NO_LIMIT / 1024)
                        return -EBADMSG;
                    value *= 1024;
                }
                values[i] = value;
                found++;
                break;
            }
        }
        text = line_end + 1;
    }
    return found;
}

enum { INACTIVE_FILE, ACTIVE_FILE, MAPPED, SHMEM, DIRTY, WRITEBACK, SLAB, STAT_KEYS };

/* v1's bare keys count the one cgroup alone, the total_ ones its children too, as its usage does
 * (Documentation/admin-guide/cgroup-v1/memory.rst, section 5.2). It has no key for reclaimable slab. */
static const char *const stat_keys[2][STAT_KEYS] = {
    {"total_inactive_file", "total_active_file", "total_mapped_file", "total_shmem", "total_dirty", "total_writeback", ""},
    {"inactive_file", "active_file", "file_mapped", "shmem", "file_dirty", "file_writeback", "slab_reclaimable"},
};

/* The part of a cgroup's usage that the kernel would free before it kills, in bytes, from memory.stat's figures in the
 * order of the enum above. `low` counts clean pages on the inactive list alone, as kubelet's working set does; `all`
 * adds the active list without what is mapped (program code: evicting it freezes the program) and half of the slab
 * that calls itself reclaimable, much of which is pinned by open files. Anonymous memory and tmpfs count nowhere. */
void rm_reclaimable(int version, const u64 *stat, u64 *low, u64 *all)
{
    u64 busy = stat[DIRTY] + stat[WRITEBACK];
    u64 mapped_file = minus(stat[MAPPED], stat[SHMEM]);
    u64 wide = minus(stat[INACTIVE_FILE] + stat[ACTIVE_FILE], busy + mapped_file);
    *low = minus(stat[INACTIVE_FILE], busy);
    *all = (wide > *low ? wide : *low) + (version == 2 ? stat[SLAB] / 2 : 0);
}

static int read_integer(int fd, u64 *value)
{
    char text[64];
    ssize_t length = read_text(fd, text, sizeof text);
    if (length < 0)
        return (int)-length;
    return rm_parse_integer(text, (size_t)length, value);
}

static int read_keys(int fd, const char *const *keys, int count, int needed, u64 *values)
{
    char text[TEXT_SIZE];
    ssize_t length = read_text(fd, text, sizeof text);
    if (length < 0)
        return (int)-length;
    int found = rm_parse_keys(text, (size_t)length, keys, count, values);
    if (found < 0)
        return -found;
    return found < needed ? EBADMSG : 0;
}

static void failed(rm_limit *limit, int file, int error)
{
    limit->state = error == ENOENT ? RM_UNLIMITED : RM_UNREADABLE;
    limit->error = error;
    limit->failed_file = file;
}

static void read_cgroup(rm_limit *limit, int tier, u64 mem_total)
{
    int version = limit->kind == RM_CGROUP_V2 ? 2 : 1;
    int error;
    if (tier == RM_FULL) {
        if ((error = read_integer(limit->limit_fd, &limit->value))) {
            failed(limit, RM_LIMIT_FILE, error);
            return;
        }
        if (limit->value >= V1_UNLIMITED || limit->value >= mem_total) {
            limit->state = RM_UNLIMITED;
            return;
        }
        u64 stat[STAT_KEYS] = {0};
        error = read_keys(limit->stat_fd, stat_keys[version - 1], STAT_KEYS, 0, stat);
        if (error && error != ENOENT) {
            failed(limit, RM_STAT_FILE, error);
            return;
        }
        rm_reclaimable(version, stat, &limit->reclaimable_low, &limit->reclaimable);
        limit->state = RM_LIMITED;
    }
    if ((error = read_integer(limit->usage_fd, &limit->used)))
        failed(limit, RM_USAGE_FILE, error);
}

static void read_host(rm_limit *limit)
{
    static const char *const keys[] = {"MemTotal:", "MemAvailable:"};
    u64 values[2] = {0};
    int error = read_keys(limit->usage_fd, keys, 2, 2, values);
    if (error) {
        failed(limit, RM_USAGE_FILE, error);
        return;
    }
    limit->value = values[0];
    limit->used = minus(values[0], values[1]);
    limit->state = RM_LIMITED;
}

/* statm: size resident shared text lib data dirty, in pages (man 5 proc). */
static void read_declared(rm_limit *limit)
{
    char text[256];
    ssize_t length = read_text(limit->usage_fd, text, sizeof text);
    u64 size, resident;
    if (length < 0) {
        failed(limit, RM_USAGE_FILE, (int)-length);
        return;
    }
    const char *at = text, *end = text + length;
    if (take_number(&at, end, &size) || at == end || *at++ != ' ' || take_number(&at, end, &resident)) {
        failed(limit, RM_USAGE_FILE, EBADMSG);
        return;
    }
    limit->used = resident * (u64)sysconf(_SC_PAGESIZE);
    limit->state = RM_LIMITED;
}

u64 rm_headroom(const rm_limit *limit)
{
    return minus(limit->value, minus(limit->used, limit->reclaimable));
}

u64 rm_headroom_low(const rm_limit *limit)
{
    return minus(limit->value, minus(limit->used, limit->reclaimable_low));
}

/* Read every entry anew. 0, or ESTALE without having read when this is not the process `owner`: an inherited /proc/self
 * descriptor still speaks of the parent. The host's entry, when there is one, stands first: a cgroup limit of more than
 * the machine has is no limit. */
int rm_read(rm_limit *limits, int count, int tier, int owner, rm_outcome *outcome)
{
    u64 mem_total = NO_LIMIT;
    if (getpid() != owner)
        return ESTALE;
    *outcome = (rm_outcome){RM_NONE, RM_NONE, NO_LIMIT, NO_LIMIT, NO_LIMIT};
    for (int i = 0; i < count; i++) {
        rm_limit *limit = &limits[i];
        if (tier == RM_FULL || limit->state == RM_LIMITED) {
            switch (limit->kind) {
            case RM_HOST:
                read_host(limit);
                break;
            case RM_DECLARED:
                read_declared(limit);
                break;
            default:
                read_cgroup(limit, tier, mem_total);
            }
        }
        if (limit->state == RM_UNREADABLE && outcome->failed == RM_NONE)
            outcome->failed = i;
        if (limit->state != RM_LIMITED)
            continue;
        if (limit->kind == RM_HOST)
            mem_total = limit->value;
        if (limit->value < outcome->tightest)
            outcome->tightest = limit->value;
        if (rm_headroom(limit) < outcome->headroom) {
            outcome->least = i;
            outcome->headroom = rm_headroom(limit);
            outcome->free = minus(limit->value, limit->used);
        }
    }
    return 0;
}

/* 1 when the file still holds exactly `expected`, 0 when not, -errno. Compares piecewise: no length is too long. */
int rm_same_content(int fd, const char *expected, size_t length)
{
    char text[4096];
    size_t at = 0;
    for (;;) {
        ssize_t got = pread(fd, text, sizeof text, (off_t)at);
        if (got < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        if (got == 0)
            return at == length;
        if ((size_t)got > length - at || memcmp(text, expected + at, (size_t)got))
            return 0;
        at += (size_t)got;
    }
}
