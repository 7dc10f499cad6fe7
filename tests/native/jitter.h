/* Include it before _core.h: each exchange and each store is preceded by a pause now and then, so that the windows between two of
   them, a few nanoseconds wide, are hit in every run. */
#ifndef AIOIRQFD_JITTER_H
#define AIOIRQFD_JITTER_H

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

static _Thread_local uint32_t jitter_state;

static inline void
jitter(void)
{
    if (jitter_state == 0) {
        jitter_state = (uint32_t)(uintptr_t)&jitter_state | 1;
    }
    jitter_state ^= jitter_state << 13;
    jitter_state ^= jitter_state >> 17;
    jitter_state ^= jitter_state << 5;
    if (jitter_state % 4 == 0) {
        for (volatile uint32_t i = 0; i < (jitter_state >> 8) % 512; i++) {
        }
    } else if (jitter_state % 64 == 1) {
        sched_yield();
    }
}

#undef atomic_exchange_explicit
#undef atomic_store_explicit
#ifdef __clang__
#    define atomic_exchange_explicit(object, value, order) (jitter(), __c11_atomic_exchange(object, value, order))
#    define atomic_store_explicit(object, value, order)    (jitter(), __c11_atomic_store(object, value, order))
#else
#    define atomic_exchange_explicit(object, value, order) (jitter(), __atomic_exchange_n(object, value, order))
#    define atomic_store_explicit(object, value, order)    (jitter(), __atomic_store_n(object, value, order))
#endif

#endif
