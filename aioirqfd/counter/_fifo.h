/* A queue of irqfds, oldest first: a ring, whose places count on modulo 2**32. One can be taken out of its middle. */
#ifndef AIOIRQFD_FIFO_H
#define AIOIRQFD_FIFO_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

typedef struct eventfd_ctx_object EventFdCtxObject;

typedef struct {
    EventFdCtxObject **items; /* strong; NULL where one was taken out */
    uint32_t head, tail;      /* the places of the oldest, and behind the newest */
    uint32_t cap;             /* a power of 2, or 0 */
} ctx_fifo;

static inline uint32_t
fifo_len(const ctx_fifo *fifo)
{
    return fifo->tail - fifo->head;
}

static inline EventFdCtxObject **
fifo_at(const ctx_fifo *fifo, uint32_t place)
{
    return &fifo->items[place & (fifo->cap - 1)];
}

/* Put it behind the newest, at the place that was the tail: 0, or -1 with MemoryError. */
static inline int
fifo_put(ctx_fifo *fifo, EventFdCtxObject *ctx)
{
    if (fifo_len(fifo) == fifo->cap) {
        ctx_fifo grown = {.head = fifo->head, .tail = fifo->tail, .cap = fifo->cap ? 2 * fifo->cap : 64};
        grown.items = PyMem_Malloc(grown.cap * sizeof(*grown.items));
        if (grown.items == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        for (uint32_t place = fifo->head; place != fifo->tail; place++) {
            *fifo_at(&grown, place) = *fifo_at(fifo, place);
        }
        PyMem_Free(fifo->items);
        *fifo = grown;
    }
    *fifo_at(fifo, fifo->tail++) = (EventFdCtxObject *)Py_NewRef(ctx);
    return 0;
}

/* Take out who is at a place: the fifo's reference. */
static inline EventFdCtxObject *
fifo_take(ctx_fifo *fifo, uint32_t place)
{
    EventFdCtxObject *ctx = *fifo_at(fifo, place);
    *fifo_at(fifo, place) = NULL;
    while (fifo_len(fifo) > 0 && *fifo_at(fifo, fifo->tail - 1) == NULL) {
        fifo->tail--; /* whoever comes and goes while others stay takes no room */
    }
    return ctx;
}

/* The oldest: the fifo's reference, NULL when there is none. */
static inline EventFdCtxObject *
fifo_next(ctx_fifo *fifo)
{
    while (fifo_len(fifo) > 0) {
        EventFdCtxObject *ctx = *fifo_at(fifo, fifo->head);
        *fifo_at(fifo, fifo->head++) = NULL;
        if (ctx != NULL) {
            return ctx;
        }
    }
    return NULL;
}

static inline int
fifo_traverse(const ctx_fifo *fifo, visitproc visit, void *arg)
{
    for (uint32_t place = fifo->head; place != fifo->tail; place++) {
        Py_VISIT(*fifo_at(fifo, place));
    }
    return 0;
}

#endif
