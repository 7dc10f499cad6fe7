/* EventFdCtx: the in-process half of an eventfd. While somebody here listens, signals are counted in this process and
   dispatched without a system call; otherwise they are written to the fd, for whoever else holds it.

   What must hold: what was signalled is in one of the two counters until a dispatch takes it, and is taken once. What of the
   kernel's counter was injected and not read is marked by `seen`, so that nobody injects it again (unread.c).

   Tempting, and wrong:
   - to look whether somebody listens and then to count, in two steps: the loop may stop listening in between. They are one under
     the place (_turn.h). */
#include "_native.h"

#include <structmember.h>

#ifdef Py_GIL_DISABLED
/* A new reference; NULL where it was never registered. */
turn_t *
eventfd_ctx_turn(PyObject *op)
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    LEAF_LOCK(&self->place);
    turn_t *turn = turn_ref(self->turn);
    LEAF_UNLOCK(&self->place);
    return turn;
}
#endif

/* A signal where nobody in this process listens: to whoever else has the eventfd. That somebody begins to listen meanwhile does no
   harm, for he hears of what is in the fd. */
static PyObject *
write_signal(EventFdCtxObject *self, uint64_t n)
{
    uint64_t added = 0;
    int failed;
    bool open;
    OBJECT_SECTION((PyObject *)self)
    int fd = SEEN(self->fd);
    open = fd >= 0;
    failed = open ? eventfd_add(fd, n, &added) : -1;
    if (open && failed < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
    }
    OBJECT_SECTION_END()
    if (failed == 0) {
        return PyLong_FromUnsignedLongLong(added);
    }
    native_state *state = open ? NULL : native_state_of_object((PyObject *)self);
    if (state != NULL) {
        PyObject *error = PyObject_CallFunction(state->closed_error, "s", "the eventfd is closed");
        if (error != NULL) {
            PyErr_SetObject(state->closed_error, error);
            Py_DECREF(error);
        }
    }
    return NULL;
}

/* What was signalled on the loop's own thread, in its turn. */
static inline void
dispatch_one(native_state *state, DrainObject *drain, EventFdCtxObject *ctx)
{
#ifdef Py_GIL_DISABLED
    /* Another thread may have had the turn in between. */
    if (!ctx_is_of(ctx, drain) || drain->dispatching) {
        drain_post(ctx);
        return;
    }
#else
    (void)drain;
#endif
    top_half_one(state, ctx);
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
    LEAF_LOCK(&self->place);
    DrainObject *drain = self->listening ? self->drain : NULL;
    if (self->fd < 0 || drain == NULL || SEEN(drain->dead)) {
        LEAF_UNLOCK(&self->place);
        return write_signal(self, n);
    }
    added = counter_add(&self->count, n);
    bool owes_now = mailbox_owe(&self->node);
    if (owes_now) {
        SHARED_INCREF(drain);
    }
    LEAF_UNLOCK(&self->place);
    if (owes_now) {
        native_state *state = native_state_of_final(drain);
        if (!SEEN(drain->dispatching) && drain_is_here(drain) && state != NULL) {
            IN_TURN(turn_ref(drain->turn))
            dispatch_one(state, drain, self);
            IN_TURN_END
        } else {
            drain_post(self);
        }
        SHARED_DECREF(drain);
    }
    return PyLong_FromUnsignedLongLong(added);
}

static PyObject *
ctx_take(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    uint64_t total = self->semaphore ? counter_take_one(&self->count) : counter_take(&self->count);
    int got = 0;
    OBJECT_SECTION(op)
    int fd = SEEN(self->fd);
    if (fd >= 0 && !(self->semaphore && total > 0)) {
        uint64_t value = 0;
        got = eventfd_read_now(fd, &value);
        if (got < 0) {
            if (total > 0) {
                counter_add(&self->count, total);
            }
            PyErr_SetFromErrno(PyExc_OSError);
        } else if (got == 1) {
            if (value > UINT64_MAX - total) {
                value -= counter_add(&self->count, value);
            }
            total += value;
        }
    }
    OBJECT_SECTION_END()
    return got >= 0 ? PyLong_FromUnsignedLongLong(total) : NULL;
}

