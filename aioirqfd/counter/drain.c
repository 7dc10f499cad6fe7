/* Drain: the private epoll of one loop and the mailbox beside it. run() takes a bounded number of events from both and dispatches
   them; the loop calls it whenever the epoll fd is readable.

   The eventfds are registered edge-triggered: every write makes a new event although nothing was read (E20), so under load the
   read(2) can be left out. What is missing then is the ordering that the read gave: libuv left it out once without a fence and
   had to take it back. Here an acquire fence follows epoll_wait.

   An epoll event carries slot and generation, never a pointer: a slot whose eventfd is gone answers to nobody, also when the fd
   number was taken over in the same batch, or when a dup of a closed fd keeps reporting (E22).

   What must hold: an eventfd that owes a dispatch is in one place, the mailbox (or the backlog that was taken from it), the pass
   that is under way, or its manager's fifo of held ones. Whoever sets `owed` puts it there.

   Tempting, and wrong:
   - to discharge the debt when an event is noted, and not when its turn comes: a sink that was called in between may have masked or
     unbound it, and nobody would know that something is owed.
   - to wake the loop at every post. A mailbox that was not empty has woken it, and 200,000 signals of a thread are one write.
   - to believe that whoever runs on the loop's thread is inside the loop: see drain_nudge().
   - to dispatch from the epoll first. What was held for want of room comes by the mailbox, and would be overtaken for ever. */
#include "_native.h"

#include <errno.h>
#include <string.h>
#include <structmember.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define WAKE_EVENT  UINT64_MAX
#define TIMER_EVENT (UINT64_MAX - 1)
#define NO_SLOT     UINT32_MAX

static EventFdCtxObject *
ctx_of(mailbox_node_t *node)
{
    return (EventFdCtxObject *)((char *)node - offsetof(EventFdCtxObject, node));
}

/* Whether this is the drain's thread: the one in which its loop is running now, not the one that has run it last. A loop may be set
   up by one thread and run by another. Asked at each signal. */
bool
drain_is_here(DrainObject *drain)
{
    if (drain->running_loop == NULL) {
        return drain->thread == PyThread_get_thread_ident();
    }
#if PY_VERSION_HEX < 0x030C0000
    /* Up to 3.11 the answer costs a getpid(2), as much as all the rest of a signal. But there asyncio keeps it in the dict of the
       thread state, whose version tag is like no other dict's and changes whenever a loop starts or stops in the thread. */
    PyObject *dict = PyCFunction_Check(drain->running_loop) ? PyThreadState_GetDict() : NULL;
    uint64_t era = dict != NULL ? ((PyDictObject *)dict)->ma_version_tag : 0;
    if (era != 0 && (era == drain->era || era == drain->other_era)) {
        return era == drain->era;
    }
#endif
    PyObject *running = PyObject_CallNoArgs(drain->running_loop);
    if (running == NULL) {
        PyErr_WriteUnraisable(drain->running_loop);
    }
    bool here = running != NULL && running == drain->loop;
    Py_XDECREF(running);
#if PY_VERSION_HEX < 0x030C0000
    *(here ? &drain->era : &drain->other_era) = era;
#endif
    return here;
}

static void
drain_wake(const DrainObject *drain)
{
    const uint64_t one = 1;
    ssize_t put;
    do {
        put = write(drain->wakefd, &one, sizeof(one));
    } while (put < 0 && errno == EINTR);
}

/* in_a_step() of asyncio's own dict of the tasks that are running. */
static bool
is_key_of(DrainObject *drain, PyObject *running)
{
#if PY_VERSION_HEX < 0x030C0000
    /* Asked at each signal, many in one step: the dict is as it was as long as its version tag is. */
    uint64_t era = ((PyDictObject *)running)->ma_version_tag;
    if (era == drain->step_era) {
        return drain->in_step;
    }
    drain->step_era = era;
#endif
    drain->in_step = PyDict_GetItemWithError(running, drain->loop) != NULL;
    return drain->in_step;
}

