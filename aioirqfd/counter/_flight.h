/* The flight ring's records, and how one is written: a few stores, and nothing that can fail or wait. The file around the ring, and its
   reader, are aioirqfd/tracing/flight_format.py's; docs/reference/flight-file.md says what each field means.

   What must hold: at any instant somebody may read the ring, another process or one that comes after a SIGKILL. So a record's lap is
   cleared first and written last: whoever finds the lap that he expects has a whole record, and whoever finds another one knows
   that it is torn, older, or not written yet.

   There is one ring for all loops and threads, and each writer takes the next place in it: one sequence is the order in which things
   were noted, over all loops, which a ring for each loop could only guess from time stamps. With a GIL the place is had by a plain
   increment, without one by an atomic one; neither waits for anybody.

   Tempting, and wrong:
   - a time stamp for each record of a batch. To look at the clock takes five times as long as to write the record. Where many irqfds
     go to the sink in one call, all of them were seen at one time, and taken at one time; the sequence has their order.
   - a lock. Whoever is killed while he has it leaves it locked, and each record costs as much again. */
#ifndef AIOIRQFD_FLIGHT_H
#define AIOIRQFD_FLIGHT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/* As aioirqfd.flight.FlightKind. */
enum flight_kind {
    FLIGHT_INJECTED = 1,
    FLIGHT_DEFERRED = 2,
    FLIGHT_HELD = 3,
    FLIGHT_WAKEUP = 4,
    FLIGHT_SEEN = 5,
    FLIGHT_HANDLER_BEGUN = 6,
    FLIGHT_HANDLER_ENDED = 7,
    FLIGHT_HANDLER_RAISED = 8,
};

typedef struct {
    uint64_t time_ns;
    uint64_t value;
    uint32_t key; /* a gsi, mostly */
    int32_t fd;
    uint16_t source;
    uint8_t kind;
    uint8_t flags;
    _Atomic uint32_t lap; /* 1 for the records of the first lap, and so on */
} flight_record;

#define FLIGHT_RECORD_SIZE 32
#define FLIGHT_HEAD_SIZE   64
_Static_assert(sizeof(flight_record) == FLIGHT_RECORD_SIZE, "the format says so");

struct flight_ring_object {
    PyObject_HEAD
    _Atomic uint64_t *head; /* records begun since it was made */
    flight_record *records;
    uint64_t mask;      /* capacity - 1; the capacity is a power of 2 */
    unsigned int shift; /* its binary logarithm */
    Py_buffer memory;   /* where both are; .obj is NULL where it is the ring's own */
    atomic_bool off;    /* nothing is written for now; any thread may say so */
};

static inline uint64_t
flight_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static inline void
flight_write(struct flight_ring_object *ring, flight_record what)
{
    if (atomic_load_explicit(&ring->off, memory_order_relaxed)) {
        return;
    }
#ifdef Py_GIL_DISABLED
    uint64_t number = atomic_fetch_add_explicit(ring->head, 1, memory_order_relaxed);
#else
    uint64_t number = atomic_load_explicit(ring->head, memory_order_relaxed);
    atomic_store_explicit(ring->head, number + 1, memory_order_relaxed);
#endif
    flight_record *record = &ring->records[number & ring->mask];
    atomic_store_explicit(&record->lap, 0, memory_order_relaxed);
    atomic_thread_fence(memory_order_release); /* nobody finds the new fields with the old lap */
    record->time_ns = what.time_ns;
    record->value = what.value;
    record->key = what.key;
    record->fd = what.fd;
    record->source = what.source;
    record->kind = what.kind;
    record->flags = what.flags;
    atomic_store_explicit(&record->lap, (uint32_t)(number >> ring->shift) + 1, memory_order_release);
}

#endif
