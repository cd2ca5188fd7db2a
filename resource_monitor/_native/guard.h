/* What guard.c offers to Python; read by cffi too, so declarations only. Needs probe.h. */

typedef struct {
    /* what it watches: entries as rm_read takes them, kept by the caller until replaced or uninstalled */
    rm_limit *limits;
    int count;
    int owner;
    unsigned long long margin;      /* as for rm_read */
    unsigned long long speed;       /* bytes a second that the process can use up at the very most */
    int membership_fd;              /* /proc/self/cgroup, negative: there is none */
    const char *membership;         /* what it held when the limits were found */
    size_t membership_length;
    /* the floor below which large allocations are refused: a share of the smallest limit (millionths), between bounds */
    unsigned long long floor_least;
    unsigned long long floor_most;
    unsigned int floor_share;
} rm_guard_watch;

/* Small steps are refused to the app first, so that the event loop and the server keep room to work. */
enum rm_guard_place { RM_ANYWHERE, RM_IN_APP, RM_IN_SERVER };

enum rm_guard_event { RM_GUARD_REFUSED = 1, RM_GUARD_MOVED = 2 };

typedef struct {
    unsigned long long checks;          /* times that usage was read */
    unsigned long long full_checks;     /* of these: limits and reclaimable parts too */
    unsigned long long refusals;
    unsigned long long small_refusals;  /* of these: growth by small steps */
    unsigned long long reliefs;         /* times that the allocator was asked to give back */
    unsigned long long relieved;        /* bytes of headroom that this brought */
    unsigned long long floor;           /* bytes, as of the last full check */
    unsigned long long refused_size;    /* of the last refusal: bytes asked for */
    unsigned long long refused_headroom;/* of the last refusal: bytes that were left */
} rm_guard_statistics;

int rm_guard_install(const rm_guard_watch *watch, void (*event)(int));
void rm_guard_link(void);
void rm_guard_uninstall(void);
void rm_guard_watch_now(const rm_guard_watch *watch);
void rm_guard_read(rm_guard_statistics *out);
int *rm_guard_place(void);
unsigned long long rm_guard_thread_refusals(void);
unsigned long long rm_guard_passed(void);
void rm_guard_publish(unsigned long long *passed);
/* rm_guard_place, rm_guard_thread_refusals and rm_guard_passed themselves: what cffi gives for the address of a function
 * is one of its own, which calls that. */
extern void *const rm_guard_functions[3];
void rm_guard_refuse_every(unsigned int n);