/* Whether a task of the drain's loop is in the middle of a step: then the loop looks at what became ready before it sleeps. */
static bool
in_a_step(DrainObject *drain)
{
    if (drain->current_task == NULL) {
        return true;
    }
    if (PyDict_CheckExact(drain->current_task)) {
        return is_key_of(drain, drain->current_task);
    }
    PyObject *task = PyObject_CallOneArg(drain->current_task, drain->loop);
    if (task == NULL) {
        PyErr_WriteUnraisable(drain->current_task);
    }
    Py_XDECREF(task);
    return task != NULL && task != Py_None;
}

/* Something was made ready on the loop's thread, a future or a callback. To be on that thread is not to be inside the loop: a signal
   handler, or another greenlet, runs there while the loop is asleep in its selector, which does not look again by itself. So unless a
   task runs, or the loop has called us, the loop is woken; once, until it has come round. (A callback of the loop's that is no task
   is awake too, but nothing tells it from a signal handler.) */
void
drain_nudge(DrainObject *drain)
{
    if (!drain->passing && !drain->nudged && !drain->dead && !in_a_step(drain)) {
        drain->nudged = true;
        drain_wake(drain);
    }
}

/* Post an owed ctx, from any thread. */
void
drain_post(DrainObject *drain, EventFdCtxObject *ctx)
{
    if (!drain->dead && mailbox_link(&ctx->node)) {
        ctx->posted_to = drain;
        Py_INCREF(ctx);
        if (mailbox_push(&drain->mailbox, &ctx->node)) {
            drain_wake(drain);
        }
    }
}

/* Have events tell whether the counter is full (no EPOLLOUT, E17). Only where counts stay unread: each read makes an event then. */
void
drain_ask_room(EventFdCtxObject *ctx)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET,
                                .data.u64 = ((uint64_t)ctx->generation << 32) | ctx->index};
    ctx->asks_room = epoll_ctl(ctx->drain->epfd, EPOLL_CTL_MOD, ctx->fd, &event) == 0;
}

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
    slot->generation++;
    slot->next_free = drain->free_head;
    drain->free_head = ctx->index;
    drain->attached--;
    /* An fd that was closed behind our back may be another eventfd's by now, which must not be unregistered instead. */
    if (ctx->fd >= 0 && (size_t)ctx->fd < drain->by_fd_cap && drain->by_fd[ctx->fd] == ctx->index) {
        drain->by_fd[ctx->fd] = NO_SLOT;
        if (!drain->dead) {
            (void)epoll_ctl(drain->epfd, EPOLL_CTL_DEL, ctx->fd, NULL);
        }
    }
    (void)mailbox_discharge(&ctx->node);
    ctx->event = ctx->fresh = ctx->asks_room = ctx->full = ctx->in_unread = false;
    ctx->drain = NULL;
    Py_DECREF(drain);
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

static void
take_mailbox(DrainObject *self)
{
    mailbox_node_t *chain = mailbox_pop_all(&self->mailbox);
    if (chain == NULL) {
        return;
    }
    if (self->backlog_tail != NULL) {
        self->backlog_tail->next = chain;
    } else {
        self->backlog = chain;
    }
    while (chain->next != NULL) {
        chain = chain->next;
    }
    self->backlog_tail = chain;
}

/* Take a ctx out of the mail of a drain that it has left, so that it can be posted elsewhere. Rare: it changed loops with a post
   under way. Perhaps not the owner's thread, but with the GIL held nobody else is at either list. */
static void
withdraw(DrainObject *self, EventFdCtxObject *ctx)
{
    take_mailbox(self);
    mailbox_node_t *before = NULL;
    mailbox_node_t *node = self->backlog;
    while (node != NULL && node != &ctx->node) {
        before = node;
        node = node->next;
    }
    if (node != NULL) {
        if (before != NULL) {
            before->next = node->next;
        } else {
            self->backlog = node->next;
        }
        if (self->backlog_tail == node) {
            self->backlog_tail = before;
        }
        mailbox_unlink(node);
        Py_DECREF(ctx);
    }
    if (self->backlog != NULL) {
        drain_wake(self);
    }
}

