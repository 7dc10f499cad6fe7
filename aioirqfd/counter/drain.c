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

/* Whether this is the drain's thread: the one in which its loop is running now, not the one that has run it last. A loop may be set
   up by one thread and run by another. Asked at each signal. */
bool
drain_is_here(DrainObject *drain)
{
    if (drain->running_loop == NULL) {
        return SEEN(drain->thread) == PyThread_get_thread_ident();
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
    bool here;
    OUT_OF_TURN
    PyObject *running = PyObject_CallNoArgs(drain->running_loop);
    if (running == NULL) {
        PyErr_WriteUnraisable(drain->running_loop);
    }
    here = running != NULL && running == drain->loop;
    Py_XDECREF(running);
    OUT_OF_TURN_END
#if PY_VERSION_HEX < 0x030C0000
    *(here ? &drain->era : &drain->other_era) = era;
#endif
    return here;
}

/* in_a_step() of asyncio's own dict of the tasks that are running. */
static bool
is_key_of(DrainObject *drain, PyObject *running)
{
#if defined(Py_GIL_DISABLED)
    PyObject *task = NULL; /* the dict is every thread's */
    if (PyDict_GetItemRef(running, drain->loop, &task) < 0) {
        native_unraisable(running);
    }
    drain->in_step = task != NULL;
    Py_XDECREF(task);
#else
#    if PY_VERSION_HEX < 0x030C0000
    /* Asked at each signal, many in one step: the dict is as it was as long as its version tag is. */
    uint64_t era = ((PyDictObject *)running)->ma_version_tag;
    if (era == drain->step_era) {
        return drain->in_step;
    }
    drain->step_era = era;
#    endif
    drain->in_step = PyDict_GetItemWithError(running, drain->loop) != NULL;
#endif
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
    bool in_one;
    OUT_OF_TURN
    PyObject *task = PyObject_CallOneArg(drain->current_task, drain->loop);
    if (task == NULL) {
        PyErr_WriteUnraisable(drain->current_task);
    }
    in_one = task != NULL && task != Py_None;
    Py_XDECREF(task);
    OUT_OF_TURN_END
    return in_one;
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

#ifdef Py_GIL_DISABLED
/* A new reference. */
turn_t *
drain_turn(PyObject *op)
{
    return turn_ref(((DrainObject *)op)->turn);
}
#endif

/* Have events tell whether the counter is full (no EPOLLOUT, E17). Only where counts stay unread: each read makes an event then. */
void
drain_ask_room(EventFdCtxObject *ctx)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET,
                                .data.u64 = ((uint64_t)ctx->generation << 32) | ctx->index};
    ctx->asks_room = epoll_ctl(ctx->drain->epfd, EPOLL_CTL_MOD, ctx->fd, &event) == 0;
}

static PyObject *
drain_add_now(PyObject *op, PyObject *arg)
{
    native_state *state = native_state_of_final(op);
    if (state == NULL) {
        return NULL;
    }
    if (!PyObject_TypeCheck(arg, state->eventfd_ctx_type)) {
        PyErr_SetString(PyExc_TypeError, "add() takes an EventFdCtx");
        return NULL;
    }
    return drain_settle((DrainObject *)op, (EventFdCtxObject *)arg) == 0 ? Py_NewRef(Py_None) : NULL;
}
METHOD_IN_TURN(drain_add, drain_turn)

/* The argument as an eventfd of this drain; NULL with TypeError. */
static EventFdCtxObject *
own_ctx(PyObject *op, PyObject *arg, const char *method)
{
    native_state *state = native_state_of_final(op);
    if (state == NULL) {
        return NULL;
    }
    if (!PyObject_TypeCheck(arg, state->eventfd_ctx_type) || !ctx_is_of((EventFdCtxObject *)arg, (DrainObject *)op)) {
        PyErr_Format(PyExc_TypeError, "%s() takes an EventFdCtx of this drain", method);
        return NULL;
    }
    return (EventFdCtxObject *)arg;
}

static PyObject *
drain_remove_now(PyObject *op, PyObject *arg)
{
    EventFdCtxObject *ctx = own_ctx(op, arg, "remove");
    if (ctx == NULL) {
        return NULL;
    }
    drain_forget(ctx);
    Py_RETURN_NONE;
}
METHOD_IN_TURN(drain_remove, drain_turn)

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

