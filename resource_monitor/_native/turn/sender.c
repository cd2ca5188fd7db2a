/* What an ASGI app gets as its `send`: hands its messages to the server's, each step marked as the server's, until one is
 * an error's answer, which Python has to look at. */

#include "asgi.h"
#include "spares.h"
#include "stepping.h"

#include <stddef.h>
#include <string.h>
#include <structmember.h>

static PyTypeObject *sender_type;
static Spares spares;
static PyObject *s_status, *s_send, *ok; /* that of most answers, of which CPython has but one object */

static RM_COLD bool is_for_an_error(PyObject *message)
{
    PyObject *status = PyDict_CheckExact(message) ? Py_XNewRef(PyDict_GetItemWithError(message, s_status))
                                                  : PyObject_CallMethod(message, "get", "O", s_status);
    bool found = false;
    if (status && PyLong_Check(status)) {
        long number = PyLong_AsLong(status);
        found = number == 500 || number == 400;
    }
    Py_XDECREF(status);
    return found;
}

/* Have Python send an answer that is an error's, with `first->response`; false: an error is set. */
static RM_COLD bool look_closer(Sender *self, Sender *first, PyObject *message)
{
    Turn *turn = self->turn;
    bool odd = is_for_an_error(message);
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError))
            return false;
        PyErr_Clear();
    }
    if (!odd || !turn->door)
        return true;
    first->response = PyObject_CallFunctionObjArgs(
        turn->door->respond, (PyObject *)turn, self->send, self->scope, self->receive, NULL);
    return first->response != NULL;
}

static RM_COLD PyObject *sent_by_python(PyObject *response, PyObject *message)
{
    PyObject *method = PyObject_GetAttr(response, s_send);
    PyObject *inner = method ? PyObject_CallFunctionObjArgs(method, message, NULL) : NULL;
    Py_XDECREF(method);
    return inner;
}

static RM_COLD PyObject *not_awaitable(PyObject *object)
{
    return PyErr_Format(PyExc_TypeError, "%R, which the server's send() gave, can't be awaited", object);
}

/* What steps what a server's send() gave that is no coroutine, as on granian; takes the reference. */
static PyObject *iterator_of(PyObject *awaitable)
{
    unaryfunc iterate = (unaryfunc)PyType_GetSlot(Py_TYPE(awaitable), Py_am_await);
    PyObject *iterator = RM_RARELY(!iterate) ? not_awaitable(awaitable) : iterate(awaitable);
    Py_DECREF(awaitable);
    return iterator;
}

/* Have `inner` send a message; takes the reference. */
static inline bool begin_sending(Sender *self, PyObject *message)
{
    Turn *turn = self->turn;
    Sender *first = self->first ? self->first : self;
    if (!turn->started && !first->response) {
        bool good = PyDict_CheckExact(message) && PyDict_GetItemWithError(message, s_status) == ok;
        if (!good && RM_RARELY(!look_closer(self, first, message))) {
            Py_DECREF(message);
            return false;
        }
    }
    if (RM_RARELY(first->response)) {
        self->marked = false; /* Python does that */
        self->inner = sent_by_python(first->response, message);
    } else {
        if (!turn->started) {
            turn->started = true;
            rm_stay_answered(&turn->stay);
        }
        self->marked = true;
        self->inner = RM_CALL(self->send, message);
        if (self->inner && Py_TYPE(self->inner) != rm_coroutine_type)
            self->inner = iterator_of(self->inner);
    }
    Py_DECREF(message);
    return self->inner != NULL;
}

static PySendResult sender_step(Sender *self, PyObject *arg, PyObject **result)
{
    PyObject *message = self->message;
    *result = NULL;
    if (message) {
        self->message = NULL;
        if (RM_RARELY(!begin_sending(self, message)))
            return PYGEN_ERROR;
        arg = Py_None;
    } else if (RM_RARELY(!self->inner)) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse an awaited send()");
        return PYGEN_ERROR;
    }
    PySendResult done = rm_step(self->inner, arg, self->marked, IN_SERVER, result);
    if (RM_RARELY(done == PYGEN_ERROR))
        rm_restore_around(&self->inner);
    else if (done == PYGEN_RETURN)
        Py_CLEAR(self->inner);
    return done;
}

static PyObject *sender_next(Sender *self)
{
    PyObject *result;
    PySendResult done = sender_step(self, Py_None, &result);
    return rm_method_result(done, result);
}

static PyObject *sender_send(Sender *self, PyObject *value)
{
    PyObject *result;
    PySendResult done = sender_step(self, value, &result);
    return rm_method_result(done, result);
}

