/* TopHalf: what a manager does with a ready irqfd at once, on the loop's thread: hand its cached Interrupt to the sink, many in
   one call, and leave the rest to Binding.wakeup and Binding.defer. Never raises, never waits.

   What must hold: an irqfd's debt (node.owed) is discharged only when its turn has come, and before its count is taken. A signal then is
   in this injection, or makes a debt of its own. Everything here that calls out may come back in any way (calls.c), so references
   are held and ownership is given up before each call, and what was known of an irqfd is asked again after it.

   Tempting, and wrong:
   - to fill the list for the sink while the ready ones are looked through, which would save a loop. The sink of the first manager
     may mask, unbind or re-route those of the second; they are looked at again when their list is made, at once before the call.
   - to take the interrupt after the count. To read the count may report an error to a hook of the program's, which may re-route.
   - to note an error of the sink as "taken". It was not, and the interrupt goes to the work queue. */
#include "_native.h"

#include <structmember.h>

/* Irqfds that release() dispatches by itself. */
#define RELEASE_AT_ONCE 1024

/* What a manager calls runs in the context in which it was entered, whoever made the loop's poller and whoever signals. From within
   a call of its own it is there already. */
bool
top_half_enter(TopHalfObject *top_half)
{
    if (top_half->entered != NULL || !native_enter(top_half->context)) {
        return false;
    }
    top_half->entered = Py_NewRef(top_half->context);
    return true;
}

/* The other half; `entered` is what top_half_enter() said. */
void
top_half_exit(TopHalfObject *top_half, bool entered)
{
    if (entered) {
        PyObject *context = top_half->entered;
        top_half->entered = NULL;
        native_exit(context, true);
        Py_DECREF(context);
    }
}

