/* Coroutines stepped from C, each step marked for the allocation guard. */

#ifndef RM_STEPPING_H
#define RM_STEPPING_H

#include "turn.h"

extern PyTypeObject *rm_coroutine_type;
bool rm_stepping_init(void);

/* As PyIter_Send; where `marked`, as done at `place`. */
static inline PySendResult rm_step(PyObject *inner, PyObject *arg, bool marked, int place, PyObject **result)
{
    if (!marked)
        return PyIter_Send(inner, arg, result);
    int *here = rm_place(), before = *here;
    *here = place;
    PySendResult done = PyIter_Send(inner, arg, result);
    *here = before;
    return done;
}

/* What `throw` was given, as one exception. A new reference. */
PyObject *rm_thrown(PyObject *const *args, Py_ssize_t count);
/* As rm_step, with an exception. */
PySendResult rm_throw_into(PyObject *inner, PyObject *error, bool marked, int place, PyObject **result);
int rm_close_inner(PyObject *inner, bool marked, int place);    /* -1: an error */
/* What a method gives for it: a value, or the error or StopIteration in place of one. */
PyObject *rm_method_result(PySendResult done, PyObject *result);

#endif
