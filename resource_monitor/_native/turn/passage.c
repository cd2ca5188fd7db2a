/* The coroutine function that is an ASGI middleware's `__call__`: what comes in through the middleware's door is awaited
 * as it is, which spares a coroutine around it, and the function itself is not called.
 *
 * To whoever looks it is what it was: `inspect` takes what has a function's attributes for one, so that Cython's are
 * functions too. By that servers tell ASGI 3 from ASGI 2. */

#include "turn.h"

#include <stddef.h>
#include <structmember.h>

static PyTypeObject *passage_type, *doorway_type, *method_type;

/* The middleware. */
typedef struct {
    PyObject_HEAD
    PyObject *app;
    PyObject *door;         /* a Door, or another object or NULL: none */
} Doorway;

typedef struct {
    PyObject_HEAD
    vectorcall call;
    PyObject *function;
} Passage;

/* ---- Doorway ---- */

static int doorway_traverse(Doorway *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->app);
    Py_VISIT(self->door);
    return 0;
}

static int doorway_clear(Doorway *self)
{
    Py_CLEAR(self->app);
    Py_CLEAR(self->door);
    return 0;
}

static void doorway_dealloc(Doorway *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    doorway_clear(self);
    freefunc give_back = (freefunc)PyType_GetSlot(type, Py_tp_free);
    give_back(self);
    Py_DECREF(type);
}

static PyMemberDef doorway_members[] = {
    {"app", T_OBJECT_EX, offsetof(Doorway, app), 0, NULL},
    {"door", T_OBJECT, offsetof(Doorway, door), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot doorway_slots[] = {
    {Py_tp_dealloc, doorway_dealloc}, {Py_tp_traverse, doorway_traverse}, {Py_tp_clear, doorway_clear},
    {Py_tp_members, doorway_members}, {0, NULL},
};
static PyType_Spec doorway_spec = {
    "resource_monitor._native._turn.Doorway", sizeof(Doorway), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, doorway_slots,
};

/* ---- Passage ---- */

static PyObject *passage_called(Passage *self, PyObject *const *args, size_t flags, PyObject *names)
{
    if ((flags & ~VECTORCALL_OFFSET) == 4 && !names && PyType_IsSubtype(Py_TYPE(args[0]), doorway_type)) {
        PyObject *app = Py_XNewRef(((Doorway *)args[0])->app), *door = Py_XNewRef(((Doorway *)args[0])->door), *turn;
        bool fine = rm_asgi_enter(door, app, args[1], args[2], args[3], &turn);
        Py_XDECREF(app);
        Py_XDECREF(door);
        if (turn || !fine)
            return turn;
    }
    return PyObject_Vectorcall(self->function, args, flags, names);
}

static PyObject *passage_call(Passage *self, PyObject *args, PyObject *options)
{
    return PyObject_Call(self->function, args, options);
}

static PyObject *passage_get(Passage *self, PyObject *instance, PyObject *type)
{
    (void)type;
    if (!instance)
        return Py_NewRef((PyObject *)self);
    return PyObject_CallFunctionObjArgs((PyObject *)method_type, (PyObject *)self, instance, NULL);
}

static PyObject *passage_get_attribute(Passage *self, void *name)
{
    return PyObject_GetAttrString(self->function, name);
}

static int passage_traverse(Passage *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->function);
    return 0;
}

static int passage_clear(Passage *self)
{
    Py_CLEAR(self->function);
    return 0;
}

static void passage_dealloc(Passage *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    passage_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMemberDef passage_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Passage, call), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyGetSetDef passage_getset[] = {
    {"__name__", (getter)passage_get_attribute, NULL, NULL, "__name__"},
    {"__qualname__", (getter)passage_get_attribute, NULL, NULL, "__qualname__"},
    {"__code__", (getter)passage_get_attribute, NULL, NULL, "__code__"},
    {"__defaults__", (getter)passage_get_attribute, NULL, NULL, "__defaults__"},
    {"__kwdefaults__", (getter)passage_get_attribute, NULL, NULL, "__kwdefaults__"},
    {"__annotations__", (getter)passage_get_attribute, NULL, NULL, "__annotations__"},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot passage_slots[] = {
    {Py_tp_dealloc, passage_dealloc}, {Py_tp_traverse, passage_traverse}, {Py_tp_clear, passage_clear},
    {Py_tp_call, passage_call}, {Py_tp_descr_get, passage_get}, {Py_tp_members, passage_members},
    {Py_tp_getset, passage_getset}, {0, NULL},
};
static PyType_Spec passage_spec = {
    "resource_monitor._native._turn.Passage", sizeof(Passage), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_METHOD_DESCRIPTOR |
        HAVE_VECTORCALL,
    passage_slots,
};

PyObject *rm_through_door(PyObject *module, PyObject *function)
{
    (void)module;
    Passage *self = PyObject_GC_New(Passage, passage_type);
    if (!self)
        return NULL;
    self->call = (vectorcall)passage_called;
    self->function = Py_NewRef(function);
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

bool rm_passage_init(PyObject *module)
{
    return (method_type = rm_named_type("MethodType")) && (doorway_type = rm_add_type(module, &doorway_spec)) &&
        (passage_type = rm_add_type(module, &passage_spec));
}