/* Line the irqfd up for the next flush. It stays owed until then. */
int
top_half_batch(TopHalfObject *top_half, EventFdCtxObject *ctx)
{
    if (top_half->batch_len == top_half->batch_cap) {
        Py_ssize_t cap = top_half->batch_cap ? 2 * top_half->batch_cap : 64;
        batch_entry *grown = PyMem_Realloc(top_half->batch, (size_t)cap * sizeof(*grown));
        if (grown == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        top_half->batch = grown;
        top_half->batch_cap = cap;
    }
    top_half->batch[top_half->batch_len++] = (batch_entry){.ctx = (EventFdCtxObject *)Py_NewRef(ctx)};
    return 0;
}

static void
report(TopHalfObject *top_half)
{
    OUT_OF_TURN
    PyObject *error = native_raised();
    if (error != NULL) {
        (void)native_call(top_half->on_error, error);
    }
    Py_XDECREF(error);
    OUT_OF_TURN_END
}

/* 0; -1: it raised, which is reported. */
int
irqfd_call(PyObject *irqfd, PyObject *method, uint64_t count)
{
    PyObject *number = PyLong_FromUnsignedLongLong(count > 0 ? count : 1);
    if (number == NULL) {
        native_unraisable(irqfd);
        return -1;
    }
    int called = native_call_method(irqfd, method, number);
    Py_DECREF(number);
    return called;
}

/* Give the irqfd what was signalled. What interrupts the call before it is noted there, the exception of a signal handler say, does
   not lose it: it is owed again. */
void
irqfd_hand(EventFdCtxObject *ctx, PyObject *irqfd, PyObject *method, uint64_t count)
{
    if (irqfd_call(irqfd, method, count) < 0 && SEEN(ctx->irqfd) == irqfd && SEEN(ctx->drain) != NULL) {
        eventfd_ctx_put_back(ctx, count);
        if (mailbox_owe(&ctx->node)) {
            drain_post(ctx);
        }
    }
}

/* The sink would not take it now: to the work queue, or wait where it is while there is no room. */
static void
defer(native_state *state, TopHalfObject *top_half, EventFdCtxObject *ctx, PyObject *irqfd, uint64_t count)
{
    if (HAS_FLIGHT(top_half)) {
        flight_put(top_half, flight_now(), FLIGHT_DEFERRED, ctx, count);
    }
    if ((top_half->full || top_half->paused) && ctx_is_at(ctx, top_half)) {
        eventfd_ctx_put_back(ctx, count);
        if (mailbox_owe(&ctx->node)) {
            top_half_hold(top_half, ctx);
        }
        return;
    }
    irqfd_hand(ctx, irqfd, state->str_defer, count);
}

/* 1 taken, 0 not. */
int
top_half_try(TopHalfObject *top_half, PyObject *interrupt)
{
    PyObject *callable = top_half->try_inject;
    if (callable == NULL) {
        return 0;
    }
    int taken;
    Py_INCREF(callable);
    OUT_OF_TURN
    PyObject *answer = PyObject_CallOneArg(callable, interrupt);
    Py_DECREF(callable);
    taken = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    OUT_OF_TURN_END
    if (taken < 0) {
        report(top_half);
        return 0;
    }
    return taken;
}

/* How many of the list, from the front, the sink took at once. */
static Py_ssize_t
try_many(TopHalfObject *top_half, PyObject *interrupts)
{
    Py_ssize_t n = PyList_GET_SIZE(interrupts);
    if (top_half->try_inject_batch == NULL || n == 1) {
        return -1;
    }
    PyObject *callable = Py_NewRef(top_half->try_inject_batch);
    Py_ssize_t taken;
    OUT_OF_TURN
    PyObject *answer = PyObject_CallOneArg(callable, interrupts);
    Py_DECREF(callable);
    taken = answer == NULL ? -1 : PyNumber_AsSsize_t(answer, NULL); /* clipped */
    Py_XDECREF(answer);
    OUT_OF_TURN_END
    if (taken == -1 && PyErr_Occurred() != NULL) {
        report(top_half);
        return 0;
    }
    if (taken < 0 || taken > n) {
        PyErr_Format(PyExc_ValueError, "try_inject_batch() returned %zd for %zd interrupts", taken, n);
        report(top_half);
        return taken < 0 ? 0 : n;
    }
    return taken;
}

static void
inject_one(native_state *state, TopHalfObject *top_half, EventFdCtxObject *ctx, PyObject *interrupt)
{
    uint64_t count;
    if (!mailbox_discharge(&ctx->node)) {
        return;
    }
    Py_INCREF(top_half);
    Py_INCREF(interrupt);
    PyObject *irqfd = Py_NewRef(ctx->irqfd);
    if (!eventfd_ctx_consume(ctx, false, &count)) {
        goto done;
    }
    ctx->wakeups++;
    if (HAS_FLIGHT(top_half)) {
        flight_put(top_half, flight_now(), FLIGHT_SEEN, ctx, count);
    }
    if (top_half_try(top_half, interrupt)) {
        top_half_count_fast(top_half, ctx);
        if (HAS_FLIGHT(top_half)) {
            flight_put(top_half, flight_now(), FLIGHT_INJECTED, ctx, count);
        }
    } else {
        defer(state, top_half, ctx, irqfd, count);
    }
done:
    TURN_DROP_BESIDE(interrupt, ctx_is_at(ctx, top_half) && top_half_interrupt(ctx) == interrupt);
    TURN_DROP_BESIDE(irqfd, ctx_is_at(ctx, top_half) && ctx->irqfd == irqfd);
    Py_DECREF(top_half); /* the caller has one */
}

/* A single ready irqfd of a plain kind, to which a list would be a detour; false: it is another kind. */
bool
top_half_inject(native_state *state, EventFdCtxObject *ctx)
{
    PyObject *interrupt = top_half_interrupt(ctx);
    if (interrupt == NULL || ctx->handler != NULL || ctx->top_half->try_inject == NULL) {
        return false;
    }
    inject_one(state, ctx->top_half, ctx, interrupt);
    return true;
}

/* One look at the clock: they go to the sink in one call, or one after the other at once. */
static void
note_seen(const TopHalfObject *top_half, const batch_entry *batch, Py_ssize_t n)
{
    uint64_t now = flight_now();
    for (Py_ssize_t i = 0; i < n; i++) {
        flight_put(top_half, now, FLIGHT_SEEN, batch[i].ctx, batch[i].count);
    }
}

/* Hand the lined-up irqfds to the sink. */
void
top_half_flush(native_state *state, TopHalfObject *top_half)
{
    batch_entry *batch = top_half->batch;
    Py_ssize_t lined_up = top_half->batch_len;
    Py_ssize_t cap = top_half->batch_cap;
    Py_ssize_t n = 0;
    top_half->batch = NULL;
    top_half->batch_len = top_half->batch_cap = 0;

    PyObject *interrupts = PyList_New(lined_up);
    for (Py_ssize_t i = 0; i < lined_up; i++) {
        EventFdCtxObject *ctx = batch[i].ctx;
        PyObject *interrupt = ctx_is_at(ctx, top_half) ? top_half_interrupt(ctx) : NULL;
        if (interrupts == NULL || interrupt == NULL) {
            /* Masked, re-routed, unbound or bound elsewhere since, by a sink that was called in between: through the mailbox
               once more. */
            if (mailbox_is_owed(&ctx->node)) {
                drain_post(ctx);
            }
            turn_drop(ctx);
            continue;
        }
        if (!mailbox_discharge(&ctx->node)) {
            turn_drop(ctx);
            continue;
        }
        batch_entry entry = {.ctx = ctx, .irqfd = Py_NewRef(ctx->irqfd)};
        Py_INCREF(interrupt);
        if (!eventfd_ctx_consume(ctx, false, &entry.count)) {
            OUT_OF_TURN
            Py_DECREF(interrupt);
            Py_DECREF(entry.irqfd);
            Py_DECREF(ctx);
            OUT_OF_TURN_END
            continue;
        }
        ctx->wakeups++;
        PyList_SET_ITEM(interrupts, n, interrupt);
        batch[n++] = entry;
    }
    if (interrupts == NULL) {
        native_unraisable((PyObject *)top_half);
    } else if (n > 0) {
        Py_SET_SIZE(interrupts, n);
        if (HAS_FLIGHT(top_half)) {
            note_seen(top_half, batch, n);
        }
        Py_ssize_t taken = try_many(top_half, interrupts);
        /* One look at the clock for all that went in one call. */
        uint64_t now = HAS_FLIGHT(top_half) && taken >= 0 ? flight_now() : 0;
        for (Py_ssize_t i = 0; i < n; i++) {
            batch_entry entry = batch[i];
            if (taken >= 0 ? i < taken : top_half_try(top_half, PyList_GET_ITEM(interrupts, i))) {
                top_half_count_fast(top_half, entry.ctx);
                if (HAS_FLIGHT(top_half)) {
                    flight_put(top_half, taken >= 0 ? now : flight_now(), FLIGHT_INJECTED, entry.ctx, entry.count);
                }
            } else {
                defer(state, top_half, entry.ctx, entry.irqfd, entry.count);
            }
            OUT_OF_TURN
            Py_DECREF(entry.irqfd);
            Py_DECREF(entry.ctx);
            OUT_OF_TURN_END
        }
    }
    OUT_OF_TURN
    Py_XDECREF(interrupts);
    OUT_OF_TURN_END
    if (top_half->batch == NULL) {
        top_half->batch = batch;
        top_half->batch_cap = cap;
    } else {
        PyMem_Free(batch);
    }
}

/* The slow top half: Binding.wakeup decides. What it decides may take long, so it is told how often the eventfd was signalled. */
void
top_half_wakeup(native_state *state, EventFdCtxObject *ctx)
{
    TopHalfObject *top_half = ctx->top_half;
    uint64_t count;
    if (top_half == NULL) {
        if (mailbox_discharge(&ctx->node)) {
            ctx->event = false;
            (void)native_call_method((PyObject *)ctx, state->str__on_ready, NULL);
        }
        return;
    }
    bool lane = ctx->handler != NULL && top_half_interrupt(ctx) != NULL;
    bool no_room = lane && !ctx->queued && ctx->run == NULL && fifo_len(&top_half->lane) >= top_half->room;
    if (top_half->paused || top_half->full || no_room) {
        if (mailbox_is_owed(&ctx->node)) {
            top_half_hold(top_half, ctx);
        }
        return;
    }
    if (mailbox_discharge(&ctx->node) && eventfd_ctx_consume(ctx, true, &count)) {
        ctx->wakeups++;
        if (HAS_FLIGHT(top_half)) {
            flight_put(top_half, flight_now(), FLIGHT_WAKEUP, ctx, count);
        }
        if (lane && count > 0 && count <= UINT64_MAX - ctx->taken) {
            ctx->taken += count;
            lane_put(top_half, ctx);
            return;
        }
        PyObject *irqfd = Py_NewRef(ctx->irqfd);
        irqfd_hand(ctx, irqfd, state->str_wakeup, count);
        turn_drop(irqfd);
    }
}

/* One irqfd at once: a signal on the loop's own thread, as eventfd_signal() runs the wakeup in its caller. */
void
top_half_one(native_state *state, EventFdCtxObject *ctx)
{
    DrainObject *drain = (DrainObject *)Py_NewRef(ctx->drain);
    TopHalfObject *top_half = (TopHalfObject *)Py_XNewRef(ctx->top_half);
    bool entered = top_half != NULL && top_half_enter(top_half);
    SAY(drain->dispatching, true);
    if (!top_half_inject(state, ctx)) {
        top_half_wakeup(state, ctx);
        if (top_half != NULL && top_half->has_new) {
            lane_tell_new(top_half);
        }
    }
    SAY(drain->dispatching, false);
    if (top_half != NULL) {
        top_half_exit(top_half, entered);
        TURN_DROP_BESIDE(top_half, ctx_is_of(ctx, drain) && ctx->top_half == top_half);
    }
    drain_nudge(drain);
    TURN_DROP_BESIDE(drain, ctx_is_of(ctx, drain));
}

#ifdef Py_GIL_DISABLED
/* A new reference; NULL where nothing was bound yet. */
turn_t *
top_half_turn(PyObject *op)
{
    return turn_ref(__atomic_load_n(&((TopHalfObject *)op)->turn, __ATOMIC_ACQUIRE));
}
#endif

static PyObject *
top_half_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"try_inject", "try_inject_batch", "on_error", "on_ready", "on_progress", "flight", NULL};
    native_state *state = (native_state *)PyType_GetModuleState(type);
    PyObject *try_inject = Py_None, *try_inject_batch = Py_None, *on_error = Py_None;
    PyObject *on_ready = Py_None, *on_progress = Py_None, *flight = Py_None;
    if (state == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "|OOOOOO:TopHalf", keywords, &try_inject,
                                                      &try_inject_batch, &on_error, &on_ready, &on_progress, &flight)) {
        return NULL;
    }
    if (flight != Py_None && !Py_IS_TYPE(flight, state->flight_ring_type)) {
        return PyErr_Format(PyExc_TypeError, "flight is a FlightRing or None, not %R", flight);
    }
    TopHalfObject *self = (TopHalfObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->try_inject = try_inject != Py_None ? Py_NewRef(try_inject) : NULL;
    self->try_inject_batch = try_inject_batch != Py_None ? Py_NewRef(try_inject_batch) : NULL;
    self->on_error = Py_NewRef(on_error);
    self->on_ready = Py_NewRef(on_ready);
    self->on_progress = Py_NewRef(on_progress);
    self->flight = flight != Py_None ? (FlightRingObject *)Py_NewRef(flight) : NULL;
    self->room = PY_SSIZE_T_MAX;
    return (PyObject *)self;
}

