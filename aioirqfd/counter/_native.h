/* What the files of the native counter module share: its state and the layout of its types. */
#ifndef AIOIRQFD_NATIVE_H
#define AIOIRQFD_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_core.h"
#include "_fifo.h"
#include "_flight.h"
#include "_turn.h"

/* A function of the vectorcall kind for a table of methods; it is called as what its flags say. */
#define NATIVE_METHOD(function) ((PyCFunction)(void (*)(void))(function))

/* Its types, and the names that it looks up. */
#define NATIVE_TYPES(X) X(counter) X(eventfd_ctx) X(top_half) X(drain) X(ready_run) X(stepped) X(flight_ring)
#define NATIVE_NAMES(X) X(wakeup) X(defer) X(_on_ready) X(rest) X(left) X(handler_failed) X(throw) X(close)

typedef struct {
#define TYPE_FIELD(name) PyTypeObject *name##_type;
#define NAME_FIELD(name) PyObject *str_##name;
    NATIVE_TYPES(TYPE_FIELD)
    NATIVE_NAMES(NAME_FIELD)
    PyObject *would_block;  /* aioirqfd.errors.WouldBlock */
    PyObject *closed_error; /* aioirqfd.errors.ClosedError */
} native_state;

extern struct PyModuleDef native_module;

static inline native_state *
native_state_of(PyObject *module)
{
    return (native_state *)PyModule_GetState(module);
}

/* By an object of a type that has no subclasses. */
static inline native_state *
native_state_of_final(void *self)
{
    return (native_state *)PyType_GetModuleState(Py_TYPE((PyObject *)self));
}

/* By any: an eventfd's may be a Python subclass, which takes a walk along its bases. */
static inline native_state *
native_state_of_object(PyObject *self)
{
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(self), &native_module);
    return module != NULL ? native_state_of(module) : NULL;
}

typedef struct drain_object DrainObject;
typedef struct top_half_object TopHalfObject;
typedef struct ready_run_object ReadyRunObject;
typedef struct flight_ring_object FlightRingObject;

/* What of an eventfd's kernel count was injected already, and is left in place for the time being. */
enum seen {
    SEEN_NOTHING = 0,  /* whatever the eventfd holds is news */
    SEEN_LEFTOVER = 1, /* there at assign time and injected once; stays until the next write (P01, P03, P04) */
    SEEN_UNREAD = 2,   /* injected without a read, to save the system call */
};

/* The in-process half of an eventfd (the kernel's struct eventfd_ctx), base class of aioirqfd.EventFd.
   The counter and the node are any thread's. What is under `place` says so; all the rest is the loop's, see _turn.h. */
struct eventfd_ctx_object {
    PyObject_HEAD
    PyObject *weakrefs;
    counter_t count; /* signals of this process that are not in the kernel's counter; only while listening */
    mailbox_node_t node;
    LEAF(place)
    DrainObject *posted_to;  /* place: borrowed; whose mailbox the node hangs in, of meaning only while it is linked */
    DrainObject *drain;      /* place and turn: strong, while registered */
    TURN(turn)               /* place: strong; of the loop where it was registered last */
    TopHalfObject *top_half; /* strong, while bound to an irqfd */
    PyObject *irqfd;         /* strong, while bound */
    PyObject *route;     /* strong: the cell with its gsi's Interrupt, which is emptied when the gsi goes elsewhere, or
                                NULL: IrqFd is to be asked. Only while bound */
    PyObject *handler;   /* strong: the one coroutine wakeup handler that the counter module runs itself, or NULL */
    PyObject *who;       /* strong: what the handler is called with, or NULL */
    uint64_t taken;      /* counted for the handler, not given to it yet */
    ReadyRunObject *run; /* borrowed, while bound: where the handler runs just now */
    uint64_t signals;    /* counted out of the counters so far */
    uint64_t wakeups;    /* dispatches to the irqfd */
    uint64_t fast;       /* of these, taken by the sink at once */
    uint32_t gsi;        /* for the flight ring */
    int fd;              /* place and turn: -1 once closed */
    uint32_t index;      /* slot in the drain */
    uint32_t generation; /* of that slot */
    uint32_t held_at;    /* its place in top_half->held, while held */
    bool semaphore;
    bool listening;     /* place: somebody in this process hears the signals: count them here, not in the kernel */
    bool want_count;    /* a handler asks for the count: read at every event */
    bool event;         /* an epoll event was taken and not dispatched yet: the kernel's counter is to be looked at */
    bool fresh;         /* the next event stems from a count that was there at assign time */
    bool asks_room;     /* registered for EPOLLOUT too, so that an event tells whether the kernel's counter is full */
    bool full;          /* it was: read it, or the next writer is refused */
    bool held;          /* in top_half->held */
    bool queued;        /* in top_half->lane */
    bool in_unread;     /* in drain->unread */
    bool unreadable;    /* a read has failed, and was reported */
    unsigned char seen; /* enum seen */
};

