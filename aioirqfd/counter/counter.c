/* Counter: a saturating 64-bit counter with an eventfd's signal and read, without the file descriptor. */
#include "_native.h"

typedef struct {
    PyObject_HEAD
    counter_t count;
    bool semaphore;
} CounterObject;

/* A plain integer in low..high, or -1 with TypeError or ValueError set. A bool is none, though it is an int to Python: where a number
   is wanted it is a mistake. The words are those of aioirqfd.integers. */
int
native_u64_within(PyObject *object, uint64_t low, uint64_t high, const char *high_text, const char *what,
                  uint64_t *value)
{
    if (PyBool_Check(object) || !PyIndex_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s is an integer, not %R", what, object);
        return -1;
    }
    PyObject *number = PyNumber_Index(object);
    if (number == NULL) {
        return -1;
    }
    unsigned long long got = PyLong_AsUnsignedLongLong(number);
    bool bad = got == (unsigned long long)-1 && PyErr_Occurred() != NULL;
    if (bad && !PyErr_ExceptionMatches(PyExc_OverflowError)) {
        Py_DECREF(number);
        return -1;
    }
    if (bad || got < low || got > high) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s is %llu..%s, not %S", what, (unsigned long long)low, high_text, number);
        Py_DECREF(number);
        return -1;
    }
    Py_DECREF(number);
    *value = (uint64_t)got;
    return 0;
}

/* The same for a count: up to 2**64-2. */
int
native_u64_from(PyObject *object, uint64_t low, const char *what, uint64_t *value)
{
    return native_u64_within(object, low, COUNTER_MAX, "2**64-2", what, value);
}

static PyObject *
counter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"initial", "semaphore", NULL};
    PyObject *initial = NULL;
    int semaphore = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O$p:Counter", keywords, &initial, &semaphore)) {
        return NULL;
    }
    uint64_t value = 0;
    if (initial != NULL && native_u64_from(initial, 0, "a count", &value) < 0) {
        return NULL;
    }
    CounterObject *self = (CounterObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    atomic_init(&self->count.value, value);
    self->semaphore = semaphore != 0;
    return (PyObject *)self;
}

static void
counter_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
counter_signal(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    CounterObject *self = (CounterObject *)op;
    uint64_t n = 1;
    if (nargs > 1) {
        PyErr_SetString(PyExc_TypeError, "signal() takes at most one argument");
        return NULL;
    }
    if (nargs == 1 && native_u64_from(args[0], 1, "a signal", &n) < 0) {
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(counter_add(&self->count, n));
}

static PyObject *
counter_read(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    CounterObject *self = (CounterObject *)op;
    uint64_t value = self->semaphore ? counter_take_one(&self->count) : counter_take(&self->count);
    if (value == 0) {
        native_state *state = native_state_of_object(op);
        if (state != NULL) {
            PyErr_SetNone(state->would_block);
        }
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(value);
}

/* The words are those of aioirqfd.uncopied. */
static PyObject *
counter_reduce(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return PyErr_Format(PyExc_TypeError,
                        "%R cannot be copied or pickled. The two would count apart. Hand over its value, and make "
                        "another of that: Counter(value).",
                        op);
}

static PyObject *
counter_get_value(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(counter_peek(&((CounterObject *)op)->count));
}

static PyObject *
counter_get_semaphore(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((CounterObject *)op)->semaphore);
}

static PyMethodDef counter_methods[] = {
    {"signal", NATIVE_METHOD(counter_signal), METH_FASTCALL,
     PyDoc_STR(
         "signal($self, n=1, /)\n--\n\nAdd n (1..2**64-2), as much as fits below 2**64-2; return what was added.")},
    {"read", counter_read, METH_NOARGS,
     PyDoc_STR("read($self, /)\n--\n\nTake the count (1 of it, with semaphore=True); WouldBlock at 0.")},
    {"__reduce__", counter_reduce, METH_NOARGS, PyDoc_STR("Refuses.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef counter_getset[] = {
    {"value", counter_get_value, NULL, PyDoc_STR("The count, 0..2**64-2; nothing is consumed."), NULL},
    {"semaphore", counter_get_semaphore, NULL, PyDoc_STR("Whether a read takes 1 instead of all."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot counter_slots[] = {
    {Py_tp_doc,
     (void *)PyDoc_STR("Counter(initial=0, *, semaphore=False)\n--\n\n"
                       "A saturating 64-bit counter with the reads and writes of an eventfd. Safe from any thread.")},
    {Py_tp_new, (void *)counter_new},
    {Py_tp_dealloc, (void *)counter_dealloc},
    {Py_tp_methods, counter_methods},
    {Py_tp_getset, counter_getset},
    {0, NULL},
};

PyType_Spec counter_spec = {
    .name = "aioirqfd.counter.Counter",
    .basicsize = sizeof(CounterObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = counter_slots,
};
