/* What the files of the _turn module share: requests that start under a standing permission, without any Python.
 *
 * Everything here runs under the GIL, which makes each function atomic as long as it calls nothing that may run Python;
 * a free-threaded build takes the way through Python for every request. Limited API of 3.11. */

#ifndef RM_TURN_H
#define RM_TURN_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* The limited API has these as functions alone, which want every pointer cast. */
#undef Py_INCREF
#undef Py_DECREF
#undef Py_XINCREF
#undef Py_XDECREF
#undef Py_TYPE
#define Py_INCREF(object) Py_INCREF((PyObject *)(object))
#define Py_DECREF(object) Py_DECREF((PyObject *)(object))
#define Py_XINCREF(object) Py_XINCREF((PyObject *)(object))
#define Py_XDECREF(object) Py_XDECREF((PyObject *)(object))
#define Py_TYPE(object) Py_TYPE((PyObject *)(object))

/* vectorcallfunc and its flag are in the stable ABI since 3.12, under which 3.8 and later work alike (PEP 590). */
typedef PyObject *(*vectorcall)(PyObject *, PyObject *const *, size_t, PyObject *);
#define HAVE_VECTORCALL (1UL << 11)
#define VECTORCALL_OFFSET ((size_t)1 << (8 * sizeof(size_t) - 1))

/* So is this, which every CPython since 3.9 exports. */
PyAPI_FUNC(PyObject *) PyObject_Vectorcall(PyObject *, PyObject *const *, size_t, PyObject *);

/* As PyObject_CallFunctionObjArgs, which goes through its arguments twice; the place before them is a bound method's. */
#define RM_CALL(callable, ...)                                                                                         \
    ({                                                                                                                 \
        PyObject *rm_args[] = {NULL, __VA_ARGS__};                                                                     \
        PyObject_Vectorcall(callable, rm_args + 1, (sizeof rm_args / sizeof *rm_args - 1) | VECTORCALL_OFFSET, NULL);  \
    })

/* A condition that holds for few requests: what follows from it is laid aside, where it takes no room in the instruction
 * cache, which is what a request through here costs most of. Functions that few requests come to are COLD. */
#define RM_RARELY(condition) __builtin_expect(!!(condition), 0)
#define RM_COLD __attribute__((cold))

enum place { IN_APP = 1, IN_SERVER = 2 };       /* as enum rm_guard_place */

/* One class of requests: its grant, and what was used of it since the last settling. What every request looks at comes first,
 * in few lines of cache: there are many of these. */
typedef struct lane {
    PyObject_HEAD
    const char *text;                   /* its name's UTF-8, which belongs to `name` */
    Py_ssize_t length;
    uint64_t hash;
    uint64_t unbound;                   /* as of which of Turns' `unbound` nothing binds it; 0: something does */
    int64_t until;                      /* ns: when the grant ends, */
    uint64_t era;                       /* if Admission did not revoke it before */
    int64_t starts;                     /* how many more may start, */
    int64_t unanswered;                 /* and be without an answer */
    int64_t started, answered, ended, lost;
    int64_t most;                       /* the largest of started - ended - lost meanwhile */
    int64_t first_start, first_end, last_end;   /* ns; the first good end, and the last of any kind */
    bool used;
    bool exempt;                        /* some paths of this class may be */
    struct lane *next_used;
    PyObject *route;                    /* Admission's Route */
    PyObject *name;                     /* NULL: that of the classes beyond the bound */
    int64_t refused_until;              /* ns: how long a refusal stands, */
    int64_t refused_latest;             /* and for those in close succession: */
    int64_t refused_since, refused;     /* so many since then, ns; */
    int64_t refused_need;               /* that need as many bytes, */
    uint64_t refused_openings, refused_returns; /* if nothing ended before */
} Lane;

