/* Transfer: a ring's requests that are nothing but a read or a write of a file, served without any Python. They are what a disk
   is asked for nearly always, and a kernel's vhost would serve them in the kernel.

   It serves from the front of the available ring for as long as it knows what to do, and stops at the first request that is
   anything else, breaks a rule, or cannot be answered at once. That one stays in the ring, untouched, for Python. What was served
   is published and, where the ring is empty then, the driver is told where to kick next: one fence orders both (virtio 1.2,
   2.7.7 and 2.7.10).

   A request is served between two looks at the ring and so needs no mark in the inflight buffer: until the used index is written
   it counts as not fetched. But the used ring's last batch is linked there before, as whoever recovers expects it. */
#include "_native.h"

#include <errno.h>
#include <fcntl.h>
#include <structmember.h>

enum { AVAIL_IDX = 1, USED_IDX = 1, NO_INTERRUPT = 1 };
/* In an inflight queue's part, in 16-bit words: see inflight.py. */
enum { LAST_BATCH_HEAD = 6, INFLIGHT_USED_IDX = 7, INFLIGHT_NEXT = 11, INFLIGHT_STRIDE = 8 };
/* virtio 1.2, 5.2.6 */
enum { SECTOR = 512, BLK_IN = 0, BLK_OUT = 1, BLK_OK = 0 };
/* As much work as is done for one call. */
enum { BATCH_WORK = 1024, PAGE_SHIFT = 12 };
/* Bytes: a transfer up to here is shorter than what letting other threads run would cost. */
#define KEEP_GIL (1 << 15)

typedef struct __attribute__((packed)) {
    uint32_t type;
    uint32_t priority;
    uint64_t sector;
} blk_header;

typedef struct {
    PyObject_HEAD
    PyObject *chains; /* list: by head, the chain that Python has out, or None */
    Py_buffer desc, avail, used, inflight;
    Py_buffer *views; /* of the regions */
    virtqueue_region *regions;
    virtqueue_memory memory;
    Py_ssize_t view_count;
    uint64_t max_table;
    uint64_t size; /* of the file, in bytes */
    uint64_t read_at_once;
    uint64_t write_at_once;
    uint64_t batch_bytes;
    uint32_t entries;
    int batch;
    int fd;
    int nowait; /* RWF_NOWAIT, or 0 where the file system does not know it */
    bool event_idx;
    /* Where the ring stands, from the end of one serve() to the next. */
    uint16_t next_avail, used_idx;
    bool force;                /* call for the next answer in any case */
    unsigned long unsignalled; /* answers that were published, and not asked about yet */
    /* What kicks have had served since Python last looked. */
    unsigned long long served, notified, suppressed;
} TransferObject;

static uint16_t
load(const void *ring, size_t word)
{
    return atomic_load_explicit((const _Atomic uint16_t *)ring + word, memory_order_acquire);
}

static void
store(void *ring, size_t word, uint16_t value)
{
    atomic_store_explicit((_Atomic uint16_t *)ring + word, value, memory_order_release);
}

static bool
move(TransferObject *self, bool out, const struct iovec *buffers, int count, off_t offset, uint64_t size)
{
    ssize_t done;
    PyThreadState *thread = size > KEEP_GIL ? PyEval_SaveThread() : NULL;
    do {
        done =
            out ? pwritev(self->fd, buffers, count, offset) : preadv2(self->fd, buffers, count, offset, self->nowait);
        if (done < 0 && errno == EOPNOTSUPP && !out && self->nowait != 0) {
            self->nowait = 0; /* it reads from memory, or it would know */
            errno = EINTR;
        }
    } while (done < 0 && errno == EINTR);
    if (thread != NULL) {
        PyEval_RestoreThread(thread);
    }
    /* Fewer: not all of it is in the page cache. To begin again from its start does no harm. */
    return done >= 0 && (uint64_t)done == size;
}

