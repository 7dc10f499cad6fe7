/* A drain's mail: what owes a dispatch there and was not found by its epoll. Posted by any thread, taken by the loop's.

   A node hangs in one drain's mail, or in none; while it does, that drain lives: to take a node out, a drain that goes takes the
   node's place. So whoever has the place and sees the node linked may go to that drain's mail, though it is only borrowed. */
#include "_native.h"

#include <errno.h>
#include <unistd.h>

static EventFdCtxObject *
ctx_of(mailbox_node_t *node)
{
    return (EventFdCtxObject *)((char *)node - offsetof(EventFdCtxObject, node));
}

void
drain_wake(const DrainObject *drain)
{
    const uint64_t one = 1;
    ssize_t put;
    do {
        put = write(drain->wakefd, &one, sizeof(one));
    } while (put < 0 && errno == EINTR);
}

/* Post an owed ctx to the drain where it is registered just now. Its place is the caller's. */
void
drain_post_in_place(EventFdCtxObject *ctx)
{
    DrainObject *drain = ctx->drain;
    if (drain == NULL) {
        return; /* its debt went when it left */
    }
    LEAF_LOCK(&drain->mail);
    if (!drain->dead && mailbox_link(&ctx->node)) {
        ctx->posted_to = drain;
        Py_INCREF(ctx);
        if (mailbox_push(&drain->mailbox, &ctx->node)) {
            drain_wake(drain);
        }
    }
    LEAF_UNLOCK(&drain->mail);
}

/* The same, from any thread. */
void
drain_post(EventFdCtxObject *ctx)
{
    LEAF_LOCK(&ctx->place);
    drain_post_in_place(ctx);
    LEAF_UNLOCK(&ctx->place);
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

/* Line up what was posted so far. */
void
drain_take_mail(DrainObject *self)
{
    LEAF_LOCK(&self->mail);
    take_mailbox(self);
    LEAF_UNLOCK(&self->mail);
}

/* Take a ctx out of the mail of the drain that it has left, so that it can be posted elsewhere; nothing if it hangs nowhere. Rare: it
   changed loops with a post under way. Perhaps not that drain's thread. Its place is the caller's. */
void
drain_withdraw_in_place(EventFdCtxObject *ctx)
{
    if (!mailbox_is_linked(&ctx->node)) {
        return;
    }
    DrainObject *self = ctx->posted_to;
    LEAF_LOCK(&self->mail);
    take_mailbox(self);
    mailbox_node_t *before = NULL;
    mailbox_node_t *node = self->backlog;
    while (node != NULL && node != &ctx->node) {
        before = node;
        node = node->next;
    }
    if (node != NULL) { /* or it is being taken just now, by who passes it on: see drain_next_mail() */
        if (before != NULL) {
            before->next = node->next;
        } else {
            self->backlog = node->next;
        }
        if (self->backlog_tail == node) {
            self->backlog_tail = before;
        }
        mailbox_unlink(node);
        Py_DECREF(ctx); /* the caller has one */
    }
    if (self->backlog != NULL && !self->dead) {
        drain_wake(self);
    }
    LEAF_UNLOCK(&self->mail);
}

/* The oldest that was lined up: the mail's reference, NULL when there is none. */
EventFdCtxObject *
drain_next_mail(DrainObject *self)
{
    for (;;) {
        LEAF_LOCK(&self->mail);
        mailbox_node_t *node = self->backlog;
        if (node != NULL) {
            self->backlog = node->next;
            if (self->backlog == NULL) {
                self->backlog_tail = NULL;
            }
        }
        LEAF_UNLOCK(&self->mail);
        if (node == NULL) {
            return NULL;
        }
        EventFdCtxObject *ctx = ctx_of(node);
        LEAF_LOCK(&ctx->place);
        mailbox_unlink(node);
#ifdef Py_GIL_DISABLED
        /* It has changed loops, and who added it there has found the node linked, and no more in the backlog. */
        bool gone = ctx->drain != NULL && ctx->drain != self;
        if (gone && mailbox_is_owed(node)) {
            drain_post_in_place(ctx);
        }
        LEAF_UNLOCK(&ctx->place);
        if (gone) {
            turn_drop(ctx);
            continue;
        }
#endif
        return ctx;
    }
}

/* Whether anything is there, lined up or not. */
bool
drain_has_mail(DrainObject *self)
{
    LEAF_LOCK(&self->mail);
    bool has = self->backlog != NULL || atomic_load(&self->mailbox.head) != NULL;
    LEAF_UNLOCK(&self->mail);
    return has;
}

void
drain_release_mail(DrainObject *self)
{
    drain_take_mail(self);
    EventFdCtxObject *ctx;
    while ((ctx = drain_next_mail(self)) != NULL) {
        turn_drop(ctx);
    }
}

/* For the collector, while which nobody posts: with the GIL held, or with the world stopped. */
int
drain_visit_mail(DrainObject *self, visitproc visit, void *arg)
{
    for (mailbox_node_t *node = self->backlog; node != NULL; node = node->next) {
        Py_VISIT(ctx_of(node));
    }
    for (mailbox_node_t *node = atomic_load(&self->mailbox.head); node != NULL; node = node->next) {
        Py_VISIT(ctx_of(node));
    }
    return 0;
}
