/* What the GIL is to these objects, for an interpreter that has none (free-threaded CPython). With a GIL all of this is nothing.

   Three kinds of locks, taken in this order:

   turn     a loop's. Its drain, the eventfds that are registered there, the top halves of its managers and their fifos are of one
            loop, and touched by whoever has its turn. Mostly that is the loop's own thread, in a pass or a signal. But an eventfd
            may be closed, dropped, or looked at by another. As the GIL is, a turn is given up before each call out (OUT_OF_TURN)
            and whatever was known is asked again after it. So nobody has two turns, nobody waits for anything while he has one
            but for the locks below, and what is called may come back in any way, in any thread.
   place    an eventfd's: where its signals go. fd, listening, drain, turn and posted_to change under it, the drain and the fd
            under the loop's turn too, so that either is enough to look. To find out who listens, to count, to owe and to post is
            one step under it: whoever stops listening, or changes loops, comes before that step or after it, and then takes along
            what it counted.
   mail     a drain's: its mailbox, its backlog, and whether it is dead; what is linked there, and to whose mail a node is posted.

   The last two are leaves: a few instructions, or a system call that does not wait, and no Python. So they are plain mutexes: whoever
   waits for one waits nanoseconds, and stays attached, so that no critical section of his caller's is suspended for it. To stop
   the world takes that much longer; before a fork(2) the world is stopped, so that no child inherits a leaf that is locked.

   An object's own critical section (Py_BEGIN_CRITICAL_SECTION) is used for what may wait without a turn: reading and writing the fd
   from any thread. To close it takes the turn and the section, and then nobody uses the number any more.

   Some words are looked at by others without a lock, when a glance does: SEEN() and SAY(). Everything they decide is decided
   again under the lock, or holds for a moment by nature (is it dispatching? is it closed?).

   Tempting, and wrong:
   - a critical section for the turn. To enter it again from within, as each callback does, is to wait for oneself: 3.13 spins, parks,
     and suspends the outer one, which takes 20 microseconds.
   - to keep the turn through a call out. A sink that waits for another thread, which drops an eventfd of this loop, waits for ever.
   - to post outside of the place. Between the look at the drain and the post it may have changed loops; the signal then hangs in the
     mail of a loop that perhaps never runs again. */
#ifndef AIOIRQFD_TURN_H
#define AIOIRQFD_TURN_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>

#define SEEN(word)       __atomic_load_n(&(word), __ATOMIC_RELAXED)
#define SAY(word, value) __atomic_store_n(&(word), (value), __ATOMIC_RELAXED)

#ifdef Py_GIL_DISABLED

#    include <pthread.h>

typedef pthread_mutex_t leaf_t;
typedef struct turn turn_t;

turn_t *turn_new(void);
turn_t *turn_ref(turn_t *turn);
void turn_unref(turn_t *turn);
turn_t *turn_switch(turn_t *turn);
turn_t *turn_enter(PyObject *op, turn_t *(*turn_of)(PyObject *op), turn_t **here);

#    define LEAF(name)        leaf_t name;
#    define TURN(name)        turn_t *name;
#    define LEAF_INIT(leaf)   pthread_mutex_init(leaf, NULL)
#    define LEAF_END(leaf)    pthread_mutex_destroy(leaf)
#    define LEAF_LOCK(leaf)   pthread_mutex_lock(leaf)
#    define LEAF_UNLOCK(leaf) pthread_mutex_unlock(leaf)

/* A turn, of which a reference is handed over; NULL: nobody's, then there is nothing to be had. No way out but IN_TURN_END. */
#    define IN_TURN(turn)                                                                                              \
        {                                                                                                              \
            turn_t *turn_here = (turn);                                                                                \
            turn_t *turn_before = turn_switch(turn_here);
#    define IN_TURN_END                                                                                                \
        turn_switch(turn_before);                                                                                      \
        turn_unref(turn_here);                                                                                         \
        }
