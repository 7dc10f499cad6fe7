/* Counts that were left unread: where nobody asks for the count, an irqfd is injected at each event without a read(2). What is left
   in the kernel's counter then is read some time later, or when somebody has to know how things stand. */
#include "_native.h"

#include <sys/timerfd.h>

/* They stay unread for so long at most. A timerfd, because a timer of the loop's own would make every turn of an asyncio loop dearer. */
#define AFTER_NS 50000000

void
unread_read_later(const DrainObject *drain)
{
    const struct itimerspec once = {.it_value = {.tv_nsec = AFTER_NS}};
    (void)timerfd_settime(drain->timerfd, 0, &once, NULL);
}

void
unread_mark(DrainObject *drain, EventFdCtxObject *ctx)
{
    if (ctx->in_unread || drain == NULL) {
        return;
    }
    if (fifo_put(&drain->unread, ctx) < 0) {
        native_unraisable((PyObject *)ctx);
        return;
    }
    ctx->in_unread = true;
    if (fifo_len(&drain->unread) == 1) {
        unread_read_later(drain);
    }
}

/* Empty the eventfd and return what of it was not injected yet (0: nothing is owed). Exact although the kernel's counter may hold
   what was injected without a read: what it held before a collect that brought no event is old, the rest is new.

   Tempting, and wrong: to read it before the collect, which would need no look into fdinfo. epoll reports an event only while the
   count is there, so the read would take what the collect is asked about. Where fdinfo cannot be read (it takes a descriptor, and
   /proc), all of it counts as new: rather injected twice than lost. */
int
unread_read(DrainObject *self, EventFdCtxObject *ctx, uint64_t *owed)
{
    uint64_t old = 0;
    uint64_t value = 0;
    long id;
    int semaphore;
    *owed = 0;
    if (ctx->seen != SEEN_NOTHING && eventfd_peek(ctx->fd, &old, &id, &semaphore) != 1) {
        old = 0;
    }
    if (drain_collect(self) < 0) {
        return -1;
    }
    bool due = mailbox_discharge(&ctx->node);
    ctx->event = ctx->fresh = ctx->full = false;
    bool by_ones = eventfd_ctx_by_ones(ctx);
    uint64_t total = by_ones ? counter_take_one(&ctx->count) : counter_take(&ctx->count);
    bool unknown = !(by_ones && total > 0) && eventfd_ctx_read(ctx, SEMAPHORE_AT_MOST, &value) < 0;
    ctx->signals += total + value;
    if (due && unknown && total == 0) {
        value = 1; /* nobody else has read it */
    }
    if (!due && by_ones) {
        /* One of its rest, which is owed no injection (P05); unless it was written since the first look. */
        if (drain_collect(self) < 0) {
            return -1;
        }
        if (!mailbox_discharge(&ctx->node)) {
            total = value = 0;
        }
        ctx->event = false;
    } else if (!due && ctx->seen != SEEN_NOTHING) {
        value = value > old ? value - old : 0;
    }
    ctx->seen = SEEN_NOTHING;
    /* 0 although it was due: somebody else has read it meanwhile. */
    *owed = value > UINT64_MAX - total ? UINT64_MAX : total + value;
    return 0;
}

/* Read up to `limit` of the counts that were left unread; return how many are still to do. */
Py_ssize_t
unread_read_some(DrainObject *self, Py_ssize_t limit)
{
    EventFdCtxObject *ctx;
    for (limit = Py_MIN(limit, fifo_len(&self->unread)); limit > 0 && (ctx = fifo_next(&self->unread)) != NULL;
         limit--) {
        uint64_t owed = 0;
        if (ctx_is_of(ctx, self)) { /* or it is gone; perhaps it is in another drain's */
            ctx->in_unread = false;
            /* Unless it was read in the meantime, or an event is about to be dispatched, which marks it anew. What is signalled in
               this process does not: a dispatch of that alone would leave the count unread for ever. */
            if (!self->dead && ctx->seen == SEEN_UNREAD && !(ctx->event && mailbox_is_owed(&ctx->node)) &&
                unread_read(self, ctx, &owed) == 0 && owed > 0) {
                eventfd_ctx_put_back(ctx, owed);
                if (mailbox_owe(&ctx->node)) {
                    drain_post(ctx);
                }
            }
        }
        turn_drop(ctx);
    }
    if (fifo_len(&self->unread) > 0 && !self->dead) {
        unread_read_later(self);
    }
    return fifo_len(&self->unread);
}
