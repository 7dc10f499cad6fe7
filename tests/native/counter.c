/* The counter of _core.h under ThreadSanitizer, without Python: adding, taking all and taking one, from several threads, also at
   the top, where it saturates. `make tsan` builds and runs it. */
#include "_core.h"
#include "check.h"

#include <inttypes.h>
#include <pthread.h>
#include <unistd.h>

#define WRITERS 3
#define READERS 2
#define TURNS   50000

static counter_t counter;
static atomic_int writing;
static uint64_t step;
static uint64_t (*take)(counter_t *);

static void *
writer(void *result)
{
    uint64_t added = 0;
    for (uint64_t turn = 0; turn < TURNS; turn++) {
        uint64_t put = counter_add(&counter, step);
        CHECK(put <= step);
        added += put; /* modulo 2**64, as the readers' */
        CHECK(counter_peek(&counter) <= COUNTER_MAX);
    }
    *(uint64_t *)result = added;
    atomic_fetch_sub(&writing, 1);
    return NULL;
}

static void *
reader(void *result)
{
    uint64_t taken = 0;
    for (;;) {
        int left = atomic_load(&writing);
        uint64_t got = take(&counter);
        CHECK(got <= COUNTER_MAX);
        taken += got;
        if (left == 0 && got == 0) {
            break;
        }
    }
    *(uint64_t *)result = taken;
    return NULL;
}

static void
sums_are_exact(const char *what, uint64_t initial, uint64_t one_step, uint64_t (*how)(counter_t *))
{
    pthread_t threads[WRITERS + READERS];
    uint64_t results[WRITERS + READERS];
    atomic_store(&counter.value, initial);
    atomic_store(&writing, WRITERS);
    step = one_step;
    take = how;
    for (int i = 0; i < WRITERS + READERS; i++) {
        CHECK(pthread_create(&threads[i], NULL, i < WRITERS ? writer : reader, &results[i]) == 0);
    }
    uint64_t added = initial;
    uint64_t taken = 0;
    for (int i = 0; i < WRITERS + READERS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        *(i < WRITERS ? &added : &taken) += results[i];
    }
    CHECK(counter_peek(&counter) == 0);
    CHECK(added == taken);
    printf("counter: %s: %" PRIu64 "\n", what, taken);
}

/* A value handed over under a count of 1: the release of the add and the acquire of the take are all there is between them. */
static uint64_t box;

static void *
fill(void *arg)
{
    (void)arg;
    for (uint64_t turn = 1; turn <= TURNS; turn++) {
        while (counter_peek(&counter) != 0) {
        }
        /* Taken, so the box is ours again: the reader signals that with the second counter. */
        while (atomic_load_explicit(&writing, memory_order_acquire) != (int)(turn - 1)) {
        }
        box = turn;
        CHECK(counter_add(&counter, 1) == 1);
    }
    return NULL;
}

static void
what_was_written_before_is_seen(uint64_t (*how)(counter_t *))
{
    pthread_t thread;
    atomic_store(&counter.value, 0);
    atomic_store(&writing, 0);
    CHECK(pthread_create(&thread, NULL, fill, NULL) == 0);
    for (uint64_t turn = 1; turn <= TURNS; turn++) {
        while (how(&counter) == 0) {
        }
        CHECK(box == turn);
        atomic_store_explicit(&writing, (int)turn, memory_order_release);
    }
    CHECK(pthread_join(thread, NULL) == 0);
}

static void
at_the_edges(void)
{
    atomic_store(&counter.value, COUNTER_MAX - 1);
    CHECK(counter_add(&counter, 5) == 1);
    CHECK(counter_add(&counter, 5) == 0);
    CHECK(counter_peek(&counter) == COUNTER_MAX);
    CHECK(counter_take_one(&counter) == 1);
    CHECK(counter_add(&counter, UINT64_MAX) == 1);
    CHECK(counter_take(&counter) == COUNTER_MAX);
    CHECK(counter_take(&counter) == 0);
    CHECK(counter_take_one(&counter) == 0);
    CHECK(counter_add(&counter, 0) == 0);
    /* As a saturated eventfd reads (E18, E19). */
    atomic_store(&counter.value, UINT64_MAX);
    CHECK(counter_add(&counter, 1) == 0);
    CHECK(counter_take(&counter) == UINT64_MAX);
}

int
main(void)
{
    alarm(120);
    at_the_edges();
    sums_are_exact("taking all", 0, 3, counter_take);
    sums_are_exact("taking one", 0, 1, counter_take_one);
    sums_are_exact("saturating", COUNTER_MAX - 7, UINT64_C(1) << 62, counter_take);
    what_was_written_before_is_seen(counter_take);
    what_was_written_before_is_seen(counter_take_one);
    return 0;
}
