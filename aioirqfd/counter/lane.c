/* ReadyRun: the awaitable in which a worker of the queue runs the wakeup handlers of ready irqfds, one after the other, and hands
   their interrupts to the sink. A handler that does not wait costs its own coroutine and nothing else: no task, no queue item, no
   Python frame of ours. One that waits suspends the whole run, as it would suspend the worker.

   What is out of the ordinary is IrqFd's: an irqfd that was masked, re-routed or unbound since (defer), a sink that refuses (rest),
   a handler that raises (handler_failed).

   What must hold: an irqfd is in the lane at most once, and not while its handler runs. Its count is in `taken` until a handler is
   given it, and then in the run's `count` until it is injected, deferred or handed to IrqFd; on no way is it in neither. While its
   handler runs the eventfd may be unbound and bound to another irqfd: ctx->run says whether it is still ours.

   Tempting, and wrong:
   - to line up an irqfd again that is signalled while its handler runs: another worker would run it against itself. leave() does it.
   - to run the handlers in the context of the worker, or in one copy for all: what one sets, the next would see.
   - to go on until the lane is empty. Handlers that never wait would keep the loop from everybody else: hence the slice. */
#include "_native.h"

#include <structmember.h>
#include <time.h>

/* Nanoseconds after which the loop gets a turn. */
#define SLICE_NS 1000000
/* To look at the clock takes as long as to start a handler. So it is not looked at before each: while they are quick, before every
   second one, then every fourth, then eighth. */
#define MOST_UNLOOKED 8
#define QUICK_NS      (SLICE_NS / 16)

static int64_t
monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Line the irqfd up for its handler, which a worker of the queue runs. It owes nothing any more; its count is in `taken`. */
void
lane_put(TopHalfObject *top_half, EventFdCtxObject *ctx)
{
    if (ctx->queued || ctx->run != NULL) {
        return; /* the run to come, or another one after the one under way, has the count */
    }
    if (fifo_put(&top_half->lane, ctx) < 0) {
        native_unraisable((PyObject *)ctx);
        return;
    }
    top_half->has_new = true;
    ctx->queued = true;
}

/* The oldest irqfd whose handler is to run: the lane's reference, NULL when there is none. */
EventFdCtxObject *
lane_next(TopHalfObject *top_half)
{
    EventFdCtxObject *ctx;
    while ((ctx = fifo_next(&top_half->lane)) != NULL) {
        if (ctx_is_at(ctx, top_half) && ctx->queued) {
            ctx->queued = false;
            break;
        }
        turn_drop(ctx); /* taken back in the meantime; perhaps it waits in another manager's, on another loop, by now */
    }
    return ctx;
}

void
lane_tell_new(TopHalfObject *top_half)
{
    top_half->has_new = false;
    (void)native_call(top_half->on_ready, NULL);
}

#ifdef Py_GIL_DISABLED
/* A new reference. */
turn_t *
ready_run_turn(PyObject *op)
{
    TopHalfObject *top_half = ((ReadyRunObject *)op)->top_half;
    return top_half != NULL ? top_half_turn((PyObject *)top_half) : NULL;
}
#endif

PyObject *
ready_run_new(native_state *state, TopHalfObject *top_half, PyObject *task)
{
    PyTypeObject *type = state->ready_run_type;
    ReadyRunObject *self = (ReadyRunObject *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->top_half = (TopHalfObject *)Py_NewRef(top_half);
        self->task = Py_NewRef(task);
    }
    return (PyObject *)self;
}

/* Whoever waits for an injection, or for what became of it, has to look again. */
static void
tell_progress(TopHalfObject *top_half)
{
    if (top_half->watched) {
        (void)native_call(top_half->on_progress, NULL);
    }
}

