/* What a manager holds: irqfds that are owed an injection while it is paused, or while its queue is full. Oldest first. */
#include "_native.h"

/* Keep the irqfd, still owed, until the manager resumes or its queue has room. */
void
top_half_hold(TopHalfObject *top_half, EventFdCtxObject *ctx)
{
    if (ctx->held) {
        return;
    }
    ctx->held_at = top_half->held.tail;
    if (fifo_put(&top_half->held, ctx) < 0) {
        native_unraisable((PyObject *)ctx);
        return;
    }
    ctx->held = true;
    top_half->held_count++;
    if (HAS_FLIGHT(top_half)) {
        flight_put(top_half, flight_now(), FLIGHT_HELD, ctx, 0);
    }
}

/* It is being unbound: the next manager has to hold it anew. The caller's reference keeps it alive. */
void
top_half_unhold(EventFdCtxObject *ctx)
{
    if (ctx->held) {
        ctx->held = false;
        ctx->top_half->held_count--;
        Py_DECREF(fifo_take(&ctx->top_half->held, ctx->held_at));
    }
}

/* The oldest that is held, and is so no more: the fifo's reference; NULL when there is none. */
EventFdCtxObject *
top_half_next_held(TopHalfObject *top_half)
{
    EventFdCtxObject *ctx = fifo_next(&top_half->held);
    if (ctx != NULL) {
        ctx->held = false;
        top_half->held_count--;
    }
    return ctx;
}