/* An irqfd on its way through the fast path. */
typedef struct {
    EventFdCtxObject *ctx; /* strong */
    PyObject *irqfd;       /* strong, from the moment the count was consumed */
    uint64_t count;
} batch_entry;

/* One per manager: takes ready irqfds, tries the sink at once, defers the rest to IrqFd. */
struct top_half_object {
    PyObject_HEAD
    PyObject *try_inject;       /* callable or NULL */
    PyObject *try_inject_batch; /* callable or NULL */
    PyObject *on_error;         /* callable, gets the exception of a fast path that raised */
    batch_entry *batch;
    Py_ssize_t batch_len, batch_cap;
    ctx_fifo held;            /* owed, but the manager is paused or its queue full */
    Py_ssize_t held_count;    /* of these, such as are held yet */
    ctx_fifo lane;            /* signalled irqfds whose handler is to run */
    Py_ssize_t room;          /* how many there may be in it */
    PyObject *on_ready;       /* callable or NULL: there are new ones */
    PyObject *on_progress;    /* callable or NULL: one of them is done; called while watched */
    PyObject *context;        /* strong: in which all of the manager's is called; NULL or None: as it comes */
    PyObject *entered;        /* strong: the context that it is in, by top_half_enter() */
    FlightRingObject *flight; /* strong, or NULL */
    TURN(turn)                /* strong: of its manager's loop, from the first irqfd on */
    unsigned short source;    /* the flight ring's number of this manager */
    bool watched;
    TopHalfObject *touched_next; /* chain of one pass, strong */
    bool touched;
    bool has_new; /* on_ready is to be called at the end of the pass */
    bool paused;
    bool full;
};

/* What may be injected for it without asking IrqFd, borrowed; NULL: nothing. Any call may change it. (And none that is not here: what
   is in a cell of a manager's routes is changed on its loop's thread alone.) */
static inline PyObject *
top_half_interrupt(const EventFdCtxObject *ctx)
{
    return ctx->route != NULL && !ctx->top_half->paused ? PyCell_GET(ctx->route) : NULL;
}

/* The awaitable in which a worker runs the handlers of its manager's lane; see lane.c. */
struct ready_run_object {
    PyObject_HEAD
    TopHalfObject *top_half; /* strong */
    PyObject *task;          /* strong: whose await this is */
    EventFdCtxObject *ctx;   /* strong, while its handler runs */
    PyObject *irqfd;         /* strong, likewise */
    PyObject *handler;       /* strong: the iterator of the handler's coroutine */
    PyObject *context;       /* strong, likewise: a copy of the manager's, this run's own; NULL: as it comes */
    uint64_t count;          /* what the handler was given */
    int64_t ends;            /* of the slice; 0: not begun */
    int64_t looked;          /* at the clock, last */
    unsigned int stride;     /* handlers between two looks */
    unsigned int unlooked;   /* that may still begin before the next */
};

typedef struct {
    EventFdCtxObject *ctx; /* borrowed: the ctx leaves the drain before it dies */
#ifdef Py_GIL_DISABLED
    PyObject *ref; /* strong: a weak reference to it; its last reference may be dropped while it is looked up */
#endif
    uint32_t generation; /* counts the slot's tenants, so that a stale event finds nobody */
    uint32_t next_free;
} drain_slot;

