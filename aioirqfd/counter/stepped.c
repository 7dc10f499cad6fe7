/* Stepped: the awaitable of call(*args), each of whose steps is taken in a context of its own, or with a drain that knows that its
   sink is being asked, or both. A Python wrapper does the same for ten times the price; a task would be another task. */
#include "_native.h"

#include <string.h>

typedef struct {
    PyObject_HEAD
    PyObject *context;  /* strong, or NULL: as it comes */
    DrainObject *drain; /* strong, or NULL */
    PyObject *awaited;  /* strong: what the call gave */
    PyObject *steps;    /* strong: its iterator */
} SteppedObject;

typedef struct {
    bool in_context;
    bool nested;
} entry;

static entry
enter(const SteppedObject *self)
{
    entry made = {false, false};
    made.in_context = native_enter(self->context);
    if (self->drain != NULL) {
        made.nested = SEEN(self->drain->dispatching);
        SAY(self->drain->dispatching, true);
    }
    return made;
}

static void
leave(const SteppedObject *self, entry made)
{
    if (self->drain != NULL) {
        SAY(self->drain->dispatching, made.nested);
    }
    native_exit(self->context, made.in_context);
}

/* The iterator of what was awaited, a new reference; NULL with an exception. */
PyObject *
native_iterator_of(PyObject *awaited)
{
    if (PyCoro_CheckExact(awaited)) {
        return Py_NewRef(awaited);
    }
    PyAsyncMethods *async = Py_TYPE(awaited)->tp_as_async;
    if (async != NULL && async->am_await != NULL) {
        return async->am_await(awaited);
    }
    PyErr_Format(PyExc_TypeError, "%R cannot be awaited", awaited);
    return NULL;
}

static PyObject *
stepped_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    native_state *state = (native_state *)PyType_GetModuleState(type);
    Py_ssize_t n = PyTuple_GET_SIZE(args);
    if (state == NULL) {
        return NULL;
    }
    if (n < 3 || (kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0)) {
        PyErr_SetString(PyExc_TypeError, "Stepped() takes a context, a drain, a callable and its arguments");
        return NULL;
    }
    PyObject *context = PyTuple_GET_ITEM(args, 0);
    PyObject *drain = PyTuple_GET_ITEM(args, 1);
    if ((context != Py_None && !PyContext_CheckExact(context)) ||
        (drain != Py_None && !Py_IS_TYPE(drain, state->drain_type))) {
        PyErr_SetString(PyExc_TypeError, "Stepped() takes a contextvars.Context or None, and a Drain or None");
        return NULL;
    }
    SteppedObject *self = (SteppedObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->context = context != Py_None ? Py_NewRef(context) : NULL;
    self->drain = drain != Py_None ? (DrainObject *)Py_NewRef(drain) : NULL;
    PyObject *const *items = &PyTuple_GET_ITEM(args, 2);
    entry made = enter(self);
    self->awaited = PyObject_Vectorcall(items[0], items + 1, (size_t)(n - 3), NULL);
    if (self->awaited != NULL) {
        self->steps = native_iterator_of(self->awaited);
    }
    leave(self, made);
    if (self->steps == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static PySendResult
stepped_send_slot(PyObject *op, PyObject *arg, PyObject **result)
{
    SteppedObject *self = (SteppedObject *)op;
    *result = NULL;
    if (self->steps == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "cannot go on with what was cleared");
        return PYGEN_ERROR;
    }
    entry made = enter(self);
    PySendResult sent = PyIter_Send(self->steps, arg, result);
    leave(self, made);
    return sent;
}

/* What send() and throw() answer: the value, or StopIteration with it. */
PyObject *
native_answer(PySendResult sent, PyObject *value)
{
    if (sent == PYGEN_RETURN) {
        if (value == Py_None) {
            PyErr_SetNone(PyExc_StopIteration);
        } else {
            PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, value);
            if (stop != NULL) {
                PyErr_SetObject(PyExc_StopIteration, stop);
                Py_DECREF(stop);
            }
        }
        Py_DECREF(value);
        return NULL;
    }
    return sent == PYGEN_NEXT ? value : NULL;
}

PyObject *
native_send(PyObject *op, PyObject *arg)
{
    PyObject *value;
    PySendResult sent = Py_TYPE(op)->tp_as_async->am_send(op, arg, &value);
    return native_answer(sent, value);
}

PyObject *
native_next(PyObject *op)
{
    return native_send(op, Py_None);
}

PyObject *
native_self(PyObject *op)
{
    return Py_NewRef(op);
}

