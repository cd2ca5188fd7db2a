/* WSGI requests that start under a grant: the response that stands between the app and the server (PEP 3333).
 *
 * One object is all that a request needs: what the app calls to start its answer, what the server iterates over and
 * closes, and what adapters find in the environ. What begins otherwise than with an answer is handed to Python. */

#include "content_length.h"
#include "spares.h"
#include "turn.h"

#include <stddef.h>
#include <string.h>
#include <structmember.h>

static PyTypeObject *gated_type, *response_type, *sized_type, *generator_type;
static PyObject *s_method, *s_path, *s_script, *s_length, *s_coding, *s_protocol, *s_terminated, *s_admitted,
    *s_file_wrapper, *s_close, *s_start, *s_withhold, *s_hand_over, *s_shed, *s_takes_over, *s_empty, *s_input,
    *s_cut;

/* An app behind a gate. */
typedef struct {
    PyObject_HEAD
    PyObject *app;
    Turns *turns;
    PyObject *asked;        /* what is called for a request that has to be asked for */
    PyObject *adopt;        /* makes what Python deals with of a Response */
    PyObject *question;     /* the Ask for an environ */
    PyObject *served;       /* what is called when a request left while others wait */
    PyObject *renew;        /* what grants a lane again */
    PyObject *take_in;      /* what the app reads a body from, of the server's and its length */
    int64_t most_body;      /* bytes: one that announces more is Python's */
} Gated;

typedef struct {
    PyObject_HEAD
    vectorcall call;
    Stay stay;
    Gated *gated;
    PyObject *environ, *start_response;
    PyObject *input;        /* NULL: no body */
    PyObject *pieces, *iterator, *close;
    PyObject *write;        /* the server's */
    PyObject *python;       /* what took over */
    PyObject *shed;
    unsigned long long refusals;
    Py_ssize_t at;          /* in a list or tuple of pieces */
    bool began, given, ended, closed;
} Response;

/* ---- Response ---- */

static Spares spares;

static Response *response_new(void)
{
    Response *self = (Response *)rm_spares_new(&spares, response_type);
    if (self)
        memset((char *)self + offsetof(Response, call), 0, sizeof *self - offsetof(Response, call));
    return self;
}