/* One private epoll, and the mailbox that in-process signals of other threads come through. */
struct drain_object {
    PyObject_HEAD
    int epfd;
    int wakefd;
    int timerfd;            /* rings when counts have been left unread for a while */
    PyObject *loop;         /* strong: the loop that runs it, or NULL: then its thread is whichever ran it last */
    PyObject *running_loop; /* strong: asyncio's function of that name, or NULL likewise */
    PyObject
        *current_task;  /* strong: likewise, or asyncio's dict of them, which is cheaper to ask; NULL: nobody sleeps */
    uint64_t era;       /* of the thread in which the loop was last seen running; see drain_is_here() */
    uint64_t other_era; /* of the thread in which it was last seen not to */
    uint64_t step_era;  /* of asyncio's dict of running tasks when it was last looked at; see drain_nudge() */
    bool in_step;       /* and whether the loop was in it */
    unsigned long thread; /* PyThread_get_thread_ident() of who ran it last */
    bool dispatching;
    bool passing; /* in run(), which the loop itself has called: it is awake */
    bool nudged;  /* woken by drain_nudge(), and not come round since */
    TURN(turn)    /* strong */
    LEAF(mail)
    bool dead; /* mail and turn: closed, or inherited by a forked child; so is wakefd closed */
    mailbox_t mailbox;
    mailbox_node_t *backlog; /* mail: taken from the mailbox, not dispatched yet; oldest first */
    mailbox_node_t *backlog_tail;
    drain_slot *slots;
    uint32_t slots_cap, free_head;
    uint32_t *by_fd; /* slot of who registered that fd number last */
    size_t by_fd_cap;
    Py_ssize_t attached;
    int max_events;
    struct epoll_event *events; /* max_events */
    EventFdCtxObject **ready;   /* 2 * max_events */
    ctx_fifo unread;            /* whose count was left unread */
};

/* counter.c */
extern PyType_Spec counter_spec;
int native_u64_within(PyObject *object, uint64_t low, uint64_t high, const char *high_text, const char *what,
                      uint64_t *value);
int native_u64_from(PyObject *object, uint64_t low, const char *what, uint64_t *value);

/* fd.c */
int eventfd_has_count(int fd);
int eventfd_read_now(int fd, uint64_t *value);
int eventfd_peek(int fd, uint64_t *count, long *id, int *semaphore);
int eventfd_add(int fd, uint64_t n, uint64_t *added);

/* consume.c */
/* A semaphore is read one at a time, which takes some 200 ns each: so many of whoever counts them in one dispatch, and so many where
   it is to be emptied. What is beyond that stays in the eventfd: nobody can be made to read 2**64 ones. */
#define SEMAPHORE_AT_ONCE UINT64_C(256)
#define SEMAPHORE_AT_MOST (UINT64_C(1) << 20)
bool eventfd_ctx_by_ones(const EventFdCtxObject *ctx);
int eventfd_ctx_read(EventFdCtxObject *ctx, uint64_t most, uint64_t *value);
bool eventfd_ctx_consume(EventFdCtxObject *ctx, bool exact, uint64_t *count);
void eventfd_ctx_put_back(EventFdCtxObject *ctx, uint64_t n);

/* eventfd_ctx.c */
extern PyType_Spec eventfd_ctx_spec;
PyObject *eventfd_ctx_signal(PyObject *op, PyObject *const *args, Py_ssize_t nargs);
#ifdef Py_GIL_DISABLED
turn_t *eventfd_ctx_turn(PyObject *op);
turn_t *top_half_turn(PyObject *op);
turn_t *ready_run_turn(PyObject *op);
turn_t *drain_turn(PyObject *op);
#endif

void native_unraisable(PyObject *about); /* calls.c */

/* Whether the context was entered; NULL or None: as it comes. */
static inline bool
native_enter(PyObject *context)
{
    if (context == NULL || context == Py_None) {
        return false;
    }
    if (PyContext_Enter(context) < 0) {
        native_unraisable(context);
        return false;
    }
    return true;
}

/* The other half; an exception that is set stays. */
static inline void
native_exit(PyObject *context, bool entered)
{
    if (entered && PyContext_Exit(context) < 0) {
        native_unraisable(context);
    }
}

/* calls.c */
PyObject *native_raised(void);
void native_raise(PyObject *error);
int native_call(PyObject *callable, PyObject *argument);
int native_call_method(PyObject *object, PyObject *name, PyObject *argument);
void native_dealloc(PyObject *op);

/* held.c */
void top_half_hold(TopHalfObject *top_half, EventFdCtxObject *ctx);
void top_half_unhold(EventFdCtxObject *ctx);
EventFdCtxObject *top_half_next_held(TopHalfObject *top_half);

/* top_half.c */
extern PyType_Spec top_half_spec;
bool top_half_enter(TopHalfObject *top_half);
void top_half_exit(TopHalfObject *top_half, bool entered);
bool top_half_inject(native_state *state, EventFdCtxObject *ctx);
int top_half_batch(TopHalfObject *top_half, EventFdCtxObject *ctx);
int top_half_try(TopHalfObject *top_half, PyObject *interrupt);
int irqfd_call(PyObject *irqfd, PyObject *method, uint64_t count);
void irqfd_hand(EventFdCtxObject *ctx, PyObject *irqfd, PyObject *method, uint64_t count);
void top_half_flush(native_state *state, TopHalfObject *top_half);
void top_half_one(native_state *state, EventFdCtxObject *ctx);
void top_half_wakeup(native_state *state, EventFdCtxObject *ctx);

