/* The two ends of a vfio-user socket with nothing behind them: the least that a register access can cost, and what asks for it.
 * Nothing is checked; a message comes in one piece, as it does on a Unix socket.
 */
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { HEADER = 16, ACCESS = 16, REGION_READ = 9, REPLY = 1, MOST = 64 };

struct header {
    uint16_t number, command;
    uint32_t size, flags, error;
};

/* Answer register accesses until the other side hangs up. */
void
vfio_floor_serve(int fd)
{
    unsigned char message[MOST];
    while (recv(fd, message, sizeof message, 0) > 0) {
        struct header header;
        uint32_t count = 0;
        memcpy(&header, message, sizeof header);
        if (header.command == REGION_READ)
            memcpy(&count, message + HEADER + 12, sizeof count);
        header.size = HEADER + ACCESS + count;
        header.flags = REPLY;
        memcpy(message, &header, sizeof header);
        if (send(fd, message, header.size, 0) < 0)
            return;
    }
}

static uint64_t
now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Nanoseconds until a request was answered so often, one after the other; 0: the other side has hung up. */
uint64_t
vfio_floor_ask(int fd, const unsigned char *request, uint32_t size, unsigned times)
{
    unsigned char reply[MOST];
    uint64_t start = now();
    for (unsigned i = 0; i < times; i++)
        if (send(fd, request, size, 0) < 0 || recv(fd, reply, sizeof reply, 0) <= 0)
            return 0;
    return now() - start;
}
