/* Coroutines stepped from C: what Python's `yield from` does with a value, an exception and a close. */

#include "stepping.h"

PyTypeObject *rm_coroutine_type;
static PyObject *s_throw, *s_close;

/* The three arguments of old are deprecated. */
PyObject *rm_thrown(PyObject *const *args, Py_ssize_t count)
{
    if (count < 1 || count > 3) {
        PyErr_SetString(PyExc_TypeError, "throw() takes an exception.");
        return NULL;
    }
    if (PyExceptionInstance_Check(args[0]))
        return Py_NewRef(args[0]);
    if (!PyExceptionClass_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "exceptions must be classes or instances deriving from BaseException");
        return NULL;
    }
    if (count > 1 && PyExceptionInstance_Check(args[1]))
        return Py_NewRef(args[1]);
    return PyObject_CallFunctionObjArgs(args[0], count > 1 && args[1] != Py_None ? args[1] : NULL, NULL);
}

PySendResult rm_throw_into(PyObject *inner, PyObject *error, bool marked, int place, PyObject **result)
{
    PyObject *method = PyObject_GetAttr(inner, s_throw);
    *result = NULL;
    if (!method) {
        if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
            PyErr_Clear();
            PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        }
        return PYGEN_ERROR;
    }
    int *here = rm_place(), before = *here;
    if (marked)
        *here = place;
    *result = PyObject_CallFunctionObjArgs(method, error, NULL);
    *here = before;
    Py_DECREF(method);
    if (*result)
        return PYGEN_NEXT;
    if (!PyErr_ExceptionMatches(PyExc_StopIteration))
        return PYGEN_ERROR;
    PyObject *stop = rm_take_error();
    *result = PyObject_GetAttrString(stop, "value");
    Py_DECREF(stop);
    return *result ? PYGEN_RETURN : PYGEN_ERROR;
}

int rm_close_inner(PyObject *inner, bool marked, int place)
{
    PyObject *method = PyObject_GetAttr(inner, s_close);
    if (!method) {
        bool missing = PyErr_ExceptionMatches(PyExc_AttributeError);
        if (missing)
            PyErr_Clear();
        return missing ? 0 : -1;
    }
    int *here = rm_place(), before = *here;
    if (marked)
        *here = place;
    PyObject *done = PyObject_CallNoArgs(method);
    *here = before;
    Py_DECREF(method);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

PyObject *rm_method_result(PySendResult done, PyObject *result)
{
    if (done == PYGEN_NEXT)
        return result;
    if (done == PYGEN_RETURN) {
        PyObject *stop = PyObject_CallFunctionObjArgs(PyExc_StopIteration, result, NULL);
        Py_DECREF(result);
        if (stop) {
            PyErr_SetObject(PyExc_StopIteration, stop);
            Py_DECREF(stop);
        }
    }
    return NULL;
}

bool rm_stepping_init(void)
{
    return (rm_coroutine_type = rm_named_type("CoroutineType")) && (s_throw = PyUnicode_InternFromString("throw")) &&
        (s_close = PyUnicode_InternFromString("close"));
}
