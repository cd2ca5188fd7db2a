/* Objects of one type that are over, kept for the next requests: a new one would be memory that is in no cache. */

#ifndef RM_SPARES_H
#define RM_SPARES_H

#include "turn.h"

enum { SPARES = 8 };

typedef struct {
    PyObject *objects[SPARES];
    size_t count;
} Spares;

/* A new object, which the garbage collector does not know yet; of what follows its head nothing is set. */
static inline PyObject *rm_spares_new(Spares *spares, PyTypeObject *type)
{
    return spares->count ? PyObject_Init(spares->objects[--spares->count], type) : PyObject_GC_New(PyObject, type);
}

/* What its type's tp_dealloc ends with. */
static inline void rm_spares_keep(Spares *spares, PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    if (spares->count < SPARES)
        spares->objects[spares->count++] = object;
    else
        PyObject_GC_Del(object);
    Py_DECREF(type);
}

#endif