static int
top_half_traverse(PyObject *op, visitproc visit, void *arg)
{
    TopHalfObject *self = (TopHalfObject *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->try_inject);
    Py_VISIT(self->try_inject_batch);
    Py_VISIT(self->on_error);
    Py_VISIT(self->flight);
    Py_VISIT(self->on_ready);
    Py_VISIT(self->on_progress);
    Py_VISIT(self->context);
    Py_VISIT(self->entered);
    Py_VISIT(self->touched_next);
    if (fifo_traverse(&self->held, visit, arg) != 0 || fifo_traverse(&self->lane, visit, arg) != 0) {
        return -1;
    }
    for (Py_ssize_t i = 0; i < self->batch_len; i++) {
        Py_VISIT(self->batch[i].ctx);
        Py_VISIT(self->batch[i].irqfd);
    }
    return 0;
}

static int
top_half_clear(PyObject *op)
{
    TopHalfObject *self = (TopHalfObject *)op;
    EventFdCtxObject *ctx;
    Py_CLEAR(self->try_inject);
    Py_CLEAR(self->try_inject_batch);
    Py_CLEAR(self->on_error);
    Py_CLEAR(self->flight);
    Py_CLEAR(self->on_ready);
    Py_CLEAR(self->on_progress);
    Py_CLEAR(self->context);
    Py_CLEAR(self->entered);
    Py_CLEAR(self->touched_next);
    while ((ctx = lane_next(self)) != NULL || (ctx = top_half_next_held(self)) != NULL) {
        Py_DECREF(ctx);
    }
    while (self->batch_len > 0) {
        batch_entry entry = self->batch[--self->batch_len];
        Py_XDECREF(entry.irqfd);
        Py_DECREF(entry.ctx);
    }
    return 0;
}