static PyObject *
drain_add(PyObject *op, PyObject *arg)
{
    DrainObject *self = (DrainObject *)op;
    native_state *state = native_state_of_final(op);
    if (state == NULL) {
        return NULL;
    }
    if (!PyObject_TypeCheck(arg, state->eventfd_ctx_type)) {
        PyErr_SetString(PyExc_TypeError, "add() takes an EventFdCtx");
        return NULL;
    }
    EventFdCtxObject *ctx = (EventFdCtxObject *)arg;
    if (ctx->drain != NULL || self->dead) {
        PyErr_SetString(PyExc_RuntimeError, "add() takes an unregistered eventfd, and an open drain");
        return NULL;
    }
    if (self->free_head == NO_SLOT && slots_grow(self) < 0) {
        return NULL;
    }
    if (ctx->fd >= 0 && (size_t)ctx->fd >= self->by_fd_cap && by_fd_grow(self, ctx->fd) < 0) {
        return NULL;
    }
    uint32_t index = self->free_head;
    drain_slot *slot = &self->slots[index];
    bool fresh = eventfd_has_count(ctx->fd) == 1;
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = ((uint64_t)slot->generation << 32) | index};
    if (epoll_ctl(self->epfd, EPOLL_CTL_ADD, ctx->fd, &event) < 0) {
        /* Under a number that nobody of ours has it is a leftover: it was closed behind our back, which no DEL undoes (E22), and is
           back under its number. */
        bool leftover = errno == EEXIST && self->by_fd[ctx->fd] == NO_SLOT;
        if (!leftover || epoll_ctl(self->epfd, EPOLL_CTL_MOD, ctx->fd, &event) < 0) {
            return PyErr_SetFromErrno(PyExc_OSError);
        }
    }
    if (mailbox_is_linked(&ctx->node) && ctx->posted_to != self) {
        withdraw(ctx->posted_to, ctx);
    }
    self->free_head = slot->next_free;
    slot->ctx = ctx;
    self->by_fd[ctx->fd] = index;
    self->attached++;
    ctx->index = index;
    ctx->generation = slot->generation;
    ctx->fresh = fresh;
    ctx->event = false;
    ctx->drain = (DrainObject *)Py_NewRef(self);
    if (counter_peek(&ctx->count) > 0 && mailbox_owe(&ctx->node)) {
        drain_post(self, ctx);
    }
    Py_RETURN_NONE;
}

/* The argument as an eventfd of this drain; NULL with TypeError. */
static EventFdCtxObject *
own_ctx(PyObject *op, PyObject *arg, const char *method)
{
    native_state *state = native_state_of_final(op);
    if (state == NULL) {
        return NULL;
    }
    if (!PyObject_TypeCheck(arg, state->eventfd_ctx_type) || (PyObject *)((EventFdCtxObject *)arg)->drain != op) {
        PyErr_Format(PyExc_TypeError, "%s() takes an EventFdCtx of this drain", method);
        return NULL;
    }
    return (EventFdCtxObject *)arg;
}

static PyObject *
drain_remove(PyObject *op, PyObject *arg)
{
    EventFdCtxObject *ctx = own_ctx(op, arg, "remove");
    if (ctx == NULL) {
        return NULL;
    }
    drain_forget(ctx);
    Py_RETURN_NONE;
}

static EventFdCtxObject *
slot_tenant(const DrainObject *self, uint64_t data)
{
    uint32_t index = (uint32_t)data;
    if (index >= self->slots_cap || self->slots[index].generation != (uint32_t)(data >> 32)) {
        return NULL;
    }
    return self->slots[index].ctx;
}

static int
wait_now(DrainObject *self)
{
    int n;
    do {
        n = epoll_wait(self->epfd, self->events, self->max_events, 0);
    } while (n < 0 && errno == EINTR);
    /* What the writer did before its write is seen from here on; without a read(2) nothing else says so. */
    atomic_thread_fence(memory_order_acquire);
    return n;
}

