/* EventFdCtx: the in-process half of an eventfd. While somebody here listens, signals are counted in this process and
   dispatched without a system call; otherwise they are written to the fd, for whoever else holds it.

   What must hold: what was signalled is in one of the two counters until a dispatch takes it, and is taken once. What of the
   kernel's counter was injected and not read is marked by `seen`, so that nobody injects it again (unread.c).

   Tempting, and wrong:
   - to read the kernel's counter at every event. It costs as much as all the rest, and tells nothing that an irqfd wants to know.
   - to leave it unread when it may be full: with no room for 1 the next writer is refused, or waits (E08, E17). So where counts
     stay unread, events tell of room too.
   - to look whether somebody listens and then to count without the GIL: the loop may stop listening in between. */
#include "_native.h"

#include <structmember.h>

/* Whether a dispatch takes 1: of a semaphore (P06), but not if somebody has to be told of every signal. */
bool
eventfd_ctx_by_ones(const EventFdCtxObject *ctx)
{
    return ctx->semaphore && !ctx->want_count;
}

/* Say that the kernel's counter cannot be read: its fd was closed behind our back, say. Once, for every event comes here. */
static void
report_unreadable(EventFdCtxObject *ctx)
{
    if (!ctx->unreadable) {
        ctx->unreadable = true;
        PyErr_SetFromErrno(PyExc_OSError);
        PyErr_WriteUnraisable((PyObject *)ctx);
    }
}

/* Take a dispatch's part of the kernel's counter, and of a semaphore that somebody counts so many at the most: 1; 0 when nothing is
   there; -1 when it cannot be read, which was reported. Whatever an event stood for, there is no more to be known of it then. */
int
eventfd_ctx_read(EventFdCtxObject *ctx, uint64_t most, uint64_t *value)
{
    *value = 0;
    if (ctx->fd < 0) {
        return 0;
    }
    int got = eventfd_read_now(ctx->fd, value);
    if (got != 1) {
        *value = 0;
        if (got < 0) {
            report_unreadable(ctx);
        }
        return got;
    }
    if (ctx->semaphore && ctx->want_count) {
        uint64_t one;
        while (*value < most && eventfd_read_now(ctx->fd, &one) == 1) {
            (*value)++;
        }
        if (*value == most) {
            /* No event comes for the rest. */
            ctx->event = true;
            if (mailbox_owe(&ctx->node)) {
                drain_post(ctx->drain, ctx);
            }
        }
    }
    return 1;
}

/* What becomes of the kernel's counter in a dispatch. */
enum deed {
    LEAVE_LEFTOVER, /* it was there at assign time, is injected once, and stays until the next write (P01, P03) */
    LEAVE_UNREAD,   /* nobody asks how much it is: it is read some time later (unread.c) */
    READ,
};

static enum deed
deed_of(const EventFdCtxObject *ctx, bool exact)
{
    if (ctx->want_count) {
        return READ;
    }
    return ctx->fresh ? LEAVE_LEFTOVER : exact || ctx->full || ctx->semaphore ? READ : LEAVE_UNREAD;
}

/* Take what this dispatch stands for. False: nothing is there (somebody else read it), so there is nothing to inject.
   count: what was taken; 0 where it was left. With `exact` nothing is left unread. */
bool
eventfd_ctx_consume(EventFdCtxObject *ctx, bool exact, uint64_t *count)
{
    bool by_ones = eventfd_ctx_by_ones(ctx);
    uint64_t total = by_ones ? counter_take_one(&ctx->count) : counter_take(&ctx->count);
    uint64_t value = 0;
    bool known = total > 0;
    /* What was there at assign time goes with the next signal, wherever that comes from, and is owed no injection of its own (P04). */
    bool along = !ctx->event && ctx->seen == SEEN_LEFTOVER && total > 0;
    *count = total;
    ctx->signals += total;
    if (!ctx->event && !along) {
        return known;
    }
    enum deed deed = deed_of(ctx, exact || (ctx->seen == SEEN_LEFTOVER && total > 0));
    ctx->event = ctx->fresh = ctx->full = false;
    switch (deed) {
    case LEAVE_LEFTOVER:
        ctx->seen = SEEN_LEFTOVER;
        return true;
    case LEAVE_UNREAD:
        ctx->seen = SEEN_UNREAD;
        unread_mark(ctx->drain, ctx);
        return true;
    case READ:
        break;
    }
    ctx->seen = SEEN_NOTHING;
    /* Of a semaphore one in all, wherever it is. */
    if ((by_ones && total > 0) || eventfd_ctx_read(ctx, SEMAPHORE_AT_ONCE, &value) == 0) {
        return known;
    }
    ctx->signals += value;
    if (!along) {
        if (value > UINT64_MAX - total) {
            /* Two counters near the top: hand on one now and the other by a dispatch of its own. */
            uint64_t kept = counter_add(&ctx->count, value);
            ctx->signals -= kept;
            value -= kept;
            if (mailbox_owe(&ctx->node)) {
                drain_post(ctx->drain, ctx);
            }
        }
        *count = total + value;
    }
    return true;
}