static void
top_half_dealloc(PyObject *op)
{
    TopHalfObject *self = (TopHalfObject *)op;
    PyObject_GC_UnTrack(op);
    (void)top_half_clear(op);
    PyMem_Free(self->batch);
    PyMem_Free(self->lane.items);
    PyMem_Free(self->held.items);
#ifdef Py_GIL_DISABLED
    turn_unref(self->turn);
#endif
    PyTypeObject *type = Py_TYPE(op);
    type->tp_free(op);
    Py_DECREF(type);
}

/* Dispatch what was held, oldest first, until the queue is full again; after a while, or from within a dispatch, let the loop do
   it through the mailbox. What is held meanwhile comes behind what is left. */
static PyObject *
top_half_release_now(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    TopHalfObject *self = (TopHalfObject *)op;
    native_state *state = native_state_of_final(op);
    if (state == NULL) {
        return NULL;
    }
    Py_ssize_t released = 0;
    EventFdCtxObject *ctx;
    for (Py_ssize_t n = self->held_count;
         released < n && !self->full && !self->paused && (ctx = top_half_next_held(self)) != NULL; released++) {
        if (ctx_is_at(ctx, self) && ctx->drain != NULL && mailbox_is_owed(&ctx->node)) {
            if (released < RELEASE_AT_ONCE && !ctx->drain->dispatching && drain_is_here(ctx->drain)) {
                top_half_one(state, ctx);
            } else {
                drain_post(ctx);
            }
        }
        turn_drop(ctx);
    }
    return PyLong_FromSsize_t(released);
}
METHOD_IN_TURN(top_half_release, top_half_turn)

