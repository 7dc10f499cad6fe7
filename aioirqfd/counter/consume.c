/* What a dispatch takes: of what was counted in this process, and of the kernel's counter, which is mostly left as it is.

   Tempting, and wrong:
   - to read the kernel's counter at every event. It costs as much as all the rest, and tells nothing that an irqfd wants to know.
   - to leave it unread when it may be full: with no room for 1 the next writer is refused, or waits (E08, E17). So where counts
     stay unread, events tell of room too. */
#include "_native.h"

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
        native_unraisable((PyObject *)ctx);
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
                drain_post(ctx);
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
                drain_post(ctx);
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