/* Undo a consume whose injection could not even be queued: the next dispatch finds n again. */
void
eventfd_ctx_put_back(EventFdCtxObject *ctx, uint64_t n)
{
    if (n > 0) {
        ctx->signals -= counter_add(&ctx->count, n);
        return;
    }
    ctx->event = true;
    if (ctx->seen == SEEN_LEFTOVER) {
        ctx->seen = SEEN_NOTHING;
        ctx->fresh = true;
    }
}

PyObject *
eventfd_ctx_signal(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    uint64_t n = 1;
    uint64_t added = 0;
    if (nargs > 1) {
        PyErr_SetString(PyExc_TypeError, "signal() takes at most one argument");
        return NULL;
    }
    if (nargs == 1 && native_u64_from(args[0], 1, "a signal", &n) < 0) {
        return NULL;
    }
    if (self->fd < 0) {
        native_state *state = native_state_of_object(op);
        if (state != NULL) {
            PyObject *error = PyObject_CallFunction(state->closed_error, "s", "the eventfd is closed");
            if (error != NULL) {
                PyErr_SetObject(state->closed_error, error);
                Py_DECREF(error);
            }
        }
        return NULL;
    }
    DrainObject *drain = self->drain;
    if (!self->listening || drain == NULL || drain->dead) {
        if (eventfd_add(self->fd, n, &added) < 0) {
            return PyErr_SetFromErrno(PyExc_OSError);
        }
        return PyLong_FromUnsignedLongLong(added);
    }
    added = counter_add(&self->count, n);
    if (mailbox_owe(&self->node)) {
        if (!drain->dispatching && drain_is_here(drain)) {
            native_state *state = native_state_of_final(drain);
            if (state == NULL) {
                return NULL;
            }
            top_half_one(state, self);
        } else {
            drain_post(drain, self);
        }
    }
    return PyLong_FromUnsignedLongLong(added);
}

static PyObject *
ctx_take(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    uint64_t total = self->semaphore ? counter_take_one(&self->count) : counter_take(&self->count);
    if (self->fd >= 0 && !(self->semaphore && total > 0)) {
        uint64_t value = 0;
        int got = eventfd_read_now(self->fd, &value);
        if (got < 0) {
            if (total > 0) {
                counter_add(&self->count, total);
            }
            return PyErr_SetFromErrno(PyExc_OSError);
        }
        if (got == 1) {
            if (value > UINT64_MAX - total) {
                value -= counter_add(&self->count, value);
            }
            total += value;
        }
    }
    return PyLong_FromUnsignedLongLong(total);
}

static PyObject *
ctx_spill(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    uint64_t rest = counter_take(&self->count);
    uint64_t added = 0;
    if (rest > 0 && self->fd >= 0 && eventfd_add(self->fd, rest, &added) < 0) {
        counter_add(&self->count, rest);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    /* What does not fit in there stays here, for the next read. */
    (void)counter_add(&self->count, rest - added);
    Py_RETURN_NONE;
}

static PyObject *
ctx_readable(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    if (counter_peek(&self->count) > 0) {
        Py_RETURN_TRUE;
    }
    int found = self->fd >= 0 ? eventfd_has_count(self->fd) : 0;
    return found >= 0 ? PyBool_FromLong(found) : PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *
ctx_bind(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    native_state *state = native_state_of_object(op);
    if (state == NULL) {
        return NULL;
    }
    if (nargs != 5 || !Py_IS_TYPE(args[0], state->top_half_type)) {
        PyErr_SetString(PyExc_TypeError, "_bind(top_half, irqfd, want_count, handler, who)");
        return NULL;
    }
    int want_count = PyObject_IsTrue(args[2]);
    if (want_count < 0) {
        return NULL;
    }
    if (self->top_half != NULL || self->drain == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "_bind() takes a registered, unbound eventfd");
        return NULL;
    }
    self->top_half = (TopHalfObject *)Py_NewRef(args[0]);
    self->irqfd = Py_NewRef(args[1]);
    if (args[3] != Py_None) {
        self->handler = Py_NewRef(args[3]);
        self->who = Py_NewRef(args[4]);
    }
    self->want_count = want_count != 0;
    self->listening = true;
    self->seen = SEEN_NOTHING;
    if (!self->want_count && !self->semaphore && !self->drain->dead) {
        drain_ask_room(self);
    }
    Py_RETURN_NONE;
}

static PyObject *
ctx_unbind(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    self->listening = self->want_count = false;
    self->event = self->fresh = self->full = false;
    self->seen = SEEN_NOTHING;
    (void)mailbox_discharge(&self->node);
    top_half_unhold(self);
    self->run = NULL; /* a handler that is under way is the old irqfd's, and knows it */
    Py_CLEAR(self->route);
    Py_CLEAR(self->handler);
    Py_CLEAR(self->who);
    Py_CLEAR(self->irqfd);
    Py_CLEAR(self->top_half);
    Py_RETURN_NONE;
}

/* Take back what waits for the handler: the count, 0 when nothing does. */
static PyObject *
ctx_recall(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    uint64_t count = self->taken;
    self->taken = 0;
    self->queued = false;
    return PyLong_FromUnsignedLongLong(count);
}

static PyObject *
ctx_get_queued(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((EventFdCtxObject *)op)->taken > 0);
}