/* A step of the handler is taken in its run's own context: what one sets, the next does not see. */
static PySendResult
step(ReadyRunObject *self, PyObject *arg, PyObject **value)
{
    PyObject *context = Py_XNewRef(self->context);
    PyObject *handler = self->handler; /* which nobody else drives */
    PySendResult sent;
    OUT_OF_TURN
    bool entered = native_enter(context);
    sent = PyIter_Send(handler, arg, value);
    native_exit(context, entered);
    Py_XDECREF(context);
    OUT_OF_TURN_END
    return sent;
}

/* The handler is through, or gone: make room for the next, and let the irqfd be queued again. Unless it is idle, what comes next is
   the irqfd's to decide, now that nothing of it runs here any more. */
static void
leave(native_state *state, ReadyRunObject *self)
{
    EventFdCtxObject *ctx = self->ctx;
    TopHalfObject *top_half = self->top_half;
    PyObject *irqfd = self->irqfd;
    PyObject *handler = self->handler, *context = self->context;
    self->ctx = NULL;
    self->irqfd = self->handler = self->context = NULL;
    OUT_OF_TURN
    Py_XDECREF(handler);
    Py_XDECREF(context);
    OUT_OF_TURN_END
    /* Not deassigned since; the eventfd may be another irqfd's by now, and on another loop. */
    bool bound = ctx != NULL && ctx_is_at(ctx, top_half) && ctx->run == self;
    bool entered = top_half_enter(top_half);
    if (bound) {
        ctx->run = NULL;
        if (ctx->taken > 0) {
            lane_put(top_half, ctx); /* signalled while it ran: it keeps its place in the queue's bound */
        }
    }
    if (irqfd != NULL && !(bound && top_half_interrupt(ctx) != NULL)) {
        (void)native_call_method(irqfd, state->str_left, NULL);
    }
    OUT_OF_TURN
    Py_XDECREF(irqfd);
    Py_XDECREF(ctx);
    OUT_OF_TURN_END
    tell_progress(top_half);
    top_half_exit(top_half, entered);
}

/* The handler has returned: inject. */
static void
deliver(native_state *state, ReadyRunObject *self)
{
    EventFdCtxObject *ctx = self->ctx;
    bool taken = false;
    PyObject *handler = self->handler;
    self->handler = NULL;
    if (HAS_FLIGHT(self->top_half)) {
        flight_put(self->top_half, flight_now(), FLIGHT_HANDLER_ENDED, ctx, self->count);
    }
    turn_drop(handler);
    bool entered = top_half_enter(self->top_half);
    /* Perhaps deassigned and assigned anew while the handler ran: the interrupt that is cached now is another irqfd's. */
    PyObject *interrupt =
        ctx_is_at(ctx, self->top_half) && ctx->run == self && ctx->drain != NULL ? top_half_interrupt(ctx) : NULL;
    if (interrupt != NULL) {
        DrainObject *drain = (DrainObject *)Py_NewRef(ctx->drain);
        Py_INCREF(interrupt);
        bool nested = drain->dispatching;
        SAY(drain->dispatching, true); /* what the sink signals comes later: it is not entered from within itself */
        taken = top_half_try(self->top_half, interrupt);
        SAY(drain->dispatching, nested);
        OUT_OF_TURN
        Py_DECREF(interrupt);
        Py_DECREF(drain);
        OUT_OF_TURN_END
    }
    if (taken) {
        top_half_count_fast(self->top_half, ctx);
        if (HAS_FLIGHT(self->top_half)) {
            flight_put(self->top_half, flight_now(), FLIGHT_INJECTED, ctx, self->count);
        }
    } else {
        irqfd_call(self->irqfd, state->str_rest, self->count);
    }
    leave(state, self);
    top_half_exit(self->top_half, entered);
}