/* Serve one request; false: it is not for here, and nothing of it is done that Python would not do again. */
static bool
serve_one(TransferObject *self, uint16_t head, virtqueue_chain *chain, uint32_t *written, uint64_t *moved)
{
    if (!virtqueue_walk(self->desc.buf, self->entries, &self->memory, head, self->max_table, chain) ||
        chain->readable == 0 || chain->readable == chain->count || chain->buffers[0].iov_len != sizeof(blk_header) ||
        chain->buffers[chain->count - 1].iov_len != 1) {
        return false;
    }
    const volatile blk_header *here = chain->buffers[0].iov_base;
    const blk_header header = {.type = here->type, .sector = here->sector};
    volatile uint8_t *status = chain->buffers[chain->count - 1].iov_base;
    const struct iovec *buffers = chain->buffers + 1;
    int count = chain->count - 2;
    bool out = header.type == BLK_OUT;
    uint64_t size;
    if (out) {
        size = chain->readable_size - sizeof(blk_header);
        if (chain->writable_size != 1 || size > self->write_at_once) {
            return false;
        }
    } else {
        size = chain->writable_size - 1;
        if (header.type != BLK_IN || chain->readable != 1 || size > self->read_at_once) {
            return false;
        }
    }
    if (size == 0 || size % SECTOR != 0 || size > self->size || header.sector > (self->size - size) / SECTOR ||
        !move(self, out, buffers, count, (off_t)(header.sector * SECTOR), size)) {
        return false;
    }
    *status = BLK_OK;
    *written = out ? 1 : (uint32_t)(size + 1);
    *moved = size;
    return true;
}

static bool
wants_call(const TransferObject *self)
{
    const void *avail = self->avail.buf;
    if (!self->event_idx) {
        return (load(avail, 0) & NO_INTERRUPT) == 0;
    }
    uint16_t used_event = load(avail, 2 + (size_t)self->entries);
    return self->force || (uint16_t)(self->used_idx - used_event - 1) < self->unsignalled;
}

/* Serve what can be; TRANSFER_* and how many. */
static int
serve(TransferObject *self)
{
    const void *avail = self->avail.buf;
    void *used = self->used.buf, *inflight = self->inflight.buf;
    volatile uint32_t *entries = (uint32_t *)used + 1;
    uint32_t mask = self->entries - 1;
    uint16_t next = self->next_avail, used_idx = self->used_idx;
    uint16_t seen = load(avail, AVAIL_IDX);
    virtqueue_chain chain;
    uint64_t bytes = 0, work = 0;
    int count = 0;
    if ((uint16_t)(seen - next) > self->entries) {
        return 0;
    }
    for (; count < self->batch && bytes < self->batch_bytes && work < BATCH_WORK; count++, next++, used_idx++) {
        if (next == seen && (next == (seen = load(avail, AVAIL_IDX)) || (uint16_t)(seen - next) > self->entries)) {
            break;
        }
        uint16_t head = load(avail, 2 + (size_t)(next & mask));
        uint32_t written;
        uint64_t moved;
        if (head >= self->entries || head >= PyList_GET_SIZE(self->chains) ||
            PyList_GET_ITEM(self->chains, head) != Py_None || !serve_one(self, head, &chain, &written, &moved)) {
            break;
        }
        bytes += moved;
        work += (uint64_t)chain.count + (moved >> PAGE_SHIFT);
        entries[2 * (used_idx & mask)] = head;
        entries[2 * (used_idx & mask) + 1] = written;
        if (inflight != NULL) {
            store(inflight, INFLIGHT_NEXT + INFLIGHT_STRIDE * (size_t)head, load(inflight, LAST_BATCH_HEAD));
            store(inflight, LAST_BATCH_HEAD, head);
        }
    }
    if (count == 0) {
        return 0;
    }
    store(used, USED_IDX, used_idx);
    if (inflight != NULL) {
        store(inflight, INFLIGHT_USED_IDX, used_idx);
    }
    self->next_avail = next;
    self->used_idx = used_idx;
    self->unsignalled += (unsigned long)count;
    int result = count | (int)(work << TRANSFER_WORK);
    if (next != seen) {
        return result;
    }
    if (self->event_idx) {
        store(used, 2 + 4 * (size_t)self->entries, next);
    } else {
        store(used, 0, 0);
    }
    atomic_thread_fence(memory_order_seq_cst);
    int call = wants_call(self) ? TRANSFER_CALL : 0;
    int more = load(avail, AVAIL_IDX) != next ? TRANSFER_MORE : 0;
    self->unsignalled = 0;
    self->force = false;
    return result | TRANSFER_RESTED | call | more;
}