static PyObject *
top_half_run_ready(PyObject *op, PyObject *task)
{
    native_state *state = native_state_of_final(op);
    return state != NULL ? ready_run_new(state, (TopHalfObject *)op, task) : NULL;
}

static PyObject *
top_half_ready_now(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(fifo_len(&((TopHalfObject *)op)->lane));
}
GETTER_IN_TURN(top_half_ready, top_half_turn)

static PyObject *
top_half_within(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    TopHalfObject *self = (TopHalfObject *)op;
    native_state *state = native_state_of_final(op);
    if (state == NULL) {
        return NULL;
    }
    if (nargs < 2 || !Py_IS_TYPE(args[0], state->drain_type)) {
        PyErr_SetString(PyExc_TypeError, "within() takes a Drain and something to call");
        return NULL;
    }
    DrainObject *drain = (DrainObject *)args[0];
    bool nested = SEEN(drain->dispatching);
    bool entered = top_half_enter(self);
    SAY(drain->dispatching, true);
    PyObject *answer = PyObject_Vectorcall(args[1], args + 2, (size_t)(nargs - 2), NULL);
    SAY(drain->dispatching, nested);
    top_half_exit(self, entered);
    return answer;
}

static PyMethodDef top_half_methods[] = {
    {"within", NATIVE_METHOD(top_half_within), METH_FASTCALL,
     PyDoc_STR("within($self, drain, call, /, *args)\n--\n\n"
               "Call it in the manager's context, with the drain dispatching. The loop's thread.")},
    {"run_ready", top_half_run_ready, METH_O,
     PyDoc_STR(
         "run_ready($self, task, /)\n--\n\nAn awaitable that runs the handlers of ready irqfds, one after the other, and injects; it\n"
         "returns when none is left, or after a millisecond.")},
    {"release", top_half_release, METH_NOARGS,
     PyDoc_STR(
         "release($self, /)\n--\n\nDispatch what was held, until the queue is full again; return how many irqfds that were.")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef top_half_members[] = {
    {"held", T_PYSSIZET, offsetof(TopHalfObject, held_count), READONLY, PyDoc_STR("How many irqfds wait here.")},
    {"context", T_OBJECT, offsetof(TopHalfObject, context), 0,
     PyDoc_STR("The contextvars.Context in which all of the manager's is called, or None: as it comes.")},
    {"flight", T_OBJECT, offsetof(TopHalfObject, flight), READONLY,
     PyDoc_STR("The FlightRing that remembers, or None.")},
    {"paused", T_BOOL, offsetof(TopHalfObject, paused), 0, PyDoc_STR("Hold everything.")},
    {"full", T_BOOL, offsetof(TopHalfObject, full), 0,
     PyDoc_STR("The work queue has no room: hold what the sink does not take at once.")},
    {"room", T_PYSSIZET, offsetof(TopHalfObject, room), 0, PyDoc_STR("How many irqfds may wait for their handler.")},
    {"watched", T_BOOL, offsetof(TopHalfObject, watched), 0, PyDoc_STR("Call on_progress after each.")},
    {"source", T_USHORT, offsetof(TopHalfObject, source), 0, PyDoc_STR("The number in the flight ring's records.")},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef top_half_getset[] = {
    {"ready", top_half_ready, NULL, PyDoc_STR("How many irqfds wait for their handler."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot top_half_slots[] = {
    {Py_tp_doc,
     (void *)PyDoc_STR(
         "TopHalf(try_inject=None, try_inject_batch=None, on_error=None, on_ready=None, on_progress=None, flight=None)\n"
         "--\n\n"
         "What one manager does with a ready irqfd at once.")},
    {Py_tp_new, (void *)top_half_new},
    {Py_tp_traverse, (void *)top_half_traverse},
    {Py_tp_clear, (void *)top_half_clear},
    {Py_tp_dealloc, (void *)top_half_dealloc},
    {Py_tp_methods, top_half_methods},
    {Py_tp_members, top_half_members},
    {Py_tp_getset, top_half_getset},
    {0, NULL},
};

PyType_Spec top_half_spec = {
    .name = "aioirqfd.counter.TopHalf",
    .basicsize = sizeof(TopHalfObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = top_half_slots,
};
