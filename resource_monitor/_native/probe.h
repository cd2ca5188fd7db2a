/* What the C files offer to Python. cffi reads this file as declarations too, so it holds nothing but declarations
 * and integer constants: no include guards and no preprocessor conditions. */

/* ---- limits: one entry for each limit that can bite a process (probe.c) ---- */

enum rm_kind {
    /* memory; bytes */
    RM_HOST,            /* usage: /proc/meminfo's MemTotal - MemAvailable; value: MemTotal */
    RM_COMMIT,          /* usage: /proc/meminfo's Committed_AS; value: CommitLimit; limit: overcommit_memory, which must be 2 */
    RM_DECLARED,        /* usage: resident pages of /proc/PID/statm; value given once */
    RM_ADDRESS_SPACE,   /* usage: size of statm; limit: /proc/PID/limits, or getrlimit(2) */
    RM_DATA,            /* usage: data of statm (stacks included); limit: the same */
    RM_CGROUP_V1,       /* memory.usage_in_bytes, memory.limit_in_bytes, memory.stat's total_* keys */
    RM_CGROUP_V1_SWAP,  /* the same with memory.memsw.* */
    RM_CGROUP_V1_HIDDEN,/* no limit file: memory.stat's hierarchical_memory_limit; stands after the visible levels */
    RM_CGROUP_V2,       /* memory.current, memory.max, memory.stat */
    RM_CGROUP_V2_HIGH,  /* the same with memory.high; throttles, so it never is the outcome's `least` */
    /* descriptors and tasks; numbers */
    RM_OPEN_FILES,      /* usage: the directory /proc/PID/fd; limit: the same */
    RM_SYSTEM_FILES,    /* usage: /proc/sys/fs/file-nr, which holds the limit too */
    RM_PIDS,            /* pids.current, pids.max */
    RM_USER_PROCESSES,  /* usage: the directory /proc, tasks of `uid`; limit: the same */
    RM_SYSTEM_TASKS     /* usage: /proc/loadavg; limit: /proc/sys/kernel/threads-max */
};

enum rm_state {
    RM_LIMITED,         /* value, used and the reclaimable part are known */
    RM_UNLIMITED,       /* the file says so, or is missing, or the value is more than the machine has */
    RM_UNREADABLE       /* error says why: an errno, EBADMSG for a file that does not hold what it should */
};

enum rm_tier {
    RM_USAGE,           /* usage; limits and what was read of the reclaimable parts are kept */
    RM_RECLAIMABLE,     /* usage, and the reclaimable parts that decide which limit bites first: its are exact */
    RM_DECISIVE,        /* the same, and limits */
    RM_FULL             /* everything, for who shows it */
};

enum rm_file { RM_USAGE_FILE, RM_LIMIT_FILE, RM_STAT_FILE };

#define RM_NONE -1

/* In place of a descriptor of /proc/PID/limits: the process's own, which it need not read anywhere. */
#define RM_OWN_RLIMIT -65536

typedef struct {
    /* set once by whoever opens it; a negative descriptor is the -errno of opening it, -ENOENT: there is no limit */
    int kind;
    int usage_fd;
    int limit_fd;
    int stat_fd;
    unsigned int uid;   /* RM_USER_PROCESSES alone */
    /* written by rm_read */
    unsigned long long value;
    unsigned long long used;
    unsigned long long reclaimable;
    unsigned long long reclaimable_low;
    int at_least;       /* the reclaimable part is what a cgroup below holds of it, which is a part of it */
    int state;
    int error;
    int failed_file;    /* which file it happened on */
} rm_limit;

typedef struct {
    int least;          /* index of the entry with the least headroom, RM_NONE when nothing limits */
    int failed;         /* index of the first entry that could not be read, RM_NONE when all could */
    unsigned long long headroom;    /* of entry `least` */
    unsigned long long free;        /* the same without what the kernel would have to reclaim first */
    unsigned long long fixed;       /* the least headroom among limits on address space: giving memory back helps none */
    unsigned long long tightest;    /* the smallest value of all entries */
} rm_outcome;

int rm_read(rm_limit *limits, int count, int tier, int owner, unsigned long long margin, rm_outcome *outcome);
unsigned long long rm_headroom(const rm_limit *limit);
unsigned long long rm_headroom_low(const rm_limit *limit);
void rm_reclaimable(int version, const unsigned long long *stat, unsigned long long *low, unsigned long long *all);

/* ---- parsers, also called by themselves (parse.c) ---- */

int rm_parse_integer(const char *text, size_t length, unsigned long long *value);
int rm_parse_keys(const char *text, size_t length, const char *const *keys, int count, unsigned long long *values);
int rm_parse_rlimit(const char *text, size_t length, const char *name, unsigned long long *value);
int rm_same_content(int fd, const char *expected, size_t length);

/* ---- counting (count.c) ---- */

long rm_count_entries(int directory_fd);
long rm_count_tasks(int proc_fd, unsigned int uid);

/* ---- the heap: which allocator serves malloc, what it holds, giving it back (heap.c) ---- */

enum rm_heap_kind { RM_HEAP_UNKNOWN, RM_HEAP_JEMALLOC, RM_HEAP_GLIBC, RM_HEAP_MIMALLOC, RM_HEAP_TCMALLOC };

typedef struct {
    unsigned long long allocated;   /* in use by the program */
    unsigned long long active;      /* in pages that hold something in use */
    unsigned long long metadata;
    unsigned long long resident;
    unsigned long long mapped;
    unsigned long long retained;    /* address space kept without memory behind it */
    unsigned long long dirty;       /* unused, still resident: what relief gives back */
} rm_heap_statistics;

int rm_heap_detect(void);
const char *rm_heap_object(void);
int rm_heap_has_statistics(void);
int rm_heap_read(rm_heap_statistics *out);
int rm_heap_dirty(unsigned long long *dirty);
void rm_heap_prepare(unsigned long long limit);
int rm_heap_remaps(const void *block);
int rm_heap_relieve(void);
int rm_heap_report(int fd);
