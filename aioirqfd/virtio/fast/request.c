/* What a request of a virtqueue costs most, in C: the walk along its descriptors, and the first step of its handler.

   The walk knows the usual chain, each buffer of it within one region of the guest's memory, and by the rules. Whatever else it
   meets, it says so, and the caller walks again in Python, which decides what is wrong. The guest may change a descriptor at any
   time, so each is read once, by volatile loads, and only the copy is checked and used. */
#include "_native.h"

enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4, DESC_SIZE = 16 };

/* As the guest lays it out; it may lie anywhere, in a table of the guest's choosing. */
typedef struct __attribute__((packed)) {
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
} descriptor;

static descriptor
read_descriptor(const char *table, size_t index)
{
    const volatile descriptor *at = (const volatile descriptor *)(const volatile void *)(table + index * DESC_SIZE);
    return (descriptor){.address = at->address, .length = at->length, .flags = at->flags, .next = at->next};
}

/* Where a buffer lies in this process, or NULL; nearly always in the region that the last one was in. */
static char *
find(virtqueue_memory *memory, uint64_t address, uint64_t length)
{
    for (size_t i = 0, at = memory->last; i < memory->count; i++, at = at + 1 < memory->count ? at + 1 : 0) {
        const virtqueue_region *region = &memory->regions[at];
        uint64_t offset = address - region->start;
        if (address >= region->start && offset <= region->size && length <= region->size - offset) {
            memory->last = at;
            return region->here + offset;
        }
    }
    return NULL;
}

bool
virtqueue_walk(const char *table, uint64_t limit, virtqueue_memory *memory, uint64_t head, uint64_t max_table,
               virtqueue_chain *chain)
{
    bool direct = true;
    chain->readable = chain->count = 0;
    chain->readable_size = chain->writable_size = 0;
    descriptor d = read_descriptor(table, head);
    /* A chain that never comes twice to the same descriptor ends within this bound. */
    for (uint64_t left = limit + max_table / DESC_SIZE; left > 0; left--) {
        char *here = find(memory, d.address, d.length);
        if (d.length == 0 || here == NULL) {
            return false;
        }
        if ((d.flags & DESC_INDIRECT) != 0) {
            if (!direct || (d.flags & DESC_NEXT) != 0 || d.length % DESC_SIZE != 0 || d.length > max_table) {
                return false;
            }
            direct = false;
            table = here;
            limit = d.length / DESC_SIZE;
            d = read_descriptor(table, 0);
            continue;
        }
        if (chain->count == VIRTQUEUE_CHAIN_MAX) {
            return false;
        }
        chain->buffers[chain->count++] = (struct iovec){.iov_base = here, .iov_len = d.length};
        if ((d.flags & DESC_WRITE) != 0) {
            chain->writable_size += d.length;
        } else if (chain->readable < chain->count - 1) {
            return false; /* to read, behind one to write */
        } else {
            chain->readable++;
            chain->readable_size += d.length;
        }
        if ((d.flags & DESC_NEXT) == 0) {
            return chain->writable_size <= UINT32_MAX;
        }
        if (d.next >= limit) {
            return false;
        }
        d = read_descriptor(table, d.next);
    }
    return false;
}

/* view[start:end]; both are within the view. */
static PyObject *
slice_of(PyObject *view, uint64_t start, uint64_t end)
{
    PyObject *from = PyLong_FromUnsignedLongLong(start);
    PyObject *to = PyLong_FromUnsignedLongLong(end);
    PyObject *slice = from != NULL && to != NULL ? PySlice_New(from, to, NULL) : NULL;
    PyObject *part = slice != NULL ? PyObject_GetItem(view, slice) : NULL;
    Py_XDECREF(from);
    Py_XDECREF(to);
    Py_XDECREF(slice);
    return part;
}

static PyObject *
slices(PyObject *view, const char *base, const struct iovec *buffers, int count)
{
    PyObject *list = PyList_New(count);
    for (int i = 0; list != NULL && i < count; i++) {
        uint64_t start = (uint64_t)((const char *)buffers[i].iov_base - base);
        PyObject *part = slice_of(view, start, start + buffers[i].iov_len);
        if (part == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, i, part);
        }
    }
    return list;
}

/* walk(table, head, readable, writable, start, max_table): a tuple, or None for what is not the usual chain. */
PyObject *
fast_walk(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 6) {
        PyErr_SetString(PyExc_TypeError, "walk() takes six arguments");
        return NULL;
    }
    const uint64_t head = PyLong_AsUnsignedLongLong(args[1]);
    const uint64_t start = PyLong_AsUnsignedLongLong(args[4]);
    const uint64_t max_table = PyLong_AsUnsignedLongLong(args[5]);
    if (PyErr_Occurred() != NULL) {
        return NULL;
    }
    Py_buffer table, window;
    if (PyObject_GetBuffer(args[0], &table, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    if (PyObject_GetBuffer(args[2], &window, PyBUF_SIMPLE) < 0) {
        PyBuffer_Release(&table);
        return NULL;
    }
    PyObject *result = NULL;
    virtqueue_region region = {.start = start, .size = (uint64_t)window.len, .here = window.buf};
    virtqueue_memory memory = {.regions = &region, .count = 1};
    virtqueue_chain chain;
    uint64_t limit = (uint64_t)table.len / DESC_SIZE;
    if (head >= limit) {
        PyErr_SetString(PyExc_ValueError, "the head is not in the table");
    } else if (!virtqueue_walk(table.buf, limit, &memory, head, max_table, &chain)) {
        result = Py_NewRef(Py_None);
    } else {
        PyObject *readable = slices(args[2], region.here, chain.buffers, chain.readable);
        PyObject *writable = slices(args[3], region.here, chain.buffers + chain.readable, chain.count - chain.readable);
        if (readable != NULL && writable != NULL) {
            result = Py_BuildValue("OOK", readable, writable, (unsigned long long)chain.writable_size);
        }
        Py_XDECREF(readable);
        Py_XDECREF(writable);
    }
    PyBuffer_Release(&window);
    PyBuffer_Release(&table);
    return result;
}

/* A coroutine's first step, without the exception that its end would be to a caller in Python. */
PyObject *
fast_begin(PyObject *Py_UNUSED(module), PyObject *coroutine)
{
    PyObject *value = NULL;
    PySendResult sent = PyIter_Send(coroutine, Py_None, &value);
    if (sent == PYGEN_ERROR) {
        return NULL;
    }
    PyObject *pair = PyTuple_Pack(2, sent == PYGEN_RETURN ? Py_True : Py_False, value);
    Py_DECREF(value);
    return pair;
}