/* The same for a kick, of which Python hears by taken(). */
int
transfer_kick(PyObject *op)
{
    TransferObject *self = (TransferObject *)op;
    int served;
    OBJECT_SECTION(op)
    served = serve(self);
    self->served += (unsigned long long)(served & TRANSFER_COUNT);
    if ((served & TRANSFER_RESTED) != 0) {
        *((served & TRANSFER_CALL) != 0 ? &self->notified : &self->suppressed) += 1;
    }
    OBJECT_SECTION_END()
    return served;
}

/* serve(next_avail, used_idx, unsignalled, force) */
static PyObject *
transfer_serve(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    TransferObject *self = (TransferObject *)op;
    if (nargs != 4) {
        PyErr_SetString(PyExc_TypeError, "serve() takes four arguments");
        return NULL;
    }
    unsigned long numbers[4];
    for (int i = 0; i < 4; i++) {
        numbers[i] = PyLong_AsUnsignedLong(args[i]);
        if (numbers[i] == (unsigned long)-1 && PyErr_Occurred() != NULL) {
            return NULL;
        }
    }
    int served;
    OBJECT_SECTION(op)
    self->next_avail = (uint16_t)numbers[0];
    self->used_idx = (uint16_t)numbers[1];
    self->unsignalled = numbers[2];
    self->force = numbers[3] != 0;
    served = serve(self);
    OBJECT_SECTION_END()
    return PyLong_FromLong(served);
}

static PyObject *
transfer_taken(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    TransferObject *self = (TransferObject *)op;
    PyObject *taken;
    OBJECT_SECTION(op)
    taken = self->served == 0
                ? Py_NewRef(Py_None)
                : Py_BuildValue("KKKk", self->served, self->notified, self->suppressed, self->unsignalled);
    if (taken != NULL) {
        self->served = self->notified = self->suppressed = 0;
    }
    OBJECT_SECTION_END()
    return taken;
}

static int
take_regions(TransferObject *self, PyObject *regions)
{
    Py_ssize_t count = PyTuple_GET_SIZE(regions);
    self->views = PyMem_Calloc((size_t)count + 1, sizeof(*self->views));
    self->regions = PyMem_Calloc((size_t)count + 1, sizeof(*self->regions));
    if (self->views == NULL || self->regions == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *region = PyTuple_GET_ITEM(regions, i);
        unsigned long long start;
        PyObject *view;
        if (!PyTuple_Check(region)) {
            PyErr_SetString(PyExc_TypeError, "a region is its start and a view");
            return -1;
        }
        if (!PyArg_ParseTuple(region, "KO", &start, &view) ||
            PyObject_GetBuffer(view, &self->views[i], PyBUF_WRITABLE) < 0) {
            return -1;
        }
        self->view_count = i + 1;
        self->regions[i] =
            (virtqueue_region){.start = start, .size = (uint64_t)self->views[i].len, .here = self->views[i].buf};
    }
    self->memory = (virtqueue_memory){.regions = self->regions, .count = (size_t)count};
    return 0;
}

static bool
is_aligned(const Py_buffer *buffer, Py_ssize_t size, uintptr_t align)
{
    return buffer->len >= size && (uintptr_t)buffer->buf % align == 0;
}