/* What an event says: the ctx, a new reference, if it did not owe a dispatch before and does now. */
static EventFdCtxObject *
note_event(const DrainObject *self, const struct epoll_event *event)
{
    EventFdCtxObject *ctx = drain_tenant_of(self, event->data.u64);
    if (ctx == NULL) {
        return NULL; /* gone */
    }
    if ((event->events & (EPOLLIN | EPOLLERR)) == 0) {
        turn_drop(ctx);
        return NULL; /* somebody read it, and now there is room */
    }
    ctx->event = true;
    if (ctx->asks_room && (event->events & EPOLLOUT) == 0) {
        ctx->full = true;
    }
    if (!mailbox_owe(&ctx->node)) {
        turn_drop(ctx);
        return NULL;
    }
    return ctx;
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
                drain_post(ctx);
                turn_drop(ctx);
            } else if (self->events[i].data.u64 == TIMER_EVENT) {
                unread_read_later(self); /* run() is to hear of it, and this was its one event */
            } else if (self->events[i].data.u64 == WAKE_EVENT) {
                woken = true;
            }
        }
        left -= n;
    } while (n == self->max_events && left > 0);
    if (woken && (self->nudged || drain_has_mail(self))) {
        drain_wake(self); /* nobody wakes for mail that is there already, nor twice for what is ready */
    }
    return n;
}