/* The turn of whatever is the object's loop once it is had. */
#    define IN_TURN_OF(op, turn_of)                                                                                    \
        {                                                                                                              \
            turn_t *turn_here;                                                                                         \
            turn_t *turn_before = turn_enter(op, turn_of, &turn_here);
/* What others may do meanwhile is anything. */
#    define OUT_OF_TURN                                                                                                \
        {                                                                                                              \
            turn_t *turn_given_up = turn_switch(NULL);
#    define OUT_OF_TURN_END                                                                                            \
        turn_switch(turn_given_up);                                                                                    \
        }
#    define OBJECT_SECTION(op)   Py_BEGIN_CRITICAL_SECTION(op);
#    define OBJECT_SECTION_END() Py_END_CRITICAL_SECTION();
/* References that the GIL makes needless. */
#    define SHARED_INCREF(op) Py_INCREF(op)
#    define SHARED_DECREF(op) Py_DECREF(op)

#else

#    define LEAF(name)
#    define TURN(name)
#    define LEAF_INIT(leaf)         ((void)0)
#    define LEAF_END(leaf)          ((void)0)
#    define LEAF_LOCK(leaf)         ((void)0)
#    define LEAF_UNLOCK(leaf)       ((void)0)
#    define IN_TURN(turn)           {
#    define IN_TURN_OF(op, turn_of) {
#    define IN_TURN_END             }
#    define OUT_OF_TURN             {
#    define OUT_OF_TURN_END         }
#    define OBJECT_SECTION(op)      {
#    define OBJECT_SECTION_END()    }
#    define SHARED_INCREF(op)       ((void)0)
#    define SHARED_DECREF(op)       ((void)0)

#endif

/* Drop a reference within a turn: a finaliser may run, and that is a call out. */
static inline void
turn_drop(void *op)
{
    OUT_OF_TURN
    Py_DECREF((PyObject *)op);
    OUT_OF_TURN_END
}

/* The same, where it is known whether somebody else has a reference too, who cannot drop it before the turn is given up. */
#ifdef Py_GIL_DISABLED
#    define TURN_DROP_BESIDE(op, condition)                                                                            \
        do {                                                                                                           \
            if (condition) {                                                                                           \
                Py_DECREF(op);                                                                                         \
            } else {                                                                                                   \
                turn_drop(op);                                                                                         \
            }                                                                                                          \
        } while (0)
#else
#    define TURN_DROP_BESIDE(op, condition) Py_DECREF(op)
#endif

/* A method, or the getter of an attribute, that is one step for all who have the loop's turn. */
#define METHOD_IN_TURN(name, turn_of)                                                                                  \
    static PyObject *name(PyObject *op, PyObject *arg)                                                                 \
    {                                                                                                                  \
        PyObject *answer;                                                                                              \
        IN_TURN_OF(op, turn_of)                                                                                        \
        answer = name##_now(op, arg);                                                                                  \
        IN_TURN_END                                                                                                    \
        return answer;                                                                                                 \
    }
#define VECTORCALL_IN_TURN(name, turn_of)                                                                              \
    static PyObject *name(PyObject *op, PyObject *const *args, Py_ssize_t nargs)                                       \
    {                                                                                                                  \
        PyObject *answer;                                                                                              \
        IN_TURN_OF(op, turn_of)                                                                                        \
        answer = name##_now(op, args, nargs);                                                                          \
        IN_TURN_END                                                                                                    \
        return answer;                                                                                                 \
    }
#define GETTER_IN_TURN(name, turn_of)                                                                                  \
    static PyObject *name(PyObject *op, void *closure)                                                                 \
    {                                                                                                                  \
        PyObject *answer;                                                                                              \
        IN_TURN_OF(op, turn_of)                                                                                        \
        answer = name##_now(op, closure);                                                                              \
        IN_TURN_END                                                                                                    \
        return answer;                                                                                                 \
    }

#endif