/* One left while others wait. */
static RM_COLD int served(Gated *gated)
{
    PyObject *done = PyObject_CallNoArgs(gated->served);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

static int response_left(Response *self)
{
    bool stayed = self->stay.turns != NULL;
    int failed = rm_stay_leave(&self->stay, false);
    return RM_RARELY(self->gated->turns->waiting) && stayed && !failed ? served(self->gated) : failed;
}

static RM_COLD bool adopted(Response *self)
{
    if (!self->python)
        self->python = PyObject_CallFunctionObjArgs(self->gated->adopt, (PyObject *)self, NULL);
    return self->python != NULL;
}

/* Whether a refusal takes the place of the error that is set; it is not set any more then. */
static RM_COLD bool withheld(Response *self)
{
    PyObject *error = rm_take_error();
    PyObject *answer = adopted(self) ? PyObject_CallMethodObjArgs(self->python, s_withhold, error, NULL) : NULL;
    int done = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    if (done) { /* refused, or another error came of it */
        Py_DECREF(error);
        return done > 0;
    }
    rm_set_error(error);
    return false;
}

/* Whether something is there under a name of what may not be there itself; -1: an error. */
static RM_COLD int is_set(PyObject *owner, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(owner, name);
    if (!value)
        return -1;
    int found = value != Py_None;
    Py_DECREF(value);
    return found;
}

/* Whether Python withholds the answer; -1: an error. */
static int is_shed(Response *self) { return RM_RARELY(self->python) ? is_set(self->python, s_shed) : 0; }

/* Whether the body ended before its end, so that nobody knows where the next request begins; -1: an error. */
static int is_cut(Response *self) { return self->input ? is_set(self->input, s_cut) : 0; }

static RM_COLD PyObject *next_of_python(Response *self)
{
    if (!self->iterator && !(self->iterator = PyObject_GetIter(self->python)))
        return NULL;
    return PyIter_Next(self->iterator);
}

static void give(Response *self)
{
    self->given = true;
    rm_stay_answered(&self->stay);
}

static PyObject *response_close(Response *self, PyObject *unused);

static PyObject *next_piece(Response *self)
{
    if (PyList_CheckExact(self->pieces))
        return self->at < PyList_Size(self->pieces) ? Py_NewRef(PyList_GetItem(self->pieces, self->at++)) : NULL;
    if (PyTuple_CheckExact(self->pieces))
        return self->at < PyTuple_Size(self->pieces) ? Py_NewRef(PyTuple_GetItem(self->pieces, self->at++)) : NULL;
    if (!self->iterator && !(self->iterator = PyObject_GetIter(self->pieces)))
        return NULL;
    int *here = rm_place();
    *here = IN_APP;
    PyObject *piece = PyIter_Next(self->iterator);
    *here = IN_SERVER;
    return piece;
}

static PyObject *response_next(Response *self)
{
    if (RM_RARELY(self->ended) || RM_RARELY(self->closed))
        return NULL;
    if (RM_RARELY(is_shed(self) > 0))
        return next_of_python(self);
    if (RM_RARELY(!self->pieces))
        return NULL;
    PyObject *piece = next_piece(self);
    int shed = piece || !RM_RARELY(PyErr_Occurred()) ? is_shed(self) : withheld(self) ? 1 : -1;
    if (RM_RARELY(shed)) {
        Py_XDECREF(piece);
        Py_CLEAR(self->iterator);
        self->ended = shed < 0;
        return shed > 0 ? next_of_python(self) : NULL;
    }
    if (RM_RARELY(piece == Py_None))
        Py_CLEAR(piece);
    if (!piece) {
        self->ended = true;
        if (RM_RARELY(self->stay.lost) || RM_RARELY(is_cut(self) > 0)) {
            /* what was given is sent by now, and nobody needs the rest */
            PyObject *done = response_close(self, NULL);
            Py_XDECREF(done);
        }
        return NULL;
    }
    if (!self->given) {
        int any = RM_RARELY(!PyBytes_CheckExact(piece)) ? PyObject_IsTrue(piece) : PyBytes_Size(piece) != 0;
        if (RM_RARELY(any < 0)) {
            Py_DECREF(piece);
            return NULL;
        }
        if (any)
            give(self);
    }
    return piece;
}

/* The environ refers to its response, so that a closed one must not go on referring to it. */
static void let_go_of_request(Response *self)
{
    Py_CLEAR(self->environ);
    Py_CLEAR(self->start_response);
    Py_CLEAR(self->input);
    Py_CLEAR(self->write);
}

/* Leave although what the app gave could not be closed, whose error that is. */
static RM_COLD void close_failed(Response *self, PyObject *close)
{
    PyObject *kind, *value, *trace;
    PyErr_Fetch(&kind, &value, &trace);
    Py_DECREF(close);
    let_go_of_request(self);
    if (response_left(self))
        PyErr_WriteUnraisable((PyObject *)self);
    PyErr_Restore(kind, value, trace);
}

static PyObject *response_close(Response *self, PyObject *unused)
{
    (void)unused;
    if (self->closed)
        Py_RETURN_NONE;
    /* Python drops the rest of a body that was cut; where there is no memory for that, the request is over all the same */
    int cut = is_cut(self);
    if (RM_RARELY(cut) && (cut < 0 || !adopted(self)))
        PyErr_Clear();
    self->closed = true;
    PyObject *python = self->python, *close = self->close, *done;
    self->python = self->close = NULL;
    Py_CLEAR(self->iterator);
    Py_CLEAR(self->pieces);
    if (RM_RARELY(python)) { /* which closes what the app gave, and leaves */
        done = PyObject_CallMethodObjArgs(python, s_close, NULL);
        Py_DECREF(python);
        Py_XDECREF(close);
        let_go_of_request(self);
        return done;
    }
    done = close ? PyObject_CallNoArgs(close) : Py_NewRef(Py_None);
    if (RM_RARELY(!done))
        return close_failed(self, close), NULL;
    Py_XDECREF(close);
    let_go_of_request(self);
    if (RM_RARELY(response_left(self)))
        Py_CLEAR(done);
    return done;
}

/* What Python makes of a start that may be an error's. */
static RM_COLD PyObject *start_in_python(Response *self, PyObject *args, PyObject *options)
{
    if (!adopted(self))
        return NULL;
    PyObject *start = PyObject_GetAttr(self->python, s_start);
    PyObject *write = start ? PyObject_Call(start, args, options) : NULL;
    Py_XDECREF(start);
    if (write && is_shed(self) == 0) { /* the app's own: it goes on here */
        self->began = true;
        Py_CLEAR(self->python);
    }
    return write;
}

/* The same, of arguments as a vectorcall has them. */
static RM_COLD PyObject *start_oddly(Response *self, PyObject *const *args, size_t count, PyObject *names)
{
    if (!self->gated || self->closed) {
        PyErr_SetString(PyExc_RuntimeError, "start_response() was called once the response was closed.");
        return NULL;
    }
    bool named = names && PyTuple_Size(names);
    PyObject *positional = PyTuple_New((Py_ssize_t)count), *options = named ? PyDict_New() : NULL, *done = NULL;
    bool good = positional && (!named || options);
    for (size_t at = 0; good && at < count; at++)
        PyTuple_SetItem(positional, (Py_ssize_t)at, Py_NewRef(args[at]));
    for (Py_ssize_t at = 0; good && named && at < PyTuple_Size(names); at++)
        good = !PyDict_SetItem(options, PyTuple_GetItem(names, at), args[count + (size_t)at]);
    if (good)
        done = start_in_python(self, positional, options);
    Py_XDECREF(positional);
    Py_XDECREF(options);
    return done;
}

/* Whether a status is 500, behind which a MemoryError may be. */
static bool is_error(PyObject *status)
{
    return PyUnicode_GetLength(status) > 2 && RM_RARELY(PyUnicode_ReadChar(status, 0) == '5') &&
        PyUnicode_ReadChar(status, 1) == '0' && PyUnicode_ReadChar(status, 2) == '0';
}

/* What the server is told of an answer in place of another that it was told of; a new reference. */
static RM_COLD PyObject *start_again(Response *self, PyObject *const *args)
{
    int with_error = PyObject_IsTrue(args[2]);
    return with_error < 0 ? NULL
        : with_error ? RM_CALL(self->start_response, args[0], args[1], args[2])
                     : RM_CALL(self->start_response, args[0], args[1]);
}

/* start_response(status, headers[, exc_info]), and write(data), which it gives. */
static PyObject *response_called(Response *self, PyObject *const *args, size_t flags, PyObject *names)
{
    size_t count = flags & ~VECTORCALL_OFFSET;
    bool named = names && PyTuple_Size(names);
    if (count == 1 && !named && self->write) {
        give(self);
        return RM_CALL(self->write, args[0]);
    }
    bool plain = !named && (count == 2 || count == 3) && PyUnicode_CheckExact(args[0]) &&
        (self->given || !is_error(args[0]));
    if (RM_RARELY(!plain) || RM_RARELY(self->closed) || RM_RARELY(self->python))
        return start_oddly(self, args, count, names);
    self->began = true;
    PyObject *write =
        RM_RARELY(count == 3) ? start_again(self, args) : RM_CALL(self->start_response, args[0], args[1]);
    if (RM_RARELY(!write))
        return NULL;
    Py_XDECREF(self->write);
    self->write = write;
    return Py_NewRef((PyObject *)self);
}

static PyObject *response_call(Response *self, PyObject *args, PyObject *options)
{
    enum { MOST = 4 };
    PyObject *given[MOST];
    Py_ssize_t count = PyTuple_Size(args);
    if (count > MOST || (options && PyDict_Size(options)))
        return start_in_python(self, args, options);
    for (Py_ssize_t at = 0; at < count; at++)
        given[at] = PyTuple_GetItem(args, at);
    return response_called(self, given, (size_t)count, NULL);
}

static Py_ssize_t response_length(Response *self)
{
    return self->pieces ? PyObject_Size(self->pieces) : 0;
}

static PyObject *response_lose(Response *self, PyObject *unused)
{
    (void)unused;
    self->stay.lost = true;
    Py_RETURN_NONE;
}

static PyObject *response_answered(Response *self, PyObject *unused)
{
    (void)unused;
    rm_stay_answered(&self->stay);
    Py_RETURN_NONE;
}

static PyObject *response_leave(Response *self, PyObject *unused)
{
    (void)unused;
    if (rm_stay_leave(&self->stay, false))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *response_get_ask(Response *self, void *unused)
{
    (void)unused;
    if (!self->environ) {
        PyErr_SetString(PyExc_RuntimeError, "The request is over; what was asked for it is not kept.");
        return NULL;
    }
    return PyObject_CallFunctionObjArgs(self->gated->question, self->environ, NULL);
}

static PyObject *response_get_none(Response *self, void *unused)
{
    (void)self, (void)unused;
    Py_RETURN_NONE;
}

static PyObject *response_get_false(Response *self, void *unused)
{
    (void)self, (void)unused;
    Py_RETURN_FALSE;
}

static int response_traverse(Response *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->stay.turns);
    Py_VISIT(self->gated);
    Py_VISIT(self->environ);
    Py_VISIT(self->start_response);
    Py_VISIT(self->input);
    Py_VISIT(self->pieces);
    Py_VISIT(self->iterator);
    Py_VISIT(self->close);
    Py_VISIT(self->write);
    Py_VISIT(self->python);
    Py_VISIT(self->shed);
    return 0;
}

static int response_clear(Response *self)
{
    Py_CLEAR(self->environ);
    Py_CLEAR(self->input);
    Py_CLEAR(self->start_response);
    Py_CLEAR(self->pieces);
    Py_CLEAR(self->iterator);
    Py_CLEAR(self->close);
    Py_CLEAR(self->write);
    Py_CLEAR(self->python);
    Py_CLEAR(self->shed);
    return 0;
}

static void response_dealloc(Response *self)
{
    PyObject_GC_UnTrack(self);
    if (RM_RARELY(self->stay.turns))
        rm_stay_leave(&self->stay, true); /* nobody closed it */
    response_clear(self);
    Py_XDECREF(self->gated);
    rm_spares_keep(&spares, (PyObject *)self);
}

static PyMethodDef response_methods[] = {
    {"close", (PyCFunction)response_close, METH_NOARGS, NULL},
    {"lose", (PyCFunction)response_lose, METH_NOARGS, NULL},
    {"answered", (PyCFunction)response_answered, METH_NOARGS, NULL},
    {"leave", (PyCFunction)response_leave, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef response_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Response, call), READONLY, NULL},
    {"shed", T_OBJECT, offsetof(Response, shed), 0, NULL},
    {"environ", T_OBJECT, offsetof(Response, environ), READONLY, NULL},
    {"start_response", T_OBJECT, offsetof(Response, start_response), READONLY, NULL},
    {"input", T_OBJECT, offsetof(Response, input), READONLY, NULL},
    {"pieces", T_OBJECT, offsetof(Response, pieces), READONLY, NULL},
    {"close_pieces", T_OBJECT, offsetof(Response, close), READONLY, NULL},
    {"refusals", T_ULONGLONG, offsetof(Response, refusals), READONLY, NULL},
    {"began", T_BOOL, offsetof(Response, began), READONLY, NULL},
    {"given", T_BOOL, offsetof(Response, given), READONLY, NULL},
    {"lost", T_BOOL, offsetof(Response, stay.lost), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyGetSetDef response_getset[] = {
    {"ask", (getter)response_get_ask, NULL, NULL, NULL},
    {"promise", (getter)response_get_none, NULL, NULL, NULL},
    {"exempt", (getter)response_get_false, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
/* Servers conclude from the length of one piece that of the body; the second kind alone has one. */
#define RESPONSE_SLOTS                                                                                                 \
    {Py_tp_dealloc, response_dealloc}, {Py_tp_traverse, response_traverse}, {Py_tp_clear, response_clear},             \
        {Py_tp_call, response_call}, {Py_tp_methods, response_methods}, {Py_tp_members, response_members},             \
        {Py_tp_getset, response_getset}, {Py_tp_iter, PyObject_SelfIter}, {Py_tp_iternext, response_next}
static PyType_Slot response_slots[] = {RESPONSE_SLOTS, {0, NULL}};
static PyType_Slot sized_slots[] = {RESPONSE_SLOTS, {Py_mp_length, response_length}, {0, NULL}};
#define RESPONSE_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION | HAVE_VECTORCALL)
static PyType_Spec response_spec = {
    "resource_monitor._native._turn.Response", sizeof(Response), 0, RESPONSE_FLAGS, response_slots,
};
static PyType_Spec sized_spec = {
    "resource_monitor._native._turn.SizedResponse", sizeof(Response), 0, RESPONSE_FLAGS, sized_slots,
};

static void become_sized(Response *self)
{
    Py_INCREF(sized_type);
    Py_SET_TYPE((PyObject *)self, sized_type);
    Py_DECREF(response_type);
}

/* ---- Gated ---- */

/* The text that a path of PEP 3333 is: byte for byte what the client sent. Borrowed, NULL where Python has to see. */
static PyObject *path_of(PyObject *environ, PyObject *key)
{
    PyObject *path = PyDict_GetItemWithError(environ, key);
    if (!path)
        return s_empty;
    if (!PyUnicode_CheckExact(path))
        return NULL;
    Py_ssize_t length, characters = PyUnicode_GetLength(path);
    return !characters || (PyUnicode_AsUTF8AndSize(path, &length) && length == characters) ? path : NULL;
}

/* Whether the server tells where a body ends that may come without being announced, as from HTTP/2 on. */
static bool may_be_unframed(const Request *request)
{
    PyObject *environ = request->carrier;
    if (RM_IS(request, "GET") || RM_IS(request, "HEAD") || !PyDict_GetItemWithError(environ, s_terminated))
        return false;
    PyObject *protocol = PyDict_GetItemWithError(environ, s_protocol);
    return protocol && PyUnicode_CheckExact(protocol) && PyUnicode_GetLength(protocol) > 5 &&
        PyUnicode_ReadChar(protocol, 5) != '1';
}

/* How many bytes of body an environ announces; -1: more than `most`, or nobody knows. */
static int64_t body_of(const Request *request, int64_t most)
{
    PyObject *environ = request->carrier;
    if (PyDict_GetItemWithError(environ, s_coding))
        return -1;
    PyObject *announced = PyDict_GetItemWithError(environ, s_length);
    Py_ssize_t length = 0;
    const char *text = announced && PyUnicode_CheckExact(announced) ? PyUnicode_AsUTF8AndSize(announced, &length) : NULL;
    if (announced && !text)
        return -1;
    return length ? rm_content_length(text, (size_t)length, most) : may_be_unframed(request) ? -1 : 0;
}

/* Have a body looked at as it comes; false, maybe with an error: its request may not start any more. */
static bool takes_in(Gated *self, Response *response, const Lane *lane, const Request *request)
{
    /* not before: what ran may have put another one there */
    PyObject *unread = PyDict_GetItemWithError(request->carrier, s_input);
    if (!unread)
        return false;
    Py_INCREF(unread);
    response->input = PyObject_CallFunction(self->take_in, "OL", unread, (long long)request->body);
    Py_DECREF(unread);
    return response->input && rm_turns_ready(self->turns, lane, request);
}

/* Let go of a response that is not to be, whatever error is set. */
static RM_COLD void forsake(Response *response, PyObject *environ)
{
    PyObject *kind, *value, *trace;
    PyErr_Fetch(&kind, &value, &trace);
    if (PyDict_GetItemWithError(environ, s_admitted) == (PyObject *)response)
        PyDict_DelItem(environ, s_admitted);
    PyErr_Clear();
    Py_DECREF(response);
    PyErr_Restore(kind, value, trace);
}

/* A request's Response, or NULL without an error where Python has to decide. */
static Response *enter(Gated *self, PyObject *environ, PyObject *start_response)
{
    Turns *turns = self->turns;
    if (RM_RARELY(turns->closed) || RM_RARELY(turns->waiting) || RM_RARELY(!PyDict_CheckExact(environ)))
        return NULL;
    PyObject *method = PyDict_GetItemWithError(environ, s_method), *path = path_of(environ, s_path);
    Request request;
    request.carrier = environ;
    request.mount = path_of(environ, s_script);
    if (RM_RARELY(!method) || RM_RARELY(!path) || RM_RARELY(!request.mount) ||
        RM_RARELY(!rm_name_request(&request, method, path)) || RM_IS(&request, "OPTIONS"))
        return NULL;
    request.body = body_of(&request, self->most_body);
    if (RM_RARELY(request.body < 0))
        return NULL;
    /* before anything else: there may be no memory for it, and what is collected in its place may change what may start */
    Response *response = response_new();
    if (RM_RARELY(!response))
        return NULL;
    response->call = (vectorcall)response_called;
    response->gated = (Gated *)Py_NewRef((PyObject *)self);
    response->environ = Py_NewRef(environ);
    response->start_response = Py_NewRef(start_response);
    response->refusals = rm_refusals();
    PyObject_GC_Track(response);
    Lane *lane = rm_turns_open(turns, self->renew, &request);
    if (RM_RARELY(!lane) || (request.body && !takes_in(self, response, lane, &request)) ||
        RM_RARELY(PyDict_SetItem(environ, s_admitted, (PyObject *)response)) ||
        (request.body && PyDict_SetItem(environ, s_input, response->input))) {
        forsake(response, environ);
        return NULL;
    }
    rm_turns_start(turns, lane, &request, &response->stay);
    return response;
}

/* What the server gets back for its file wrapper, which it may send without reading it; NULL, maybe with an error. */
static PyObject *handed_over(Response *self)
{
    PyObject *wrapper = PyDict_GetItemWithError(self->environ, s_file_wrapper);
    if (!wrapper || !PyType_Check(wrapper) || !PyObject_TypeCheck(self->pieces, (PyTypeObject *)wrapper))
        return NULL;
    PyObject *answer =
        adopted(self) ? PyObject_CallMethodObjArgs(self->python, s_hand_over, self->pieces, NULL) : NULL;
    int done = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    PyObject *pieces = done > 0 ? Py_NewRef(self->pieces) : NULL;
    if (done > 0) { /* what is Python's now leaves with it */
        Py_CLEAR(self->close);
        Py_CLEAR(self->pieces);
        self->closed = true;
        let_go_of_request(self);
    }
    Py_CLEAR(self->python);
    return pieces;
}

/* As hasattr(type(object), "__len__"), which makes an AttributeError where there is none. */
static bool has_length(PyObject *object)
{
    return PyType_GetSlot(Py_TYPE(object), Py_mp_length) || PyType_GetSlot(Py_TYPE(object), Py_sq_length);
}

/* The iterable for the server; a new reference in place of the one to the response. */
static PyObject *begin(Gated *self, Response *response)
{
    int *here = rm_place();
    *here = IN_APP;
    response->pieces = RM_CALL(self->app, response->environ, (PyObject *)response);
    *here = IN_SERVER;
    if (RM_RARELY(!response->pieces))
        return withheld(response) ? (PyObject *)response : NULL;
    if (PyList_CheckExact(response->pieces) || PyTuple_CheckExact(response->pieces)) {
        if (!RM_RARELY(response->python))
            become_sized(response);
        return (PyObject *)response;
    }
    response->close = PyObject_GetAttr(response->pieces, s_close);
    if (!response->close) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError))
            return withheld(response) ? (PyObject *)response : NULL;
        PyErr_Clear();
    }
    if (response->python) { /* the answer is withheld; what the app gave is to be closed all the same */
        PyObject *done = PyObject_CallMethodObjArgs(response->python, s_takes_over, (PyObject *)response, NULL);
        Py_XDECREF(done);
        return done ? (PyObject *)response : NULL;
    }
    if (Py_TYPE(response->pieces) == generator_type)
        return (PyObject *)response;
    PyObject *file = handed_over(response);
    if (file) {
        Py_DECREF(response);
        return file;
    }
    if (PyErr_Occurred())
        return NULL;
    if (has_length(response->pieces))
        become_sized(response);
    return (PyObject *)response;
}

/* Leave although there is nothing to close, for an error that goes on. */
static RM_COLD void begin_failed(Response *response)
{
    PyObject *kind, *value, *trace;
    PyErr_Fetch(&kind, &value, &trace);
    if (response_left(response))
        PyErr_WriteUnraisable(NULL);
    response->closed = true; /* for whoever kept it */
    response_clear(response);
    Py_DECREF(response);
    PyErr_Restore(kind, value, trace);
}

static PyObject *gated_call(Gated *self, PyObject *args, PyObject *options)
{
    if (RM_RARELY(!self->turns)) {
        PyErr_SetString(PyExc_RuntimeError, "The app is behind no gate yet.");
        return NULL;
    }
#ifndef Py_GIL_DISABLED
    if (PyTuple_Size(args) == 2 && !(options && PyDict_Size(options))) {
        Response *response = enter(self, PyTuple_GetItem(args, 0), PyTuple_GetItem(args, 1));
        if (response) {
            PyObject *iterable = begin(self, response);
            if (RM_RARELY(!iterable))
                begin_failed(response);
            return iterable;
        }
        /* Python asks again, and says what is wrong; what is no matter of the request ends it */
        if (PyErr_Occurred()) {
            if (!PyErr_ExceptionMatches(PyExc_Exception))
                return NULL;
            PyErr_Clear();
        }
    }
#endif
    return PyObject_Call(self->asked, args, options);
}

static PyObject *gated_use(Gated *self, PyObject *args)
{
    PyObject *turns, *asked, *adopt, *question, *served, *renew, *take_in;
    long long most_body;
    if (!PyArg_ParseTuple(
            args, "O!OOOOOOL:use", rm_turns_type, &turns, &asked, &adopt, &question, &served, &renew, &take_in,
            &most_body))
        return NULL;
    if (self->turns) {
        PyErr_SetString(PyExc_RuntimeError, "The app is behind a gate already.");
        return NULL;
    }
    self->turns = (Turns *)Py_NewRef(turns);
    self->asked = Py_NewRef(asked);
    self->adopt = Py_NewRef(adopt);
    self->question = Py_NewRef(question);
    self->served = Py_NewRef(served);
    self->renew = Py_NewRef(renew);
    self->take_in = Py_NewRef(take_in);
    self->most_body = most_body;
    Py_RETURN_NONE;
}

static int gated_traverse(Gated *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->app);
    Py_VISIT(self->turns);
    Py_VISIT(self->asked);
    Py_VISIT(self->adopt);
    Py_VISIT(self->question);
    Py_VISIT(self->served);
    Py_VISIT(self->renew);
    Py_VISIT(self->take_in);
    return 0;
}

