/* The floor that Python is measured against: a bare epoll_wait and read loop, and libuv's uv_poll doing the same. Both write to
   every eventfd first, and then take the time from there until the last of them was read. */
#define _GNU_SOURCE
#include <stdint.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_LIBUV
#    include <stdlib.h>
#    include <uv.h>
#endif

static uint64_t
now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void
write_all(const int *fds, int n)
{
    const uint64_t one = 1;
    for (int i = 0; i < n; i++) {
        (void)!write(fds[i], &one, sizeof(one));
    }
}

/* Nanoseconds for one round over n eventfds that are registered, level-triggered, with epfd. */
uint64_t
floor_epoll(int epfd, const int *fds, int n)
{
    struct epoll_event events[1024];
    uint64_t value;
    int left = n;
    write_all(fds, n);
    uint64_t from = now();
    while (left > 0) {
        int ready = epoll_wait(epfd, events, 1024, -1);
        for (int i = 0; i < ready; i++) {
            left -= read(events[i].data.fd, &value, sizeof(value)) == (ssize_t)sizeof(value);
        }
    }
    return now() - from;
}

#ifdef WITH_LIBUV
static int uv_left;

static void
on_readable(uv_poll_t *handle, int status, int events)
{
    uint64_t value;
    int fd = (int)(intptr_t)handle->data;
    (void)status;
    (void)events;
    uv_left -= read(fd, &value, sizeof(value)) == (ssize_t)sizeof(value);
}

/* Median-free: `rounds` rounds in a loop of libuv's own, nanoseconds for all of them. */
uint64_t
floor_uv(const int *fds, int n, int rounds)
{
    uv_loop_t loop;
    uv_poll_t *handles = calloc((size_t)n, sizeof(*handles));
    uint64_t total = 0;
    uv_loop_init(&loop);
    for (int i = 0; i < n; i++) {
        uv_poll_init(&loop, &handles[i], fds[i]);
        handles[i].data = (void *)(intptr_t)fds[i];
        uv_poll_start(&handles[i], UV_READABLE, on_readable);
    }
    for (int round = 0; round < rounds; round++) {
        write_all(fds, n);
        uv_left = n;
        uint64_t from = now();
        while (uv_left > 0) {
            uv_run(&loop, UV_RUN_ONCE);
        }
        total += now() - from;
    }
    for (int i = 0; i < n; i++) {
        uv_close((uv_handle_t *)&handles[i], NULL);
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    uv_loop_close(&loop);
    free(handles);
    return total;
}
#endif