/* The handler has raised, the exception is set. 0: dealt with; -1: it is the worker's, and set again. */
static int
fail(native_state *state, ReadyRunObject *self)
{
    PyObject *error = native_raised();
    if (HAS_FLIGHT(self->top_half)) {
        flight_put(self->top_half, flight_now(), FLIGHT_HANDLER_RAISED, self->ctx, self->count);
    }
    bool entered = top_half_enter(self->top_half);
    PyObject *irqfd = self->irqfd;
    uint64_t told = self->count;
    int is_ours;
    OUT_OF_TURN
    PyObject *count = PyLong_FromUnsignedLongLong(told);
    PyObject *ours =
        count == NULL ? NULL : PyObject_CallMethodObjArgs(irqfd, state->str_handler_failed, error, count, NULL);
    is_ours = ours != NULL ? PyObject_IsTrue(ours) : 0;
    if (ours == NULL || is_ours < 0) {
        PyErr_WriteUnraisable(irqfd);
    }
    Py_XDECREF(ours);
    Py_XDECREF(count);
    OUT_OF_TURN_END
    leave(state, self);
    top_half_exit(self->top_half, entered);
    if (is_ours > 0) {
        turn_drop(error);
        return 0;
    }
    native_raise(error);
    return -1;
}

/* Call the handler, and take its first step, both in the run's own context. */
static PySendResult
first_step(ReadyRunObject *self, PyObject **value)
{
    EventFdCtxObject *ctx = self->ctx;
    PyObject *number = PyLong_FromUnsignedLongLong(self->count);
    PyObject *handler = Py_NewRef(ctx->handler), *who = Py_NewRef(ctx->who);
    PyObject *args[] = {who, number};
    PyObject *mine = self->top_half->context;
    bool copied = mine != NULL && mine != Py_None;
    PyObject *context = copied ? PyContext_Copy(mine) : NULL;
    PySendResult sent = PYGEN_ERROR;
    self->context = Py_XNewRef(context);
    OUT_OF_TURN
    if (number != NULL && (context != NULL || !copied)) {
        bool entered = native_enter(context);
        PyObject *coroutine = PyObject_Vectorcall(handler, args, 2, NULL);
        PyObject *steps = coroutine != NULL ? native_iterator_of(coroutine) : NULL;
        SAY(self->handler, steps); /* out of turn, but nothing was there before */
        if (steps != NULL) {
            sent = PyIter_Send(steps, Py_None, value);
        }
        native_exit(context, entered);
        Py_XDECREF(coroutine);
    }
    Py_XDECREF(context);
    Py_DECREF(handler);
    Py_DECREF(who);
    Py_XDECREF(number);
    OUT_OF_TURN_END
    return sent;
}

static bool
slice_is_over(ReadyRunObject *self)
{
    if (self->unlooked > 0) {
        self->unlooked--;
        return false;
    }
    int64_t now = monotonic_ns();
    if (self->ends == 0) {
        self->ends = now + SLICE_NS;
        self->stride = 1;
    } else if (now >= self->ends) {
        return true;
    } else if (now - self->looked > QUICK_NS) {
        self->stride = 1;
    } else if (self->stride < MOST_UNLOOKED) {
        self->stride *= 2;
    }
    self->looked = now;
    self->unlooked = self->stride - 1;
    return false;
}

/* Begin the next handler: true, with what its first step gave; false when none is left or the slice is over. */
static bool
begin(native_state *state, ReadyRunObject *self, PySendResult *sent, PyObject **value)
{
    TopHalfObject *top_half = self->top_half;
    if (slice_is_over(self)) {
        return false;
    }
    EventFdCtxObject *ctx;
    while ((ctx = lane_next(top_half)) != NULL) {
        uint64_t count = ctx->taken;
        ctx->taken = 0;
        if (ctx->handler != NULL && top_half_interrupt(ctx) != NULL) {
            self->ctx = ctx;
            self->irqfd = Py_NewRef(ctx->irqfd);
            self->count = count;
            ctx->run = self;
            if (HAS_FLIGHT(top_half)) {
                flight_put(top_half, flight_now(), FLIGHT_HANDLER_BEGUN, ctx, count);
            }
            *sent = first_step(self, value);
            return true;
        }
        PyObject *irqfd = Py_XNewRef(ctx->irqfd);
        if (irqfd != NULL) {
            irqfd_hand(ctx, irqfd, state->str_defer, count);
            turn_drop(irqfd);
        }
        turn_drop(ctx);
        tell_progress(top_half);
    }
    return false;
}

