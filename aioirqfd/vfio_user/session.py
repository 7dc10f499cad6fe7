"""One client's time with the server: its messages, one after the other, and what they do.

Two tasks: one reads, one does what was read. So a device whose register waits for something does not keep the server from
hearing the client's answers to what the device itself has asked for, nor from noticing that the client has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final, final

from aioirqfd.pci.errors import DmaMapError, RegionError
from aioirqfd.serving.reports import name_of
from aioirqfd.tracer import described
from aioirqfd.vfio_user import capabilities, messages
from aioirqfd.vfio_user.capabilities import MAJOR, MINOR, Capabilities
from aioirqfd.vfio_user.connection import Connection
from aioirqfd.vfio_user.errors import RefusedError, VfioUserProtocolError
from aioirqfd.vfio_user.irqs import Irqs
from aioirqfd.vfio_user.messages import MAX_DATA, MAX_FDS, Command, MapFlag, Message
from aioirqfd.vfio_user.protocol import answer, refusal
from aioirqfd.vfio_user.regions import io_fds, region_info
from aioirqfd.vfio_user.remote import RemoteMemory

if TYPE_CHECKING:
    from struct import Struct

    from aioirqfd.pci.device import PciDevice
    from aioirqfd.pci.function import PciFunction
    from aioirqfd.serving.reports import Reports
    from aioirqfd.tracer import Tracer

MAX_WAITING: Final = 4 << 20
"""Bytes of messages that wait to be done; then no more are read."""
MAX_AHEAD: Final = 64 << 20
"""The same while the device waits for an answer of the client, which comes behind them; more is a client that floods."""
_OVERHEAD: Final = 256
"""Bytes that a message counts for beside its data."""


@final
class Session:
    """One client, from its connection to its end.

    Args:
        connection: Its socket, read by this session only.
        function: What it is served.
        tracer: Hears what happens.
        reports: Tells what goes wrong.
        require_seal: Take only memory that the client can no longer shrink.

    Attributes:
        irqs: The interrupts as the client sees them.
        messages: How many messages it has sent.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        function: PciFunction[PciDevice],
        tracer: Tracer,
        reports: Reports,
        require_seal: bool = False,
    ) -> None:
        self.irqs: Final = Irqs(function)
        self.messages = 0
        self._connection = connection
        self._function = function
        self._tracer = tracer
        self._reports = reports
        self._require_seal = require_seal
        self._client = Capabilities()
        self._agreed = False
        self._waiting: deque[Message] = deque()
        self._size = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._remote: RemoteMemory | None = None
        self._twin: Connection | None = None
        self._twin_task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve the client until it goes, or breaks the protocol."""
        self._tracer.emit("client_connected")
        reason: str | None = None
        worker = asyncio.create_task(self._work(), name="aioirqfd vfio-user client")
        try:
            reason = await self._read(worker)
        finally:
            try:
                for task in (worker, self._twin_task):
                    if task is not None:
                        await _ended(task)
            finally:
                # Whoever serves may be told to end while a device's own code takes its time to.
                await self._let_go(reason)

    async def _let_go(self, reason: str | None) -> None:
        self._connection.close()
        for message in self._waiting:
            _close(message.fds)
        self._waiting.clear()
        if self._remote is not None:
            self._remote.close()
        if self._twin is not None:
            self._twin.close()
        self.irqs.release()
        try:
            await self._function.dma.unmap_all()
        finally:
            self._function.dma.remote = None
            if reason is None:
                self._tracer.emit("client_disconnected", reason=None)
            else:
                self._reports.trouble("client_disconnected", kind=reason, reason=reason)

    # -- reading -----------------------------------------------------------------------------------------------------

    async def _read(self, worker: asyncio.Task[str | None]) -> str | None:
        """Read until the client goes; why it was sent away, if it was."""
        reading = asyncio.create_task(self._receive(), name="aioirqfd vfio-user socket")
        try:
            await asyncio.wait({reading, worker}, return_when=asyncio.FIRST_COMPLETED)
            if worker.done():
                return worker.result()
            return reading.result()
        except VfioUserProtocolError as error:
            if error.message is not None:
                with contextlib.suppress(ConnectionError):
                    await self._connection.send(refusal(*error.message, errno.EINVAL))
            return str(error)
        finally:
            reading.cancel()
            await asyncio.wait({reading})

    async def _receive(self) -> None:
        while (message := await self._connection.receive()) is not None:
            self.messages += 1
            if message.reply:
                self._take_reply(message)
                continue
            self._waiting.append(message)
            self._size += len(message.data) + _OVERHEAD
            self._news.set()
            if self._size > MAX_WAITING and not await self._has_room():
                return

    async def _has_room(self) -> bool:
        """Wait until there is room for more messages, or an answer has to be read past them; False: the client has gone."""
        gone = False

        def on_hang_up() -> None:
            nonlocal gone
            gone = True
            self._room.set()

        with self._connection.watch(on_hang_up):
            while self._size > MAX_WAITING and not gone:
                if self._remote is not None and self._remote.waiting:
                    if self._size > MAX_AHEAD:
                        raise VfioUserProtocolError(
                            f"{self._size} bytes of messages wait, and an answer is not among them"
                        )
                    break
                self._room.clear()
                await self._room.wait()
        return not gone

    def _take_reply(self, message: Message) -> None:
        _close(message.fds)
        if self._remote is None or not self._remote.take(message):
            # A reply is never replied to: the two sides could go on like that for ever.
            self._reports.trouble("reply_unexpected", command=int(message.command))

    async def _read_twin(self, twin: Connection) -> None:
        reason: str | None = None
        try:
            while (message := await twin.receive()) is not None:
                if not message.reply:
                    _close(message.fds)
                    reason = "a command on the twin socket, which is for those of the server"
                    break
                self._take_reply(message)
        except VfioUserProtocolError as error:
            reason = str(error)
        if reason is not None:
            self._reports.trouble("twin_socket_failed", kind=reason, reason=reason)
        if self._remote is not None:
            self._remote.close()

    # -- doing -------------------------------------------------------------------------------------------------------

    async def _work(self) -> str | None:
        """Do what was read, in order; why it cannot go on."""
        waiting = self._waiting
        while True:
            while not waiting:
                self._news.clear()
                await self._news.wait()
            message = waiting.popleft()
            self._size -= len(message.data) + _OVERHEAD
            self._room.set()
            try:
                await self._serve(message)
            except VfioUserProtocolError as error:
                return str(error)
            except ConnectionError:
                return None

    async def _serve(self, message: Message) -> None:
        fds = list(message.fds)
        reply: Message
        try:
            if not self._agreed:
                await self._agree(message)
                return
            reply = await self._act(message, fds)
        except RefusedError as error:
            reply = self._refused(message, error.errno, error)
        except DmaMapError as error:
            reply = self._refused(message, error.errno, error)
        except RegionError as error:
            reply = self._refused(message, errno.EINVAL, error)
        except VfioUserProtocolError as error:
            with contextlib.suppress(ConnectionError):
                await self._connection.send(refusal(message.number, message.command, errno.EINVAL))
            raise VfioUserProtocolError(f"{_name(message)}: {error}") from error
        except Exception as error:
            what = _name(message)
            said = f"{name_of(self._function.device)} raised in {what}"
            self._reports.raised("device_failed", said, error, what=what)
            reply = refusal(message.number, message.command, errno.EIO)
        finally:
            _close(fds)
        if not message.no_reply:
            await self._connection.send(reply)

    def _refused(self, message: Message, number: int, error: Exception) -> Message:
        name, reason = _name(message), described(error) if not str(error) else str(error)
        self._reports.trouble("message_refused", kind=(name, number), request=name, reason=reason)
        return refusal(message.number, message.command, number)

    async def _agree(self, message: Message) -> None:
        """The first message: ``VERSION``."""
        if message.command != Command.VERSION:
            raise VfioUserProtocolError("the first message is VERSION")
        major, minor, client = capabilities.unpack(message.data)
        if major != MAJOR:
            raise VfioUserProtocolError(f"version {major}.{minor} of the protocol, not {MAJOR}.{MINOR}")
        most = min(client.max_data_xfer_size, MAX_DATA)
        if not most or not client.max_msg_fds:
            raise VfioUserProtocolError("a client that takes no data, or no file descriptor")
        self._client = replace(client, max_data_xfer_size=most)
        offer = Capabilities(
            max_msg_fds=MAX_FDS, write_multiple=client.write_multiple, max_dma_maps=self._function.dma.limit
        )
        channel, theirs = self._connection, None
        if client.twin_socket:
            ours, theirs = socket.socketpair()
            self._twin = channel = Connection(ours)
            offer = replace(offer, twin_socket=True, fd_index=0)
            self._twin_task = asyncio.create_task(self._read_twin(channel), name="aioirqfd vfio-user twin socket")
        self._remote = self._function.dma.remote = RemoteMemory(channel, most=most, asking=self._room.set)
        data = offer.pack()
        # A minor version that the client does not have yet is not spoken.
        data = messages.VERSION.pack(MAJOR, min(minor, MINOR)) + data[messages.VERSION.size :]
        try:
            await self._connection.send(answer(message, data, () if theirs is None else (theirs.fileno(),)))
        finally:
            if theirs is not None:
                theirs.close()
        self._agreed = True

    async def _act(self, message: Message, fds: list[int]) -> Message:
        """Do what a command says. What is left in ``fds`` is closed afterwards."""
        data = message.data
        match message.command:
            case Command.REGION_WRITE:
                offset, region, count = _unpack(messages.REGION_ACCESS, data)
                if len(data) != messages.REGION_ACCESS.size + count or count > MAX_DATA:
                    raise RefusedError(errno.EINVAL, f"{count} bytes to write, and {len(data)} of payload")
                await self._function.write(region, offset, data[messages.REGION_ACCESS.size :])
                return answer(message, data[: messages.REGION_ACCESS.size])
            case Command.REGION_READ:
                offset, region, count = _unpack(messages.REGION_ACCESS, data)
                if count > min(MAX_DATA, self._client.max_data_xfer_size):
                    raise RefusedError(errno.EINVAL, f"{count} bytes to read at once")
                return answer(
                    message, data[: messages.REGION_ACCESS.size] + await self._function.read(region, offset, count)
                )
            case Command.REGION_WRITE_MULTI:
                return answer(message, await self._write_multi(data))
            case Command.DEVICE_SET_IRQS:
                size, flags, index, start, count = _unpack(messages.IRQ_SET, data)
                if size != len(data):
                    raise RefusedError(errno.EINVAL, f"argsz {size} of a request of {len(data)} bytes")
                self.irqs.set(flags, index, start, count, data[messages.IRQ_SET.size :], fds)
                return answer(message)
            case Command.DMA_MAP:
                self._map(data, fds)
                return answer(message)
            case Command.DMA_UNMAP:
                return answer(message, await self._unmap(data))
            case Command.DEVICE_GET_INFO:
                size, *_ = _unpack(messages.DEVICE_INFO, data)
                _check_size(size, messages.DEVICE_INFO)
                flags = messages.DEVICE_RESETS | messages.DEVICE_IS_PCI
                info = messages.DEVICE_INFO.pack(messages.DEVICE_INFO.size, flags, messages.REGIONS, messages.IRQS)
                return answer(message, info)
            case Command.DEVICE_GET_REGION_INFO:
                size, _, index, *_ = _unpack(messages.REGION_INFO, data)
                _check_size(size, messages.REGION_INFO)
                return answer(message, *region_info(self._function, index, size))
            case Command.DEVICE_GET_REGION_IO_FDS:
                size, flags, index, count = _unpack(messages.IO_FDS, data)
                _check_size(size, messages.IO_FDS)
                if flags or count:
                    raise RefusedError(errno.EINVAL, f"flags {flags:#x} and count {count}, which are 0 in a request")
                return answer(message, *io_fds(self._function, index, size, most=self._client.max_msg_fds))
            case Command.DEVICE_GET_IRQ_INFO:
                size, _, index, _ = _unpack(messages.IRQ_INFO, data)
                _check_size(size, messages.IRQ_INFO)
                flags, count = self.irqs.info(index)
                return answer(message, messages.IRQ_INFO.pack(messages.IRQ_INFO.size, flags, index, count))
            case Command.DEVICE_RESET:
                await self._function.reset()
                return answer(message)
            case Command.DEVICE_FEATURE:
                _, flags = _unpack(messages.FEATURE, data)
                raise RefusedError(
                    errno.ENOTTY, f"feature {flags & 0xFFFF}: there is none, for a device is not migrated"
                )
            case Command.MIG_DATA_READ | Command.MIG_DATA_WRITE:
                raise RefusedError(errno.ENOTSUP, "a device is not migrated")
            case _:
                raise RefusedError(errno.EINVAL, "it is not for a server, or not known")

    async def _write_multi(self, data: bytes) -> bytes:
        (count,) = _unpack(messages.WRITE_COUNT, data)
        rest = data[messages.WRITE_COUNT.size :]
        size = messages.REGION_ACCESS.size + 8
        if len(rest) != count * size:
            raise RefusedError(errno.EINVAL, f"{count} writes in {len(rest)} bytes")
        writes: list[tuple[int, int, bytes]] = []
        for at in range(0, len(rest), size):
            offset, region, length = messages.REGION_ACCESS.unpack_from(rest, at)
            if length > 8:
                raise RefusedError(errno.EINVAL, f"{length} bytes to write; each of many has 8 at most")
            start = at + messages.REGION_ACCESS.size
            writes.append((region, offset, rest[start : start + length]))
        for region, offset, piece in writes:
            await self._function.write(region, offset, piece)
        return messages.WRITE_COUNT.pack(count)

    # -- memory ------------------------------------------------------------------------------------------------------

    def _map(self, data: bytes, fds: list[int]) -> None:
        size, flags, offset, address, length = _unpack(messages.DMA_MAP, data)
        _check_size(size, messages.DMA_MAP)
        if flags > MapFlag.READ | MapFlag.WRITE:
            raise RefusedError(errno.EINVAL, f"DMA_MAP with flags {flags:#x}")
        if len(fds) > 1:
            raise RefusedError(errno.EINVAL, f"DMA_MAP with {len(fds)} file descriptors")
        self._function.dma.map(
            address,
            length,
            fd=fds[0] if fds else None,
            offset=offset,
            readable=bool(flags & MapFlag.READ),
            writable=bool(flags & MapFlag.WRITE),
            require_seal=self._require_seal,
        )

    async def _unmap(self, data: bytes) -> bytes:
        size, flags, address, length = _unpack(messages.DMA_UNMAP, data)
        _check_size(size, messages.DMA_UNMAP)
        if flags == messages.UNMAP_ALL:
            if address or length:
                raise RefusedError(errno.EINVAL, "to unmap all, address and size are 0")
            await self._function.dma.unmap_all()
        elif flags:
            raise RefusedError(errno.ENOTSUP, f"DMA_UNMAP with flags {flags:#x}")
        else:
            await self._function.dma.unmap(address, length)
        return data[: messages.DMA_UNMAP.size]


def _name(message: Message) -> str:
    return message.command.name if isinstance(message.command, Command) else f"command {message.command}"


def _unpack(form: Struct, data: bytes) -> tuple[int, ...]:
    if len(data) < form.size:
        raise RefusedError(errno.EINVAL, f"a payload of {len(data)} bytes, and {form.size} at least")
    return form.unpack_from(data)


def _check_size(size: int, form: Struct) -> None:
    if size < form.size:
        raise RefusedError(errno.EINVAL, f"argsz {size}, and {form.size} at least")


async def _ended(task: asyncio.Task[str | None] | asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end, also if the wait is cancelled."""
    task.cancel()
    try:
        await asyncio.wait({task})
    finally:
        if not task.done():
            await asyncio.wait({task})


def _close(fds: tuple[int, ...] | list[int]) -> None:
    for fd in fds:
        os.close(fd)
