/* A lock that what objects do at their end can take, although the garbage collector may bring that about in the middle of
 * anything, also of what the very thread does that holds it. In C, for to leave it must need no memory. */

#include "turn.h"

#include <pythread.h>

typedef struct {
    PyObject_HEAD
    PyThread_type_lock lock;
    unsigned long holder;       /* the thread's, 0: nobody */
    PyObject *late;             /* a list of tuples: what was deferred, and its arguments */
} Lock;

static PyTypeObject *lock_type;

static PyObject *lock_enter(Lock *self, PyObject *unused)
{
    (void)unused;
    if (!PyThread_acquire_lock(self->lock, NOWAIT_LOCK)) {
        if (self->holder == PyThread_get_thread_ident()) { /* it would wait for itself for ever */
            PyErr_SetString(
                PyExc_RuntimeError,
                "This thread is in the middle of deciding about memory, which what a signal handler or a finaliser asks for "
                "cannot wait for; ask from another thread, or have the event loop do it by call_soon_threadsafe().");
            return NULL;
        }
        Py_BEGIN_ALLOW_THREADS
        PyThread_acquire_lock(self->lock, WAIT_LOCK);
        Py_END_ALLOW_THREADS
    }
    self->holder = PyThread_get_thread_ident();
    Py_RETURN_NONE;
}

/* What fails has nobody to tell it to: who was in here has no part in it. */
static void do_late(Lock *self)
{
    PyObject *late = self->late;
    self->late = NULL;
    for (Py_ssize_t at = 0; late && at < PyList_Size(late); at++) {
        PyObject *call = PyList_GetItem(late, at), *act = PyTuple_GetItem(call, 0);
        PyObject *arguments = PyTuple_GetSlice(call, 1, PyTuple_Size(call));
        PyObject *done = arguments ? PyObject_CallObject(act, arguments) : NULL;
        if (!done)
            PyErr_WriteUnraisable(act);
        Py_XDECREF(done);
        Py_XDECREF(arguments);
    }
    Py_XDECREF(late);
}

static PyObject *lock_exit(Lock *self, PyObject *const *args, Py_ssize_t count)
{
    (void)args, (void)count;
    self->holder = 0;
    PyThread_release_lock(self->lock);
    while (self->late)
        do_late(self);
    Py_RETURN_NONE;
}

static PyObject *lock_defers(Lock *self, PyObject *call)
{
    if (self->holder != PyThread_get_thread_ident())
        Py_RETURN_FALSE;
    if (!PyTuple_Size(call)) {
        PyErr_SetString(PyExc_TypeError, "defers() takes what to call, and its arguments.");
        return NULL;
    }
    if (!self->late && !(self->late = PyList_New(0)))
        return NULL;
    if (PyList_Append(self->late, call))
        return NULL;
    Py_RETURN_TRUE;
}

static int lock_traverse(Lock *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->late);
    return 0;
}

static int lock_clear(Lock *self)
{
    Py_CLEAR(self->late);
    return 0;
}

static void lock_dealloc(Lock *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    lock_clear(self);
    PyThread_free_lock(self->lock);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyObject *lock_new(PyTypeObject *type, PyObject *args, PyObject *options)
{
    (void)type, (void)options;
    if (!PyArg_ParseTuple(args, ":DeferringLock"))
        return NULL;
    PyThread_type_lock lock = PyThread_allocate_lock();
    if (!lock)
        return PyErr_NoMemory();
    Lock *self = PyObject_GC_New(Lock, lock_type);
    if (!self) {
        PyThread_free_lock(lock);
        return NULL;
    }
    self->lock = lock;
    self->holder = 0;
    self->late = NULL;
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static PyMethodDef lock_methods[] = {
    {"__enter__", (PyCFunction)lock_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))lock_exit, METH_FASTCALL, NULL},
    /* Whether this thread holds it already; then what is given is called, with what follows it, as soon as it does not. */
    {"defers", (PyCFunction)lock_defers, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot lock_slots[] = {
    {Py_tp_new, lock_new}, {Py_tp_dealloc, lock_dealloc}, {Py_tp_traverse, lock_traverse}, {Py_tp_clear, lock_clear},
    {Py_tp_methods, lock_methods}, {0, NULL},
};
static PyType_Spec lock_spec = {
    "resource_monitor._native._turn.DeferringLock", sizeof(Lock), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, lock_slots,
};

bool rm_lock_init(PyObject *module) { return (lock_type = rm_add_type(module, &lock_spec)) != NULL; }
