/* The native module. Its pure-Python twin is _python.py: the same names. */
#include "_native.h"

#ifndef AIOIRQFD_BUILT_FROM
#    define AIOIRQFD_BUILT_FROM "" /* not by setup.py, which says it: see there */
#endif

static PyMethodDef fast_methods[] = {
    {"walk", FAST_METHOD(fast_walk), METH_FASTCALL,
     PyDoc_STR(
         "walk(table, head, readable, writable, start, max_table, /)\n--\n\n"
         "Follow the descriptors of a virtqueue's request: (to read, to write, bytes to write), or None if it is not all\n"
         "in the window or breaks a rule, and somebody else is to say which.")},
    {"begin", fast_begin, METH_O,
     PyDoc_STR("begin(coroutine, /)\n--\n\n"
               "Drive a coroutine to where it waits, or to its end: (it has ended, what it yielded or returned).")},
    {NULL, NULL, 0, NULL},
};

static int
fast_exec(PyObject *module)
{
    fast_state *state = (fast_state *)PyModule_GetState(module);
    state->str_gsi = PyUnicode_InternFromString("gsi");
    state->str_signal = PyUnicode_InternFromString("signal");
    state->transfer_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &transfer_spec, NULL);
    state->kicks_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &kicks_spec, NULL);
    if (state->str_gsi == NULL || state->str_signal == NULL || state->transfer_type == NULL ||
        state->kicks_type == NULL) {
        return -1;
    }
    if (PyModule_AddStringConstant(module, "__built_from__", AIOIRQFD_BUILT_FROM) < 0) {
        return -1;
    }
    return PyModule_AddType(module, state->transfer_type) < 0 ? -1 : PyModule_AddType(module, state->kicks_type);
}

static int
fast_traverse(PyObject *module, visitproc visit, void *arg)
{
    fast_state *state = (fast_state *)PyModule_GetState(module);
    Py_VISIT(state->transfer_type);
    Py_VISIT(state->kicks_type);
    return 0;
}

static int
fast_clear(PyObject *module)
{
    fast_state *state = (fast_state *)PyModule_GetState(module);
    Py_CLEAR(state->transfer_type);
    Py_CLEAR(state->kicks_type);
    Py_CLEAR(state->str_gsi);
    Py_CLEAR(state->str_signal);
    return 0;
}

static void
fast_free(void *module)
{
    (void)fast_clear((PyObject *)module);
}

static PyModuleDef_Slot fast_slots[] = {
    {Py_mod_exec, (void *)fast_exec},
#ifdef Py_mod_gil
    /* Where a Transfer's ring stands is under its own section. The lists that Kicks and Transfer are given are their queues', which
       belong to one loop's thread. walk() and begin() keep nothing. */
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef fast_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "aioirqfd.virtio.fast._native",
    .m_doc = PyDoc_STR("What of a virtqueue is served in C."),
    .m_size = sizeof(fast_state),
    .m_methods = fast_methods,
    .m_slots = fast_slots,
    .m_traverse = fast_traverse,
    .m_clear = fast_clear,
    .m_free = fast_free,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&fast_module);
}
