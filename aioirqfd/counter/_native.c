/* The native counter module. Its pure-Python twin is in _python/: the same names, the same tests. */
#include "_native.h"

#include <errno.h>

static PyObject *
native_fdinfo(PyObject *Py_UNUSED(module), PyObject *arg)
{
    if (PyBool_Check(arg) || !PyIndex_Check(arg)) {
        PyErr_Format(PyExc_TypeError, "an fd is an integer, not %R", arg);
        return NULL;
    }
    int overflow;
    long number = PyLong_AsLongAndOverflow(arg, &overflow);
    if (number == -1 && PyErr_Occurred() != NULL) {
        return NULL;
    }
    /* No fd is that large; cut down to an int it would be another one's. */
    int fd = overflow != 0 || number < 0 || number > INT_MAX ? -1 : (int)number;
    uint64_t count;
    long id;
    int semaphore;
    int found = eventfd_peek(fd, &count, &id, &semaphore);
    if (found < 0) {
        /* Whatever it is beside that: whose it is. */
        return errno == EBADF ? PyErr_SetFromErrno(PyExc_OSError)
                              : PyErr_SetFromErrnoWithFilename(PyExc_OSError, "/proc/thread-self/fdinfo");
    }
    if (found == 0) {
        Py_RETURN_NONE;
    }
    return Py_BuildValue("KlN", (unsigned long long)count, id, PyBool_FromLong(semaphore));
}

#ifndef AIOIRQFD_BUILT_FROM
#    define AIOIRQFD_BUILT_FROM "" /* not by setup.py, which says it: see there */
#endif

static PyMethodDef native_methods[] = {
    {"fdinfo", native_fdinfo, METH_O,
     PyDoc_STR(
         "fdinfo(fd, /)\n--\n\n(count, eventfd-id, semaphore) of an eventfd, None for another kind of file; OSError EBADF (E25).")},
    {NULL, NULL, 0, NULL},
};

static int
native_exec(PyObject *module)
{
    native_state *state = native_state_of(module);
    PyObject *errors = PyImport_ImportModule("aioirqfd.errors");
    if (errors == NULL) {
        return -1;
    }
    state->would_block = PyObject_GetAttrString(errors, "WouldBlock");
    state->closed_error = PyObject_GetAttrString(errors, "ClosedError");
    Py_DECREF(errors);
    if (state->would_block == NULL || state->closed_error == NULL) {
        return -1;
    }
#define MAKE_TYPE(name)                                                                                                \
    state->name##_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &name##_spec, NULL);                         \
    /* What cannot be made from Python is not shown there. */                                                          \
    if (state->name##_type == NULL || ((name##_spec.flags & Py_TPFLAGS_DISALLOW_INSTANTIATION) == 0 &&                 \
                                       PyModule_AddType(module, state->name##_type) < 0)) {                            \
        return -1;                                                                                                     \
    }
#define MAKE_NAME(name)                                                                                                \
    if ((state->str_##name = PyUnicode_InternFromString(#name)) == NULL) {                                             \
        return -1;                                                                                                     \
    }
    NATIVE_TYPES(MAKE_TYPE)
    NATIVE_NAMES(MAKE_NAME)
    if (PyModule_AddStringConstant(module, "__built_from__", AIOIRQFD_BUILT_FROM) < 0) {
        return -1;
    }
    PyObject *max = PyLong_FromUnsignedLongLong(COUNTER_MAX);
    int added = max != NULL ? PyModule_AddObjectRef(module, "MAX", max) : -1;
    Py_XDECREF(max);
    return added;
}

static int
native_traverse(PyObject *module, visitproc visit, void *arg)
{
    native_state *state = native_state_of(module);
#define VISIT_TYPE(name) Py_VISIT(state->name##_type);
    NATIVE_TYPES(VISIT_TYPE)
    Py_VISIT(state->would_block);
    Py_VISIT(state->closed_error);
    return 0;
}

static int
native_clear(PyObject *module)
{
    native_state *state = native_state_of(module);
#define CLEAR_TYPE(name) Py_CLEAR(state->name##_type);
#define CLEAR_NAME(name) Py_CLEAR(state->str_##name);
    NATIVE_TYPES(CLEAR_TYPE)
    NATIVE_NAMES(CLEAR_NAME)
    Py_CLEAR(state->would_block);
    Py_CLEAR(state->closed_error);
    return 0;
}

static void
native_free(void *module)
{
    (void)native_clear((PyObject *)module);
}

static PyModuleDef_Slot native_slots[] = {
    {Py_mod_exec, (void *)native_exec},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED}, /* why: _turn.h */
#endif
    {0, NULL},
};

struct PyModuleDef native_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "aioirqfd.counter._native",
    .m_doc = PyDoc_STR("Counts and drains, in C."),
    .m_size = sizeof(native_state),
    .m_methods = native_methods,
    .m_slots = native_slots,
    .m_traverse = native_traverse,
    .m_clear = native_clear,
    .m_free = native_free,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&native_module);
}
