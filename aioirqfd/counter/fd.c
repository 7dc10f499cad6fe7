/* What is asked of an eventfd's fd, so that nobody waits for it.

   O_NONBLOCK belongs to the open file: every dup, every child and every process that was sent the fd shares the flag (E21), and may
   clear it at any time. libuv does that to whatever a child gets as its standard output. So whether a call waits must not hang on
   how the eventfd was made, nor on what the flag was a while ago.

   Reading: preadv2(RWF_NOWAIT) never waits, whatever the flag says (E14). It costs some 40 ns more than a read(2).

   Writing: there is no such call (pwritev2 refuses RWF_NOWAIT, E14), and a write that does not fit waits for a reader (E08). So the
   flag is asked for, right before the write. With O_NONBLOCK the write says by itself that it does not fit. Without, poll(2) says
   whether there is room for 1, and fdinfo for how much more. Between the look and the write somebody else may fill the counter,
   which takes a write of nearly 2**64; the write then waits until somebody reads, without the GIL, and perhaps it is a thread of
   this process that reads.

   Tempting, and wrong: to set O_NONBLOCK ourselves. The flag is everybody's, and a holder that reads in blocking mode would be
   told EAGAIN. To open the file anew for a flag of our own is not possible (ENXIO, E24). */
#include "_native.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* 1, 0, or -1 with errno. */
static int
is_ready(int fd, short events)
{
    struct pollfd ask = {.fd = fd, .events = events};
    int n;
    do {
        n = poll(&ask, 1, 0);
    } while (n < 0 && errno == EINTR);
    if (n > 0 && (ask.revents & POLLNVAL) != 0) {
        errno = EBADF;
        return -1;
    }
    return n > 0 ? (ask.revents & events) != 0 : n;
}

/* Whether a read would find something; nothing is taken. 1, 0, or -1 with errno. */
int
eventfd_has_count(int fd)
{
    return is_ready(fd, POLLIN);
}

/* A read or a write that may wait after all. Through a dup: another thread may close the number meanwhile, and it may become another
   file's. Where there is no room for one the GIL stays, and with it everybody who could close it. */
static ssize_t
without_gil(ssize_t (*call)(int fd, uint64_t *value), int fd, uint64_t *value)
{
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0) {
        return errno == EMFILE ? call(fd, value) : -1;
    }
    PyThreadState *thread = PyEval_SaveThread();
    ssize_t done = call(own, value);
    int saved = errno;
    close(own);
    PyEval_RestoreThread(thread);
    errno = saved;
    return done;
}

static ssize_t
read_word(int fd, uint64_t *value)
{
    return read(fd, value, sizeof(*value));
}

static ssize_t
write_word(int fd, uint64_t *value)
{
    return write(fd, value, sizeof(*value));
}

/* Where the kernel has no RWF_NOWAIT for eventfds. Somebody else may read it between the look and the read. */
static ssize_t
look_and_read(int fd, uint64_t *value)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0) {
        return -1;
    }
    if (flags & O_NONBLOCK) {
        return read_word(fd, value);
    }
    int ready = is_ready(fd, POLLIN);
    if (ready != 1) {
        errno = ready == 0 ? EAGAIN : errno;
        return -1;
    }
    return without_gil(read_word, fd, value);
}

/* 1 and the value; 0 when it would block; -1 with errno. */
int
eventfd_read_now(int fd, uint64_t *value)
{
    struct iovec iov = {.iov_base = value, .iov_len = sizeof(*value)};
    ssize_t got;
    do {
        got = preadv2(fd, &iov, 1, -1, RWF_NOWAIT);
        if (got < 0 && (errno == EOPNOTSUPP || errno == ENOSYS)) {
            got = look_and_read(fd, value);
        }
    } while (got < 0 && errno == EINTR);
    if (got == (ssize_t)sizeof(*value)) {
        return 1;
    }
    if (got < 0 && errno == EAGAIN) {
        return 0;
    }
    if (got >= 0) {
        errno = EINVAL; /* the fd number is another file's by now */
    }
    return -1;
}

/* What fdinfo tells of an eventfd without consuming anything (E25). 1; 0 when it is none; -1 with errno: EBADF only where the fd
   is not open, and not where there is no /proc. */
int
eventfd_peek(int fd, uint64_t *count, long *id, int *semaphore)
{
    char path[48];
    char text[512];
    if (fcntl(fd, F_GETFD) < 0) {
        return -1;
    }
    snprintf(path, sizeof(path), "/proc/thread-self/fdinfo/%d", fd);
    int info = open(path, O_RDONLY | O_CLOEXEC);
    if (info < 0) {
        return -1;
    }
    ssize_t got;
    do {
        got = read(info, text, sizeof(text) - 1);
    } while (got < 0 && errno == EINTR);
    int saved = errno;
    close(info);
    if (got < 0) {
        errno = saved;
        return -1;
    }
    text[got] = '\0';
    const char *at = strstr(text, "eventfd-count:");
    if (at == NULL || sscanf(at, "eventfd-count: %" SCNx64, count) != 1) {
        return 0;
    }
    at = strstr(text, "eventfd-id:");
    *id = -1;
    if (at != NULL) {
        (void)sscanf(at, "eventfd-id: %ld", id);
    }
    at = strstr(text, "eventfd-semaphore:");
    *semaphore = 0;
    if (at != NULL) {
        (void)sscanf(at, "eventfd-semaphore: %d", semaphore);
    }
    return 1;
}

/* A write of how much of n fits into a file that is not O_NONBLOCK: 0 for nothing, or -1 with errno. */
static int
look_and_write(int fd, uint64_t n, uint64_t *added)
{
    ssize_t put;
    do {
        int ready = is_ready(fd, POLLOUT);
        if (ready != 1) {
            return ready;
        }
        uint64_t count;
        long id;
        int semaphore;
        /* Where fdinfo does not tell, for want of a descriptor say, there is as much room as there ever was in real life. */
        if (n > 1 && eventfd_peek(fd, &count, &id, &semaphore) == 1) {
            uint64_t room = count < COUNTER_MAX ? COUNTER_MAX - count : 0;
            n = n < room ? n : room;
        }
        put = n > 0 ? without_gil(write_word, fd, &n) : 0;
    } while (put < 0 && errno == EINTR);
    if (put < 0) {
        return errno == EAGAIN ? 0 : -1;
    }
    *added = put > 0 ? n : 0;
    return 0;
}

/* Add what fits to the kernel's counter: 0 and the amount, or -1 with errno and nothing added. */
int
eventfd_add(int fd, uint64_t n, uint64_t *added)
{
    *added = 0;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0) {
        return -1;
    }
    if ((flags & O_NONBLOCK) == 0) {
        return look_and_write(fd, n, added);
    }
    /* All or nothing in the kernel (E07): what does not fit is halved until it does. No look into fdinfo, which takes a descriptor. */
    uint64_t part = n;
    while (part > 0) {
        ssize_t put = write_word(fd, &part);
        if (put == (ssize_t)sizeof(part)) {
            *added += part;
            n -= part;
            part = part < n ? part : n;
        } else if (put < 0 && errno == EAGAIN) {
            part /= 2;
        } else if (put >= 0 || errno != EINTR) {
            return *added > 0 ? 0 : -1;
        }
    }
    return 0;
}