/* Move what was counted here into the kernel's counter: 0, or -1 with an exception. In the object's section. */
static int
spill(EventFdCtxObject *self)
{
    uint64_t rest = counter_take(&self->count);
    uint64_t added = 0;
    int fd = SEEN(self->fd);
    if (rest > 0 && fd >= 0 && eventfd_add(fd, rest, &added) < 0) {
        counter_add(&self->count, rest);
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    /* What does not fit in there stays here, for the next read. */
    (void)counter_add(&self->count, rest - added);
    return 0;
}

static PyObject *
ctx_spill(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    int spilt;
    OBJECT_SECTION(op)
    spilt = spill((EventFdCtxObject *)op);
    OBJECT_SECTION_END()
    return spilt == 0 ? Py_NewRef(Py_None) : NULL;
}

/* Whoever reads or writes the fd has the turn or the object's section: here both are had once, so all of them are through. */
static PyObject *
ctx_let_go_now(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    int fd;
    OBJECT_SECTION(op)
    LEAF_LOCK(&self->place);
    fd = self->fd;
    SAY(self->fd, -1);
    LEAF_UNLOCK(&self->place);
    OBJECT_SECTION_END()
    return PyLong_FromLong(fd);
}
METHOD_IN_TURN(ctx_let_go, eventfd_ctx_turn)

static PyObject *
ctx_readable(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    int found = 1;
    if (counter_peek(&self->count) == 0) {
        OBJECT_SECTION(op)
        int fd = SEEN(self->fd);
        found = fd >= 0 ? eventfd_has_count(fd) : 0;
        if (found < 0) {
            PyErr_SetFromErrno(PyExc_OSError);
        }
        OBJECT_SECTION_END()
    }
    return found >= 0 ? PyBool_FromLong(found) : NULL;
}

/* A top half is one loop's, as its manager is. False with RuntimeError. */
static bool
share_turn(const EventFdCtxObject *self, TopHalfObject *top_half)
{
#ifdef Py_GIL_DISABLED
    if (top_half->turn == NULL) {
        __atomic_store_n(&top_half->turn, turn_ref(self->turn), __ATOMIC_RELEASE);
    } else if (top_half->turn != self->turn) {
        PyErr_SetString(PyExc_RuntimeError, "_bind() takes a top half of the same loop");
        return false;
    }
#else
    (void)self;
    (void)top_half;
#endif
    return true;
}

static PyObject *
ctx_bind_now(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
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
    if (!share_turn(self, (TopHalfObject *)args[0])) {
        return NULL;
    }
    SAY(self->top_half, (TopHalfObject *)Py_NewRef(args[0]));
    SAY(self->irqfd, Py_NewRef(args[1]));
    if (args[3] != Py_None) {
        self->handler = Py_NewRef(args[3]);
        self->who = Py_NewRef(args[4]);
    }
    self->want_count = want_count != 0;
    self->seen = SEEN_NOTHING;
    LEAF_LOCK(&self->place);
    SAY(self->listening, true);
    LEAF_UNLOCK(&self->place);
    if (!self->want_count && !self->semaphore && !self->drain->dead) {
        drain_ask_room(self);
    }
    Py_RETURN_NONE;
}
VECTORCALL_IN_TURN(ctx_bind, eventfd_ctx_turn)

static PyObject *
ctx_unbind_now(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    PyObject *const bound[] = {self->route, self->handler, self->who, self->irqfd, (PyObject *)self->top_half};
    LEAF_LOCK(&self->place);
    SAY(self->listening, false);
    (void)mailbox_discharge(&self->node);
    LEAF_UNLOCK(&self->place);
    self->want_count = false;
    self->event = self->fresh = self->full = false;
    self->seen = SEEN_NOTHING;
    top_half_unhold(self);
    self->run = NULL; /* a handler that is under way is the old irqfd's, and knows it */
    self->route = self->handler = self->who = NULL;
    SAY(self->irqfd, NULL);
    SAY(self->top_half, NULL);
    OUT_OF_TURN
    for (size_t i = 0; i < sizeof(bound) / sizeof(bound[0]); i++) {
        Py_XDECREF(bound[i]);
    }
    OUT_OF_TURN_END
    Py_RETURN_NONE;
}
METHOD_IN_TURN(ctx_unbind, eventfd_ctx_turn)

/* Take back what waits for the handler: the count, 0 when nothing does. */
static PyObject *
ctx_recall_now(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    uint64_t count = self->taken;
    self->taken = 0;
    self->queued = false;
    return PyLong_FromUnsignedLongLong(count);
}
METHOD_IN_TURN(ctx_recall, eventfd_ctx_turn)

static PyObject *
ctx_get_queued_now(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((EventFdCtxObject *)op)->taken > 0);
}
GETTER_IN_TURN(ctx_get_queued, eventfd_ctx_turn)

static PyObject *
ctx_get_taken_now(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(((EventFdCtxObject *)op)->taken);
}
GETTER_IN_TURN(ctx_get_taken, eventfd_ctx_turn)

static PyObject *
ctx_get_fd(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(SEEN(((EventFdCtxObject *)op)->fd));
}

static int
ctx_set_fd(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    long fd = value != NULL ? PyLong_AsLong(value) : -1;
    if (value == NULL || (fd == -1 && PyErr_Occurred() != NULL)) {
        PyErr_SetString(PyExc_TypeError, "_fd is an integer");
        return -1;
    }
    LEAF_LOCK(&self->place);
    SAY(self->fd, (int)fd);
    LEAF_UNLOCK(&self->place);
    return 0;
}

static PyObject *
ctx_get_listening(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(SEEN(((EventFdCtxObject *)op)->listening));
}

static int
ctx_set_listening(PyObject *op, PyObject *value, void *Py_UNUSED(closure))
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    if (value == NULL || !PyBool_Check(value)) {
        PyErr_SetString(PyExc_TypeError, "_listening is a bool");
        return -1;
    }
    LEAF_LOCK(&self->place);
    SAY(self->listening, value == Py_True);
    LEAF_UNLOCK(&self->place);
    return 0;
}

