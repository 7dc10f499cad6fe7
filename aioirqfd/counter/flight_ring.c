/* FlightRing: the last N things that happened to interrupts, as binary records, in memory of its own or in somebody's file. */
#include "_native.h"

/* Something that happened to an irqfd of this manager. */
void
flight_put(const TopHalfObject *top_half, uint64_t time_ns, enum flight_kind kind, const EventFdCtxObject *ctx,
           uint64_t count)
{
    if (count == 0 && kind != FLIGHT_HELD) {
        count = 1; /* left unread: one at least */
    }
    flight_write(top_half->flight, (flight_record){.time_ns = time_ns,
                                                   .value = count,
                                                   .key = ctx->gsi,
                                                   .fd = SEEN(ctx->fd),
                                                   .source = top_half->source,
                                                   .kind = (uint8_t)kind});
}

/* The ring is in this memory from here on; 0, or -1 with an exception. Nobody writes meanwhile. */
static int
settle_in(FlightRingObject *self, PyObject *memory, uint64_t offset)
{
    size_t size = FLIGHT_HEAD_SIZE + ((size_t)self->mask + 1) * FLIGHT_RECORD_SIZE;
    Py_buffer found = {.obj = NULL};
    if (memory == Py_None) {
        offset = 0;
        found.len = (Py_ssize_t)size;
        if ((found.buf = PyMem_Calloc(1, size)) == NULL) {
            PyErr_NoMemory();
            return -1;
        }
    } else {
        if (PyObject_GetBuffer(memory, &found, PyBUF_WRITABLE) < 0) {
            return -1;
        }
        if (offset > (uint64_t)found.len || (uint64_t)found.len - offset < size ||
            ((uintptr_t)found.buf + offset) % _Alignof(uint64_t) != 0) {
            PyErr_Format(PyExc_ValueError, "a flight ring of %zu bytes is not to be had at %llu of %zd bytes", size,
                         (unsigned long long)offset, found.len);
            PyBuffer_Release(&found);
            return -1;
        }
    }
    Py_buffer before = self->memory;
    char *start = (char *)found.buf + offset;
    self->memory = found;
    self->head = (_Atomic uint64_t *)(void *)start;
    self->records = (flight_record *)(void *)(start + FLIGHT_HEAD_SIZE);
    if (before.obj != NULL) {
        PyBuffer_Release(&before);
    } else {
        PyMem_Free(before.buf);
    }
    return 0;
}

static PyObject *
ring_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"capacity", "memory", "offset", NULL};
    PyObject *given = NULL, *memory = Py_None;
    unsigned long long offset = 0;
    uint64_t capacity = 65536;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OOK:FlightRing", keywords, &given, &memory, &offset)) {
        return NULL;
    }
    if (given != NULL &&
        native_u64_within(given, 1, UINT64_C(1) << 28, "2**28", "a flight ring's capacity", &capacity) < 0) {
        return NULL;
    }
    FlightRingObject *self = (FlightRingObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    while (UINT64_C(1) << self->shift < capacity) {
        self->shift++;
    }
    self->mask = (UINT64_C(1) << self->shift) - 1;
    if (settle_in(self, memory, offset) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

/* The memory's object is not visited. A memoryview that the collector clears while its buffer is in use takes the process down with
   it, and no object of memory that there is refers to a ring. */
static int
ring_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    return 0;
}

static void
ring_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    Py_buffer *memory = &((FlightRingObject *)op)->memory;
    PyObject_GC_UnTrack(op);
    if (memory->obj != NULL) {
        PyBuffer_Release(memory);
    } else {
        PyMem_Free(memory->buf);
    }
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *
ring_put(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs < 4 || nargs > 6) {
        return PyErr_Format(PyExc_TypeError, "put() takes 4 to 6 arguments, not %zd", nargs);
    }
    uint64_t words[6] = {0};
    for (Py_ssize_t i = 0; i < nargs; i++) {
        words[i] = PyLong_AsUnsignedLongLongMask(args[i]);
        if (words[i] == UINT64_MAX && PyErr_Occurred() != NULL) {
            return NULL;
        }
    }
    flight_write((FlightRingObject *)op, (flight_record){.time_ns = flight_now(),
                                                         .kind = (uint8_t)words[0],
                                                         .key = (uint32_t)words[1],
                                                         .fd = (int32_t)(uint32_t)words[2],
                                                         .value = words[3],
                                                         .source = (uint16_t)words[4],
                                                         .flags = (uint8_t)words[5]});
    Py_RETURN_NONE;
}

static PyObject *
ring_settle(PyObject *op, PyObject *args)
{
    PyObject *memory;
    unsigned long long offset;
    if (!PyArg_ParseTuple(args, "OK:settle", &memory, &offset) ||
        settle_in((FlightRingObject *)op, memory, offset) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *
ring_get_total(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(atomic_load_explicit(((FlightRingObject *)op)->head, memory_order_relaxed));
}

static PyObject *
ring_capacity(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(((FlightRingObject *)op)->mask + 1);
}

static PyObject *
ring_get_on(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(!atomic_load_explicit(&((FlightRingObject *)op)->off, memory_order_relaxed));
}

static int
ring_set_on(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "on cannot be deleted");
        return -1;
    }
    int on = PyObject_IsTrue(value);
    if (on >= 0) {
        atomic_store_explicit(&((FlightRingObject *)op)->off, on == 0, memory_order_relaxed);
    }
    return on < 0 ? -1 : 0;
}

static PyMethodDef ring_methods[] = {
    {"put", NATIVE_METHOD(ring_put), METH_FASTCALL,
     PyDoc_STR("put($self, kind, key, fd, value, source=0, flags=0, /)\n--\n\nWrite one record, now. Any thread.")},
    {"settle", ring_settle, METH_VARARGS,
     PyDoc_STR(
         "settle($self, memory, offset, /)\n--\n\nBe in this memory from here on, with as many places. Nobody writes meanwhile.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef ring_getset[] = {
    {"on", ring_get_on, ring_set_on, PyDoc_STR("Whether records are written; they are, at first."), NULL},
    {"total", ring_get_total, NULL, PyDoc_STR("Records written since it was made."), NULL},
    {"capacity", ring_capacity, NULL, PyDoc_STR("Records it keeps; a power of 2."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot ring_slots[] = {
    {Py_tp_doc,
     (void *)PyDoc_STR(
         "FlightRing(capacity=65536, memory=None, offset=0)\n--\n\n"
         "The last things that happened, as binary records: in a buffer from this offset on (a head of 64 bytes, then 32 for\n"
         "each record), or in memory of its own.")},
    {Py_tp_new, (void *)ring_new},
    {Py_tp_traverse, (void *)ring_traverse},
    {Py_tp_dealloc, (void *)ring_dealloc},
    {Py_tp_methods, ring_methods},
    {Py_tp_getset, ring_getset},
    {0, NULL},
};

PyType_Spec flight_ring_spec = {
    .name = "aioirqfd.counter.FlightRing",
    .basicsize = sizeof(FlightRingObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = ring_slots,
};
