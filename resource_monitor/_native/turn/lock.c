/* A lock of which what objects do at their end need not wait, although the garbage collector may bring that about in the
 * middle of anything: of what the very thread does that has the lock, or of what has another one that the holder of this
 * one waits for. What is to be done soon is done at once where nobody is inside, and otherwise by whoever is, as the last
 * thing before they let go. In C, for to leave it must need no memory. */

#include "turn.h"

#include <pythread.h>

/* What is to be done: a tuple of what to call, and its arguments. */
typedef struct late {
    struct late *next;
    PyObject *call;
} Late;

typedef struct {
    PyObject_HEAD
    PyThread_type_lock lock;
    unsigned long holder;       /* the thread's, 0: nobody */
    Late *first, **end;         /* in the order in which they came */
#ifdef Py_GIL_DISABLED
    PyMutex mutex;              /* who has it may look whether anybody is inside, and change what is to be done */
#endif
} Lock;

#ifdef Py_GIL_DISABLED
#define BEGIN(self) PyMutex_Lock(&(self)->mutex)
#define END(self) PyMutex_Unlock(&(self)->mutex)
#else
#define BEGIN(self) ((void)(self))
#define END(self) ((void)(self))
#endif

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

static PyObject *do_now(PyObject *call)
{
    PyObject *arguments = PyTuple_GetSlice(call, 1, PyTuple_Size(call));
    PyObject *done = arguments ? PyObject_CallObject(PyTuple_GetItem(call, 0), arguments) : NULL;
    Py_XDECREF(arguments);
    return done;
}

/* Do what came meanwhile, until nothing has, and let go. What fails has nobody to tell it to: who was in here has no part
 * in it. */
static void let_go(Lock *self)
{
    for (;;) {
        BEGIN(self);
        Late *late = self->first;
        if (!late) {
            self->holder = 0;
            PyThread_release_lock(self->lock);
            END(self);
            return;
        }
        self->first = late->next;
        if (!late->next)
            self->end = &self->first;
        END(self);
        PyObject *done = do_now(late->call);
        if (!done)
            PyErr_WriteUnraisable(PyTuple_GetItem(late->call, 0));
        Py_XDECREF(done);
        Py_DECREF(late->call);
        PyMem_Free(late);
    }
}

static PyObject *lock_exit(Lock *self, PyObject *const *args, Py_ssize_t count)
{
    (void)args, (void)count;
    let_go(self);
    Py_RETURN_NONE;
}

static PyObject *lock_soon(Lock *self, PyObject *call)
{
    if (!PyTuple_Size(call)) {
        PyErr_SetString(PyExc_TypeError, "soon() takes what to call, and its arguments.");
        return NULL;
    }
    BEGIN(self);
    if (PyThread_acquire_lock(self->lock, NOWAIT_LOCK)) {
        self->holder = PyThread_get_thread_ident();
        END(self);
        PyObject *done = do_now(call), *kind, *value, *trace;
        PyErr_Fetch(&kind, &value, &trace);
        let_go(self);
        PyErr_Restore(kind, value, trace);
        return done;
    }
    Late *late = PyMem_Malloc(sizeof *late);
    if (late) {
        late->call = Py_NewRef(call);
        late->next = NULL;
        *self->end = late;
        self->end = &late->next;
    }
    END(self);
    return late ? Py_NewRef(Py_None) : PyErr_NoMemory();
}

static int lock_traverse(Lock *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    for (Late *late = self->first; late; late = late->next)
        Py_VISIT(late->call);
    return 0;
}

static int lock_clear(Lock *self)
{
    Late *late = self->first;
    self->first = NULL;
    self->end = &self->first;
    for (Late *next; late; late = next) {
        next = late->next;
        Py_DECREF(late->call);
        PyMem_Free(late);
    }
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
    self->first = NULL;
    self->end = &self->first;
#ifdef Py_GIL_DISABLED
    self->mutex = (PyMutex){0};
#endif
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static PyMethodDef lock_methods[] = {
    {"__enter__", (PyCFunction)lock_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))lock_exit, METH_FASTCALL, NULL},
    /* Call what is given, with what follows it, inside: now, or where somebody is, before they let go. Never waits. */
    {"soon", (PyCFunction)lock_soon, METH_VARARGS, NULL},
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
