/* An error that is set, as one object, for where other things are to be done before it is passed on. */

#include "turn.h"

void rm_ensure_error(void)
{
    if (!PyErr_Occurred())
        PyErr_NoMemory();
}

PyObject *rm_take_error(void)
{
    PyObject *kind, *value, *trace;
    rm_ensure_error();
    PyErr_Fetch(&kind, &value, &trace);
    PyErr_NormalizeException(&kind, &value, &trace);
    if (trace)
        PyException_SetTraceback(value, trace);
    Py_XDECREF(kind);
    Py_XDECREF(trace);
    return value;
}

void rm_replace_error(PyObject **error)
{
    PyObject *before = *error;
    *error = rm_take_error();
    Py_XDECREF(before);
}

void rm_set_error(PyObject *error)
{
    PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(error)), error, PyException_GetTraceback(error));
}

void rm_restore_around(PyObject **what)
{
    PyObject *kind, *value, *trace;
    PyErr_Fetch(&kind, &value, &trace);
    Py_CLEAR(*what);
    PyErr_Restore(kind, value, trace);
}