/* Bytes that requests were promised here, for the ledger that is told in bulk. */
typedef struct {
    PyObject_HEAD
    int64_t gross;                      /* all promises, whoever made them; what ends early is taken back */
    int64_t untold;                     /* of those made here: what the ledger does not know yet */
    uint64_t returns;                   /* changes with what the ledger knows of, and that may leave more than before */
} Tab;

/* The classes of one gate, and its standing permissions. What every request looks at comes first, in few lines of cache. */
typedef struct {
    PyObject_HEAD
    Lane **table;                       /* by the hash of their names */
    Lane *used;
    PyObject *clock;                    /* seconds, NULL: time.monotonic's */
    PyObject *priority_of, *cost_of;    /* the user's own, NULL: none */
    Tab *tab;                           /* NULL: what is promised is not counted */
    int64_t cost;
    int64_t in_flight;                  /* as of the last settling */
    int64_t net;                        /* started and not over since then */
    int64_t untold;                     /* started, and not taken yet */
    int64_t room;                       /* how many may be in flight */
    int64_t told;                       /* how many in flight other processes know of */
    int64_t waiting;
    int64_t spend_until;                /* of tab->gross */
    uint64_t spend;                     /* which grant set that */
    uint64_t era;
    /* a grant to every class that nothing binds, as the one was that it was given for */
    uint64_t unbound;
    uint64_t common_era;
    int64_t common_until;
    unsigned int epoch;                 /* forks */
    bool closed;                        /* somebody holds the gate's lock */
    int64_t meanwhile;                  /* until when the last grant that was renewed lasted for those who came meanwhile */
    uint64_t grants;                    /* given and prolonged */
    int64_t losses;                     /* not taken yet */
    uint64_t openings;                  /* as of Admission's, beyond which no refusal stands */
    int64_t refused, refused_at;        /* how many were since that was last told, and when the last was, ns */
    Lane *others;
    Lane **order;                       /* as they came */
    Py_ssize_t classes;
    PyObject *make;                     /* from the name of a new class to its Route */
    PyObject *admission;                /* whose era, in_flight and max_in_flight hold */
    PyObject *settle;                   /* what is called to take what was used, NULL: nobody wants it */
    PyObject *idle;                     /* what is called when nothing is in flight, but others were told otherwise */
    PyObject *priorities;               /* the type of what priority_of should give */
    PyObject *exempt;                   /* whether a path, below a mount point, is; asked where the next two do not tell: */
    PyObject *exact, *prefixes;         /* a set and a tuple; `exact` is NULL where `exempt` is to be asked always */
    uint64_t exempt_lengths;            /* a bit for each length, of UTF-8, that a path which may be exempt can have */
} Turns;

/* What a request that was let in holds of its gate. */
typedef struct {
    Turns *turns;                       /* NULL: it is over */
    Lane *lane;
    int64_t began;
    int64_t need, body;                 /* what is promised; and how much of that for its body, until it answers */
    uint64_t spend;
    unsigned int epoch;
    bool lost, answered;
} Stay;

/* A request of which Python need not decide whether it may start; what it refers to belongs to `carrier`. */
typedef struct {
    PyObject *carrier;                  /* its scope or environ */
    PyObject *path, *mount;             /* NULL: no mount point */
    const char *method_text, *path_text;        /* UTF-8 */
    Py_ssize_t method_length, path_length;
    int64_t body;                       /* bytes that it announces */
    int64_t need;                       /* bytes that it is promised, those for its body included */
    int64_t now;                        /* ns */
} Request;

/* Whether a request's method is a literal. */
#define RM_IS(request, literal)                                                                                        \
    ((request)->method_length == sizeof(literal) - 1 &&                                                                \
     !memcmp((request)->method_text, literal, sizeof(literal) - 1))

/* module.c */
extern int *(*rm_place)(void);          /* guard.c's rm_guard_place, */
extern unsigned long long (*rm_refusals)(void);         /* and rm_guard_thread_refusals */
PyTypeObject *rm_add_type(PyObject *module, PyType_Spec *spec);
PyTypeObject *rm_named_type(const char *name);  /* one of the module types; a new reference */