static PyObject *
ctx_get_running(PyObject *op, void *Py_UNUSED(closure))
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    return Py_NewRef(self->run != NULL ? self->run->task : Py_None);
}

static PyObject *
ctx_get_told(PyObject *op, void *Py_UNUSED(closure))
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    return PyLong_FromUnsignedLongLong(self->run != NULL ? self->run->count : 0);
}

static PyObject *
ctx_arm(PyObject *op, PyObject *route)
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    if (route != Py_None && !PyCell_Check(route)) {
        return PyErr_Format(PyExc_TypeError, "_arm() takes a cell or None, not %R", route);
    }
    Py_XSETREF(self->route, self->top_half != NULL && route != Py_None ? Py_NewRef(route) : NULL);
    Py_RETURN_NONE;
}

static PyObject *
ctx_get_registered(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((EventFdCtxObject *)op)->drain != NULL);
}

static PyObject *
ctx_get_leftover(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((EventFdCtxObject *)op)->seen == SEEN_LEFTOVER);
}

static int
ctx_init(PyObject *op, PyObject *args, PyObject *kwargs)
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    static char *keywords[] = {"fd", "semaphore", NULL};
    int fd;
    int semaphore = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|$p:EventFdCtx", keywords, &fd, &semaphore)) {
        return -1;
    }
    if (self->drain != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a registered eventfd cannot be initialised again");
        return -1;
    }
    self->fd = fd;
    self->semaphore = semaphore != 0;
    return 0;
}

static PyObject *
ctx_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    EventFdCtxObject *self = (EventFdCtxObject *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->fd = -1;
    }
    return (PyObject *)self;
}

static int
ctx_traverse(PyObject *op, visitproc visit, void *arg)
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->drain);
    Py_VISIT(self->top_half);
    Py_VISIT(self->irqfd);
    Py_VISIT(self->route);
    Py_VISIT(self->handler);
    Py_VISIT(self->who);
    return 0;
}

static int
ctx_clear(PyObject *op)
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    drain_forget(self);
    Py_CLEAR(self->route);
    Py_CLEAR(self->top_half);
    Py_CLEAR(self->irqfd);
    Py_CLEAR(self->handler);
    Py_CLEAR(self->who);
    return 0;
}

