/* A queue of irqfds, oldest first, as a manager keeps two: those that are held, and those whose handler is to run. */
#include "_native.h"

static EventFdCtxObject **
at(const ctx_fifo *fifo, uint32_t place)
{
    return &fifo->items[place & (fifo->cap - 1)];
}

/* Put it behind the newest, at the place that was the tail: 0, or -1 with MemoryError. */
int
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
            *at(&grown, place) = *at(fifo, place);
        }
        PyMem_Free(fifo->items);
        *fifo = grown;
    }
    *at(fifo, fifo->tail++) = (EventFdCtxObject *)Py_NewRef(ctx);
    return 0;
}

/* Take out who is at a place, and leave that empty: the fifo's reference. */
EventFdCtxObject *
fifo_take(ctx_fifo *fifo, uint32_t place)
{
    EventFdCtxObject *ctx = *at(fifo, place);
    *at(fifo, place) = NULL;
    return ctx;
}

/* The oldest: the fifo's reference, NULL when there is none. */
EventFdCtxObject *
fifo_next(ctx_fifo *fifo)
{
    while (fifo_len(fifo) > 0) {
        EventFdCtxObject *ctx = fifo_take(fifo, fifo->head++);
        if (ctx != NULL) {
            return ctx;
        }
    }
    return NULL;
}

int
fifo_traverse(const ctx_fifo *fifo, visitproc visit, void *arg)
{
    for (uint32_t place = fifo->head; place != fifo->tail; place++) {
        Py_VISIT(*at(fifo, place));
    }
    return 0;
}

/* Of an empty one. */
void
fifo_free(ctx_fifo *fifo)
{
    PyMem_Free(fifo->items);
    *fifo = (ctx_fifo){0};
}
