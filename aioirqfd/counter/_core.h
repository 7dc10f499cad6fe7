/* The part of the counter module that several threads touch at once, free of Python so that it can be run under ThreadSanitizer:
   a saturating 64-bit counter and a lossless many-to-one mailbox. tests/native/ drives it. */
#ifndef AIOIRQFD_CORE_H
#define AIOIRQFD_CORE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The highest count an eventfd holds after a write(2); 2**64-1 is kept for a saturated in-kernel signal (E06, E18). */
#define COUNTER_MAX UINT64_C(0xfffffffffffffffe)

typedef struct {
    _Atomic uint64_t value;
} counter_t;

/* Add as much of n as fits and return how much that was. Release: what the signaller wrote before is seen by whoever takes the count. */
static inline uint64_t
counter_add(counter_t *counter, uint64_t n)
{
    uint64_t old = atomic_load_explicit(&counter->value, memory_order_relaxed);
    uint64_t added;
    do {
        /* A counter that started at 2**64-1, as a saturated eventfd reads, has no room either. */
        uint64_t room = old < COUNTER_MAX ? COUNTER_MAX - old : 0;
        added = n < room ? n : room;
        if (added == 0) {
            return 0;
        }
    } while (!atomic_compare_exchange_weak_explicit(&counter->value, &old, old + added, memory_order_release,
                                                    memory_order_relaxed));
    return added;
}

/* Take everything (a normal eventfd's read, E12). */
static inline uint64_t
counter_take(counter_t *counter)
{
    /* The plain load keeps an idle counter's cache line shared; a signal missed here still owes its own dispatch. */
    if (atomic_load_explicit(&counter->value, memory_order_relaxed) == 0) {
        return 0;
    }
    return atomic_exchange_explicit(&counter->value, 0, memory_order_acquire);
}

/* Take one, if there is one (an EFD_SEMAPHORE eventfd's read, E13). */
static inline uint64_t
counter_take_one(counter_t *counter)
{
    uint64_t old = atomic_load_explicit(&counter->value, memory_order_relaxed);
    do {
        if (old == 0) {
            return 0;
        }
    } while (!atomic_compare_exchange_weak_explicit(&counter->value, &old, old - 1, memory_order_acquire,
                                                    memory_order_relaxed));
    return 1;
}

static inline uint64_t
counter_peek(counter_t *counter)
{
    return atomic_load_explicit(&counter->value, memory_order_relaxed);
}

/* A place in the mailbox.

   owed    a signal was seen and its dispatch is still to come; whoever sets it posts the node, whoever dispatches clears it
           BEFORE taking the count, so that a signal that comes later posts again.
   linked  the node hangs in a mailbox or in the backlog taken from one; a node must not hang twice. It can outlive owed, when
           somebody else has dispatched in the meantime: the popper then finds nothing owed and lets it go. */
typedef struct mailbox_node {
    struct mailbox_node *next;
    atomic_bool owed;
    atomic_bool linked;
} mailbox_node_t;

typedef struct {
    _Atomic(mailbox_node_t *) head;
    atomic_bool woken;
} mailbox_t;

/* True: the caller is the one who owes the dispatch now, and must post the node or dispatch it. */
static inline bool
mailbox_owe(mailbox_node_t *node)
{
    /* seq_cst, with mailbox_discharge: the count was added before, and either this sees owed false or the taker sees the count. */
    return !atomic_exchange_explicit(&node->owed, true, memory_order_seq_cst);
}

/* True: the dispatch was owed, and is the caller's now. */
static inline bool
mailbox_discharge(mailbox_node_t *node)
{
    return atomic_exchange_explicit(&node->owed, false, memory_order_seq_cst);
}

static inline bool
mailbox_is_owed(mailbox_node_t *node)
{
    return atomic_load_explicit(&node->owed, memory_order_seq_cst);
}

/* True: the node was not linked and has to be pushed. */
static inline bool
mailbox_link(mailbox_node_t *node)
{
    return !atomic_exchange_explicit(&node->linked, true, memory_order_seq_cst);
}

static inline bool
mailbox_is_linked(mailbox_node_t *node)
{
    return atomic_load_explicit(&node->linked, memory_order_seq_cst);
}

static inline void
mailbox_unlink(mailbox_node_t *node)
{
    atomic_store_explicit(&node->linked, false, memory_order_seq_cst);
}

/* Any thread. True: the mailbox's owner sleeps and has to be woken. */
static inline bool
mailbox_push(mailbox_t *mailbox, mailbox_node_t *node)
{
    mailbox_node_t *head = atomic_load_explicit(&mailbox->head, memory_order_relaxed);
    do {
        node->next = head;
    } while (!atomic_compare_exchange_weak_explicit(&mailbox->head, &head, node, memory_order_release,
                                                    memory_order_relaxed));
    return !atomic_exchange_explicit(&mailbox->woken, true, memory_order_seq_cst);
}

/* The owner alone. Everything posted so far, oldest first. */
static inline mailbox_node_t *
mailbox_pop_all(mailbox_t *mailbox)
{
    if (!atomic_load_explicit(&mailbox->woken, memory_order_relaxed) &&
        atomic_load_explicit(&mailbox->head, memory_order_relaxed) == NULL) {
        return NULL; /* nothing there, and the next push wakes */
    }
    /* First the flag, then the list: a push after this wakes again, a push before it is in the list. */
    atomic_store_explicit(&mailbox->woken, false, memory_order_seq_cst);
    mailbox_node_t *newest = atomic_exchange_explicit(&mailbox->head, NULL, memory_order_acq_rel);
    mailbox_node_t *oldest = NULL;
    while (newest != NULL) {
        mailbox_node_t *next = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    return oldest;
}

#endif