/* What an event says: the ctx, if it did not owe a dispatch before and does now. */
static EventFdCtxObject *
note_event(const DrainObject *self, const struct epoll_event *event)
{
    EventFdCtxObject *ctx = slot_tenant(self, event->data.u64);
    if (ctx == NULL || (event->events & (EPOLLIN | EPOLLERR)) == 0) {
        return NULL; /* gone; or somebody read it, and now there is room */
    }
    ctx->event = true;
    if (ctx->asks_room && (event->events & EPOLLOUT) == 0) {
        ctx->full = true;
    }
    return mailbox_owe(&ctx->node) ? ctx : NULL;
}

static EventFdCtxObject *
pop_backlog(DrainObject *self)
{
    mailbox_node_t *node = self->backlog;
    if (node == NULL) {
        return NULL;
    }
    self->backlog = node->next;
    if (self->backlog == NULL) {
        self->backlog_tail = NULL;
    }
    mailbox_unlink(node);
    return ctx_of(node);
}

/* Note every event there is, without dispatching: afterwards whatever was signalled before the call is owed, in the mailbox. */
int
drain_collect(DrainObject *self)
{
    int n;
    /* The epoll hands out in the order of arrival: after so many events nothing is left from before the call, however busy the
       writers are. The wake-up and the timer count too. */
    Py_ssize_t left = self->attached + 2;
    bool woken = false;
    do {
        n = wait_now(self);
        for (int i = 0; i < n; i++) {
            EventFdCtxObject *ctx = note_event(self, &self->events[i]);
            if (ctx != NULL) {
                drain_post(self, ctx);
            } else if (self->events[i].data.u64 == TIMER_EVENT) {
                unread_read_later(self); /* run() is to hear of it, and this was its one event */
            } else if (self->events[i].data.u64 == WAKE_EVENT) {
                woken = true;
            }
        }
        left -= n;
    } while (n == self->max_events && left > 0);
    if (woken && (self->nudged || self->backlog != NULL || atomic_load(&self->mailbox.head) != NULL)) {
        drain_wake(self); /* nobody wakes for mail that is there already, nor twice for what is ready */
    }
    return n;
}

