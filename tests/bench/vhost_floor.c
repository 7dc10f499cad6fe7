/* What vhost_blk.py's requests cost at the very least: a loop in C that sleeps until the kick, reads each request's data straight
 * into the guest's memory, and calls. It believes whatever the guest says, and knows reads of the usual shape only. See
 * vhost_floor.py.
 */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <unistd.h>

struct desc {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

struct header {
    uint32_t type, priority;
    uint64_t sector;
};

struct floor {
    int file, kick;
    _Atomic int call, stop;
    uint32_t size, region_count;
    struct desc *desc;
    _Atomic uint16_t *avail; /* flags, idx, ring[size], used_event */
    _Atomic uint16_t *used;  /* flags, idx, ring[size] of 4 words each, avail_event */
    struct {
        uint64_t start, size;
        char *here;
    } regions[64];
};

static void *
here(const struct floor *f, uint64_t address)
{
    for (uint32_t i = 0; i < f->region_count; i++)
        if (address - f->regions[i].start < f->regions[i].size)
            return f->regions[i].here + (address - f->regions[i].start);
    return NULL;
}

static uint32_t
request(const struct floor *f, uint16_t head)
{
    const struct desc *table = f->desc;
    struct desc d = table[head];
    if (d.flags & 4) {
        table = here(f, d.address);
        d = table[0];
    }
    const struct header *header = here(f, d.address);
    struct iovec data[1024];
    int count = 0;
    uint32_t written = 0;
    while (d.flags & 1) {
        d = table[d.next];
        data[count++] = (struct iovec){here(f, d.address), d.length};
        written += d.length;
    }
    char *status = data[--count].iov_base;
    *status = header->type == 0 ? 0 : header->type == 8 || header->type == 4 ? 0 : 2;
    if (header->type == 0 && preadv(f->file, data, count, (off_t)header->sector * 512) != (ssize_t)written - 1)
        *status = 1;
    return written;
}

/* Until stop is set, and a kick tells of it. */
void
serve(struct floor *f)
{
    const uint64_t one = 1;
    uint16_t next = 0, used = 0, mask = (uint16_t)(f->size - 1);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET}, got;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(epoll, EPOLL_CTL_ADD, f->kick, &event);
    while (!atomic_load(&f->stop)) {
        uint16_t seen = atomic_load(&f->avail[1]);
        if (seen == next) {
            atomic_store(&f->used[2 + 4 * f->size], next);
            if (atomic_load(&f->avail[1]) == next)
                epoll_wait(epoll, &got, 1, -1);
            continue;
        }
        uint16_t before = used;
        for (; next != seen; next++, used++) {
            uint16_t head = atomic_load(&f->avail[2 + (next & mask)]);
            uint32_t entry[2] = {head, request(f, head)};
            memcpy((char *)f->used + 4 + 8 * (used & mask), entry, sizeof entry);
        }
        atomic_store(&f->used[1], used);
        uint16_t wanted = atomic_load(&f->avail[2 + f->size]);
        if ((uint16_t)(used - wanted - 1) < (uint16_t)(used - before) &&
            write(atomic_load(&f->call), &one, sizeof one) < 0)
            continue; /* the firmware has no call, and polls */
    }
    close(epoll);
}
