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

static PyMethodDef native_methods[] = {
    {"fdinfo", native_fdinfo, METH_O,
     PyDoc_STR(
         "fdinfo(fd, /)\n--\n\n(count, eventfd-id, semaphore) of an eventfd, None for another kind of file; OSError EBADF (E25).")},
    {NULL, NULL, 0, NULL},
};

static int
add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **type)
{
    *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *type == NULL ? -1 : PyModule_AddType(module, *type);
}

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
    state->str_wakeup = PyUnicode_InternFromString("wakeup");
    state->str_defer = PyUnicode_InternFromString("defer");
    state->str_on_ready = PyUnicode_InternFromString("_on_ready");
    state->str_rest = PyUnicode_InternFromString("rest");
    state->str_left = PyUnicode_InternFromString("left");
    state->str_handler_failed = PyUnicode_InternFromString("handler_failed");
    state->str_throw = PyUnicode_InternFromString("throw");
    state->str_close = PyUnicode_InternFromString("close");
    if (state->would_block == NULL || state->closed_error == NULL || state->str_wakeup == NULL ||
        state->str_defer == NULL || state->str_on_ready == NULL || state->str_rest == NULL || state->str_left == NULL ||
        state->str_handler_failed == NULL || state->str_throw == NULL || state->str_close == NULL) {
        return -1;
    }
    PyObject *max = PyLong_FromUnsignedLongLong(COUNTER_MAX);
    if (max == NULL || PyModule_AddObjectRef(module, "MAX", max) < 0) {
        Py_XDECREF(max);
        return -1;
    }
    Py_DECREF(max);
    if (add_type(module, &counter_spec, &state->counter_type) < 0 ||
        add_type(module, &eventfd_ctx_spec, &state->eventfd_ctx_type) < 0 ||
        add_type(module, &top_half_spec, &state->top_half_type) < 0 ||
        add_type(module, &drain_spec, &state->drain_type) < 0) {
        return -1;
    }
    if (add_type(module, &flight_ring_spec, &state->flight_ring_type) < 0 ||
        add_type(module, &stepped_spec, &state->stepped_type) < 0) {
        return -1;
    }
    state->ready_run_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &ready_run_spec, NULL);
    return state->ready_run_type != NULL ? 0 : -1;
}

static int
native_traverse(PyObject *module, visitproc visit, void *arg)
{
    native_state *state = native_state_of(module);
    Py_VISIT(state->counter_type);
    Py_VISIT(state->eventfd_ctx_type);
    Py_VISIT(state->top_half_type);
    Py_VISIT(state->drain_type);
    Py_VISIT(state->ready_run_type);
    Py_VISIT(state->stepped_type);
    Py_VISIT(state->flight_ring_type);
    Py_VISIT(state->would_block);
    Py_VISIT(state->closed_error);
    return 0;
}

static int
native_clear(PyObject *module)
{
    native_state *state = native_state_of(module);
    Py_CLEAR(state->counter_type);
    Py_CLEAR(state->eventfd_ctx_type);
    Py_CLEAR(state->top_half_type);
    Py_CLEAR(state->drain_type);
    Py_CLEAR(state->ready_run_type);
    Py_CLEAR(state->stepped_type);
    Py_CLEAR(state->flight_ring_type);
    Py_CLEAR(state->would_block);
    Py_CLEAR(state->closed_error);
    Py_CLEAR(state->str_wakeup);
    Py_CLEAR(state->str_defer);
    Py_CLEAR(state->str_on_ready);
    Py_CLEAR(state->str_rest);
    Py_CLEAR(state->str_left);
    Py_CLEAR(state->str_handler_failed);
    Py_CLEAR(state->str_throw);
    Py_CLEAR(state->str_close);
    return 0;
}

static void
native_free(void *module)
{
    (void)native_clear((PyObject *)module);
}

static PyModuleDef_Slot native_slots[] = {
    {Py_mod_exec, (void *)native_exec},
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
