/* Calling out: to the sink, to IrqFd, to a handler, from where nobody can be given an exception.

   What is called may come back in any way: signal, mask, deassign, close, re-route, also from a destructor or from the hook that an
   unraisable exception is told to. So whoever calls holds references of its own to all that it looks at afterwards, has given up its
   ownership before (the debt, the place in a list), and asks again what it knew. */
#include "_native.h"

/* The exception that is set, with its traceback, and set no more: a new reference. */
PyObject *
native_raised(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (error != NULL && traceback != NULL) {
        PyException_SetTraceback(error, traceback);
    }
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return error;
#endif
}

/* Set it again; the reference is given up. */
void
native_raise(PyObject *error)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyErr_SetRaisedException(error);
#else
    PyErr_Restore(Py_NewRef(Py_TYPE(error)), error, PyException_GetTraceback(error));
#endif
}

/* PyErr_WriteUnraisable(), which calls a hook of the program's. */
void
native_unraisable(PyObject *about)
{
    OUT_OF_TURN
    PyErr_WriteUnraisable(about);
    OUT_OF_TURN_END
}

/* 0; -1: it raised, which is reported. Without an argument if that is NULL; nothing happens without a callable. */
int
native_call(PyObject *callable, PyObject *argument)
{
    if (callable == NULL || callable == Py_None) {
        return 0;
    }
    int called;
    Py_INCREF(callable);
    OUT_OF_TURN
    PyObject *done = argument != NULL ? PyObject_CallOneArg(callable, argument) : PyObject_CallNoArgs(callable);
    called = done != NULL ? 0 : -1;
    if (done == NULL) {
        PyErr_WriteUnraisable(callable);
    }
    Py_XDECREF(done);
    Py_DECREF(callable);
    OUT_OF_TURN_END
    return called;
}

/* The same of a method. */
int
native_call_method(PyObject *object, PyObject *name, PyObject *argument)
{
    int called;
    OUT_OF_TURN
    PyObject *done =
        argument != NULL ? PyObject_CallMethodOneArg(object, name, argument) : PyObject_CallMethodNoArgs(object, name);
    called = done != NULL ? 0 : -1;
    if (done == NULL) {
        PyErr_WriteUnraisable(object);
    }
    Py_XDECREF(done);
    OUT_OF_TURN_END
    return called;
}

/* Of a type that is collected and has no more to give up than what its tp_clear does. */
void
native_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    (void)type->tp_clear(op);
    type->tp_free(op);
    Py_DECREF(type);
}