static PyObject *
ctx_get_owed(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(mailbox_is_owed(&((EventFdCtxObject *)op)->node));
}

static PyObject *
ctx_get_count(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(counter_peek(&((EventFdCtxObject *)op)->count));
}

static PyObject *
ctx_get_running_now(PyObject *op, void *Py_UNUSED(closure))
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    return Py_NewRef(self->run != NULL ? self->run->task : Py_None);
}
GETTER_IN_TURN(ctx_get_running, eventfd_ctx_turn)

static PyObject *
ctx_get_told_now(PyObject *op, void *Py_UNUSED(closure))
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    return PyLong_FromUnsignedLongLong(self->run != NULL ? self->run->count : 0);
}
GETTER_IN_TURN(ctx_get_told, eventfd_ctx_turn)

static PyObject *
ctx_arm_now(PyObject *op, PyObject *route)
{
    EventFdCtxObject *self = (EventFdCtxObject *)op;
    if (route != Py_None && !PyCell_Check(route)) {
        return PyErr_Format(PyExc_TypeError, "_arm() takes a cell or None, not %R", route);
    }
    PyObject *old = self->route;
    self->route = self->top_half != NULL && route != Py_None ? Py_NewRef(route) : NULL;
    OUT_OF_TURN
    Py_XDECREF(old);
    OUT_OF_TURN_END
    Py_RETURN_NONE;
}
METHOD_IN_TURN(ctx_arm, eventfd_ctx_turn)

static PyObject *
ctx_get_registered(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(SEEN(((EventFdCtxObject *)op)->drain) != NULL);
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
    if (SEEN(self->drain) != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a registered eventfd cannot be initialised again");
        return -1;
    }
    SAY(self->fd, fd);
    self->semaphore = semaphore != 0;
    return 0;
}

static PyObject *
ctx_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    EventFdCtxObject *self = (EventFdCtxObject *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->fd = -1;
        LEAF_INIT(&self->place);
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
    if (self->drain != NULL) {
        IN_TURN(turn_ref(self->drain->turn))
        drain_forget(self);
        IN_TURN_END
    }
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
    LEAF_END(&((EventFdCtxObject *)op)->place);
#ifdef Py_GIL_DISABLED
    turn_unref(((EventFdCtxObject *)op)->turn);
#endif
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *
ctx_dispatch_now(PyObject *op, PyObject *Py_UNUSED(ignored))
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
METHOD_IN_TURN(ctx_dispatch, eventfd_ctx_turn)

static PyMethodDef ctx_methods[] = {
    {"signal", NATIVE_METHOD(eventfd_ctx_signal), METH_FASTCALL,
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
    {"_let_go", ctx_let_go, METH_NOARGS,
     PyDoc_STR(
         "Forget the fd and return it, -1 if it was forgotten before. Nobody uses it any more then, in any thread.")},
    {"_readable", ctx_readable, METH_NOARGS, PyDoc_STR("Whether the count is above 0; consumes nothing.")},
    {"_dispatch", ctx_dispatch, METH_NOARGS,
     PyDoc_STR("Do now what the drain's next pass would; nothing from within a pass. The loop's thread.")},
    {"_bind", NATIVE_METHOD(ctx_bind), METH_FASTCALL,
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
    {"_semaphore", T_BOOL, offsetof(EventFdCtxObject, semaphore), READONLY, PyDoc_STR("Made with EFD_SEMAPHORE.")},
    {"_gsi", T_UINT, offsetof(EventFdCtxObject, gsi), 0, PyDoc_STR("The gsi it is bound to; for the flight ring.")},
    {"_held", T_BOOL, offsetof(EventFdCtxObject, held), READONLY, PyDoc_STR("Waits in its top half.")},
    {"_signals", T_ULONGLONG, offsetof(EventFdCtxObject, signals), 0,
     PyDoc_STR("Counted out of the counters, modulo 2**64.")},
    {"_wakeups", T_ULONGLONG, offsetof(EventFdCtxObject, wakeups), 0, PyDoc_STR("Dispatches.")},
    {"_fast", T_ULONGLONG, offsetof(EventFdCtxObject, fast), 0, PyDoc_STR("Dispatches that the sink took at once.")},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef ctx_getset[] = {
    {"_fd", ctx_get_fd, ctx_set_fd, PyDoc_STR("The file descriptor, -1 once closed."), NULL},
    {"_listening", ctx_get_listening, ctx_set_listening, PyDoc_STR("Somebody in this process hears signals."), NULL},
    {"_owed", ctx_get_owed, NULL, PyDoc_STR("A signal was seen and is not dispatched yet."), NULL},
    {"_count", ctx_get_count, NULL, PyDoc_STR("Counted in this process and not taken yet."), NULL},
    {"_taken", ctx_get_taken, NULL, PyDoc_STR("The count that waits for the handler."), NULL},
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