static int gated_clear(Gated *self)
{
    Py_CLEAR(self->app);
    Py_CLEAR(self->asked);
    Py_CLEAR(self->adopt);
    Py_CLEAR(self->question);
    Py_CLEAR(self->served);
    Py_CLEAR(self->renew);
    Py_CLEAR(self->take_in);
    return 0;
}

static void gated_dealloc(Gated *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    gated_clear(self);
    Py_XDECREF(self->turns);
    freefunc give_back = (freefunc)PyType_GetSlot(type, Py_tp_free);
    give_back(self);
    Py_DECREF(type);
}

static PyMethodDef gated_methods[] = {
    {"use", (PyCFunction)gated_use, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef gated_members[] = {
    {"app", T_OBJECT, offsetof(Gated, app), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot gated_slots[] = {
    {Py_tp_dealloc, gated_dealloc}, {Py_tp_traverse, gated_traverse}, {Py_tp_clear, gated_clear},
    {Py_tp_call, gated_call}, {Py_tp_methods, gated_methods}, {Py_tp_members, gated_members}, {0, NULL},
};
static PyType_Spec gated_spec = {
    "resource_monitor._native._turn.Gated", sizeof(Gated), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, gated_slots,
};

bool rm_wsgi_init(PyObject *module)
{
    static const struct {
        PyObject **where;
        const char *text;
    } texts[] = {
        {&s_method, "REQUEST_METHOD"}, {&s_path, "PATH_INFO"}, {&s_script, "SCRIPT_NAME"},
        {&s_length, "CONTENT_LENGTH"}, {&s_coding, "HTTP_TRANSFER_ENCODING"},
        {&s_protocol, "SERVER_PROTOCOL"}, {&s_terminated, "wsgi.input_terminated"},
        {&s_admitted, "resource_monitor.admitted"}, {&s_file_wrapper, "wsgi.file_wrapper"}, {&s_close, "close"},
        {&s_start, "_start"}, {&s_withhold, "_withhold"}, {&s_hand_over, "_hand_over"},
        {&s_shed, "_shed"}, {&s_takes_over, "takes_over"}, {&s_empty, ""}, {&s_input, "wsgi.input"}, {&s_cut, "cut"},
    };
    for (size_t at = 0; at < sizeof texts / sizeof *texts; at++)
        if (!(*texts[at].where = PyUnicode_InternFromString(texts[at].text)))
            return false;
    return (generator_type = rm_named_type("GeneratorType")) && (response_type = rm_add_type(module, &response_spec)) &&
        (sized_type = rm_add_type(module, &sized_spec)) && (gated_type = rm_add_type(module, &gated_spec));
}
