/* Standing permissions: what Admission granted to a class of requests, counted while it is used, and told back in bulk.
 *
 * Python changes the state of admission under the gate's lock: it closes the turns before, takes what was used, and opens
 * them when it is done. Meanwhile every start goes through Python, and waits for the lock there; what ends is counted, and
 * told the next time. */

#include "turn.h"
#include "names.h"

#include <stddef.h>
#include <string.h>
#include <structmember.h>
#include <time.h>

enum { CLASSES = 256, TABLE = 1024, NAME_ROOM = 512 };
/* For so long, ns, what is over of a class that nothing binds can wait to be told. */
#define UNTOLD_MOST 250000000
/* So much longer, ns, lasts for other threads a grant that is being renewed: they would all wait for the same reading. */
#define MEANWHILE 5000000

PyTypeObject *rm_turns_type, *rm_lane_type, *rm_tab_type;
static PyObject *s_era, *s_in_flight, *s_most, *s_openings;
static int64_t tick = INT64_MAX / 4; /* ns */

/* ---- Lane ---- */

static void lane_dealloc(Lane *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->route);
    Py_XDECREF(self->name);
    PyObject_Free(self);
    Py_DECREF(type);
}

static Lane *lane_new(PyObject *route, PyObject *name)
{
    Lane *lane = PyObject_New(Lane, rm_lane_type);
    if (!lane)
        return NULL;
    memset((char *)lane + sizeof(PyObject), 0, sizeof *lane - sizeof(PyObject));
    lane->route = Py_NewRef(route);
    lane->name = Py_XNewRef(name);
    return lane;
}