static PyObject *
drain_run(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    DrainObject *self = (DrainObject *)op;
    native_state *state = native_state_of_final(op);
    if (state == NULL) {
        return NULL;
    }
    if (self->dead || self->dispatching) {
        return PyLong_FromLong(0);
    }
    self->thread = PyThread_get_thread_ident(); /* a loop may be run by one thread after another */
    int n = wait_now(self);
    if (n < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_INCREF(self);
    self->dispatching = self->passing = true;
    self->nudged = false;
    EventFdCtxObject **ready = self->ready;
    Py_ssize_t len = 0;
    /* The mailbox first: what was held back for want of room comes through it, and must not be overtaken for ever. */
    take_mailbox(self);
    for (int i = 0; i < self->max_events; i++) {
        EventFdCtxObject *ctx = pop_backlog(self);
        if (ctx == NULL) {
            break;
        }
        ready[len++] = ctx;
    }
    if (self->backlog != NULL) {
        drain_wake(self);
    }
    bool read_out_now = false;
    for (int i = 0; i < n; i++) {
        EventFdCtxObject *ctx = note_event(self, &self->events[i]);
        if (ctx != NULL) {
            ready[len++] = (EventFdCtxObject *)Py_NewRef(ctx);
        } else if (self->events[i].data.u64 == TIMER_EVENT) {
            read_out_now = true;
        }
    }

    /* First what needs no Python of ours, a batch for each manager; then the rest, one by one. */
    TopHalfObject *touched = NULL;
    Py_ssize_t slow = 0;
    Py_ssize_t found = len;
    if (len == 1 && ready[0]->top_half != NULL) {
        TopHalfObject *top_half = (TopHalfObject *)Py_NewRef(ready[0]->top_half);
        bool entered = top_half_enter(top_half);
        if (top_half_inject(state, ready[0])) {
            Py_DECREF(ready[0]);
            len = 0;
        }
        top_half_exit(top_half, entered);
        Py_DECREF(top_half);
    }
    for (Py_ssize_t i = 0; i < len; i++) {
        EventFdCtxObject *ctx = ready[i];
        TopHalfObject *top_half = ctx->top_half;
        if (top_half_interrupt(ctx) == NULL) {
            ready[slow++] = ctx;
            continue;
        }
        if (ctx->handler != NULL) {
            if (mailbox_is_owed(&ctx->node)) {
                top_half_wakeup(state, ctx);
            }
        } else if (top_half_batch(top_half, ctx) < 0) {
            PyErr_WriteUnraisable((PyObject *)ctx);
            drain_post(self, ctx);
        }
        if (!top_half->touched) {
            top_half->touched = true;
            top_half->touched_next = touched;
            touched = (TopHalfObject *)Py_NewRef(top_half);
        }
        Py_DECREF(ctx);
    }
    while (touched != NULL) {
        TopHalfObject *top_half = touched;
        touched = top_half->touched_next;
        top_half->touched_next = NULL;
        top_half->touched = false;
        bool entered = top_half_enter(top_half);
        if (top_half->has_new) {
            lane_tell_new(top_half);
        }
        if (top_half->batch_len > 0) {
            top_half_flush(state, top_half);
        }
        top_half_exit(top_half, entered);
        Py_DECREF(top_half);
    }
    for (Py_ssize_t i = 0; i < slow; i++) {
        EventFdCtxObject *ctx = ready[i];
        if (ctx->drain == self && mailbox_is_owed(&ctx->node)) {
            TopHalfObject *top_half = (TopHalfObject *)Py_XNewRef(ctx->top_half);
            bool entered = top_half != NULL && top_half_enter(top_half);
            top_half_wakeup(state, ctx);
            if (top_half != NULL) {
                top_half_exit(top_half, entered);
                Py_DECREF(top_half);
            }
        }
        Py_DECREF(ctx);
    }
    if (read_out_now) {
        unread_read_some(self, UNREAD_AT_ONCE);
    }
    self->dispatching = self->passing = false;
    Py_DECREF(self);
    return PyLong_FromSsize_t(found);
}

static PyObject *
drain_note(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    DrainObject *self = (DrainObject *)op;
    if (!self->dead && drain_collect(self) < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *
drain_read_out(PyObject *op, PyObject *arg)
{
    DrainObject *self = (DrainObject *)op;
    EventFdCtxObject *ctx = own_ctx(op, arg, "read_out");
    uint64_t owed = 0;
    if (ctx == NULL) {
        return NULL;
    }
    if (!self->dead && unread_read(self, ctx, &owed) < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromUnsignedLongLong(owed);
}

static PyObject *
drain_read_unread(PyObject *op, PyObject *arg)
{
    Py_ssize_t limit = PyNumber_AsSsize_t(arg, PyExc_OverflowError);
    if (limit == -1 && PyErr_Occurred() != NULL) {
        return NULL;
    }
    return PyLong_FromSsize_t(unread_read_some((DrainObject *)op, limit));
}

static void
release_mail(DrainObject *self)
{
    take_mailbox(self);
    EventFdCtxObject *ctx;
    while ((ctx = pop_backlog(self)) != NULL) {
        Py_DECREF(ctx);
    }
}

static void
shut(DrainObject *self)
{
    int *const fds[] = {&self->epfd, &self->wakefd, &self->timerfd};
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
        if (*fds[i] >= 0) {
            close(*fds[i]);
            *fds[i] = -1;
        }
    }
    self->dead = true;
    release_mail(self);
    (void)unread_read_some(self, PY_SSIZE_T_MAX);
}

static PyObject *
drain_close(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    DrainObject *self = (DrainObject *)op;
    shut(self);
    Py_RETURN_NONE;
}

static PyObject *
drain_tenants(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    DrainObject *self = (DrainObject *)op;
    PyObject *tenants = PyList_New(0);
    for (uint32_t i = 0; tenants != NULL && i < self->slots_cap; i++) {
        PyObject *ctx = (PyObject *)self->slots[i].ctx;
        if (ctx != NULL && PyList_Append(tenants, ctx) < 0) {
            Py_CLEAR(tenants);
        }
    }
    return tenants;
}

static PyObject *
drain_abandon(PyObject *op, PyObject *ignored)
{
    DrainObject *self = (DrainObject *)op;
    for (uint32_t i = 0; i < self->slots_cap; i++) {
        if (self->slots[i].ctx != NULL) {
            (void)counter_take(&self->slots[i].ctx->count);
        }
    }
    return drain_close(op, ignored);
}

static PyObject *
drain_nudge_method(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    drain_nudge((DrainObject *)op);
    Py_RETURN_NONE;
}

static PyObject *
drain_fileno(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(((DrainObject *)op)->epfd);
}

static PyObject *
drain_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"max_events", "loop", "running_loop", "current_task", NULL};
    uint64_t max_events = 1024;
    PyObject *given = NULL, *loop = Py_None, *running_loop = Py_None, *current_task = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OOOO:Drain", keywords, &given, &loop, &running_loop,
                                     &current_task)) {
        return NULL;
    }
    if (given != NULL && native_u64_within(given, 1, UINT64_C(1) << 20, "2**20", "max_events", &max_events) < 0) {
        return NULL;
    }
    DrainObject *self = (DrainObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->epfd = self->wakefd = self->timerfd = -1;
    self->free_head = NO_SLOT;
    self->max_events = (int)max_events;
    self->loop = Py_NewRef(loop);
    self->running_loop = running_loop != Py_None ? Py_NewRef(running_loop) : NULL;
    self->current_task = current_task != Py_None ? Py_NewRef(current_task) : NULL;
    self->thread = PyThread_get_thread_ident();
    self->events = PyMem_Calloc((size_t)max_events, sizeof(*self->events));
    self->ready = PyMem_Calloc(2 * (size_t)max_events, sizeof(*self->ready));
    if (self->events == NULL || self->ready == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    struct epoll_event wake = {.events = EPOLLIN | EPOLLET, .data.u64 = WAKE_EVENT};
    struct epoll_event timer = {.events = EPOLLIN | EPOLLET, .data.u64 = TIMER_EVENT};
    self->epfd = epoll_create1(EPOLL_CLOEXEC);
    self->wakefd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    self->timerfd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (self->epfd < 0 || self->wakefd < 0 || self->timerfd < 0 ||
        epoll_ctl(self->epfd, EPOLL_CTL_ADD, self->wakefd, &wake) < 0 ||
        epoll_ctl(self->epfd, EPOLL_CTL_ADD, self->timerfd, &timer) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int
drain_traverse(PyObject *op, visitproc visit, void *arg)
{
    DrainObject *self = (DrainObject *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->loop);
    Py_VISIT(self->running_loop);
    Py_VISIT(self->current_task);
    /* Posts come with the GIL held, so both chains stand still while the collector looks. */
    for (mailbox_node_t *node = self->backlog; node != NULL; node = node->next) {
        Py_VISIT(ctx_of(node));
    }
    for (mailbox_node_t *node = atomic_load(&self->mailbox.head); node != NULL; node = node->next) {
        Py_VISIT(ctx_of(node));
    }
    return fifo_traverse(&self->unread, visit, arg);
}

static int
drain_clear(PyObject *op)
{
    DrainObject *self = (DrainObject *)op;
    shut(self);
    Py_CLEAR(self->loop);
    Py_CLEAR(self->running_loop);
    Py_CLEAR(self->current_task);
    return 0;
}

static void
drain_dealloc(PyObject *op)
{
    DrainObject *self = (DrainObject *)op;
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    (void)drain_clear(op);
    PyMem_Free(self->unread.items);
    PyMem_Free(self->events);
    PyMem_Free(self->ready);
    PyMem_Free(self->slots);
    PyMem_Free(self->by_fd);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *
drain_get_unread(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromSsize_t(fifo_len(&((DrainObject *)op)->unread));
}

static PyMethodDef drain_methods[] = {
    {"add", drain_add, METH_O,
     PyDoc_STR("add($self, ctx, /)\n--\n\nRegister an eventfd; a count that is there is an event.")},
    {"remove", drain_remove, METH_O,
     PyDoc_STR("remove($self, ctx, /)\n--\n\nTake it out again; no event of it is dispatched from here on.")},
    {"run", drain_run, METH_NOARGS,
     PyDoc_STR(
         "run($self, /)\n--\n\nOne pass: take at most max_events from the epoll and as many from the mailbox, and dispatch them; return how many.")},
    {"collect", drain_note, METH_NOARGS,
     PyDoc_STR("collect($self, /)\n--\n\nNote every event there is as owed, dispatching nothing.")},
    {"read_out", drain_read_out, METH_O,
     PyDoc_STR("read_out($self, ctx, /)\n--\n\nEmpty the eventfd; return what of it was not injected yet.")},
    {"read_unread", drain_read_unread, METH_O,
     PyDoc_STR(
         "read_unread($self, limit, /)\n--\n\nRead counts that were left unread; return how many are still to do.")},
    {"nudge", drain_nudge_method, METH_NOARGS,
     PyDoc_STR(
         "nudge($self, /)\n--\n\nSomething was made ready on the loop's thread: wake the loop, if it may be asleep.")},
    {"tenants", drain_tenants, METH_NOARGS, PyDoc_STR("tenants($self, /)\n--\n\nThe eventfds that are registered.")},
    {"close", drain_close, METH_NOARGS, PyDoc_STR("close($self, /)\n--\n\nClose the epoll; idempotent.")},
    {"abandon", drain_abandon, METH_NOARGS,
     PyDoc_STR(
         "abandon($self, /)\n--\n\nClose it in a forked child: the parent keeps its registrations, and what it has counted is the parent's alone.")},
    {"fileno", drain_fileno, METH_NOARGS, PyDoc_STR("fileno($self, /)\n--\n\nThe epoll's fd, -1 once closed.")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef drain_members[] = {
    {"attached", T_PYSSIZET, offsetof(DrainObject, attached), READONLY, PyDoc_STR("How many eventfds are registered.")},
    {"max_events", T_INT, offsetof(DrainObject, max_events), READONLY,
     PyDoc_STR("The bound of one pass, for each of its two sources.")},
    {"dispatching", T_BOOL, offsetof(DrainObject, dispatching), 0, PyDoc_STR("A pass is under way.")},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef drain_getset[] = {
    {"unread", drain_get_unread, NULL,
     PyDoc_STR("How many eventfds may hold a count that was injected without a read."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot drain_slots[] = {
    {Py_tp_doc,
     (void *)PyDoc_STR(
         "Drain(max_events=1024, loop=None, running_loop=None, current_task=None)\n--\n\n"
         "The private epoll of one loop. running_loop() tells which loop runs in the thread that asks, current_task(loop)\n"
         "whether a task is in the middle of a step; asyncio's own dict of them will do.")},
    {Py_tp_new, (void *)drain_new},
    {Py_tp_traverse, (void *)drain_traverse},
    {Py_tp_clear, (void *)drain_clear},
    {Py_tp_dealloc, (void *)drain_dealloc},
    {Py_tp_methods, drain_methods},
    {Py_tp_members, drain_members},
    {Py_tp_getset, drain_getset},
    {0, NULL},
};

PyType_Spec drain_spec = {
    .name = "aioirqfd.counter.Drain",
    .basicsize = sizeof(DrainObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = drain_slots,
};
