/* The eventfds that are registered with a drain: who is behind an epoll event. It carries slot and generation, never a pointer. */
#include "_native.h"

#include <errno.h>
#include <sys/epoll.h>

/* Take the ctx out of its drain; also from its dealloc, and when the fd is closed already. Its debt goes with it: what is counted
   stays counted, and is an event again wherever it is added next. */
void
drain_forget(EventFdCtxObject *ctx)
{
    DrainObject *drain = ctx->drain;
    if (drain == NULL) {
        return;
    }
    drain_slot *slot = &drain->slots[ctx->index];
    slot->ctx = NULL;
#ifdef Py_GIL_DISABLED
    PyObject *ref = slot->ref;
    slot->ref = NULL;
#endif
    slot->generation++;
    slot->next_free = drain->free_head;
    drain->free_head = ctx->index;
    SAY(drain->attached, drain->attached - 1);
    /* An fd that was closed behind our back may be another eventfd's by now, which must not be unregistered instead. */
    if (ctx->fd >= 0 && (size_t)ctx->fd < drain->by_fd_cap && drain->by_fd[ctx->fd] == ctx->index) {
        drain->by_fd[ctx->fd] = NO_SLOT;
        if (!drain->dead) {
            (void)epoll_ctl(drain->epfd, EPOLL_CTL_DEL, ctx->fd, NULL);
        }
    }
    ctx->event = ctx->fresh = ctx->asks_room = ctx->full = ctx->in_unread = false;
    LEAF_LOCK(&ctx->place);
    (void)mailbox_discharge(&ctx->node);
    SAY(ctx->drain, NULL);
    LEAF_UNLOCK(&ctx->place);
#ifdef Py_GIL_DISABLED
    Py_XDECREF(ref); /* it has no callback */
#endif
    turn_drop(drain);
}

static int
slots_grow(DrainObject *self)
{
    uint32_t cap = self->slots_cap ? 2 * self->slots_cap : 16;
    drain_slot *grown = PyMem_Realloc(self->slots, cap * sizeof(*grown));
    if (grown == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (uint32_t i = self->slots_cap; i < cap; i++) {
        grown[i] = (drain_slot){.next_free = i + 1 < cap ? i + 1 : NO_SLOT};
    }
    self->free_head = self->slots_cap;
    self->slots = grown;
    self->slots_cap = cap;
    return 0;
}

static int
by_fd_grow(DrainObject *self, int fd)
{
    size_t cap = self->by_fd_cap ? self->by_fd_cap : 64;
    while (cap <= (size_t)fd) {
        cap *= 2;
    }
    uint32_t *grown = PyMem_Realloc(self->by_fd, cap * sizeof(*grown));
    if (grown == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t i = self->by_fd_cap; i < cap; i++) {
        grown[i] = NO_SLOT;
    }
    self->by_fd = grown;
    self->by_fd_cap = cap;
    return 0;
}

/* Register it with the epoll, under a slot's number: 0, or -1 with errno. */
static int
watch(const DrainObject *self, int fd, uint32_t index)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET,
                                .data.u64 = ((uint64_t)self->slots[index].generation << 32) | index};
    if (epoll_ctl(self->epfd, EPOLL_CTL_ADD, fd, &event) == 0) {
        return 0;
    }
    /* Under a number that nobody of ours has it is a leftover: it was closed behind our back, which no DEL undoes (E22), and is
       back under its number. */
    bool leftover = errno == EEXIST && self->by_fd[fd] == NO_SLOT;
    return leftover ? epoll_ctl(self->epfd, EPOLL_CTL_MOD, fd, &event) : -1;
}

/* Give it the first free slot: 0; -1 with errno; 1: it is registered already. Its place is the caller's. */
static int
settle_in_place(DrainObject *self, EventFdCtxObject *ctx, int fd)
{
    if (ctx->drain != NULL || ctx->fd != fd) {
        return 1;
    }
    uint32_t index = self->free_head;
    drain_slot *slot = &self->slots[index];
    bool fresh = eventfd_has_count(fd) == 1;
    if (watch(self, fd, index) < 0) {
        return -1;
    }
    drain_withdraw_in_place(ctx);
    self->free_head = slot->next_free;
    slot->ctx = ctx;
    self->by_fd[fd] = index;
    SAY(self->attached, self->attached + 1);
    ctx->index = index;
    ctx->generation = slot->generation;
    ctx->fresh = fresh;
    ctx->event = false;
#ifdef Py_GIL_DISABLED
    turn_unref(ctx->turn);
    ctx->turn = turn_ref(self->turn);
#endif
    SAY(ctx->drain, (DrainObject *)Py_NewRef(self));
    if (counter_peek(&ctx->count) > 0 && mailbox_owe(&ctx->node)) {
        drain_post_in_place(ctx);
    }
    return 0;
}

/* Register an eventfd with the drain: 0, or -1 with an exception. */
int
drain_settle(DrainObject *self, EventFdCtxObject *ctx)
{
    int fd = SEEN(ctx->fd);
    if (self->dead) {
        goto refused;
    }
    if (self->free_head == NO_SLOT && slots_grow(self) < 0) {
        return -1;
    }
    if (fd >= 0 && (size_t)fd >= self->by_fd_cap && by_fd_grow(self, fd) < 0) {
        return -1;
    }
#ifdef Py_GIL_DISABLED
    PyObject *ref = PyWeakref_NewRef((PyObject *)ctx, NULL);
    if (ref == NULL) {
        return -1;
    }
#endif
    LEAF_LOCK(&ctx->place);
    int settled = settle_in_place(self, ctx, fd);
    int error = errno;
    LEAF_UNLOCK(&ctx->place);
#ifdef Py_GIL_DISABLED
    if (settled == 0) {
        self->slots[ctx->index].ref = ref;
    } else {
        Py_DECREF(ref);
    }
#endif
    if (settled < 0) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    if (settled == 0) {
        return 0;
    }
refused:
    PyErr_SetString(PyExc_RuntimeError, "add() takes an unregistered eventfd, and an open drain");
    return -1;
}

/* A new reference; NULL where nobody is, or somebody who is being dropped. */
EventFdCtxObject *
drain_tenant(const drain_slot *slot)
{
#ifdef Py_GIL_DISABLED
    PyObject *ctx = NULL;
    if (slot->ref != NULL) {
        (void)PyWeakref_GetRef(slot->ref, &ctx);
    }
    return (EventFdCtxObject *)ctx;
#else
    return (EventFdCtxObject *)Py_XNewRef(slot->ctx);
#endif
}

EventFdCtxObject *
drain_tenant_of(const DrainObject *self, uint64_t data)
{
    uint32_t index = (uint32_t)data;
    if (index >= self->slots_cap || self->slots[index].generation != (uint32_t)(data >> 32)) {
        return NULL;
    }
    return drain_tenant(&self->slots[index]);
}
