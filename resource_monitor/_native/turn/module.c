/* resource_monitor._native._turn: the way of a request that starts under a grant, without Python. */

#include "turn.h"

static int *nowhere(void)
{
    static __thread int place;
    return &place;
}

static unsigned long long none(void) { return 0; }

int *(*rm_place)(void) = nowhere;
unsigned long long (*rm_refusals)(void) = none;
static unsigned long long (*passed_so_far)(void) = none;

PyTypeObject *rm_add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromSpec(spec);
    if (type && PyModule_AddType(module, (PyTypeObject *)type))
        Py_CLEAR(type);
    return (PyTypeObject *)type;
}

PyTypeObject *rm_named_type(const char *name)
{
    PyObject *types = PyImport_ImportModule("types");
    PyObject *type = types ? PyObject_GetAttrString(types, name) : NULL;
    Py_XDECREF(types);
    return (PyTypeObject *)type;
}

/* Takes the addresses of rm_guard_place, rm_guard_thread_refusals and rm_guard_passed, which are in the other extension
 * module. */
static PyObject *use_guard(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long place, refusals, passing;
    if (!PyArg_ParseTuple(args, "KKK:use_guard", &place, &refusals, &passing))
        return NULL;
    if (!place || !refusals || !passing) {
        PyErr_SetString(PyExc_ValueError, "0 is no address of a function.");
        return NULL;
    }
    rm_place = (int *(*)(void))(uintptr_t)place;
    rm_refusals = (unsigned long long (*)(void))(uintptr_t)refusals;
    passed_so_far = (unsigned long long (*)(void))(uintptr_t)passing;
    Py_RETURN_NONE;
}

static PyObject *thread_refusals(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyLong_FromUnsignedLongLong(rm_refusals());
}

static PyObject *passed(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyLong_FromUnsignedLongLong(passed_so_far());
}

static PyMethodDef methods[] = {
    {"use_guard", use_guard, METH_VARARGS, NULL},
    {"thread_refusals", thread_refusals, METH_NOARGS, NULL},
    {"passed", passed, METH_NOARGS, NULL},
    {"through_door", rm_through_door, METH_O, NULL},
    {"queued", rm_queued, METH_O, NULL},
    {"route_class", (PyCFunction)(void (*)(void))rm_route_class, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "resource_monitor._native._turn", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__turn(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module && !(rm_lock_init(module) && rm_core_init(module) && rm_asgi_init(module) && rm_passage_init(module) &&
                    rm_wsgi_init(module)))
        Py_CLEAR(module);
#ifdef Py_GIL_DISABLED
    /* there nobody comes in here, and whoever asks for a lane or takes what is untold holds a lock */
    if (module)
        PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED);
#endif
    return module;
}