static PyObject *
drain_run_now(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    DrainObject *self = (DrainObject *)op;
    native_state *state = native_state_of_final(op);
    if (state == NULL) {
        return NULL;
    }
    if (self->dead || self->dispatching) {
        return PyLong_FromLong(0);
    }
    SAY(self->thread, PyThread_get_thread_ident()); /* a loop may be run by one thread after another */
    int n = wait_now(self);
    if (n < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_INCREF(self);
    SAY(self->dispatching, true);
    self->passing = true;
    self->nudged = false;
    EventFdCtxObject **ready = self->ready;
    Py_ssize_t len = 0;
    /* The mailbox first: what was held back for want of room comes through it, and must not be overtaken for ever. */
    drain_take_mail(self);
    for (int i = 0; i < self->max_events; i++) {
        EventFdCtxObject *ctx = drain_next_mail(self);
        if (ctx == NULL) {
            break;
        }
        ready[len++] = ctx;
    }
    if (drain_has_mail(self)) {
        drain_wake(self);
    }
    bool read_out_now = false;
    for (int i = 0; i < n; i++) {
        EventFdCtxObject *ctx = note_event(self, &self->events[i]);
        if (ctx != NULL) {
            ready[len++] = ctx;
        } else if (self->events[i].data.u64 == TIMER_EVENT) {
            read_out_now = true;
        }
    }

    /* First what needs no Python of ours, a batch for each manager; then the rest, one by one. */
    TopHalfObject *touched = NULL;
    Py_ssize_t slow = 0;
    Py_ssize_t found = len;
    if (len == 1 && ctx_is_of(ready[0], self) && ready[0]->top_half != NULL) {
        TopHalfObject *top_half = (TopHalfObject *)Py_NewRef(ready[0]->top_half);
        bool entered = top_half_enter(top_half);
        if (top_half_inject(state, ready[0])) {
            turn_drop(ready[0]);
            len = 0;
        }
        top_half_exit(top_half, entered);
        turn_drop(top_half);
    }
    for (Py_ssize_t i = 0; i < len; i++) {
        EventFdCtxObject *ctx = ready[i];
        TopHalfObject *top_half = ctx->top_half;
        if (!ctx_is_of(ctx, self) || top_half_interrupt(ctx) == NULL) {
            ready[slow++] = ctx;
            continue;
        }
        if (ctx->handler != NULL) {
            if (mailbox_is_owed(&ctx->node)) {
                top_half_wakeup(state, ctx);
            }
        } else if (top_half_batch(top_half, ctx) < 0) {
            native_unraisable((PyObject *)ctx);
            drain_post(ctx);
        }
        if (!top_half->touched) {
            top_half->touched = true;
            top_half->touched_next = touched;
            touched = (TopHalfObject *)Py_NewRef(top_half);
        }
        turn_drop(ctx);
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
        turn_drop(top_half);
    }
    for (Py_ssize_t i = 0; i < slow; i++) {
        EventFdCtxObject *ctx = ready[i];
        if (ctx_is_of(ctx, self) && mailbox_is_owed(&ctx->node)) {
            TopHalfObject *top_half = (TopHalfObject *)Py_XNewRef(ctx->top_half);
            bool entered = top_half != NULL && top_half_enter(top_half);
            top_half_wakeup(state, ctx);
            if (top_half != NULL) {
                top_half_exit(top_half, entered);
                turn_drop(top_half);
            }
        }
        turn_drop(ctx);
    }
    if (read_out_now) {
        unread_read_some(self, UNREAD_AT_ONCE);
    }
    SAY(self->dispatching, false);
    self->passing = false;
    turn_drop(self);
    return PyLong_FromSsize_t(found);
}
METHOD_IN_TURN(drain_run, drain_turn)

static PyObject *
drain_note_now(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    DrainObject *self = (DrainObject *)op;
    if (!self->dead && drain_collect(self) < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}
METHOD_IN_TURN(drain_note, drain_turn)

static PyObject *
drain_read_out_now(PyObject *op, PyObject *arg)
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
METHOD_IN_TURN(drain_read_out, drain_turn)

static PyObject *
drain_read_unread_now(PyObject *op, PyObject *arg)
{
    Py_ssize_t limit = PyNumber_AsSsize_t(arg, PyExc_OverflowError);
    if (limit == -1 && PyErr_Occurred() != NULL) {
        return NULL;
    }
    return PyLong_FromSsize_t(unread_read_some((DrainObject *)op, limit));
}
METHOD_IN_TURN(drain_read_unread, drain_turn)

static void
shut(DrainObject *self)
{
    int *const fds[] = {&self->epfd, &self->wakefd, &self->timerfd};
    LEAF_LOCK(&self->mail);
    SAY(self->dead, true);
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
        int fd = *fds[i];
        if (fd >= 0) {
            SAY(*fds[i], -1);
            close(fd);
        }
    }
    LEAF_UNLOCK(&self->mail);
    drain_release_mail(self);
    (void)unread_read_some(self, PY_SSIZE_T_MAX);
}

static PyObject *
drain_close_now(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    DrainObject *self = (DrainObject *)op;
    shut(self);
    Py_RETURN_NONE;
}
METHOD_IN_TURN(drain_close, drain_turn)

static PyObject *
drain_tenants_now(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    DrainObject *self = (DrainObject *)op;
    PyObject *tenants = PyList_New(0);
    for (uint32_t i = 0; tenants != NULL && i < self->slots_cap; i++) {
        PyObject *ctx = (PyObject *)drain_tenant(&self->slots[i]);
        if (ctx != NULL && PyList_Append(tenants, ctx) < 0) {
            Py_CLEAR(tenants);
        }
        Py_XDECREF(ctx);
    }
    return tenants;
}
METHOD_IN_TURN(drain_tenants, drain_turn)

/* In a forked child, which has one thread. */
static PyObject *
drain_abandon_now(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    DrainObject *self = (DrainObject *)op;
    for (uint32_t i = 0; i < self->slots_cap; i++) {
        if (self->slots[i].ctx != NULL) {
            (void)counter_take(&self->slots[i].ctx->count);
        }
    }
    shut(self);
    Py_RETURN_NONE;
}
METHOD_IN_TURN(drain_abandon, drain_turn)

static PyObject *
drain_nudge_method_now(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    drain_nudge((DrainObject *)op);
    Py_RETURN_NONE;
}
METHOD_IN_TURN(drain_nudge_method, drain_turn)

static PyObject *
drain_fileno(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(SEEN(((DrainObject *)op)->epfd));
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
    LEAF_INIT(&self->mail);
    self->free_head = NO_SLOT;
    self->max_events = (int)max_events;
    self->loop = Py_NewRef(loop);
    self->running_loop = running_loop != Py_None ? Py_NewRef(running_loop) : NULL;
    self->current_task = current_task != Py_None ? Py_NewRef(current_task) : NULL;
    self->thread = PyThread_get_thread_ident();
#ifdef Py_GIL_DISABLED
    self->turn = turn_new();
    if (self->turn == NULL) {
        Py_DECREF(self);
        return NULL;
    }
#endif
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
    if (drain_visit_mail(self, visit, arg) != 0) {
        return -1;
    }
    return fifo_traverse(&self->unread, visit, arg);
}

static int
drain_clear(PyObject *op)
{
    DrainObject *self = (DrainObject *)op;
    IN_TURN(turn_ref(self->turn))
    shut(self);
    IN_TURN_END
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
    LEAF_END(&self->mail);
#ifdef Py_GIL_DISABLED
    turn_unref(self->turn);
#endif
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *
drain_get_unread_now(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromSsize_t(fifo_len(&((DrainObject *)op)->unread));
}
GETTER_IN_TURN(drain_get_unread, drain_turn)

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
