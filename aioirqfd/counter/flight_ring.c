/* FlightRing: the last N interrupts as binary records in memory of its own. Writing one costs a few nanoseconds and no Python;
   who wants to read them renders them later. */
#include "_native.h"

#include <string.h>
#include <time.h>

/* What snapshot() returns, as struct format "=QQIiBxxxI". */
typedef struct {
    uint64_t time_ns;
    uint64_t count;
    uint32_t gsi;
    int32_t fd;
    uint8_t kind;
    uint8_t pad[3];
    uint32_t unused;
} flight_record;

struct flight_ring_object {
    PyObject_HEAD
    LEAF(leaf) /* the managers of several loops may share a ring; records and total are under it */
    flight_record *records;
    uint64_t total; /* records written since it was made */
    uint64_t mask;  /* capacity - 1; the capacity is a power of 2 */
};

uint64_t
flight_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

void
flight_put(FlightRingObject *ring, uint64_t time_ns, enum flight_kind kind, const EventFdCtxObject *ctx, uint64_t count)
{
    if (count == 0 && kind != FLIGHT_HELD) {
        count = 1; /* left unread: one at least */
    }
    LEAF_LOCK(&ring->leaf);
    ring->records[ring->total++ & ring->mask] = (flight_record){
        .time_ns = time_ns, .count = count, .gsi = ctx->gsi, .fd = SEEN(ctx->fd), .kind = (uint8_t)kind};
    LEAF_UNLOCK(&ring->leaf);
}

static PyObject *
ring_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"capacity", NULL};
    PyObject *given = NULL;
    uint64_t capacity = 65536;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:FlightRing", keywords, &given)) {
        return NULL;
    }
    if (given != NULL &&
        native_u64_within(given, 1, UINT64_C(1) << 28, "2**28", "a flight ring's capacity", &capacity) < 0) {
        return NULL;
    }
    uint64_t size = 1;
    while (size < capacity) {
        size *= 2;
    }
    FlightRingObject *self = (FlightRingObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->mask = size - 1;
    LEAF_INIT(&self->leaf);
    self->records = PyMem_Calloc((size_t)size, sizeof(*self->records));
    if (self->records == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void
ring_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyMem_Free(((FlightRingObject *)op)->records);
    LEAF_END(&((FlightRingObject *)op)->leaf);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *
ring_put(PyObject *op, PyObject *args)
{
    FlightRingObject *self = (FlightRingObject *)op;
    unsigned char kind;
    unsigned int gsi;
    int fd;
    unsigned long long count;
    if (!PyArg_ParseTuple(args, "bIiK:put", &kind, &gsi, &fd, &count)) {
        return NULL;
    }
    LEAF_LOCK(&self->leaf);
    self->records[self->total++ & self->mask] =
        (flight_record){.time_ns = flight_now(), .count = count, .gsi = gsi, .fd = fd, .kind = kind};
    LEAF_UNLOCK(&self->leaf);
    Py_RETURN_NONE;
}

static uint64_t
ring_total(FlightRingObject *self)
{
    LEAF_LOCK(&self->leaf);
    uint64_t total = self->total;
    LEAF_UNLOCK(&self->leaf);
    return total;
}

static PyObject *
ring_snapshot(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    FlightRingObject *self = (FlightRingObject *)op;
    uint64_t size = self->mask + 1;
    /* As many as there are now; what is written meanwhile takes the place of the oldest. */
    uint64_t n = ring_total(self);
    n = n < size ? n : size;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(n * sizeof(flight_record)));
    if (bytes != NULL) {
        flight_record *out = (flight_record *)(void *)PyBytes_AS_STRING(bytes);
        LEAF_LOCK(&self->leaf);
        uint64_t first = self->total - n;
        for (uint64_t i = 0; i < n; i++) {
            memcpy(&out[i], &self->records[(first + i) & self->mask], sizeof(flight_record));
        }
        LEAF_UNLOCK(&self->leaf);
    }
    return bytes;
}

static PyObject *
ring_get_total(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(ring_total((FlightRingObject *)op));
}

static PyObject *
ring_capacity(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(((FlightRingObject *)op)->mask + 1);
}

static PyMethodDef ring_methods[] = {
    {"put", ring_put, METH_VARARGS, PyDoc_STR("put($self, kind, gsi, fd, count, /)\n--\n\nWrite one record, now.")},
    {"snapshot", ring_snapshot, METH_NOARGS,
     PyDoc_STR(
         "snapshot($self, /)\n--\n\nThe records there are, oldest first, 32 bytes each: struct format \"=QQIiBxxxI\".")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef ring_getset[] = {
    {"total", ring_get_total, NULL, PyDoc_STR("Records written since it was made."), NULL},
    {"capacity", ring_capacity, NULL, PyDoc_STR("Records it keeps; a power of 2."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot ring_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("FlightRing(capacity=65536)\n--\n\nThe last interrupts, as binary records.")},
    {Py_tp_new, (void *)ring_new},
    {Py_tp_dealloc, (void *)ring_dealloc},
    {Py_tp_methods, ring_methods},
    {Py_tp_getset, ring_getset},
    {0, NULL},
};

PyType_Spec flight_ring_spec = {
    .name = "aioirqfd.counter.FlightRing",
    .basicsize = sizeof(FlightRingObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = ring_slots,
};