/* flight_ring.c */
/* -DAIOIRQFD_NO_FLIGHT leaves the recorder's hooks out, so that the benchmark can say what they cost. */
#ifdef AIOIRQFD_NO_FLIGHT
#    define HAS_FLIGHT(top_half) ((void)(top_half), false)
#else
#    define HAS_FLIGHT(top_half) ((top_half)->flight != NULL)
#endif
extern PyType_Spec flight_ring_spec;
void flight_put(const TopHalfObject *top_half, uint64_t time_ns, enum flight_kind kind, const EventFdCtxObject *ctx,
                uint64_t count);

/* lane.c */
extern PyType_Spec ready_run_spec;
void lane_put(TopHalfObject *top_half, EventFdCtxObject *ctx);
EventFdCtxObject *lane_next(TopHalfObject *top_half);
void lane_tell_new(TopHalfObject *top_half);
PyObject *ready_run_new(native_state *state, TopHalfObject *top_half, PyObject *task);

/* stepped.c */
extern PyType_Spec stepped_spec;
PyObject *native_iterator_of(PyObject *awaited);
PyObject *native_answer(PySendResult sent, PyObject *value);
PyObject *native_send(PyObject *op, PyObject *arg);
PyObject *native_next(PyObject *op);
PyObject *native_self(PyObject *op);
PyObject *native_of_awaited(PyObject *awaited, const char *what);
/* Debuggers, and whoever draws a task's call graph, follow the chain of awaits from one coroutine to the next. An awaitable of ours has
   no frame to show, so it shows that of what it awaits, in the place of that: neither does the chain end there, nor has it a hole. */
#define NATIVE_OF_AWAITED(get)                                                                                         \
    {"cr_await", get, NULL, PyDoc_STR("What it waits for, as of a coroutine."), (void *)"await"},                      \
        {"cr_code", get, NULL, PyDoc_STR("The code of what it awaits."), (void *)"code"},                              \
        {"cr_frame", get, NULL, PyDoc_STR("The frame of what it awaits."), (void *)"frame"},                           \
    {                                                                                                                  \
        NULL, NULL, NULL, NULL, NULL                                                                                   \
    }

/* mail.c */
void drain_wake(const DrainObject *drain);
void drain_post(EventFdCtxObject *ctx);
void drain_post_in_place(EventFdCtxObject *ctx);
void drain_withdraw_in_place(EventFdCtxObject *ctx);
void drain_take_mail(DrainObject *self);
bool drain_has_mail(DrainObject *self);
EventFdCtxObject *drain_next_mail(DrainObject *self);
void drain_release_mail(DrainObject *self);
int drain_visit_mail(DrainObject *self, visitproc visit, void *arg);

/* Whether it is registered there; asked of one that may be another loop's by now. */
static inline bool
ctx_is_of(const EventFdCtxObject *ctx, const DrainObject *drain)
{
    return SEEN(ctx->drain) == drain;
}

/* The same of its manager. */
static inline bool
ctx_is_at(const EventFdCtxObject *ctx, const TopHalfObject *top_half)
{
    return SEEN(ctx->top_half) == top_half;
}

/* Taken by the sink at once; which may have moved it to another loop in the same breath. */
static inline void
top_half_count_fast(const TopHalfObject *top_half, EventFdCtxObject *ctx)
{
    if (ctx_is_at(ctx, top_half)) {
        ctx->fast++;
    }
}

/* tenants.c */
#define NO_SLOT UINT32_MAX
int drain_settle(DrainObject *self, EventFdCtxObject *ctx);
EventFdCtxObject *drain_tenant(const drain_slot *slot);
EventFdCtxObject *drain_tenant_of(const DrainObject *self, uint64_t data);
void drain_forget(EventFdCtxObject *ctx);

/* drain.c */
extern PyType_Spec drain_spec;
void drain_nudge(DrainObject *drain);
void drain_ask_room(EventFdCtxObject *ctx);
int drain_collect(DrainObject *self);
bool drain_is_here(DrainObject *drain);

/* unread.c */
/* So many are read in one go; some microseconds each. */
#define UNREAD_AT_ONCE 256
void unread_mark(DrainObject *drain, EventFdCtxObject *ctx);
void unread_read_later(const DrainObject *drain);
int unread_read(DrainObject *self, EventFdCtxObject *ctx, uint64_t *owed);
Py_ssize_t unread_read_some(DrainObject *self, Py_ssize_t limit);

#endif
