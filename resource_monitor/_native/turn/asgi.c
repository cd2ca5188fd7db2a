/* ASGI requests that start under a grant: the door through which they come, and the awaitable that runs the app.
 *
 * Each step of the app is marked as the app's for the allocation guard. What begins otherwise than with an answer, an
 * error's or an odd awaitable, is handed to Python, and so is what to do with a request that failed. */

#include "asgi.h"
#include "content_length.h"
#include "spares.h"
#include "stepping.h"

#include <stddef.h>
#include <structmember.h>

static PyTypeObject *door_type, *turn_type;
static Spares spares;
static PyObject *s_type, *s_http, *s_method, *s_path, *s_root_path, *s_headers, *s_http_version, *s_admitted;

/* ---- Turn ---- */

/* What is to be stepped for something awaitable that is no coroutine; a new reference in place of the given. */
static RM_COLD PyObject *coroutine_of(Door *door, PyObject *awaitable)
{
    PyObject *coroutine = PyObject_CallFunctionObjArgs(door->awaited, awaitable, NULL);
    Py_DECREF(awaitable);
    return coroutine;
}

/* One left while others wait. */
static RM_COLD int turn_left(Door *door)
{
    if (!door->left || door->thread != rm_place())
        return 0;
    PyObject *done = PyObject_CallNoArgs(door->left);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

/* The request is over; however often this is said. */
static int turn_end(Turn *self, bool quietly)
{
    Door *door = self->door;
    if (!door)
        return 0;
    self->door = NULL;
    door->in_flight--;
    Py_CLEAR(self->sender);
    Py_CLEAR(self->app);
    int failed = rm_stay_leave(&self->stay, quietly);
    if (RM_RARELY(door->turns->waiting) && !failed && !quietly)
        failed = turn_left(door);
    Py_DECREF(door);
    return failed;
}

static PyObject *turn_get_response(Turn *self, void *unused)
{
    (void)unused;
    return Py_NewRef(self->sender && self->sender->response ? self->sender->response : Py_None);
}

/* What Python does after an app that failed, or after an answer that it looked at; NULL: nothing. */
static RM_COLD PyObject *after_odd(Turn *self, PyObject **error)
{
    Sender *sender = self->sender;
    Door *door = self->door;
    if (!sender)
        return NULL;
    Py_INCREF(sender); /* whoever has the request may have it leave meanwhile */
    Py_INCREF(door);
    PyObject *after = PyObject_CallFunctionObjArgs(
        door->after, (PyObject *)self, *error ? *error : Py_None, sender->send, sender->scope, sender->receive, NULL);
    Py_DECREF(door);
    Py_DECREF(sender);
    if (!after)
        rm_replace_error(error);
    else if (after == Py_None)
        Py_CLEAR(after);
    else
        Py_CLEAR(*error); /* what it holds must be free by then */
    return after;
}

/* The app is done, and the request leaves. True where something is to be stepped after that, in `inner`. */
static bool turn_is_over(Turn *self, PySendResult *done, PyObject **result)
{
    PyObject *error = RM_RARELY(*done == PYGEN_ERROR) ? rm_take_error() : NULL, *after = NULL;
    Sender *sender = self->sender;
    Py_CLEAR(self->inner);
    Py_CLEAR(*result);
    if (RM_RARELY(error) || (sender && RM_RARELY(sender->response)))
        after = after_odd(self, &error);
    if (RM_RARELY(turn_end(self, false))) {
        rm_replace_error(&error);
        Py_CLEAR(after);
    }
    self->inner = after;
    self->marked = false;
    if (RM_RARELY(after))
        return true;
    *done = RM_RARELY(error) ? PYGEN_ERROR : PYGEN_RETURN;
    if (RM_RARELY(error))
        rm_set_error(error);
    else
        *result = Py_NewRef(Py_None);
    return false;
}

/* What a step of `inner` comes to: where that is done, what comes after it begins. */
static PySendResult turn_goes_on(Turn *self, PySendResult done, PyObject **result)
{
    if (done == PYGEN_NEXT)
        return done;
    if (RM_RARELY(done == PYGEN_ERROR))
        rm_ensure_error(); /* who awaits this would take it for the request's end, and never count it out */
    if (RM_RARELY(!self->door) || !RM_RARELY(turn_is_over(self, &done, result)))
        return done;
    return rm_step(self->inner, Py_None, false, IN_SERVER, result);
}

static PySendResult turn_step(Turn *self, PyObject *arg, PyObject **result)
{
    *result = NULL;
    if (!self->inner) {
        PyObject *app = self->app;
        Sender *sender = self->sender;
        if (RM_RARELY(!app) || RM_RARELY(!sender) || RM_RARELY(!self->door)) {
            PyErr_SetString(PyExc_RuntimeError, "cannot reuse an awaited request");
            return PYGEN_ERROR;
        }
        Door *door = (Door *)Py_NewRef((PyObject *)self->door);
        self->app = NULL;
        Py_INCREF(sender); /* an app that is no coroutine function may have it leave */
        PyObject *running = RM_CALL(app, sender->scope, sender->receive, (PyObject *)sender);
        Py_DECREF(sender);
        Py_DECREF(app);
        self->marked = running && Py_TYPE(running) == rm_coroutine_type;
        self->inner = running && RM_RARELY(!self->marked) ? coroutine_of(door, running) : running;
        Py_DECREF(door);
        if (RM_RARELY(!self->inner))
            return turn_goes_on(self, PYGEN_ERROR, result);
        arg = Py_None;
    }
    return turn_goes_on(self, rm_step(self->inner, arg, self->marked, IN_APP, result), result);
}

static PyObject *turn_next(Turn *self)
{
    PyObject *result;
    PySendResult done = turn_step(self, Py_None, &result);
    return rm_method_result(done, result);
}

static PyObject *turn_send(Turn *self, PyObject *value)
{
    PyObject *result;
    PySendResult done = turn_step(self, value, &result);
    return rm_method_result(done, result);
}

static PyObject *turn_throw(Turn *self, PyObject *const *args, Py_ssize_t count)
{
    PyObject *error = rm_thrown(args, count), *result = NULL;
    if (!error)
        return NULL;
    PySendResult done = PYGEN_ERROR;
    if (self->inner) {
        done = turn_goes_on(self, rm_throw_into(self->inner, error, self->marked, IN_APP, &result), &result);
    } else if (!turn_end(self, false)) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    }
    Py_DECREF(error);
    return rm_method_result(done, result);
}