static PySendResult
proceed(native_state *state, ReadyRunObject *self, PySendResult sent, PyObject *value, PyObject **result)
{
    for (;;) {
        if (sent == PYGEN_NEXT) {
            *result = value;
            return PYGEN_NEXT;
        }
        if (sent == PYGEN_RETURN) {
            Py_XDECREF(value);
            deliver(state, self);
        } else if (fail(state, self) < 0) {
            return PYGEN_ERROR;
        }
        value = NULL;
        if (!begin(state, self, &sent, &value)) {
            *result = Py_NewRef(Py_None);
            return PYGEN_RETURN;
        }
    }
}

static PySendResult
ready_run_send_now(PyObject *op, PyObject *arg, PyObject **result)
{
    ReadyRunObject *self = (ReadyRunObject *)op;
    native_state *state = native_state_of_final(op);
    PyObject *value = NULL;
    PySendResult sent = PYGEN_ERROR;
    *result = NULL;
    if (state == NULL) {
        return PYGEN_ERROR;
    }
    /* Once for all the handlers of this turn: what is called between their steps is the manager's. */
    TopHalfObject *top_half = (TopHalfObject *)Py_NewRef(self->top_half);
    bool entered = top_half_enter(top_half);
    bool begun = true;
    if (self->handler == NULL) {
        begun = begin(state, self, &sent, &value);
    } else {
        self->unlooked = 0; /* who knows how long it has waited */
        sent = step(self, arg, &value);
    }
    if (begun) {
        sent = proceed(state, self, sent, value, result);
    } else {
        *result = Py_NewRef(Py_None);
        sent = PYGEN_RETURN;
    }
    top_half_exit(top_half, entered);
    turn_drop(top_half);
    return sent;
}

static PySendResult
ready_run_send_slot(PyObject *op, PyObject *arg, PyObject **result)
{
    PySendResult sent;
    IN_TURN_OF(op, ready_run_turn)
    sent = ready_run_send_now(op, arg, result);
    IN_TURN_END
    return sent;
}

static PyObject *
ready_run_throw_now(PyObject *op, PyObject *const *args, Py_ssize_t nargs)
{
    ReadyRunObject *self = (ReadyRunObject *)op;
    native_state *state = native_state_of_final(op);
    if (state == NULL) {
        return NULL;
    }
    if (nargs < 1 || nargs > 3) {
        PyErr_SetString(PyExc_TypeError, "throw() takes one to three arguments");
        return NULL;
    }
    PyObject *handler = self->handler, *method;
    OUT_OF_TURN
    method = handler != NULL ? PyObject_GetAttr(handler, state->str_throw) : NULL;
    if (method == NULL) {
        PyErr_Clear();
        if (PyExceptionInstance_Check(args[0])) {
            PyErr_SetObject((PyObject *)Py_TYPE(args[0]), args[0]);
        } else {
            PyErr_SetObject(args[0], nargs > 1 ? args[1] : NULL);
        }
    }
    OUT_OF_TURN_END
    if (method == NULL) {
        if (self->handler != NULL && fail(state, self) == 0) {
            return native_next(op);
        }
        return NULL;
    }
    PyObject *context = Py_XNewRef(self->context);
    PyObject *value;
    OUT_OF_TURN
    bool entered = native_enter(context);
    value = PyObject_Vectorcall(method, args, (size_t)nargs, NULL);
    native_exit(context, entered);
    Py_XDECREF(context);
    Py_DECREF(method);
    OUT_OF_TURN_END
    PySendResult sent = PYGEN_NEXT;
    if (value == NULL) {
        sent = PYGEN_ERROR;
        if (PyErr_ExceptionMatches(PyExc_StopIteration)) {
            PyErr_Clear();
            sent = PYGEN_RETURN;
        }
    }
    PyObject *result = NULL;
    sent = proceed(state, self, sent, value, &result);
    return native_answer(sent, result);
}
VECTORCALL_IN_TURN(ready_run_throw, ready_run_turn)

