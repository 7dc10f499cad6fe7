"""E: the eventfd itself. The kernel's part is a raw eventfd, aioirqfd's an EventFd; ``fd`` is what anybody may do to either."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import mmap
import os
import resource
import select
import signal
import threading

from tests.conformance.machine import BIT, GSI, TOP, Host, attempt, fdinfo, raw, sleeps_in
from tests.conformance.row import row, unobservable

_READ, _WRITE = 0, 1
_THE_FD = "What anybody may do to the fd of an EventFd; {}"


unobservable(
    "E01",
    "An eventfd with an unknown flag is refused with EINVAL.",
    "An EventFd is made without a flags word: what it can be is a keyword, and it is close-on-exec and non-blocking always.",
)


@row(
    "E02",
    "An eventfd is open for reading and writing; made without flags, its file has no other, whatever is done with it.",
    [os.O_RDWR, 3, "EAGAIN", os.O_RDWR, os.O_RDWR | os.O_NONBLOCK],
)
async def access_mode(host: Host) -> object:
    event = host.event(blocking=True)
    before = event.flags()
    event.signal(3)
    return [before, event.read(), event.read(), event.flags(), host.event().flags()]


@row(
    "E03",
    "It starts with 32 unsigned bits.",
    [0xFFFFFFFF, "EINVAL", "EINVAL"],
    limit="Python refuses more than 32 bits before there is an errno.",
)
async def initial(host: Host) -> object:
    return [host.event(0xFFFFFFFF).read(), attempt(host.event, 2**32), attempt(host.event, -1)]


@row(
    "E04",
    "With the table of fds full, none is made: EMFILE. Those that are there go on.",
    ["EMFILE", "ok", 3, "EAGAIN"],
)
async def no_more_fds(host: Host) -> object:
    event = host.event(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        return [attempt(host.event), event.signal(2), event.read(), event.read()]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@row(
    "E05",
    "A write of a length other than 8 is EINVAL, and nobody who waits or is bound hears of it.",
    ["EINVAL", "EINVAL", "EINVAL", "EINVAL", "EINVAL", False, 0, 8, BIT],
)
async def write_length(host: Host) -> object:
    machine, event, other = await host.machine(), host.event(), host.event()
    machine.pic_up()
    machine.route((GSI, ("pic", GSI)))
    machine.assign(event)
    watch = other.watch()
    await watch.woken()
    result: list[object] = []
    for length in (0, 4, 7, 9, 16):
        data = b"\1" + bytes(length - 1) if length else b""
        result.append(attempt(os.write, event.fd, data))
        attempt(os.write, other.fd, data)
    await machine.settle()
    result += [await watch.woken(), machine.irr() & BIT, attempt(os.write, event.fd, b"\1" + bytes(7))]
    await machine.settle()
    await watch.stop()
    return [*result, machine.irr() & BIT]


@row("E06", "2^64-1 cannot be written, whatever the count: EINVAL.", ["EINVAL", "EINVAL", 3])
async def write_all_ones(host: Host) -> object:
    event = host.event(3)
    return [attempt(os.write, event.fd, b"\xff" * 8), event.signal(2**64 - 1), event.count()]


@row(
    "E07",
    "A non-blocking write that would lift the count above 2^64-2 is EAGAIN, adds nothing and wakes nobody.",
    [True, "EAGAIN", False, TOP - 1, "EAGAIN"],
    limit=_THE_FD.format("its own signal() adds what fits, and returns how much that was."),
)
async def write_does_not_fit(host: Host) -> object:
    event = host.event()
    watch = event.watch()
    event.signal(TOP - 1)
    woken = await watch.woken()
    result = [woken, event.write(2), event.count() == TOP + 1, event.read(), event.read()]
    await watch.stop()
    return result


@row("E08", "A blocking write that does not fit sleeps until a read makes room.", [TOP, 1])
async def write_sleeps(host: Host) -> object:
    event = host.event(blocking=True)
    event.write(TOP)
    thread = event.write_blocking(1)
    await sleeps_in(thread, _WRITE)
    taken = event.read()
    thread.join()
    return [taken, event.count()]


@row(
    "E09",
    "A write of 0 succeeds at any count, changes none, and wakes nobody who waits for a count.",
    [8, 0, False, 8, TOP],
)
async def write_zero(host: Host) -> object:
    event = host.event()
    watch = event.watch()
    await watch.woken()
    written = os.write(event.fd, bytes(8))
    result = [written, event.count(), await watch.woken()]
    await watch.stop()
    event.write(TOP)
    return [*result, os.write(event.fd, bytes(8)), event.count()]


@row(
    "E10",
    "With a bad buffer (EFAULT) a write adds nothing, and a read loses the count; who reads after it finds none.",
    ["EFAULT", 5, "ok", "EFAULT", "EAGAIN", "ok", 2],
)
async def bad_buffer(host: Host) -> object:
    event = host.event(5)
    eight = ctypes.c_size_t(8)
    nowhere = ctypes.c_void_p(8)
    written = [raw("write", event.fd, nowhere, eight), event.read(), event.signal(5)]
    return [*written, raw("read", event.fd, nowhere, eight), event.read(), event.signal(2), event.read()]


@row(
    "E11",
    "A read of fewer than 8 bytes is EINVAL, and takes nothing; any other gives 8, and all there is.",
    ["EINVAL", "EINVAL", "EINVAL", 3, 8, 4, "EAGAIN"],
)
async def read_length(host: Host) -> object:
    event = host.event(1)
    event.signal(2)
    buffer = ctypes.create_string_buffer(16)
    result = [raw("read", event.fd, buffer, ctypes.c_size_t(length)) for length in (0, 4, 7)]
    result += [event.read(), event.signal(4) == "ok" and raw("read", event.fd, buffer, ctypes.c_size_t(16))]
    return [*result, int.from_bytes(buffer.raw[:8], "little"), event.read()]


@row("E12", "A read gives the whole count and leaves 0.", [7, 0])
async def read_all(host: Host) -> object:
    event = host.event(3)
    event.signal(4)
    return [event.read(), event.count()]


@row("E13", "A semaphore's read gives 1 and takes 1.", [1, 1, 1, "EAGAIN"])
async def read_semaphore(host: Host) -> object:
    event = host.event(1, semaphore=True)
    event.signal(2)
    return [event.read() for _ in range(4)]


@row(
    "E14",
    "A read at 0 is EAGAIN, on a blocking fd too if asked not to wait; a write cannot be asked that.",
    ["EAGAIN", "EAGAIN", "ENOTSUP"],
)
async def read_nothing(host: Host) -> object:
    blocking = host.event(blocking=True)
    write = attempt(os.pwritev, blocking.fd, [b"\1" + bytes(7)], -1, os.RWF_NOWAIT if hasattr(os, "RWF_NOWAIT") else 8)
    return [host.event().read(), blocking.read(), write]


@row(
    "E15",
    "One write to several waiting readers: one has it all and the others wait on; a semaphore serves one for each 1.",
    [[5, 6, 7], [1, 1, 1]],
)
async def several_readers(host: Host) -> object:
    results = []
    for semaphore, writes in ((False, (5, 6, 7)), (True, (3,))):
        event = host.event(semaphore=semaphore)
        readers = [asyncio.ensure_future(event.waiting_read()) for _ in range(3)]
        await asyncio.sleep(0)
        got: list[int] = []
        for n in writes:
            event.write(n)
            done, _ = await asyncio.wait(
                [reader for reader in readers if not reader.done()],
                return_when=asyncio.ALL_COMPLETED if semaphore else asyncio.FIRST_COMPLETED,
            )
            got += [reader.result() for reader in done]
        results.append(got)
    return results


@row(
    "E16",
    "A waiting read can be interrupted, and takes nothing with it.",
    ["interrupted", 3],
    limit="By a signal there, by the task's cancellation here.",
)
async def interrupted(host: Host) -> object:
    event = host.event(blocking=True)
    if host.name == "kernel":
        said: list[object] = []
        old = signal.signal(signal.SIGUSR2, lambda _number, _frame: None)
        buffer = ctypes.create_string_buffer(8)
        thread = threading.Thread(target=lambda: said.append(raw("read", event.fd, buffer, ctypes.c_size_t(8))))
        thread.start()
        await sleeps_in(thread, _READ)
        signal.pthread_kill(thread.ident or 0, signal.SIGUSR2)
        thread.join()
        signal.signal(signal.SIGUSR2, old)
        result = "interrupted" if said == ["EINTR"] else said
    else:
        task = asyncio.ensure_future(event.waiting_read())
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        result = "interrupted" if task.cancelled() else task
    event.write(3)
    return [result, event.read()]


@row(
    "E17",
    "The poll mask: at 0 OUT; up to 2^64-3 IN and OUT; at 2^64-2 IN; at 2^64-1 IN and ERR.",
    [4, 5, 1, 9],
    limit="2^64-1 is what the kernel's own signal leaves; user space cannot write it.",
    needs_kvm=True,
)
async def poll_mask(host: Host) -> object:
    event = host.event()
    masks = [event.poll()]
    event.signal(TOP - 1)
    masks.append(event.poll())
    event.signal(1)
    masks.append(event.poll())
    await host.saturate(event)
    return [*masks, event.poll()]


@row(
    "E18",
    "The kernel's own signal adds 1, never waits, and stays at 2^64-1.",
    [1, TOP, TOP + 1, TOP + 1, TOP + 1],
    limit="Of an EventFd that the kernel signals. Its own signal() adds 1, never waits, and stays at 2^64-2, the highest count "
    "that user space can write.",
    needs_kvm=True,
)
async def kernel_signal(host: Host) -> object:
    event = host.event()
    await host.saturate(event)
    counts = [event.read()]
    event.signal(TOP - 1)
    await host.saturate(event)
    counts.append(event.count())
    for _ in range(2):
        await host.saturate(event)
        counts.append(event.count())
    return [*counts, event.read()]


@row("E19", "A read after that gives 2^64-1, and the error is gone.", [TOP + 1, 0, 4], needs_kvm=True)
async def read_saturated(host: Host) -> object:
    event = host.event()
    event.write(TOP)
    await host.saturate(event)
    return [event.read(), event.count(), event.poll()]


@row(
    "E20",
    "Edge-triggered epoll hears of each write though nobody reads, once for several between two looks; "
    "level-triggered epoll until the count is 0.",
    [True, True, True, False, [1, 1, 0]],
    limit="aioirqfd's waiters are woken by each; a foreign epoll on the fd of an EventFd is the kernel's.",
)
async def edges_and_levels(host: Host) -> object:
    event = host.event()
    edge, level = select.epoll(), select.epoll()
    edge.register(event.fd, select.EPOLLIN | select.EPOLLET)
    level.register(event.fd, select.EPOLLIN)
    seen: list[object] = []
    for writes in (1, 1, 2, 0):
        for _ in range(writes):
            event.signal()
        seen.append(bool(edge.poll(0)))
    looks = [len(level.poll(0)), len(level.poll(0))]
    event.read()
    looks.append(len(level.poll(0)))
    edge.close()
    level.close()
    return [*seen, looks]


@row("E21", "A dup is the same count and has the same O_NONBLOCK.", [3, True, True])
async def dup(host: Host) -> object:
    event = host.event()
    twin = event.dup()
    event.signal(3)
    same = event.id() == twin.id()
    os.set_blocking(event.fd, True)
    shared = not twin.flags() & os.O_NONBLOCK
    os.set_blocking(event.fd, False)
    return [twin.read(), same, shared]


@row(
    "E22",
    "With a dup still open, epoll reports a closed fd's eventfd by its old number; the last close ends that in silence.",
    [True, 1, []],
)
async def stale_registration(host: Host) -> object:
    event = host.event()
    twin = event.dup()
    number = event.fd
    epoll = select.epoll()
    epoll.register(number, select.EPOLLIN)
    event.close()
    twin.signal()
    stale = [fd for fd, _ in epoll.poll(0)] == [number]
    taken = twin.read()
    twin.signal()
    twin.close()
    after = epoll.poll(0)
    epoll.close()
    return [stale, taken, after]


@row(
    "E23",
    "The last close raises EPOLLHUP for waiters inside the kernel alone; in user space epoll hears nothing.",
    [True, [], False],
    limit="Our irqfd learns of it by EventFd.close(), for it holds a reference and cannot see the last one go; "
    "a task that waits gets ClosedError.",
)
async def hang_up(host: Host) -> object:
    machine = await host.machine()
    machine.route((5, ("pic", 5)))
    event = host.event()
    epoll = select.epoll()
    epoll.register(event.fd, select.EPOLLIN)
    machine.assign(event, 5, host.event())
    event.write()
    await machine.settle()
    before = bool(machine.lines() & BIT)
    epoll.poll(0)
    event.close()
    heard = epoll.poll(0)
    epoll.close()
    await machine.settle()
    return [before, heard, bool(machine.lines() & BIT)]


@row(
    "E24",
    "lseek does nothing, pread and pwrite are ESPIPE, mmap ENODEV, ftruncate EINVAL, opening anew ENXIO, an unknown "
    "ioctl ENOTTY; writev of 8 and 8 is two writes, of 4 and 4 EINVAL, readv of 4 and 4 works.",
    [0, "ESPIPE", "ESPIPE", "ENODEV", "EINVAL", "ENXIO", "ENOTTY", 16, 2, "EINVAL", 8],
)
async def other_calls(host: Host) -> object:
    event = host.event()
    fd = event.fd
    one = b"\1" + bytes(7)
    return [
        attempt(os.lseek, fd, 5, os.SEEK_SET),
        attempt(os.pread, fd, 8, 0),
        attempt(os.pwrite, fd, one, 0),
        attempt(mmap.mmap, fd, 8),
        attempt(os.ftruncate, fd, 0),
        attempt(os.open, f"/proc/self/fd/{fd}", os.O_RDWR),
        raw("ioctl", fd, ctypes.c_ulong(0x5401), None),
        attempt(os.writev, fd, [one, one]),
        event.read(),
        attempt(os.writev, fd, [one[:4], one[4:]]),
        os.readv(fd, [bytearray(4), bytearray(4)]) if event.write(1) == "ok" else None,
    ]


@row("E25", "/proc shows count, id and kind.", ["0x7", True, "1", True, True, 1, "0x6"])
async def info(host: Host) -> object:
    event = host.event(7, semaphore=True)
    found = fdinfo(event.fd)
    number = int(found["eventfd-id"])
    return [
        hex(int(found["eventfd-count"], 16)),
        number == event.id(),
        found["eventfd-semaphore"],
        host.event().id() != number,
        event.dup().id() == number,
        event.read(),
        hex(int(fdinfo(event.fd)["eventfd-count"], 16)),
    ]


unobservable(
    "E26",
    "A signal by the kernel from inside the wake-up of another is dropped, against recursion.",
    "Not provoked: it would log a kernel warning. A signal from inside a sink goes through the queue here, so that the stack "
    "cannot grow, and is not dropped.",
)