static PyObject *
transfer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"desc",         "avail",         "used",      "chains",      "regions",
                               "inflight",     "max_table",     "event_idx", "fd",          "size",
                               "read_at_once", "write_at_once", "batch",     "batch_bytes", NULL};
    PyObject *desc, *avail, *used, *chains, *regions, *inflight;
    unsigned long long max_table, size, read_at_once, write_at_once, batch_bytes;
    int event_idx, fd, batch;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO!O!O$KpiKKKiK:Transfer", keywords, &desc, &avail, &used,
                                     &PyList_Type, &chains, &PyTuple_Type, &regions, &inflight, &max_table, &event_idx,
                                     &fd, &size, &read_at_once, &write_at_once, &batch, &batch_bytes)) {
        return NULL;
    }
    TransferObject *self = (TransferObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->chains = Py_NewRef(chains);
    self->max_table = max_table;
    self->event_idx = event_idx != 0;
    self->fd = fd;
    self->size = size;
    self->read_at_once = read_at_once;
    self->write_at_once = write_at_once;
    self->batch = Py_MIN(batch, TRANSFER_COUNT);
    self->batch_bytes = batch_bytes;
    self->nowait = RWF_NOWAIT;
    if (PyObject_GetBuffer(desc, &self->desc, PyBUF_SIMPLE) < 0 ||
        PyObject_GetBuffer(avail, &self->avail, PyBUF_SIMPLE) < 0 ||
        PyObject_GetBuffer(used, &self->used, PyBUF_WRITABLE) < 0 ||
        (inflight != Py_None && PyObject_GetBuffer(inflight, &self->inflight, PyBUF_WRITABLE) < 0) ||
        take_regions(self, regions) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    Py_ssize_t entries = PyList_GET_SIZE(chains);
    self->entries = (uint32_t)entries;
    if (entries < 1 || entries > 32768 || (entries & (entries - 1)) != 0 || !is_aligned(&self->desc, 16 * entries, 1) ||
        !is_aligned(&self->avail, 6 + 2 * entries, 2) || !is_aligned(&self->used, 6 + 8 * entries, 4) ||
        (inflight != Py_None && !is_aligned(&self->inflight, 16 + 16 * entries, 2))) {
        PyErr_SetString(PyExc_ValueError, "the views do not fit a ring of so many entries");
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int
transfer_traverse(PyObject *op, visitproc visit, void *arg)
{
    TransferObject *self = (TransferObject *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->chains);
    Py_VISIT(self->desc.obj);
    Py_VISIT(self->avail.obj);
    Py_VISIT(self->used.obj);
    Py_VISIT(self->inflight.obj);
    for (Py_ssize_t i = 0; i < self->view_count; i++) {
        Py_VISIT(self->views[i].obj);
    }
    return 0;
}

static void
transfer_dealloc(PyObject *op)
{
    TransferObject *self = (TransferObject *)op;
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    PyBuffer_Release(&self->desc);
    PyBuffer_Release(&self->avail);
    PyBuffer_Release(&self->used);
    PyBuffer_Release(&self->inflight);
    for (Py_ssize_t i = 0; i < self->view_count; i++) {
        PyBuffer_Release(&self->views[i]);
    }
    PyMem_Free(self->views);
    PyMem_Free(self->regions);
    Py_XDECREF(self->chains);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyMethodDef transfer_methods[] = {
    {"serve", FAST_METHOD(transfer_serve), METH_FASTCALL,
     PyDoc_STR(
         "serve($self, next_avail, used_idx, unsignalled, force, /)\n--\n\n"
         "Serve what can be; return how many (& 255), and 256: the ring was empty then, and 512: call, 1024: it is not\n"
         "empty any more; and from bit 16 on how much work it was, in descriptors and pages moved.")},
    {"taken", transfer_taken, METH_NOARGS,
     PyDoc_STR(
         "taken($self, /)\n--\n\n"
         "What kicks had served since the last look, or None: how many requests, calls wanted and not wanted, and how\n"
         "many answers were not asked about yet.")},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot transfer_slots[] = {
    {Py_tp_doc,
     (void *)PyDoc_STR(
         "Transfer(desc, avail, used, chains, regions, inflight, *, max_table, event_idx, fd, size, "
         "read_at_once, write_at_once, batch, batch_bytes)\n--\n\nServes a ring's plain reads and writes of a file.")},
    {Py_tp_new, (void *)transfer_new},
    {Py_tp_traverse, (void *)transfer_traverse},
    {Py_tp_dealloc, (void *)transfer_dealloc},
    {Py_tp_methods, transfer_methods},
    {0, NULL},
};

PyType_Spec transfer_spec = {
    .name = "aioirqfd.virtio.fast.Transfer",
    .basicsize = sizeof(TransferObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = transfer_slots,
};