static PyObject *
ready_run_close_now(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    ReadyRunObject *self = (ReadyRunObject *)op;
    native_state *state = native_state_of_final(op);
    if (state == NULL) {
        return NULL;
    }
    if (self->handler != NULL) {
        PyObject *context = Py_XNewRef(self->context), *handler = self->handler;
        OUT_OF_TURN
        bool entered = native_enter(context);
        (void)native_call_method(handler, state->str_close, NULL);
        native_exit(context, entered);
        Py_XDECREF(context);
        OUT_OF_TURN_END
        if (self->irqfd != NULL) {
            /* Not injected: it is the irqfd's again, and its owner's to give back. */
            irqfd_call(self->irqfd, state->str_defer, self->count);
        }
        leave(state, self);
    }
    Py_RETURN_NONE;
}
METHOD_IN_TURN(ready_run_close, ready_run_turn)

static int
ready_run_traverse(PyObject *op, visitproc visit, void *arg)
{
    ReadyRunObject *self = (ReadyRunObject *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->top_half);
    Py_VISIT(self->task);
    Py_VISIT(self->ctx);
    Py_VISIT(self->irqfd);
    Py_VISIT(self->handler);
    Py_VISIT(self->context);
    return 0;
}

static int
ready_run_clear(PyObject *op)
{
    ReadyRunObject *self = (ReadyRunObject *)op;
    if (self->ctx != NULL) {
        IN_TURN_OF((PyObject *)self->ctx, eventfd_ctx_turn)
        if (self->ctx->run == self) {
            self->ctx->run = NULL;
        }
        IN_TURN_END
    }
    Py_CLEAR(self->ctx);
    Py_CLEAR(self->irqfd);
    Py_CLEAR(self->handler);
    Py_CLEAR(self->context);
    Py_CLEAR(self->task);
    Py_CLEAR(self->top_half);
    return 0;
}

static PyObject *
ready_run_of_handler(PyObject *op, void *what)
{
    PyObject *handler;
    IN_TURN_OF(op, ready_run_turn)
    handler = Py_XNewRef(SEEN(((ReadyRunObject *)op)->handler));
    IN_TURN_END
    PyObject *answer = native_of_awaited(handler, (const char *)what);
    Py_XDECREF(handler);
    return answer;
}

static PyGetSetDef ready_run_getset[] = {NATIVE_OF_AWAITED(ready_run_of_handler)};

static PyMethodDef ready_run_methods[] = {
    {"send", native_send, METH_O, PyDoc_STR("As of a coroutine.")},
    {"throw", NATIVE_METHOD(ready_run_throw), METH_FASTCALL, PyDoc_STR("As of a coroutine.")},
    {"close", ready_run_close, METH_NOARGS, PyDoc_STR("As of a coroutine.")},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot ready_run_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("What TopHalf.run_ready() returns.")},
    {Py_tp_traverse, (void *)ready_run_traverse},
    {Py_tp_clear, (void *)ready_run_clear},
    {Py_tp_dealloc, (void *)native_dealloc},
    {Py_tp_methods, ready_run_methods},
    {Py_tp_getset, ready_run_getset},
    {Py_tp_iter, (void *)native_self},
    {Py_tp_iternext, (void *)native_next},
    {Py_am_await, (void *)native_self},
    {Py_am_send, (void *)ready_run_send_slot},
    {0, NULL},
};

PyType_Spec ready_run_spec = {
    .name = "aioirqfd.counter.ReadyRun",
    .basicsize = sizeof(ReadyRunObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = ready_run_slots,
};