static PyObject *turn_close(Turn *self, PyObject *unused)
{
    (void)unused;
    PyObject *inner = self->inner, *error = NULL;
    self->inner = NULL;
    if (inner && rm_close_inner(inner, self->marked, IN_APP))
        error = rm_take_error();
    Py_XDECREF(inner);
    if (turn_end(self, false))
        rm_replace_error(&error);
    if (error) {
        rm_set_error(error);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *turn_lose(Turn *self, PyObject *unused)
{
    (void)unused;
    self->stay.lost = true;
    Py_RETURN_NONE;
}

static PyObject *turn_answered(Turn *self, PyObject *unused)
{
    (void)unused;
    rm_stay_answered(&self->stay);
    Py_RETURN_NONE;
}

static PyObject *turn_leave(Turn *self, PyObject *unused)
{
    (void)unused;
    if (turn_end(self, false))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *turn_get_none(Turn *self, void *unused)
{
    (void)self, (void)unused;
    Py_RETURN_NONE;
}

static PyObject *turn_get_false(Turn *self, void *unused)
{
    (void)self, (void)unused;
    Py_RETURN_FALSE;
}

static int turn_traverse(Turn *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->stay.turns);
    Py_VISIT(self->door);
    Py_VISIT(self->sender);
    Py_VISIT(self->app);
    Py_VISIT(self->inner);
    Py_VISIT(self->ask);
    Py_VISIT(self->shed);
    return 0;
}

/* What may refer back to it; the gate it holds until it leaves. */
static int turn_clear(Turn *self)
{
    Py_CLEAR(self->sender);
    Py_CLEAR(self->app);
    Py_CLEAR(self->inner);
    Py_CLEAR(self->ask);
    Py_CLEAR(self->shed);
    return 0;
}

static void turn_dealloc(Turn *self)
{
    PyObject_GC_UnTrack(self);
    if (RM_RARELY(self->door))
        turn_end(self, true); /* nobody ran it to its end */
    turn_clear(self);
    Py_XDECREF(self->stay.turns);
    Py_XDECREF(self->door);
    rm_spares_keep(&spares, (PyObject *)self);
}

static PyMethodDef turn_methods[] = {
    {"send", (PyCFunction)turn_send, METH_O, NULL},
    {"throw", (PyCFunction)(void (*)(void))turn_throw, METH_FASTCALL, NULL},
    {"close", (PyCFunction)turn_close, METH_NOARGS, NULL},
    {"lose", (PyCFunction)turn_lose, METH_NOARGS, NULL},
    {"answered", (PyCFunction)turn_answered, METH_NOARGS, NULL},
    {"leave", (PyCFunction)turn_leave, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef turn_members[] = {
    {"ask", T_OBJECT, offsetof(Turn, ask), 0, NULL},
    {"shed", T_OBJECT, offsetof(Turn, shed), 0, NULL},
    {"lost", T_BOOL, offsetof(Turn, stay.lost), READONLY, NULL},
    {"started", T_BOOL, offsetof(Turn, started), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyGetSetDef turn_getset[] = {
    {"response", (getter)turn_get_response, NULL, NULL, NULL},
    {"promise", (getter)turn_get_none, NULL, NULL, NULL},
    {"exempt", (getter)turn_get_false, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot turn_slots[] = {
    {Py_tp_dealloc, turn_dealloc}, {Py_tp_traverse, turn_traverse}, {Py_tp_clear, turn_clear},
    {Py_tp_methods, turn_methods}, {Py_tp_members, turn_members},
    {Py_tp_getset, turn_getset}, {Py_am_await, PyObject_SelfIter}, {Py_am_send, turn_step},
    {Py_tp_iter, PyObject_SelfIter}, {Py_tp_iternext, turn_next}, {0, NULL},
};
static PyType_Spec turn_spec = {
    "resource_monitor._native._turn.Turn", sizeof(Turn), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, turn_slots,
};

/* ---- Door ---- */

/* The name of a header, or its value; borrowed, NULL: it is no pair. */
static PyObject *part_of(PyObject *pair, Py_ssize_t which)
{
    if (RM_RARELY(!PyTuple_CheckExact(pair)))
        return PyList_CheckExact(pair) && PyList_Size(pair) == 2 ? PyList_GetItem(pair, which) : NULL;
    return RM_RARELY(PyTuple_Size(pair) != 2) ? NULL : PyTuple_GetItem(pair, which);
}

/* Whether a body may come without being announced, as from HTTP/2 on. */
static RM_COLD bool may_be_unframed(PyObject *scope)
{
    PyObject *version = PyDict_GetItemWithError(scope, s_http_version);
    return version && !(PyUnicode_CheckExact(version) && PyUnicode_GetLength(version) &&
                        PyUnicode_ReadChar(version, 0) == '1');
}

/* How many bytes of body the headers announce; -1: more than `most`, or nobody knows. */
static int64_t body_of(const Request *request, int64_t most)
{
    PyObject *headers = PyDict_GetItemWithError(request->carrier, s_headers);
    int64_t body = 0;
    bool list = headers && PyList_CheckExact(headers), announced = false;
    if (RM_RARELY(!list) && !(headers && PyTuple_CheckExact(headers)))
        return -1;
    Py_ssize_t count = list ? PyList_Size(headers) : PyTuple_Size(headers);
    for (Py_ssize_t at = 0; at < count; at++) {
        PyObject *pair = list ? PyList_GetItem(headers, at) : PyTuple_GetItem(headers, at), *name = part_of(pair, 0);
        if (RM_RARELY(!name) || RM_RARELY(!PyBytes_CheckExact(name)))
            return -1;
        Py_ssize_t length = PyBytes_Size(name);
        if (RM_RARELY(length == 17) && !memcmp(PyBytes_AsString(name), "transfer-encoding", 17))
            return -1;
        if (RM_RARELY(length == 14) && !memcmp(PyBytes_AsString(name), "content-length", 14)) {
            PyObject *value = part_of(pair, 1);
            body = announced || !PyBytes_CheckExact(value)
                ? -1 : rm_content_length(PyBytes_AsString(value), (size_t)PyBytes_Size(value), most);
            if (body < 0)
                return -1;
            announced = true;
        }
    }
    if (announced || RM_IS(request, "GET") || RM_IS(request, "HEAD"))
        return body;
    return may_be_unframed(request->carrier) ? -1 : 0;
}

static Turn *turn_new(PyObject *app)
{
    Turn *self = (Turn *)rm_spares_new(&spares, turn_type);
    if (!self)
        return NULL;
    memset((char *)self + offsetof(Turn, stay), 0, sizeof *self - offsetof(Turn, stay));
    self->door = NULL;
    self->app = Py_NewRef(app);
    PyObject_GC_Track(self);
    return self;
}

/* Whether a scope is that of a plain request with a body of no more than `most` bytes. */
static bool plain(PyObject *scope, int64_t most, Request *request)
{
    if (RM_RARELY(!PyDict_CheckExact(scope)))
        return false;
    PyObject *kind = PyDict_GetItemWithError(scope, s_type), *method = PyDict_GetItemWithError(scope, s_method),
             *path = PyDict_GetItemWithError(scope, s_path), *mount = PyDict_GetItemWithError(scope, s_root_path);
    request->carrier = scope;
    request->mount = mount;
    if (RM_RARELY(!kind) || RM_RARELY(!method) || RM_RARELY(!path) ||
        (kind != s_http && RM_RARELY(PyUnicode_Compare(kind, s_http))) ||
        RM_RARELY(!rm_name_request(request, method, path)) || (mount && RM_RARELY(!PyUnicode_CheckExact(mount))) ||
        RM_IS(request, "OPTIONS"))
        return false;
    request->body = body_of(request, most);
    return request->body >= 0;
}

bool rm_asgi_refuse(Turns *turns, PyObject *scope)
{
    Request request;
    request.need = 0;
    return plain(scope, 0, &request) && rm_turns_refuse(turns, &request);
}

/* Have a long body looked at as it comes; false, maybe with an error: its request may not start any more. */
static RM_COLD bool takes_in(Door *self, Sender *sender, const Lane *lane, const Request *request)
{
    PyObject *receive = PyObject_CallFunction(self->take_in, "OL", sender->receive, (long long)request->body);
    if (!receive)
        return false;
    Py_DECREF(sender->receive);
    sender->receive = receive;
    return rm_turns_ready(self->turns, lane, request);
}

/* A request's Turn, or NULL without an error where Python has to decide. */
static Turn *enter(Door *self, PyObject *app, PyObject *scope, PyObject *receive, PyObject *send)
{
    Turns *turns = self->turns;
    Request request;
    if (RM_RARELY(turns->closed) || RM_RARELY(turns->waiting) || RM_RARELY(self->thread != rm_place()) ||
        RM_RARELY(!plain(scope, self->most_body, &request)))
        return NULL;
    /* before anything else: there may be no memory for it, and what is collected in its place may change what may start */
    Turn *turn = turn_new(app);
    if (RM_RARELY(!turn))
        return NULL;
    turn->sender = rm_sender_new(turn, scope, receive, send);
    Lane *lane = turn->sender ? rm_turns_open(turns, self->renew, &request) : NULL;
    if (RM_RARELY(!lane) ||
        (RM_RARELY(request.body > RM_SHORT_BODY) && !takes_in(self, turn->sender, lane, &request)) ||
        RM_RARELY(PyDict_SetItem(scope, s_admitted, (PyObject *)turn))) {
        rm_restore_around((PyObject **)&turn->sender);
        Py_DECREF(turn);
        return NULL;
    }
    rm_turns_start(turns, lane, &request, &turn->stay);
    turn->door = (Door *)Py_NewRef((PyObject *)self);
    self->in_flight++;
    self->entered++;
    return turn;
}

bool rm_asgi_enter(
    PyObject *door, PyObject *app, PyObject *scope, PyObject *receive, PyObject *send, PyObject **turn)
{
    *turn = NULL;
#ifndef Py_GIL_DISABLED
    if (!app || !door || Py_TYPE(door) != door_type)
        return true;
    *turn = (PyObject *)enter((Door *)door, app, scope, receive, send);
    if (!*turn && PyErr_Occurred()) {
        /* Python asks again, and says what is wrong; what is no matter of the request ends it */
        if (!PyErr_ExceptionMatches(PyExc_Exception))
            return false;
        PyErr_Clear();
    }
#endif
    return true;
}

static PyObject *door_enter(Door *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "enter() takes an app, a scope, receive and send.");
        return NULL;
    }
    PyObject *turn;
    if (!rm_asgi_enter((PyObject *)self, args[0], args[1], args[2], args[3], &turn))
        return NULL;
    return turn ? turn : Py_NewRef(Py_None);
}

/* From now on it is seen how late this thread's loop comes. */
static PyObject *door_open(Door *self, PyObject *unused)
{
    (void)unused;
    self->thread = rm_place();
    Py_RETURN_NONE;
}

static PyObject *door_shut(Door *self, PyObject *unused)
{
    (void)unused;
    self->thread = NULL;
    Py_RETURN_NONE;
}

static int door_traverse(Door *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->turns);
    Py_VISIT(self->respond);
    Py_VISIT(self->awaited);
    Py_VISIT(self->after);
    Py_VISIT(self->left);
    Py_VISIT(self->renew);
    Py_VISIT(self->take_in);
    return 0;
}

static int door_clear(Door *self)
{
    Py_CLEAR(self->respond);
    Py_CLEAR(self->awaited);
    Py_CLEAR(self->after);
    Py_CLEAR(self->left);
    Py_CLEAR(self->renew);
    Py_CLEAR(self->take_in);
    return 0;
}

static void door_dealloc(Door *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    door_clear(self);
    Py_XDECREF(self->turns);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyObject *door_new(PyTypeObject *type, PyObject *args, PyObject *options)
{
    (void)type;
    static char *names[] = {"turns", "respond", "awaited", "after", "left", "renew", "take_in", "most_body", NULL};
    PyObject *turns, *respond, *awaited, *after, *left, *renew, *take_in;
    long long most_body;
    if (!PyArg_ParseTupleAndKeywords(
            args, options, "O!OOOOOOL:Door", names, rm_turns_type, &turns, &respond, &awaited, &after, &left, &renew,
            &take_in, &most_body))
        return NULL;
    Door *self = PyObject_GC_New(Door, door_type);
    if (!self)
        return NULL;
    self->turns = (Turns *)Py_NewRef(turns);
    self->respond = Py_NewRef(respond);
    self->awaited = Py_NewRef(awaited);
    self->after = Py_NewRef(after);
    self->left = Py_NewRef(left);
    self->renew = Py_NewRef(renew);
    self->take_in = Py_NewRef(take_in);
    self->most_body = most_body;
    self->thread = NULL;
    self->in_flight = self->entered = 0;
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static PyMethodDef door_methods[] = {
    {"enter", (PyCFunction)(void (*)(void))door_enter, METH_FASTCALL, NULL},
    {"open", (PyCFunction)door_open, METH_NOARGS, NULL},
    {"shut", (PyCFunction)door_shut, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef door_members[] = {
    {"in_flight", T_LONGLONG, offsetof(Door, in_flight), READONLY, NULL},
    {"entered", T_LONGLONG, offsetof(Door, entered), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot door_slots[] = {
    {Py_tp_new, door_new}, {Py_tp_dealloc, door_dealloc}, {Py_tp_traverse, door_traverse}, {Py_tp_clear, door_clear},
    {Py_tp_methods, door_methods}, {Py_tp_members, door_members}, {0, NULL},
};
static PyType_Spec door_spec = {
    "resource_monitor._native._turn.Door", sizeof(Door), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, door_slots,
};

bool rm_asgi_init(PyObject *module)
{
    static const struct {
        PyObject **where;
        const char *text;
    } texts[] = {
        {&s_type, "type"}, {&s_http, "http"}, {&s_method, "method"}, {&s_path, "path"}, {&s_root_path, "root_path"},
        {&s_headers, "headers"}, {&s_http_version, "http_version"}, {&s_admitted, "resource_monitor.admitted"},
    };
    for (size_t at = 0; at < sizeof texts / sizeof *texts; at++)
        if (!(*texts[at].where = PyUnicode_InternFromString(texts[at].text)))
            return false;
    return rm_stepping_init() && rm_sender_init(module) && (turn_type = rm_add_type(module, &turn_spec)) &&
        (door_type = rm_add_type(module, &door_spec));
}
