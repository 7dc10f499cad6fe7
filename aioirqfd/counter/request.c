/* What a request of a virtqueue costs most, in C: the walk along its descriptors, and the first step of its handler.

   The walk knows the usual chain, all of it within one region of the guest's memory and by the rules. Whatever else it meets, it
   says None, and the caller walks again in Python, which decides what is wrong. The guest may change a descriptor at any time, so
   each is read once, by volatile loads, and only the copy is checked and used. */
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

/* view[start:end] on the list; both are within the view. */
static int
append_slice(PyObject *list, PyObject *view, uint64_t start, uint64_t end)
{
    PyObject *from = PyLong_FromUnsignedLongLong(start);
    PyObject *to = PyLong_FromUnsignedLongLong(end);
    PyObject *slice = from != NULL && to != NULL ? PySlice_New(from, to, NULL) : NULL;
    PyObject *part = slice != NULL ? PyObject_GetItem(view, slice) : NULL;
    Py_XDECREF(from);
    Py_XDECREF(to);
    Py_XDECREF(slice);
    if (part == NULL) {
        return -1;
    }
    int done = PyList_Append(list, part);
    Py_DECREF(part);
    return done;
}

typedef struct {
    PyObject *readable, *writable; /* the window, as views */
    uint64_t start;                /* its first guest-physical address */
    uint64_t size;
    PyObject *to_read, *to_write; /* lists */
    uint64_t to_write_size;
} walk_state;

/* 1; 0 when it is not the usual chain; -1 with an exception set. */
static int
walk(walk_state *w, const char *table, uint64_t limit, const char *window, uint64_t head, uint64_t max_table)
{
    bool direct = true;
    descriptor d = read_descriptor(table, head);
    /* A chain that never comes twice to the same descriptor ends within this bound. */
    for (uint64_t left = limit + max_table / DESC_SIZE; left > 0; left--) {
        uint64_t offset = d.address - w->start;
        if (d.length == 0 || d.address < w->start || offset > w->size || d.length > w->size - offset) {
            return 0;
        }
        if ((d.flags & DESC_INDIRECT) != 0) {
            if (!direct || (d.flags & DESC_NEXT) != 0 || d.length % DESC_SIZE != 0 || d.length > max_table) {
                return 0;
            }
            direct = false;
            table = window + offset;
            limit = d.length / DESC_SIZE;
            d = read_descriptor(table, 0);
            continue;
        }
        if ((d.flags & DESC_WRITE) != 0) {
            if (append_slice(w->to_write, w->writable, offset, offset + d.length) < 0) {
                return -1;
            }
            w->to_write_size += d.length;
        } else {
            if (PyList_GET_SIZE(w->to_write) > 0) {
                return 0;
            }
            if (append_slice(w->to_read, w->readable, offset, offset + d.length) < 0) {
                return -1;
            }
        }
        if ((d.flags & DESC_NEXT) == 0) {
            return w->to_write_size <= UINT32_MAX;
        }
        if (d.next >= limit) {
            return 0;
        }
        d = read_descriptor(table, d.next);
    }
    return 0;
}

/* walk(table, head, readable, writable, start, max_table): a tuple, or None for what is not the usual chain. */
PyObject *
native_walk(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 6) {
        PyErr_SetString(PyExc_TypeError, "walk() takes six arguments");
        return NULL;
    }
    uint64_t head, start, max_table;
    if (native_u64_from(args[1], 0, "a head", &head) < 0 || native_u64_from(args[4], 0, "an address", &start) < 0 ||
        native_u64_from(args[5], 0, "a size", &max_table) < 0) {
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
    walk_state w = {.readable = args[2], .writable = args[3], .start = start, .size = (uint64_t)window.len};
    w.to_read = PyList_New(0);
    w.to_write = PyList_New(0);
    uint64_t limit = (uint64_t)table.len / DESC_SIZE;
    if (head >= limit) {
        PyErr_SetString(PyExc_ValueError, "the head is not in the table");
    } else if (w.to_read != NULL && w.to_write != NULL) {
        int usual = walk(&w, table.buf, limit, window.buf, head, max_table);
        if (usual > 0) {
            result = Py_BuildValue("OOK", w.to_read, w.to_write, (unsigned long long)w.to_write_size);
        } else if (usual == 0) {
            result = Py_NewRef(Py_None);
        }
    }
    Py_XDECREF(w.to_read);
    Py_XDECREF(w.to_write);
    PyBuffer_Release(&window);
    PyBuffer_Release(&table);
    return result;
}

/* A coroutine's first step, without the exception that its end would be to a caller in Python. */
PyObject *
native_begin(PyObject *Py_UNUSED(module), PyObject *coroutine)
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
