/* resource_monitor._native._turn: the way of a request that starts under a grant, without Python. */

#include "turn.h"

static int *nowhere(void)
{
    static __thread int place;
    return &place;
}

int *(*rm_place)(void) = nowhere;

PyTypeObject *rm_add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromSpec(spec);
    if (type && PyModule_AddType(module, (PyTypeObject *)type))
        Py_CLEAR(type);
    return (PyTypeObject *)type;
}

/* Takes the address of rm_guard_place, which is in the other extension module. */
static PyObject *use_place(PyObject *module, PyObject *address)
{
    (void)module;
    void *found = PyLong_AsVoidPtr(address);
    if (!found) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "0 is no address of a function.");
        return NULL;
    }
    rm_place = (int *(*)(void))(uintptr_t)found;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"use_place", use_place, METH_O, NULL},
    {"route_class", (PyCFunction)(void (*)(void))rm_route_class, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "resource_monitor._native._turn", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__turn(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module && !(rm_core_init(module) && rm_asgi_init(module)))
        Py_CLEAR(module);
    return module;
}
