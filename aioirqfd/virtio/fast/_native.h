/* What the files of the native module share: its state, and what a ring's service comes back with. */
#ifndef AIOIRQFD_VIRTIO_FAST_H
#define AIOIRQFD_VIRTIO_FAST_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdatomic.h>

#include "_virtqueue.h"

/* An object's own lock, where there is no GIL; with one it is nothing. Given up, as a GIL is, while its holder waits. */
#ifdef Py_GIL_DISABLED
#    define OBJECT_SECTION(op)   Py_BEGIN_CRITICAL_SECTION(op);
#    define OBJECT_SECTION_END() Py_END_CRITICAL_SECTION();
#else
#    define OBJECT_SECTION(op)   {
#    define OBJECT_SECTION_END() }
#endif

/* A function of the vectorcall kind for a table of methods; it is called as what its flags say. */
#define FAST_METHOD(function) ((PyCFunction)(void (*)(void))(function))

typedef struct {
    PyTypeObject *transfer_type;
    PyTypeObject *kicks_type;
    PyObject *str_gsi;
    PyObject *str_signal;
} fast_state;

/* Neither type can be subclassed. */
static inline fast_state *
fast_state_of(PyObject *self)
{
    return (fast_state *)PyType_GetModuleState(Py_TYPE(self));
}

/* Beside the count of requests; in the bits from TRANSFER_WORK on: how much work they were, in buffers and pages moved. */
enum {
    TRANSFER_COUNT = 0xff,
    TRANSFER_RESTED = 1 << 8,
    TRANSFER_CALL = 1 << 9,
    TRANSFER_MORE = 1 << 10,
    TRANSFER_WORK = 16,
};

/* transfer.c */
extern PyType_Spec transfer_spec;
int transfer_kick(PyObject *op);

/* kicks.c */
extern PyType_Spec kicks_spec;

/* request.c */
PyObject *fast_walk(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *fast_begin(PyObject *module, PyObject *coroutine);

#endif