/* Call a method of the iterator's as one more step. */
static PyObject *
stepped_call(SteppedObject *self, PyObject *name, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *method = self->steps != NULL ? PyObject_GetAttr(self->steps, name) : NULL;
    if (method == NULL) {
        return NULL;
    }
    entry made = enter(self);
    PyObject *value = PyObject_Vectorcall(method, args, (size_t)nargs, NULL);
    leave(self, made);
    Py_DECREF(method);
    return value;
}

static PyObject *
stepped_throw(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    native_state *state = native_state_of_final(op);
    if (state == NULL) {
        return NULL;
    }
    if (nargs < 1 || nargs > 3) {
        PyErr_SetString(PyExc_TypeError, "throw() takes one to three arguments");
        return NULL;
    }
    PyObject *value = stepped_call((SteppedObject *)op, state->str_throw, args, nargs);
    if (value == NULL && PyErr_ExceptionMatches(PyExc_AttributeError) && PyExceptionInstance_Check(args[0])) {
        /* An iterator without a throw() is at its end then. */
        PyErr_SetObject((PyObject *)Py_TYPE(args[0]), args[0]);
    }
    return value;
}

static PyObject *
stepped_close(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    native_state *state = native_state_of_final(op);
    if (state == NULL) {
        return NULL;
    }
    PyObject *value = stepped_call((SteppedObject *)op, state->str_close, NULL, 0);
    if (value == NULL && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    return value;
}

static int
stepped_traverse(PyObject *op, visitproc visit, void *arg)
{
    SteppedObject *self = (SteppedObject *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->context);
    Py_VISIT(self->drain);
    Py_VISIT(self->awaited);
    Py_VISIT(self->steps);
    return 0;
}

static int
stepped_clear(PyObject *op)
{
    SteppedObject *self = (SteppedObject *)op;
    Py_CLEAR(self->steps);
    Py_CLEAR(self->awaited);
    Py_CLEAR(self->drain);
    Py_CLEAR(self->context);
    return 0;
}

static PyMethodDef stepped_methods[] = {
    {"send", native_send, METH_O, PyDoc_STR("send($self, value, /)\n--\n\nAs of a coroutine.")},
    {"throw", NATIVE_METHOD(stepped_throw), METH_FASTCALL, PyDoc_STR("throw($self, *error)\n--\n\nAs of a coroutine.")},
    {"close", stepped_close, METH_NOARGS, PyDoc_STR("close($self, /)\n--\n\nAs of a coroutine.")},
    {NULL, NULL, 0, NULL},
};

/* What a coroutine or a generator says of itself: what it waits for, its code, its frame. AttributeError where it is neither. */
PyObject *
native_of_awaited(PyObject *awaited, const char *what)
{
    if (awaited != NULL && PyCoro_CheckExact(awaited)) {
        PyObject *name = PyUnicode_FromFormat("cr_%s", what);
        PyObject *value = name != NULL ? PyObject_GetAttr(awaited, name) : NULL;
        Py_XDECREF(name);
        return value;
    }
    if (awaited != NULL && PyGen_CheckExact(awaited)) {
        PyObject *name = PyUnicode_FromFormat("gi_%s", strcmp(what, "await") == 0 ? "yieldfrom" : what);
        PyObject *value = name != NULL ? PyObject_GetAttr(awaited, name) : NULL;
        Py_XDECREF(name);
        return value;
    }
    PyErr_Format(PyExc_AttributeError, "what is awaited has no %s", what);
    return NULL;
}

static PyObject *
stepped_of_awaited(PyObject *op, void *what)
{
    return native_of_awaited(((SteppedObject *)op)->steps, (const char *)what);
}

static PyGetSetDef stepped_getset[] = {NATIVE_OF_AWAITED(stepped_of_awaited)};

static PyType_Slot stepped_slots[] = {
    {Py_tp_doc,
     (void *)PyDoc_STR(
         "Stepped(context, drain, call, /, *args)\n--\n\n"
         "The awaitable of call(*args), each step of which runs in the context, and with the drain dispatching.")},
    {Py_tp_new, (void *)stepped_new},
    {Py_tp_traverse, (void *)stepped_traverse},
    {Py_tp_clear, (void *)stepped_clear},
    {Py_tp_dealloc, (void *)native_dealloc},
    {Py_tp_methods, stepped_methods},
    {Py_tp_getset, stepped_getset},
    {Py_tp_iter, (void *)native_self},
    {Py_tp_iternext, (void *)native_next},
    {Py_am_await, (void *)native_self},
    {Py_am_send, (void *)stepped_send_slot},
    {0, NULL},
};

PyType_Spec stepped_spec = {
    .name = "aioirqfd.counter.Stepped",
    .basicsize = sizeof(SteppedObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = stepped_slots,
};
