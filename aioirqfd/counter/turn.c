/* The turn of a loop: a mutex that knows who has it; see _turn.h. There is none where the GIL is. */
#include "_turn.h"

#ifdef Py_GIL_DISABLED

#    include <stdatomic.h>

/* ThreadSanitizer does not see into an interpreter that was built without it, nor its mutex. */
#    ifdef __SANITIZE_THREAD__
#        include <sanitizer/tsan_interface.h>
#        define TAKEN(turn)    __tsan_acquire(turn)
#        define GIVEN_UP(turn) __tsan_release(turn)
#    else
#        define TAKEN(turn)    ((void)0)
#        define GIVEN_UP(turn) ((void)0)
#    endif

struct turn {
    atomic_int references;
    PyMutex mutex;
};

/* Whose turn this thread has. One at a time: to take a second one within it would be to wait with the first, and the thread that
   has the second may wait for that. */
static _Thread_local turn_t *turn_of_thread;

turn_t *
turn_new(void)
{
    turn_t *turn = PyMem_RawCalloc(1, sizeof(*turn));
    if (turn == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    atomic_init(&turn->references, 1);
    return turn;
}

turn_t *
turn_ref(turn_t *turn)
{
    if (turn != NULL) {
        atomic_fetch_add_explicit(&turn->references, 1, memory_order_relaxed);
    }
    return turn;
}

void
turn_unref(turn_t *turn)
{
    /* The last one sees all that the others have done with it. */
    if (turn != NULL && atomic_fetch_sub_explicit(&turn->references, 1, memory_order_acq_rel) == 1) {
        PyMem_RawFree(turn);
    }
}

/* Give up the turn that this thread has, and take another: the one that it had, NULL for none. Nothing happens where it is the same.
   Whoever is to come back to a turn keeps a reference to it. */
turn_t *
turn_switch(turn_t *turn)
{
    turn_t *before = turn_of_thread;
    if (before != turn) {
        if (before != NULL) {
            turn_of_thread = NULL;
            GIVEN_UP(before);
            PyMutex_Unlock(&before->mutex);
        }
        if (turn != NULL) {
            /* Detached from the interpreter, if it has to wait. */
            PyMutex_Lock(&turn->mutex);
            TAKEN(turn);
            turn_of_thread = turn;
        }
    }
    return before;
}

/* Take the turn of an object's loop, a reference to which goes to `here`: the one that this thread had. It may change loops while its
   old loop's turn is waited for; then that is given up again. */
turn_t *
turn_enter(PyObject *op, turn_t *(*turn_of)(PyObject *op), turn_t **here)
{
    for (;;) {
        turn_t *turn = turn_of(op);
        turn_t *before = turn_switch(turn);
        turn_t *now = turn_of(op);
        turn_unref(now); /* it is compared alone */
        if (now == turn) {
            *here = turn;
            return before;
        }
        turn_switch(before);
        turn_unref(turn);
    }
}

#endif