static void
ctx_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    if (((EventFdCtxObject *)op)->weakrefs != NULL) {
        PyObject_ClearWeakRefs(op);
    }
    (void)ctx_clear(op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *
ctx_dispatch(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    native_state *state = native_state_of_object(op);
    if (state == NULL) {
        return NULL;
    }
    if (self->drain != NULL && !self->drain->dispatching && mailbox_is_owed(&self->node)) {
        top_half_one(state, self);
    }
    Py_RETURN_NONE;
}

static PyMethodDef ctx_methods[] = {
    {"signal", _PyCFunction_CAST(eventfd_ctx_signal), METH_FASTCALL,
     PyDoc_STR(
         "signal($self, n=1, /)\n--\n\n"
         "Add n (1..2**64-2) to the count, saturating at 2**64-2, and wake whoever listens.\n\n"
         "On the thread of the loop that listens the wakeup runs at once, unless it is called from within a wakeup; from\n"
         "elsewhere the loop is woken. Where nobody in this process listens, it is a write(2) to the fd.\n\n"
         "Args:\n    n: How much to add, 1..2**64-2.\n\n"
         "Returns:\n    What was added: n, or less when the count is near its top.\n\n"
         "Raises:\n    ValueError: n is out of range; nothing was added.\n    ClosedError: The eventfd is closed.\n\n"
         "Threads:\n    Safe from any thread and, through the fd, from any process.\n\n"
         "Source:\n    eventfd(2); rows E07, E18.")},
    {"_take", ctx_take, METH_NOARGS, PyDoc_STR("Read both counters; 0 when there is nothing.")},
    {"_spill", ctx_spill, METH_NOARGS, PyDoc_STR("Move what was counted in this process into the kernel's counter.")},
    {"_readable", ctx_readable, METH_NOARGS, PyDoc_STR("Whether the count is above 0; consumes nothing.")},
    {"_dispatch", ctx_dispatch, METH_NOARGS,
     PyDoc_STR("Do now what the drain's next pass would; nothing from within a pass. The loop's thread.")},
    {"_bind", _PyCFunction_CAST(ctx_bind), METH_FASTCALL,
     PyDoc_STR("_bind(top_half, irqfd, want_count, handler, who): signals go there; the handler is called with who.")},
    {"_recall", ctx_recall, METH_NOARGS, PyDoc_STR("Take back the count that waits for the handler.")},
    {"_unbind", ctx_unbind, METH_NOARGS, PyDoc_STR("Undo _bind; what is still owed is the caller's business.")},
    {"_arm", ctx_arm, METH_O,
     PyDoc_STR(
         "_arm($self, route, /)\n--\n\nLet the fast path inject what this cell holds, as long as it does; None forbids it.")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef ctx_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(EventFdCtxObject, weakrefs), READONLY, NULL},
    {"_fd", T_INT, offsetof(EventFdCtxObject, fd), 0, PyDoc_STR("The file descriptor, -1 once closed.")},
    {"_semaphore", T_BOOL, offsetof(EventFdCtxObject, semaphore), READONLY, PyDoc_STR("Made with EFD_SEMAPHORE.")},
    {"_listening", T_BOOL, offsetof(EventFdCtxObject, listening), 0,
     PyDoc_STR("Somebody in this process hears signals.")},
    {"_gsi", T_UINT, offsetof(EventFdCtxObject, gsi), 0, PyDoc_STR("The gsi it is bound to; for the flight ring.")},
    /* Both change with the GIL held, so that a plain look at them is one. */
    {"_owed", T_BOOL, offsetof(EventFdCtxObject, node.owed), READONLY,
     PyDoc_STR("A signal was seen and is not dispatched yet.")},
    {"_count", T_ULONGLONG, offsetof(EventFdCtxObject, count.value), READONLY,
     PyDoc_STR("Counted in this process and not taken yet.")},
    {"_held", T_BOOL, offsetof(EventFdCtxObject, held), READONLY, PyDoc_STR("Waits in its top half.")},
    {"_signals", T_ULONGLONG, offsetof(EventFdCtxObject, signals), 0,
     PyDoc_STR("Counted out of the counters, modulo 2**64.")},
    {"_taken", T_ULONGLONG, offsetof(EventFdCtxObject, taken), READONLY,
     PyDoc_STR("The count that waits for the handler.")},
    {"_wakeups", T_ULONGLONG, offsetof(EventFdCtxObject, wakeups), 0, PyDoc_STR("Dispatches.")},
    {"_fast", T_ULONGLONG, offsetof(EventFdCtxObject, fast), 0, PyDoc_STR("Dispatches that the sink took at once.")},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef ctx_getset[] = {
    {"_queued", ctx_get_queued, NULL, PyDoc_STR("A count waits for the handler."), NULL},
    {"_running", ctx_get_running, NULL, PyDoc_STR("The task that runs the handler just now, or None."), NULL},
    {"_told", ctx_get_told, NULL, PyDoc_STR("The count that the handler which runs just now was given."), NULL},
    {"_registered", ctx_get_registered, NULL, PyDoc_STR("In a drain."), NULL},
    {"_leftover", ctx_get_leftover, NULL,
     PyDoc_STR("What the eventfd held when it was bound was injected and left (P01)."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot ctx_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("EventFdCtx(fd, *, semaphore=False)\n--\n\n"
                                  "The in-process half of an eventfd; base class of aioirqfd.EventFd.")},
    {Py_tp_new, (void *)ctx_new},
    {Py_tp_init, (void *)ctx_init},
    {Py_tp_traverse, (void *)ctx_traverse},
    {Py_tp_clear, (void *)ctx_clear},
    {Py_tp_dealloc, (void *)ctx_dealloc},
    {Py_tp_methods, ctx_methods},
    {Py_tp_members, ctx_members},
    {Py_tp_getset, ctx_getset},
    {0, NULL},
};

PyType_Spec eventfd_ctx_spec = {
    .name = "aioirqfd.counter.EventFdCtx",
    .basicsize = sizeof(EventFdCtxObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = ctx_slots,
};
