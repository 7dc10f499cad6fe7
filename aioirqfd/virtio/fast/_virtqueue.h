/* A split virtqueue's memory and chains, for the C that serves them; see request.c. */
#ifndef AIOIRQFD_VIRTQUEUE_H
#define AIOIRQFD_VIRTQUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* As many buffers as one preadv(2) takes. A longer chain is Python's. */
#define VIRTQUEUE_CHAIN_MAX 1024

typedef struct {
    uint64_t start; /* its first guest-physical address */
    uint64_t size;
    char *here;
} virtqueue_region;

typedef struct {
    const virtqueue_region *regions;
    size_t count;
    size_t last; /* where the last buffer was */
} virtqueue_memory;

typedef struct {
    struct iovec buffers[VIRTQUEUE_CHAIN_MAX]; /* first those to read, then those to write */
    int readable;                              /* how many are to read */
    int count;
    uint64_t readable_size, writable_size;
} virtqueue_chain;

/* Follow a chain from a head that is in the table; false: it is not the usual one, or breaks a rule. */
bool virtqueue_walk(const char *table, uint64_t limit, virtqueue_memory *memory, uint64_t head, uint64_t max_table,
                    virtqueue_chain *chain);

#endif