static PyObject *sender_throw(Sender *self, PyObject *const *args, Py_ssize_t count)
{
    PyObject *error = rm_thrown(args, count), *result = NULL;
    if (!error)
        return NULL;
    PySendResult done = PYGEN_ERROR;
    if (self->inner)
        done = rm_throw_into(self->inner, error, self->marked, IN_SERVER, &result);
    else
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_DECREF(error);
    if (done != PYGEN_NEXT) {
        rm_restore_around(&self->message);
        rm_restore_around(&self->inner);
    }
    return rm_method_result(done, result);
}

static PyObject *sender_close(Sender *self, PyObject *unused)
{
    (void)unused;
    Py_CLEAR(self->message);
    PyObject *inner = self->inner;
    self->inner = NULL;
    int failed = inner ? rm_close_inner(inner, self->marked, IN_SERVER) : 0;
    if (inner)
        rm_restore_around(&inner);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *sender_called(Sender *self, PyObject *const *args, size_t flags, PyObject *names)
{
    size_t count = (flags & ~VECTORCALL_OFFSET) + (RM_RARELY(names) ? (size_t)PyTuple_Size(names) : 0);
    if (RM_RARELY(count != 1)) {
        PyErr_SetString(PyExc_TypeError, "send() takes one message.");
        return NULL;
    }
    Sender *idle = self;
    if (RM_RARELY(self->message) || RM_RARELY(self->inner)) {
        idle = rm_sender_new(self->turn, self->scope, self->receive, self->send);
        if (!idle)
            return NULL;
        idle->first = (Sender *)Py_NewRef((PyObject *)(self->first ? self->first : self));
    } else {
        Py_INCREF(self);
    }
    idle->message = Py_NewRef(args[0]);
    return (PyObject *)idle;
}

static PyObject *sender_call(Sender *self, PyObject *args, PyObject *options)
{
    if (PyTuple_Size(args) == 1 && !options) {
        PyObject *message = PyTuple_GetItem(args, 0);
        return sender_called(self, &message, 1, NULL);
    }
    return sender_called(self, NULL, 0, NULL);
}

static int sender_traverse(Sender *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->turn);
    Py_VISIT(self->first);
    Py_VISIT(self->scope);
    Py_VISIT(self->receive);
    Py_VISIT(self->send);
    Py_VISIT(self->response);
    Py_VISIT(self->message);
    Py_VISIT(self->inner);
    return 0;
}

static int sender_clear(Sender *self)
{
    Py_CLEAR(self->message);
    Py_CLEAR(self->inner);
    Py_CLEAR(self->response);
    Py_CLEAR(self->first);
    Py_CLEAR(self->scope);
    Py_CLEAR(self->receive);
    Py_CLEAR(self->send);
    Py_CLEAR(self->turn);
    return 0;
}

static void sender_dealloc(Sender *self)
{
    PyObject_GC_UnTrack(self);
    sender_clear(self);
    rm_spares_keep(&spares, (PyObject *)self);
}

Sender *rm_sender_new(Turn *turn, PyObject *scope, PyObject *receive, PyObject *send)
{
    Sender *self = (Sender *)rm_spares_new(&spares, sender_type);
    if (!self)
        return NULL;
    self->call = (vectorcall)sender_called;
    self->turn = (Turn *)Py_NewRef((PyObject *)turn);
    self->first = NULL;
    self->scope = Py_NewRef(scope);
    self->receive = Py_NewRef(receive);
    self->send = Py_NewRef(send);
    self->response = self->message = self->inner = NULL;
    self->marked = false;
    PyObject_GC_Track(self);
    return self;
}

static PyMethodDef sender_methods[] = {
    {"send", (PyCFunction)sender_send, METH_O, NULL},
    {"throw", (PyCFunction)(void (*)(void))sender_throw, METH_FASTCALL, NULL},
    {"close", (PyCFunction)sender_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef sender_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Sender, call), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot sender_slots[] = {
    {Py_tp_dealloc, sender_dealloc}, {Py_tp_traverse, sender_traverse}, {Py_tp_clear, sender_clear},
    {Py_tp_call, sender_call}, {Py_tp_methods, sender_methods}, {Py_tp_members, sender_members},
    {Py_am_await, PyObject_SelfIter}, {Py_am_send, sender_step}, {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, sender_next}, {0, NULL},
};
static PyType_Spec sender_spec = {
    "resource_monitor._native._turn.Sender", sizeof(Sender), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION | HAVE_VECTORCALL, sender_slots,
};

bool rm_sender_init(PyObject *module)
{
    return (s_status = PyUnicode_InternFromString("status")) && (s_send = PyUnicode_InternFromString("send")) &&
        (ok = PyLong_FromLong(200)) && (sender_type = rm_add_type(module, &sender_spec));
}