/* errors.c */
/* From Python 3.12 on what fails for want of memory was seen to fail without an error: then a MemoryError. */
RM_COLD void rm_ensure_error(void);
RM_COLD PyObject *rm_take_error(void);          /* with its traceback, and not set any more; a new reference, never NULL */
RM_COLD void rm_replace_error(PyObject **error);        /* the same in place of one that was taken before, or of NULL */
RM_COLD void rm_set_error(PyObject *error);     /* again; takes the reference */
RM_COLD void rm_restore_around(PyObject **what);        /* Py_CLEAR around which an error stays set */

/* lock.c */
bool rm_lock_init(PyObject *module);

/* core.c */
extern PyTypeObject *rm_turns_type, *rm_lane_type, *rm_tab_type;
bool rm_core_init(PyObject *module);
/* What a request is named by; false, maybe with an error: Python has to see. */
bool rm_name_request(Request *request, PyObject *method, PyObject *path);
Lane *rm_turns_lane(Turns *turns, const Request *request);      /* borrowed; NULL without an error: none yet */
/* The lane of a request that may start, and the time and what it needs; NULL, maybe with an error: Python decides. `renew`
 * is called with a lane that nothing binds but the age of its grant. */
Lane *rm_turns_open(Turns *turns, PyObject *renew, Request *request);
bool rm_turns_ready(const Turns *turns, const Lane *lane, const Request *request);     /* whether it still may */
int rm_turns_is_exempt(Turns *turns, const Lane *lane, const Request *request);         /* -1: an error */
/* Bytes of body for which no more is asked than that there is room; of a longer one memory is looked at as it comes, but
 * where there is so many times as much. */
enum { RM_SHORT_BODY = 1 << 16, RM_BODY_PART = 256 };
#define RM_NEED_MOST (1LL << 50)        /* bytes; what needs more is Python's business */
void rm_turns_start(Turns *turns, Lane *lane, const Request *request, Stay *stay);
void rm_stay_answers(Stay *stay);
/* The answer begins; however often this is said. */
static inline void rm_stay_answered(Stay *stay)
{
    if (!stay->answered && stay->turns)
        rm_stay_answers(stay);
}
/* `quietly`: without running Python, as where objects are collected. -1: an error; it is over all the same. */
int rm_stay_leave(Stay *stay, bool quietly);
/* The time, ns, as coarsely as will do to see whether it is before `until`; -1: an error. */
int64_t rm_turns_now(const Turns *turns, int64_t until);
PyObject *rm_route_class(PyObject *module, PyObject *const *args, Py_ssize_t count);

/* standing.c: methods of Turns */
PyObject *rm_turns_stand(Turns *self, PyObject *args);
PyObject *rm_turns_refuse_one(Turns *self, PyObject *args);
PyObject *rm_turns_refuse_http(Turns *self, PyObject *scope);
PyObject *rm_turns_take_refused(Turns *self, PyObject *unused);
/* Whether a request is refused by what stands, which counts it; false, maybe with an error: Python decides. */
bool rm_turns_refuse(Turns *turns, const Request *request);

/* asgi.c */
bool rm_asgi_init(PyObject *module);
/* Let a request in through a Door; `turn` is NULL where Python has to decide, or `door` is none. False where an error is
 * set. */
bool rm_asgi_enter(PyObject *door, PyObject *app, PyObject *scope, PyObject *receive, PyObject *send, PyObject **turn);
bool rm_asgi_refuse(Turns *turns, PyObject *scope);     /* as rm_turns_refuse, for requests without a body alone */

/* accept_queue.c */
PyObject *rm_queued(PyObject *module, PyObject *descriptor);

/* passage.c */
bool rm_passage_init(PyObject *module);
PyObject *rm_through_door(PyObject *module, PyObject *function);

/* wsgi.c */
bool rm_wsgi_init(PyObject *module);

#endif
