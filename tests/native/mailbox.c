/* _core.h under ThreadSanitizer, without Python: several signallers, one owner that sleeps when its mailbox is empty.

   What is held against it: the sums are exact; whoever owes a dispatch gets one after its last signal; no node hangs twice; a wake
   that is lost leaves the owner asleep, and the alarm ends the program. `make tsan` builds and runs it. */
#include "jitter.h"

#include "_core.h"
#include "check.h"

#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <unistd.h>

#define SIGNALLERS 4
#define NODES      3
#define SIGNALS    30000
#define ROUNDS     20000

/* The part of an EventFdCtx that several threads touch. */
typedef struct {
    counter_t count;
    mailbox_node_t node;
    /* How far each signaller has come with this one, stored before the signal. */
    _Atomic uint32_t published[SIGNALLERS];
    uint64_t taken;
    uint64_t dispatches;
    uint32_t seen[SIGNALLERS];
} ctx_t;

static ctx_t ctxs[NODES];
static mailbox_t mailbox;
static mailbox_node_t *backlog, *backlog_tail;
static sem_t wake; /* the wakefd: a post wakes, also before the wait */
static atomic_int running;
static atomic_ullong sent;

static ctx_t *
ctx_of(mailbox_node_t *node)
{
    return (ctx_t *)((char *)node - offsetof(ctx_t, node));
}

/* EventFdCtx.signal from another thread. */
static void
signal_from(ctx_t *ctx, int me, uint32_t turn, uint64_t n)
{
    atomic_store_explicit(&ctx->published[me], turn + 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&sent, counter_add(&ctx->count, n), memory_order_relaxed);
    if (mailbox_owe(&ctx->node) && mailbox_link(&ctx->node) && mailbox_push(&mailbox, &ctx->node)) {
        CHECK(sem_post(&wake) == 0);
    }
}

static void *
signaller(void *arg)
{
    int me = (int)(intptr_t)arg;
    for (uint32_t turn = 0; turn < SIGNALS; turn++) {
        signal_from(&ctxs[turn % NODES], me, turn, 1 + turn % 5);
    }
    if (atomic_fetch_sub(&running, 1) == 1) {
        CHECK(sem_post(&wake) == 0);
    }
    return NULL;
}

static void
dispatch(ctx_t *ctx)
{
    if (!mailbox_discharge(&ctx->node)) {
        return; /* dispatched in the meantime, by flush() */
    }
    uint64_t count = counter_take(&ctx->count);
    ctx->taken += count;
    ctx->dispatches++;
    for (int i = 0; i < SIGNALLERS; i++) {
        ctx->seen[i] = atomic_load_explicit(&ctx->published[i], memory_order_relaxed);
    }
}

/* One pass: a bounded number of posts, and the owner stays awake while some are left (Drain.run). */
static bool
pass(int limit)
{
    mailbox_node_t *chain = mailbox_pop_all(&mailbox);
    if (chain != NULL) {
        if (backlog_tail != NULL) {
            backlog_tail->next = chain;
        } else {
            backlog = chain;
        }
        while (chain->next != NULL) {
            chain = chain->next;
        }
        backlog_tail = chain;
    }
    while (backlog != NULL && limit-- > 0) {
        mailbox_node_t *node = backlog;
        backlog = node->next;
        if (backlog == NULL) {
            backlog_tail = NULL;
        }
        mailbox_unlink(node);
        dispatch(ctx_of(node));
    }
    return backlog != NULL;
}