static PyMemberDef lane_members[] = {
    {"route", T_OBJECT_EX, offsetof(Lane, route), READONLY, NULL},
    {"name", T_OBJECT, offsetof(Lane, name), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot lane_slots[] = {{Py_tp_dealloc, lane_dealloc}, {Py_tp_members, lane_members}, {0, NULL}};
static PyType_Spec lane_spec = {
    "resource_monitor._native._turn.Lane", sizeof(Lane), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    lane_slots,
};

/* ---- Tab ---- */

static PyObject *tab_promise(Tab *self, PyObject *size)
{
    long long bytes = PyLong_AsLongLong(size);
    if (bytes == -1 && PyErr_Occurred())
        return NULL;
    self->gross += bytes;
    Py_RETURN_NONE;
}

static PyObject *tab_take(Tab *self, PyObject *unused)
{
    (void)unused;
    PyObject *untold = PyLong_FromLongLong(self->untold);
    if (untold)
        self->untold = 0;
    return untold;
}

static void tab_dealloc(Tab *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *tab_new(PyTypeObject *type, PyObject *args, PyObject *options)
{
    (void)type, (void)options;
    if (!PyArg_ParseTuple(args, ":Tab"))
        return NULL;
    Tab *self = PyObject_New(Tab, rm_tab_type);
    if (self) {
        self->gross = self->untold = 0;
        self->returns = 0;
    }
    return (PyObject *)self;
}

static PyMethodDef tab_methods[] = {
    {"promise", (PyCFunction)tab_promise, METH_O, NULL},
    {"take", (PyCFunction)tab_take, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef tab_members[] = {
    {"untold", T_LONGLONG, offsetof(Tab, untold), READONLY, NULL},
    {"returns", T_ULONGLONG, offsetof(Tab, returns), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot tab_slots[] = {
    {Py_tp_new, tab_new}, {Py_tp_dealloc, tab_dealloc}, {Py_tp_methods, tab_methods}, {Py_tp_members, tab_members},
    {0, NULL},
};
static PyType_Spec tab_spec = {
    "resource_monitor._native._turn.Tab", sizeof(Tab), 0, Py_TPFLAGS_DEFAULT, tab_slots,
};

/* ---- classes ---- */

bool rm_name_request(Request *request, PyObject *method, PyObject *path)
{
    request->path = path;
    return PyUnicode_CheckExact(method) && PyUnicode_CheckExact(path) &&
        (request->method_text = PyUnicode_AsUTF8AndSize(method, &request->method_length)) &&
        (request->path_text = PyUnicode_AsUTF8AndSize(path, &request->path_length));
}

/* The UTF-8 of a text, also of one that has none; `owner` is to be given back. */
static const char *utf8(PyObject *text, Py_ssize_t *length, PyObject **owner)
{
    *owner = NULL;
    const char *found = PyUnicode_AsUTF8AndSize(text, length);
    if (found || !PyErr_ExceptionMatches(PyExc_UnicodeEncodeError))
        return found;
    PyErr_Clear();
    *owner = PyUnicode_AsEncodedString(text, "utf-8", "surrogatepass");
    if (!*owner)
        return NULL;
    *length = PyBytes_Size(*owner);
    return PyBytes_AsString(*owner);
}

typedef struct {
    char room[NAME_ROOM];
    char *text;
    Py_ssize_t length;
    Py_ssize_t path;        /* where that begins */
} Name;

/* The name of a request's class; to be freed. */
static bool name_class(const Request *request, Name *name)
{
    size_t method_length = (size_t)request->method_length, path_length = (size_t)request->path_length;
    size_t most = rm_name_most(method_length, path_length);
    name->text = name->room;
    if (RM_RARELY(most > NAME_ROOM) && !(name->text = PyMem_Malloc(most))) {
        PyErr_NoMemory();
        return false;
    }
    name->length = (Py_ssize_t)rm_name(request->method_text, method_length, request->path_text, path_length, name->text);
    name->path = request->method_length + 1;
    return true;
}

static void name_free(Name *name)
{
    if (RM_RARELY(name->text != name->room))
        PyMem_Free(name->text);
}

/* The same by any texts. */
static bool name_of(PyObject *method, PyObject *path, Name *name)
{
    Request request;
    PyObject *owners[2] = {NULL, NULL};
    request.method_text = utf8(method, &request.method_length, &owners[0]);
    request.path_text = request.method_text ? utf8(path, &request.path_length, &owners[1]) : NULL;
    bool done = request.path_text && name_class(&request, name);
    Py_XDECREF(owners[0]);
    Py_XDECREF(owners[1]);
    return done;
}

PyObject *rm_route_class(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 2 || !PyUnicode_Check(args[0]) || !PyUnicode_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "route_class() takes a method and a path.");
        return NULL;
    }
    Name name;
    if (!name_of(args[0], args[1], &name))
        return NULL;
    PyObject *text = PyUnicode_DecodeUTF8(name.text, name.length, "surrogatepass");
    name_free(&name);
    return text;
}

/* Whether some paths of a class may be exempt; `path` is that part of its name. */
static bool class_may_be_exempt(Turns *self, const char *path, Py_ssize_t length)
{
    if (!self->exact || PyTuple_Size(self->prefixes))
        return true;
    while (length > 1 && path[length - 1] == '/')
        length--;
    bool found = false;
    PyObject *paths = PyObject_GetIter(self->exact), *exact, *no_method = PyUnicode_FromStringAndSize("", 0);
    while (!found && paths && no_method && (exact = PyIter_Next(paths))) {
        Name name;
        if (!name_of(no_method, exact, &name)) {
            Py_DECREF(exact);
            break;
        }
        found = name.length - name.path == length && !memcmp(name.text + name.path, path, (size_t)length);
        name_free(&name);
        Py_DECREF(exact);
    }
    found = found || PyErr_Occurred();
    PyErr_Clear();
    Py_XDECREF(paths);
    Py_XDECREF(no_method);
    return found;
}

static Lane **slot_of(Turns *self, const char *text, Py_ssize_t length, uint64_t hash)
{
    for (uint64_t at = hash;; at++) {
        Lane **slot = &self->table[at % TABLE], *lane = *slot;
        if (!lane || (lane->hash == hash && lane->length == length && !memcmp(lane->text, text, (size_t)length)))
            return slot;
    }
}

/* The lane of a class, NULL where there is none yet. */
static Lane *lane_of(Turns *self, const Name *name, uint64_t hash)
{
    Lane *lane = *slot_of(self, name->text, name->length, hash);
    return RM_RARELY(!lane) && self->classes >= CLASSES ? self->others : lane;
}

Lane *rm_turns_lane(Turns *turns, const Request *request)
{
    Name name;
    if (!name_class(request, &name))
        return NULL;
    Lane *lane = lane_of(turns, &name, rm_name_hash(name.text, (size_t)name.length));
    name_free(&name);
    return lane;
}

static Lane *make_lane(Turns *self, const Name *name, uint64_t hash)
{
    PyObject *text = PyUnicode_DecodeUTF8(name->text, name->length, "surrogatepass");
    PyObject *route = text ? PyObject_CallFunctionObjArgs(self->make, text, NULL) : NULL;
    Lane *lane = route ? lane_new(route, text) : NULL;
    Py_XDECREF(route);
    Py_XDECREF(text);
    if (!lane)
        return NULL;
    lane->text = PyUnicode_AsUTF8AndSize(lane->name, &lane->length);
    if (!lane->text) /* no text of UTF-8 */
        PyErr_Clear();
    lane->hash = hash;
    lane->exempt = class_may_be_exempt(self, name->text + name->path, name->length - name->path);
    Lane **slot = lane->text ? slot_of(self, name->text, name->length, hash) : NULL;
    if (slot && !*slot && self->classes < CLASSES)
        return *slot = self->order[self->classes++] = lane;
    /* what `make` ran was faster, or the name cannot be kept */
    Py_DECREF(lane);
    return slot && *slot ? *slot : self->others;
}

/* The lane of a class, a new one's too. */
static PyObject *turns_lane(Turns *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !PyUnicode_Check(args[0]) || !PyUnicode_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "lane() takes a method and a path.");
        return NULL;
    }
    Name name;
    if (!name_of(args[0], args[1], &name))
        return NULL;
    uint64_t hash = rm_name_hash(name.text, (size_t)name.length);
    Lane *lane = lane_of(self, &name, hash);
    if (!lane)
        lane = make_lane(self, &name, hash);
    name_free(&name);
    return Py_XNewRef((PyObject *)lane);
}

/* In the order in which they came, and last that of the classes beyond the bound. */
static PyObject *turns_lanes(Turns *self, PyObject *unused)
{
    (void)unused;
    PyObject *lanes = PyList_New(self->classes + 1);
    for (Py_ssize_t at = 0; lanes && at <= self->classes; at++)
        PyList_SetItem(lanes, at, Py_NewRef((PyObject *)(at < self->classes ? self->order[at] : self->others)));
    return lanes;
}

/* ---- what may start, and what was used ---- */

static int64_t time_of(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static RM_COLD int64_t time_of_user(PyObject *clock)
{
    PyObject *seconds = PyObject_CallNoArgs(clock);
    double now = seconds ? PyFloat_AsDouble(seconds) : -1.0;
    Py_XDECREF(seconds);
    return now == -1.0 && PyErr_Occurred() ? -1 : (int64_t)(now * 1e9);
}

/* The kernel keeps a coarse time, which is a quarter of the price and a tick late at most. */
int64_t rm_turns_now(const Turns *turns, int64_t until)
{
    if (turns->clock)
        return time_of_user(turns->clock);
    int64_t coarse = time_of(CLOCK_MONOTONIC_COARSE);
    return coarse + tick < until ? coarse : time_of(CLOCK_MONOTONIC);
}

static int64_t until_of(const Turns *turns, const Lane *lane)
{
    int64_t own = lane->era == turns->era ? lane->until : 0;
    int64_t common = lane->unbound == turns->unbound && turns->common_era == turns->era ? turns->common_until : 0;
    return own > common ? own : common;
}

/* Whether so much may be promised. What a grant has is beyond what any priority leaves; a promise is another matter. */
static bool covers(const Turns *turns, int64_t need, int64_t body)
{
    if (!turns->tab)
        return need == 0;
    int64_t left = turns->spend_until - turns->tab->gross;
    return left >= 0 && need <= left && (body <= RM_SHORT_BODY || body <= left / RM_BODY_PART);
}

/* Whether one that needs nothing may start. */
static bool is_granted(const Turns *turns, const Lane *lane, int64_t now)
{
    return now < until_of(turns, lane) && lane->starts > 0 && lane->unanswered > 0 && turns->room > 0 &&
        !turns->closed && !turns->waiting;
}

bool rm_turns_ready(const Turns *turns, const Lane *lane, const Request *request)
{
    return is_granted(turns, lane, request->now) && covers(turns, request->need, request->body);
}

/* Have a grant that ended `until` then renewed; the time then, -1: an error. */
static RM_COLD int64_t renewed(Turns *turns, Lane *lane, PyObject *renew, int64_t until)
{
    bool common = turns->common_era == turns->era && turns->common_until; /* what was revoked stays so */
    int64_t *end = common ? &turns->common_until : &lane->until;
    uint64_t spend = turns->spend;
    if (until != turns->meanwhile) /* that was longer already */
        *end = turns->meanwhile = until + MEANWHILE;
    PyObject *done = PyObject_CallFunctionObjArgs(renew, (PyObject *)lane, NULL);
    if (turns->spend == spend && *end == turns->meanwhile)
        *end = until; /* nothing was granted */
    if (!done)
        return -1;
    Py_DECREF(done);
    return rm_turns_now(turns, until_of(turns, lane));
}

/* One of 64 bits for a length. */
static int length_bit(Py_ssize_t length) { return length < 63 ? (int)length : 63; }

static RM_COLD int is_exempt(Turns *turns, PyObject *path, PyObject *mount)
{
    Py_ssize_t length = PyUnicode_GetLength(path);
    bool plain = length == 1 || (length > 1 && PyUnicode_ReadChar(path, length - 1) != '/');
    if (!turns->exact || !plain || (mount && PyUnicode_GetLength(mount))) {
        PyObject *empty = mount ? Py_NewRef(mount) : PyUnicode_FromStringAndSize("", 0);
        PyObject *answer = empty ? PyObject_CallFunctionObjArgs(turns->exempt, path, empty, NULL) : NULL;
        int found = answer ? PyObject_IsTrue(answer) : -1;
        Py_XDECREF(answer);
        Py_XDECREF(empty);
        return found;
    }
    int found = PySet_Contains(turns->exact, path);
    for (Py_ssize_t at = 0; !found && at < PyTuple_Size(turns->prefixes); at++)
        found = (int)PyUnicode_Tailmatch(path, PyTuple_GetItem(turns->prefixes, at), 0, length, -1);
    return found;
}

/* Whether a request has to be asked about: by its length it can be one that is exempt, or below a slash or a mount point. */
static bool may_be_exempt(const Turns *turns, const Lane *lane, const Request *request)
{
    Py_ssize_t length = request->path_length;
    if (request->mount && RM_RARELY(PyUnicode_GetLength(request->mount)))
        return true;
    return RM_RARELY(lane->exempt) &&
        (turns->exempt_lengths >> length_bit(length) & 1 || (length > 1 && request->path_text[length - 1] == '/'));
}

int rm_turns_is_exempt(Turns *turns, const Lane *lane, const Request *request)
{
    return may_be_exempt(turns, lane, request) ? is_exempt(turns, request->path, request->mount) : 0;
}

/* What a request needs besides its body, by the user's functions; false, maybe with an error: Python decides. */
static bool ask_need(Turns *turns, PyObject *carrier, int64_t *need)
{
    if (turns->priority_of) {
        PyObject *priority = RM_CALL(turns->priority_of, carrier);
        bool known = priority && (PyObject *)Py_TYPE(priority) == turns->priorities;
        Py_XDECREF(priority);
        if (!known)
            return false;
    }
    if (turns->cost_of) {
        PyObject *cost = RM_CALL(turns->cost_of, carrier);
        bool known = cost && PyLong_CheckExact(cost);
        int overflow = 0;
        *need = known ? PyLong_AsLongLongAndOverflow(cost, &overflow) : -1;
        Py_XDECREF(cost);
        if (overflow || *need < 0)
            return false;
    }
    return true;
}

/* The same, and whether it may start and is not exempt, once they were asked: what they do may change anything. */
static RM_COLD bool ask_user(Turns *turns, const Lane *lane, Request *request)
{
    return !rm_turns_is_exempt(turns, lane, request) && ask_need(turns, request->carrier, &request->need) &&
        is_granted(turns, lane, request->now);
}

Lane *rm_turns_open(Turns *turns, PyObject *renew, Request *request)
{
    Lane *lane = rm_turns_lane(turns, request);
    int64_t until = lane ? until_of(turns, lane) : 0;
    if (RM_RARELY(!until))
        return NULL;
    request->now = rm_turns_now(turns, until);
    if (RM_RARELY(request->now >= until) && lane->unbound == turns->unbound)
        request->now = renewed(turns, lane, renew, until);
    request->need = turns->cost;
    if (RM_RARELY(request->now < 0) || RM_RARELY(!is_granted(turns, lane, request->now)))
        return NULL;
    if (RM_RARELY(may_be_exempt(turns, lane, request) || turns->priority_of || turns->cost_of) && !ask_user(turns, lane, request))
        return NULL;
    if (RM_RARELY(request->need > RM_NEED_MOST - request->body)) /* sums of it are to be counted */
        return NULL;
    request->need += request->body;
    return covers(turns, request->need, request->body) ? lane : NULL;
}

static void touch(Turns *turns, Lane *lane)
{
    if (!lane->used) {
        lane->used = true;
        lane->next_used = turns->used;
        turns->used = lane;
    }
}

void rm_turns_start(Turns *turns, Lane *lane, const Request *request, Stay *stay)
{
    touch(turns, lane);
    if (!lane->started++)
        lane->first_start = request->now;
    int64_t more = lane->started - lane->ended - lane->lost;
    if (more > lane->most)
        lane->most = more;
    lane->starts--;
    lane->unanswered--;
    turns->net++;
    turns->untold++;
    turns->room--;
    if (turns->tab) {
        turns->tab->gross += request->need;
        turns->tab->untold += request->need;
    }
    stay->turns = (Turns *)Py_NewRef((PyObject *)turns);
    stay->lane = lane;
    stay->began = request->now;
    stay->need = turns->tab ? request->need : 0;
    stay->body = turns->tab ? request->body : 0;
    stay->spend = turns->spend;
    stay->epoch = turns->epoch;
    stay->lost = stay->answered = false;
}

/* Of what was promised `size` is not any more. */
static void give_back(Turns *turns, Stay *stay, int64_t size)
{
    stay->need -= size;
    turns->tab->untold -= size;
    if (stay->spend == turns->spend)
        turns->tab->gross -= size;
}

void rm_stay_answers(Stay *stay)
{
    stay->answered = true;
    if (stay->epoch == stay->turns->epoch) {
        touch(stay->turns, stay->lane);
        stay->lane->answered++;
        stay->lane->unanswered++;
        if (stay->body) /* who answers has read it, or never will */
            give_back(stay->turns, stay, stay->body);
    }
}

int rm_stay_leave(Stay *stay, bool quietly)
{
    Turns *turns = stay->turns;
    Lane *lane = stay->lane;
    int failed = 0;
    if (RM_RARELY(!turns))
        return 0;
    rm_stay_answered(stay);
    stay->turns = NULL;
    if (RM_RARELY(stay->epoch != turns->epoch)) { /* of what was let in before a fork the child counts nothing */
        Py_DECREF(turns);
        return 0;
    }
    if (stay->need)
        give_back(turns, stay, stay->need);
    int64_t now = RM_RARELY(quietly) && turns->clock ? stay->began : rm_turns_now(turns, INT64_MAX);
    if (RM_RARELY(now < 0)) { /* a clock that fails tells no time */
        failed = -1;
        now = stay->began;
    }
    touch(turns, lane);
    if (RM_RARELY(stay->lost)) {
        lane->lost++;
        turns->losses++;
        turns->era = 0; /* Admission has none such: every grant is revoked until Python knows of it */
    } else if (!lane->ended++) {
        lane->first_end = now;
    }
    lane->last_end = now;
    turns->net--;
    turns->room++;
    if (!failed && !quietly && turns->told && !turns->closed && turns->in_flight + turns->net == 0) {
        PyObject *done = PyObject_CallNoArgs(turns->idle);
        failed = done ? 0 : -1;
        Py_XDECREF(done);
    }
    Py_DECREF(turns);
    return failed;
}

/* ---- Turns ---- */

/* Within the gate's lock: nobody starts, and what was done so far is told. */
static PyObject *turns_enter(Turns *self, PyObject *unused)
{
    (void)unused;
    self->closed = true;
    if ((self->used || self->refused) && self->settle) {
        PyObject *done = PyObject_CallNoArgs(self->settle);
        if (!done && !PyErr_ExceptionMatches(PyExc_MemoryError))
            return NULL;
        if (!done) /* the next one is told */
            PyErr_Clear();
        Py_XDECREF(done);
    }
    return Py_NewRef((PyObject *)self);
}

static bool number_of(PyObject *object, PyObject *name, int64_t *number)
{
    PyObject *value = PyObject_GetAttr(object, name);
    bool none = value == Py_None;
    *number = value && !none ? PyLong_AsLongLong(value) : INT64_MAX / 2;
    Py_XDECREF(value);
    return value && (*number != -1 || !PyErr_Occurred());
}

/* Go on by what admission says now; whoever cannot even do that leaves it closed for the next. */
static PyObject *turns_exit(Turns *self, PyObject *const *args, Py_ssize_t count)
{
    (void)args, (void)count;
    int64_t era, in_flight, most, openings;
    if (!number_of(self->admission, s_era, &era) || !number_of(self->admission, s_in_flight, &in_flight) ||
        !number_of(self->admission, s_most, &most) || !number_of(self->admission, s_openings, &openings)) {
        if (!PyErr_ExceptionMatches(PyExc_MemoryError))
            return NULL;
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    self->era = self->losses ? 0 : (uint64_t)era;
    self->openings = (uint64_t)openings;
    self->in_flight = in_flight;
    self->room = most - in_flight - self->net;
    self->closed = false;
    Py_RETURN_NONE;
}

static void forget_used(Lane *lane)
{
    lane->started = lane->answered = lane->ended = lane->lost = lane->most = 0;
}

static bool is_told(const Lane *lane) { return !(lane->started | lane->answered | lane->ended | lane->lost); }

/* As many ended well as started, and not long ago: what is in flight, and what a class of which nothing is bound may do, is
 * the same without it. */
static bool can_wait(const Turns *self, const Lane *lane, int64_t now)
{
    return lane->started && lane->started == lane->ended && !lane->lost && lane->unbound == self->unbound &&
        now - lane->first_start < UNTOLD_MOST;
}

static PyObject *tell(Turns *self, Lane *lane)
{
    long long started = lane->started, answered = lane->answered, ended = lane->ended, lost = lane->lost, most = lane->most;
    forget_used(lane); /* before: to make what is told may collect requests, which end with that */
    PyObject *used = Py_BuildValue(
        "OLLLLLddd", lane->route, started, answered, ended, lost, most, (double)lane->first_start / 1e9,
        (double)lane->first_end / 1e9, (double)lane->last_end / 1e9);
    if (used) {
        self->net -= started - ended - lost;
        self->untold -= started;
        self->losses -= lost;
        return used;
    }
    touch(self, lane);
    lane->started += started;
    lane->answered += answered;
    lane->ended += ended;
    lane->lost += lost;
    if (most > lane->most)
        lane->most = most;
    return NULL;
}

/* What was used of one lane, and nothing of it any more; None when all that is left can wait. */
static PyObject *turns_take(Turns *self, PyObject *unused)
{
    (void)unused;
    if (!self->used)
        Py_RETURN_NONE;
    int64_t now = rm_turns_now(self, INT64_MAX);
    if (now < 0) { /* by a clock that fails nothing can wait */
        PyErr_Clear();
        now = INT64_MAX;
    }
    for (Lane **link = &self->used, *lane; (lane = *link);) {
        if (can_wait(self, lane, now)) {
            link = &lane->next_used;
            continue;
        }
        *link = lane->next_used;
        lane->used = false;
        lane->next_used = NULL;
        if (!is_told(lane))
            return tell(self, lane);
    }
    Py_RETURN_NONE;
}

/* The same of this lane, whether it can wait or not. */
static PyObject *turns_take_of(Turns *self, PyObject *of)
{
    if (Py_TYPE(of) != rm_lane_type) {
        PyErr_SetString(PyExc_TypeError, "take_of() takes a Lane.");
        return NULL;
    }
    Lane *lane = (Lane *)of;
    return is_told(lane) ? Py_NewRef(Py_None) : tell(self, lane);
}

static PyObject *turns_grant(Turns *self, PyObject *args)
{
    Lane *lane;
    unsigned long long era;
    double until;
    long long spare, unanswered, starts;
    unsigned long long unbound = 0;
    if (!PyArg_ParseTuple(
            args, "O!KdLLL|K:grant", rm_lane_type, &lane, &era, &until, &spare, &unanswered, &starts, &unbound))
        return NULL;
    lane->starts = starts;
    lane->until = (int64_t)(until * 1e9);
    lane->unanswered = unanswered;
    lane->era = era;
    lane->unbound = unbound;
    if (unbound) {
        self->unbound = unbound;
        self->common_era = era;
        self->common_until = lane->until;
    }
    self->grants++;
    self->spend++;
    self->spend_until = self->tab ? self->tab->gross + spare : spare;
    Py_RETURN_NONE;
}

/* Have what is granted to all that nothing binds last until then, unless anything was granted since so many `grants`, or
 * somebody is about to change it. Whether it does. */
static PyObject *turns_prolong(Turns *self, PyObject *args)
{
    double until;
    unsigned long long grants;
    if (!PyArg_ParseTuple(args, "dK:prolong", &until, &grants))
        return NULL;
    if (self->closed || self->grants != grants || !self->common_until || self->common_era != self->era)
        Py_RETURN_FALSE;
    self->common_until = (int64_t)(until * 1e9);
    self->grants++;
    Py_RETURN_TRUE;
}

/* What is granted to all that nothing binds ends too where one of them is granted nothing. */
static PyObject *turns_revoke(Turns *self, PyObject *revoked)
{
    if (Py_TYPE(revoked) != rm_lane_type) {
        PyErr_SetString(PyExc_TypeError, "revoke() takes a Lane.");
        return NULL;
    }
    Lane *lane = (Lane *)revoked;
    if (lane->unbound == self->unbound)
        self->common_until = 0;
    lane->until = 0;
    lane->unbound = 0;
    Py_RETURN_NONE;
}

/* In a child process: nothing is in flight any more, and nobody holds the lock. */
static PyObject *turns_forget(Turns *self, PyObject *unused)
{
    (void)unused;
    for (Lane *lane = self->used, *next; lane; lane = next) {
        next = lane->next_used;
        lane->used = false;
        lane->next_used = NULL;
        forget_used(lane);
    }
    for (Py_ssize_t at = 0; at < self->classes; at++)
        self->order[at]->until = self->order[at]->refused_until = 0;
    self->others->until = self->others->refused_until = self->common_until = 0;
    self->used = NULL;
    self->net = self->untold = self->losses = self->refused = self->in_flight = self->told = self->waiting = 0;
    self->epoch++;
    self->closed = false;
    if (self->tab)
        self->tab->untold = 0;
    Py_RETURN_NONE;
}

static PyObject *turns_get_in_flight(Turns *self, void *unused)
{
    (void)unused;
    return PyLong_FromLongLong(self->net);
}

static PyObject *turns_get_unsettled(Turns *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(self->used != NULL);
}

static PyObject *turns_get_closed(Turns *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(self->closed);
}

static int turns_traverse(Turns *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->make);
    Py_VISIT(self->admission);
    Py_VISIT(self->settle);
    Py_VISIT(self->idle);
    Py_VISIT(self->clock);
    Py_VISIT(self->priority_of);
    Py_VISIT(self->cost_of);
    Py_VISIT(self->priorities);
    Py_VISIT(self->exempt);
    return 0;
}

static int turns_clear(Turns *self)
{
    Py_CLEAR(self->make);
    Py_CLEAR(self->admission);
    Py_CLEAR(self->settle);
    Py_CLEAR(self->idle);
    Py_CLEAR(self->clock);
    Py_CLEAR(self->priority_of);
    Py_CLEAR(self->cost_of);
    Py_CLEAR(self->priorities);
    Py_CLEAR(self->exempt);
    return 0;
}

static void turns_dealloc(Turns *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    turns_clear(self);
    Py_XDECREF(self->exact);
    Py_XDECREF(self->prefixes);
    Py_XDECREF(self->tab);
    for (Py_ssize_t at = 0; at < self->classes; at++)
        Py_DECREF(self->order[at]);
    PyMem_Free(self->table);
    Py_XDECREF(self->others);
    freefunc give_back = (freefunc)PyType_GetSlot(type, Py_tp_free);
    give_back(self);
    Py_DECREF(type);
}

static PyObject *none_is_null(PyObject *value) { return value == Py_None ? NULL : Py_NewRef(value); }

static bool note_lengths(Turns *self)
{
    PyObject *paths = PyObject_GetIter(self->exact), *path;
    self->exempt_lengths = 1; /* no path at all is Python's business */
    while (paths && (path = PyIter_Next(paths))) {
        Py_ssize_t length;
        if (PyUnicode_AsUTF8AndSize(path, &length))
            self->exempt_lengths |= (uint64_t)1 << length_bit(length);
        else
            PyErr_Clear(); /* no text of UTF-8 comes this way */
        Py_DECREF(path);
    }
    Py_XDECREF(paths);
    return !PyErr_Occurred();
}

static PyObject *turns_new(PyTypeObject *type, PyObject *args, PyObject *options)
{
    static char *names[] = {
        "make", "others", "admission", "settle", "idle", "exempt", "exact", "prefixes", "priority_of", "priorities", "cost",
        "cost_of", NULL,
    };
    long long cost = 0;
    PyObject *make, *others, *admission = Py_None, *settle = Py_None, *idle = Py_None, *exempt = Py_None, *exact = Py_None, *prefixes = NULL,
             *priority_of = Py_None, *priorities = Py_None, *cost_of = Py_None;
    if (!PyArg_ParseTupleAndKeywords(
            args, options, "OO|$OOOOOO!OOLO:Turns", names, &make, &others, &admission, &settle, &idle, &exempt, &exact,
            &PyTuple_Type, &prefixes, &priority_of, &priorities, &cost, &cost_of))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Turns *self = (Turns *)allocate(type, 0);
    if (!self)
        return NULL;
    self->table = PyMem_Calloc(TABLE + CLASSES, sizeof(Lane *));
    self->order = self->table + TABLE;
    self->others = lane_new(others, NULL);
    if (self->others)
        self->others->exempt = true;
    if (!self->table || !self->others) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    self->unbound = 1;
    self->make = Py_NewRef(make);
    self->admission = Py_NewRef(admission);
    self->settle = none_is_null(settle);
    self->idle = Py_NewRef(idle);
    self->exempt = Py_NewRef(exempt);
    self->exact = none_is_null(exact);
    self->prefixes = prefixes ? Py_NewRef(prefixes) : PyTuple_New(0);
    self->exempt_lengths = UINT64_MAX;
    if (self->exact && self->prefixes && !PyTuple_Size(self->prefixes) && !note_lengths(self)) {
        Py_DECREF(self);
        return NULL;
    }
    self->priority_of = none_is_null(priority_of);
    self->priorities = Py_NewRef(priorities);
    self->cost = cost;
    self->cost_of = none_is_null(cost_of);
    return (PyObject *)self;
}

static PyObject *turns_set_clock(Turns *self, PyObject *clock)
{
    PyObject *before = self->clock;
    self->clock = none_is_null(clock);
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

static PyObject *turns_set_tab(Turns *self, PyObject *tab)
{
    if (Py_TYPE(tab) != rm_tab_type) {
        PyErr_SetString(PyExc_TypeError, "set_tab() takes a Tab.");
        return NULL;
    }
    Tab *before = self->tab;
    self->tab = (Tab *)Py_NewRef(tab);
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

static PyMethodDef turns_methods[] = {
    {"lane", (PyCFunction)(void (*)(void))turns_lane, METH_FASTCALL, NULL},
    {"lanes", (PyCFunction)turns_lanes, METH_NOARGS, NULL},
    {"__enter__", (PyCFunction)turns_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))turns_exit, METH_FASTCALL, NULL},
    {"take", (PyCFunction)turns_take, METH_NOARGS, NULL},
    {"take_of", (PyCFunction)turns_take_of, METH_O, NULL},
    {"grant", (PyCFunction)turns_grant, METH_VARARGS, NULL},
    {"prolong", (PyCFunction)turns_prolong, METH_VARARGS, NULL},
    {"stand", (PyCFunction)rm_turns_stand, METH_VARARGS, NULL},
    {"refuse", (PyCFunction)rm_turns_refuse_one, METH_VARARGS, NULL},
    {"refuse_http", (PyCFunction)rm_turns_refuse_http, METH_O, NULL},
    {"take_refused", (PyCFunction)rm_turns_take_refused, METH_NOARGS, NULL},
    {"set_clock", (PyCFunction)turns_set_clock, METH_O, NULL},
    {"set_tab", (PyCFunction)turns_set_tab, METH_O, NULL},
    {"revoke", (PyCFunction)turns_revoke, METH_O, NULL},
    {"forget", (PyCFunction)turns_forget, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef turns_members[] = {
    {"waiting", T_LONGLONG, offsetof(Turns, waiting), 0, NULL},
    {"told", T_LONGLONG, offsetof(Turns, told), 0, NULL},
    {"untold", T_LONGLONG, offsetof(Turns, untold), READONLY, NULL},
    {"grants", T_ULONGLONG, offsetof(Turns, grants), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyGetSetDef turns_getset[] = {
    {"in_flight", (getter)turns_get_in_flight, NULL, NULL, NULL},
    {"closed", (getter)turns_get_closed, NULL, NULL, NULL},
    {"unsettled", (getter)turns_get_unsettled, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot turns_slots[] = {
    {Py_tp_new, turns_new}, {Py_tp_dealloc, turns_dealloc}, {Py_tp_traverse, turns_traverse},
    {Py_tp_clear, turns_clear}, {Py_tp_methods, turns_methods}, {Py_tp_members, turns_members},
    {Py_tp_getset, turns_getset}, {0, NULL},
};
static PyType_Spec turns_spec = {
    "resource_monitor._native._turn.Turns", sizeof(Turns), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, turns_slots,
};

bool rm_core_init(PyObject *module)
{
    struct timespec resolution;
    if (!clock_getres(CLOCK_MONOTONIC_COARSE, &resolution))
        tick = (int64_t)resolution.tv_sec * 1000000000 + resolution.tv_nsec;
    if (!(s_era = PyUnicode_InternFromString("era")) || !(s_in_flight = PyUnicode_InternFromString("in_flight")) ||
        !(s_most = PyUnicode_InternFromString("max_in_flight")) ||
        !(s_openings = PyUnicode_InternFromString("openings")))
        return false;
    if (PyModule_AddIntConstant(module, "SHORT_BODY", RM_SHORT_BODY) ||
        PyModule_AddIntConstant(module, "BODY_PART", RM_BODY_PART))
        return false;
    return (rm_lane_type = rm_add_type(module, &lane_spec)) && (rm_tab_type = rm_add_type(module, &tab_spec)) &&
        (rm_turns_type = rm_add_type(module, &turns_spec));
}
