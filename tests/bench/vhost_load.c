/* The load of vhost_blk.py, in the guest: reads a device with O_DIRECT, DEPTH at a time, and prints operations and nanoseconds.
 *
 * usage: vhost_load DEVICE rand|seq BLOCK_BYTES DEPTH OPERATIONS
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <linux/fs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static uint64_t
now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void
die(const char *what)
{
    perror(what);
    exit(1);
}

int
main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: vhost_load DEVICE rand|seq BLOCK_BYTES DEPTH OPERATIONS\n");
        return 2;
    }
    int fd = open(argv[1], O_RDONLY | O_DIRECT);
    if (fd < 0)
        die(argv[1]);
    int random = !strcmp(argv[2], "rand");
    size_t block = strtoul(argv[3], NULL, 10);
    unsigned depth = (unsigned)strtoul(argv[4], NULL, 10);
    uint64_t operations = strtoul(argv[5], NULL, 10), size;
    if (ioctl(fd, BLKGETSIZE64, &size))
        die("BLKGETSIZE64");
    uint64_t blocks = size / block, state = 88172645463325252u, next = 0, sent = 0, done = 0;
    aio_context_t context = 0;
    if (syscall(SYS_io_setup, depth, &context))
        die("io_setup");
    struct iocb *requests = calloc(depth, sizeof *requests);
    struct io_event *events = calloc(depth, sizeof *events);
    uint64_t start = now();
    for (unsigned i = 0; i < depth; i++) {
        void *buffer;
        if (posix_memalign(&buffer, 4096, block))
            die("memory");
        requests[i].aio_lio_opcode = IOCB_CMD_PREAD;
        requests[i].aio_fildes = (uint32_t)fd;
        requests[i].aio_buf = (uint64_t)(uintptr_t)buffer;
        requests[i].aio_nbytes = block;
        requests[i].aio_data = i;
    }
    unsigned idle = depth;
    struct iocb **batch = calloc(depth, sizeof *batch);
    for (unsigned i = 0; i < depth; i++)
        batch[i] = &requests[i];
    while (done < operations) {
        unsigned n = 0;
        while (n < idle && sent < operations) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            batch[n++]->aio_offset = (int64_t)((random ? state % blocks : next++ % blocks) * block);
            sent++;
        }
        if (n && syscall(SYS_io_submit, context, (long)n, batch) != (long)n)
            die("io_submit");
        long got = syscall(SYS_io_getevents, context, 1L, (long)depth, events, NULL);
        if (got < 1)
            die("io_getevents");
        for (long i = 0; i < got; i++) {
            if (events[i].res != (int64_t)block)
                die("short read");
            batch[i] = &requests[events[i].data];
        }
        idle = (unsigned)got;
        done += (uint64_t)got;
    }
    printf("%llu %llu\n", (unsigned long long)operations, (unsigned long long)(now() - start));
    return 0;
}