static void
many_signallers_one_owner(void)
{
    pthread_t threads[SIGNALLERS];
    CHECK(sem_init(&wake, 0, 0) == 0);
    atomic_store(&running, SIGNALLERS);
    for (int i = 0; i < SIGNALLERS; i++) {
        CHECK(pthread_create(&threads[i], NULL, signaller, (void *)(intptr_t)i) == 0);
    }
    uint64_t passes = 0;
    bool more = false;
    for (;;) {
        if (!more) {
            CHECK(sem_wait(&wake) == 0);
        }
        /* Now and then somebody dispatches out of turn, as Drain.read_out does: the node stays linked, and owes nothing. */
        if (++passes % 3 == 0) {
            for (int i = 0; i < NODES; i++) {
                dispatch(&ctxs[i]);
            }
            sched_yield();
        }
        more = pass(2);
        if (!more && atomic_load(&running) == 0) {
            /* Whoever ended has posted before: one more look, after which nothing may be left. */
            while (pass(2)) {
            }
            break;
        }
    }
    for (int i = 0; i < SIGNALLERS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    uint64_t taken = 0;
    for (int i = 0; i < NODES; i++) {
        CHECK(!mailbox_is_owed(&ctxs[i].node));
        CHECK(!mailbox_is_linked(&ctxs[i].node));
        CHECK(counter_peek(&ctxs[i].count) == 0);
        CHECK(ctxs[i].dispatches > 0);
        for (int j = 0; j < SIGNALLERS; j++) {
            /* The last dispatch began after the last signal. */
            CHECK(ctxs[i].seen[j] == atomic_load(&ctxs[i].published[j]));
        }
        taken += ctxs[i].taken;
    }
    CHECK(taken == atomic_load(&sent));
    CHECK(atomic_load(&mailbox.head) == NULL);
    printf("mailbox: %d signals, %" PRIu64 " dispatches, sum %" PRIu64 "\n", SIGNALLERS * SIGNALS,
           ctxs[0].dispatches + ctxs[1].dispatches + ctxs[2].dispatches, taken);
    CHECK(sem_destroy(&wake) == 0);
}

/* In step: what is handed over is plain memory, and the owner polls, so that nothing but the mailbox itself orders the dispatch
   after its signal. ThreadSanitizer tells when it does not. */
static ctx_t lone;
static mailbox_t lone_mailbox;
static uint64_t letter;
static _Atomic uint64_t answered;

static void *
ping(void *arg)
{
    (void)arg;
    for (uint64_t turn = 1; turn <= SIGNALS; turn++) {
        letter = turn;
        CHECK(counter_add(&lone.count, 1) == 1);
        if (mailbox_owe(&lone.node) && mailbox_link(&lone.node)) {
            (void)mailbox_push(&lone_mailbox, &lone.node);
        }
        while (atomic_load_explicit(&answered, memory_order_acquire) != turn) {
        }
    }
    return NULL;
}

static void
one_signaller_in_step(void)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, ping, NULL) == 0);
    for (uint64_t turn = 1; turn <= SIGNALS; turn++) {
        mailbox_node_t *node;
        while ((node = mailbox_pop_all(&lone_mailbox)) == NULL) {
        }
        CHECK(node->next == NULL);
        CHECK(letter == turn);
        mailbox_unlink(node);
        CHECK(mailbox_discharge(node));
        CHECK(counter_take(&lone.count) == 1);
        atomic_store_explicit(&answered, turn, memory_order_release);
    }
    CHECK(pthread_join(thread, NULL) == 0);
    printf("mailbox: %d signals in step\n", SIGNALS);
}

/* In rounds: each signaller signals once and then waits for the round to end, so nobody comes later and wakes the owner by the way.
   What is lost once is a hang. Two share a node, so that one signals while the other one's dispatch is under way. */
static atomic_int round_now;

static void *
round_signaller(void *arg)
{
    int me = (int)(intptr_t)arg;
    for (int turn = 1; turn <= ROUNDS; turn++) {
        while (atomic_load(&round_now) != turn) {
            sched_yield();
        }
        signal_from(&ctxs[me % 2], me, (uint32_t)turn, 1);
    }
    return NULL;
}

static void
rounds(void)
{
    pthread_t threads[SIGNALLERS];
    CHECK(sem_init(&wake, 0, 0) == 0);
    for (int i = 0; i < NODES; i++) {
        ctxs[i].taken = 0;
    }
    for (int i = 0; i < SIGNALLERS; i++) {
        CHECK(pthread_create(&threads[i], NULL, round_signaller, (void *)(intptr_t)i) == 0);
    }
    for (int turn = 1; turn <= ROUNDS; turn++) {
        atomic_store(&round_now, turn);
        while (ctxs[0].taken + ctxs[1].taken != (uint64_t)turn * SIGNALLERS) {
            CHECK(sem_wait(&wake) == 0);
            while (pass(1)) {
            }
        }
    }
    for (int i = 0; i < SIGNALLERS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    CHECK(sem_destroy(&wake) == 0);
    printf("mailbox: %d rounds\n", ROUNDS);
}

int
main(void)
{
    alarm(120); /* a wake that was lost */
    many_signallers_one_owner();
    one_signaller_in_step();
    rounds();
    return 0;
}
