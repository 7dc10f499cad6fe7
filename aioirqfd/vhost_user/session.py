"""One front-end's time with the back-end: its messages, one after the other, and what they do."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final, final

from aioirqfd.errors import ClosedError, EventFdInvalidError
from aioirqfd.eventfd import EventFd
from aioirqfd.serving.reports import name_of
from aioirqfd.tracer import described
from aioirqfd.vhost_user.backchannel import BackChannel
from aioirqfd.vhost_user.errors import RefusedError, RingError, VhostUserProtocolError
from aioirqfd.vhost_user.features import ProtocolFeature
from aioirqfd.vhost_user.inflight import ROOM, InflightBuffer
from aioirqfd.vhost_user.messages import (
    U64,
    ConfigSpace,
    Inflight,
    MemoryTable,
    Message,
    Request,
    SingleRegion,
    VringAddr,
    VringFd,
    VringState,
)
from aioirqfd.vhost_user.protocol import acknowledgement
from aioirqfd.virtio.errors import GuestMemoryError, InflightError
from aioirqfd.virtio.features import RING_FEATURES, VirtioFeature
from aioirqfd.virtio.memory import MAX_MEM_SLOTS, GuestMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioirqfd.serving.reports import Reports
    from aioirqfd.tracer import Tracer
    from aioirqfd.vhost_user.calls import Calls
    from aioirqfd.vhost_user.connection import Connection
    from aioirqfd.vhost_user.vring import Vring
    from aioirqfd.virtio.device import Device

PROTOCOL_FEATURES: Final = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)
"""What is offered for every device; ``CONFIG`` and ``BACKEND_REQ`` come on top where it has a configuration space."""
LIVE_MIGRATION: Final = 1
"""The flag of a ``SET_CONFIG`` that may write what is read-only otherwise."""
_SET_UP: Final = frozenset({Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.SET_VRING_ADDR})


@final
class Session:
    """One front-end, from its connection to its end.

    Args:
        connection: Its socket, read by this session only.
        device: The device.
        vrings: Its queues, all at rest.
        calls: Its interrupts.
        tracer: Hears what happens.
        reports: Tells what goes wrong.
        require_seal: Take only memory that the front-end can no longer shrink.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        device: Device,
        vrings: Sequence[Vring],
        calls: Calls,
        tracer: Tracer,
        reports: Reports,
        require_seal: bool,
    ) -> None:
        self._connection = connection
        self._device = device
        self._vrings = vrings
        self._calls = calls
        self._tracer = tracer
        self._reports = reports
        self._require_seal = require_seal
        self._memory = GuestMemory()
        self._features = 0
        self._protocol_features = ProtocolFeature(0)
        self._inflight: InflightBuffer | None = None
        self._status = 0
        self._channel: BackChannel | None = None
        # Whether the front-end may have an older configuration than the device: one that reconnects to a new back-end asks
        # for none.
        self._config_unread = True
        self._offered = int(RING_FEATURES | VirtioFeature.PROTOCOL_FEATURES) | device.features
        self._offered_protocol = PROTOCOL_FEATURES
        if device.config:
            self._offered_protocol |= ProtocolFeature.CONFIG | ProtocolFeature.BACKEND_REQ

    def node(self) -> dict[str, object]:
        """What there is to see of it."""
        regions = [mapped.region for mapped in self._memory.regions]
        return {
            "features": f"{self._features:#x}",
            "protocol_features": f"{int(self._protocol_features):#x}",
            "status": self._status,
            "memory": [f"{region.guest_address:#x} size {region.size:#x}" for region in regions],
            "inflight_buffer": self._inflight is not None,
            "back_channel": self._channel is not None,
        }

    async def run(self) -> None:
        """Serve the front-end until it goes, or breaks the protocol."""
        self._tracer.emit("frontend_connected")
        reason: str | None = None
        try:
            while (message := await self._connection.receive()) is not None:
                await self._serve(message)
                # A front-end with much to say is not to keep the loop from the queues.
                await asyncio.sleep(0)
        except VhostUserProtocolError as error:
            reason = str(error)
        except ConnectionError:
            pass
        finally:
            self._connection.close()
            if reason is None:
                self._tracer.emit("frontend_disconnected", reason=reason)
            else:
                self._reports.trouble("frontend_disconnected", kind=reason, reason=reason)
            self._abandon()
            try:
                await self._reset()
            finally:
                # Whoever serves may be told to end while a device's own code takes its time to.
                for vring in self._vrings:
                    vring.set_err(None)
                if self._inflight is not None:
                    self._inflight.close()
                if self._channel is not None:
                    self._channel.close()

    async def _serve(self, message: Message) -> None:
        fds = list(message.fds)
        reply: Message | None = None
        refused: RefusedError | None = None
        try:
            reply = await self._act(message, fds)
        except RefusedError as error:
            self._refuse(message, error)
            refused = error
        finally:
            for fd in (*fds, *message.surplus_fds):
                os.close(fd)
        if reply is None and self._protocol_features & ProtocolFeature.REPLY_ACK:
            reply = acknowledgement(message, ok=refused is None)
        if reply is not None:
            await self._connection.send(reply)
        elif isinstance(refused, RingError) and not refused.told:
            # There is no other way left to let the front-end know, and its guest would wait for ever.
            raise VhostUserProtocolError(f"{_name(message)}: {refused}") from refused

    def _refuse(self, message: Message, error: Exception) -> None:
        name, reason = _name(message), str(error)
        self._reports.trouble("message_refused", kind=(name, reason), request=name, reason=reason)

    async def _act(self, message: Message, fds: list[int]) -> Message | None:
        """Do what a message says. What is left in ``fds`` is closed afterwards."""
        match message.request, message.payload:
            case Request.GET_FEATURES, None:
                return _reply(message, U64(self._offered))
            case Request.SET_FEATURES, U64(features):
                await self._set_features(features)
            case Request.GET_PROTOCOL_FEATURES, None:
                return _reply(message, U64(int(self._offered_protocol)))
            case Request.SET_PROTOCOL_FEATURES, U64(features):
                if features & ~int(self._offered_protocol):
                    raise VhostUserProtocolError(f"protocol features {features:#x} were not offered")
                self._protocol_features = ProtocolFeature(features)
            case Request.GET_QUEUE_NUM, None:
                return _reply(message, U64(len(self._vrings)))
            case Request.SET_OWNER, None:
                pass
            case Request.RESET_OWNER, None:
                # "Deprecated": once meant to disable all rings, and where it was taken for more it led to bugs. Without
                # PROTOCOL_FEATURES no message would enable them again.
                if self._features & VirtioFeature.PROTOCOL_FEATURES:
                    for vring in self._vrings:
                        vring.set_enabled(enabled=False)
            case Request.RESET_DEVICE, None:
                with self._connection.watch(self._abandon):
                    await self._reset()
                if self._inflight is not None:
                    # The next rings are none of those that it remembers requests of.
                    self._inflight.clear(len(self._vrings))
            case Request.SET_MEM_TABLE, MemoryTable(regions):
                self._set_memory(lambda: GuestMemory.map(regions, _all(fds), require_seal=self._require_seal))
            case Request.ADD_MEM_REG, SingleRegion(region):
                memory, seal = self._memory, self._require_seal
                self._set_memory(lambda: memory.with_region(region, fds.pop(), require_seal=seal), piecewise=True)
            case Request.REM_MEM_REG, SingleRegion(region):
                self._set_memory(lambda: self._memory.without_region(region), piecewise=True)
            case Request.GET_MAX_MEM_SLOTS, None:
                return _reply(message, U64(MAX_MEM_SLOTS))
            case Request.GET_CONFIG, ConfigSpace() as piece:
                return self._get_config(message, piece)
            case Request.SET_CONFIG, ConfigSpace() as piece:
                self._set_config(piece)
            case Request.SET_BACKEND_REQ_FD, None:
                self._set_channel(fds)
            case Request.GET_STATUS, None:
                return _reply(message, U64(self._status))
            case Request.SET_STATUS, U64(status):
                await self._set_status(status)
            case Request.GET_INFLIGHT_FD, Inflight() as asked:
                return self._get_inflight(message, asked)
            case Request.SET_INFLIGHT_FD, Inflight() as description:
                await self._set_inflight(description, fds)
            case Request.GET_VRING_BASE, VringState(index, _):
                if index >= len(self._vrings):
                    raise VhostUserProtocolError(f"GET_VRING_BASE of queue {index} of {len(self._vrings)}")
                with self._connection.watch(self._abandon):
                    base = await self._vrings[index].stop()
                return _reply(message, VringState(index, base))
            case _, (VringState() | VringAddr() | VringFd()):
                await self._set_vring(message, fds)
            case _:
                raise RefusedError("not served")
        return None

    # -- the device --------------------------------------------------------------------------------------------------

    async def _set_features(self, features: int) -> None:
        if features & ~self._offered:
            raise VhostUserProtocolError(f"features {features & ~self._offered:#x} were not offered")
        if features != self._features:
            await self._all_rest("the features")
        self._features = features
        self._device.driver_features = features
        if not features & VirtioFeature.PROTOCOL_FEATURES:
            # "Ring states": without the bit there is no message to enable a ring, and it begins enabled.
            for vring in self._vrings:
                vring.set_enabled(enabled=True)

    def _get_config(self, message: Message, asked: ConfigSpace) -> Message:
        try:
            config = bytes(self._device.config[asked.offset : asked.offset + len(asked.data)])
        except Exception as error:
            self._raised("config", error)
            return Message(message.request, None, reply=True)  # what says that it failed
        self._config_unread = False
        # A front-end may know more fields than this device has: they read as zero.
        return _reply(message, ConfigSpace(asked.offset, asked.flags, config.ljust(len(asked.data), b"\0")))

    def _set_config(self, piece: ConfigSpace) -> None:
        if piece.flags & ~LIVE_MIGRATION:
            raise RefusedError(f"flags {piece.flags:#x} of SET_CONFIG are not known")
        try:
            if piece.flags:
                self._device.write_config(piece.offset, piece.data, live_migration=True)
            else:
                self._device.write_config(piece.offset, piece.data)
        except ValueError as error:
            raise RefusedError(str(error)) from error
        except Exception as error:
            self._raised("write_config()", error)
            raise RefusedError(f"the device failed: {described(error)}") from error

    def _set_channel(self, fds: list[int]) -> None:
        channel = BackChannel(fds[0])
        fds.clear()
        if self._channel is not None:
            self._channel.close()
        self._channel = channel
        # What has changed before there was anything to say it on.
        if self._config_unread and any(vring.queue is not None for vring in self._vrings):
            channel.config_changed()

    def config_changed(self) -> None:
        """The device's configuration space has changed: tell the front-end."""
        self._config_unread = True
        if self._channel is not None:
            self._channel.config_changed()

    async def _set_status(self, status: int) -> None:
        """What the driver says of itself. 0 is its reset: no ring may be touched after it.

        What the device has and the front-end has said stays: QEMU says 0 to every back-end that it stops, for a guest that
        is only paused, too.
        """
        if not status:
            with self._connection.watch(self._abandon):
                for vring in self._vrings:
                    await vring.stop()
        self._status = status

    def _raised(self, what: str, error: Exception) -> None:
        self._reports.raised("device_failed", f"{what} of {name_of(self._device)} raised", error, what=what)

    def _abandon(self) -> None:
        """The front-end has gone. None of the queues is to answer any more, before the first is waited for."""
        for index, vring in enumerate(self._vrings):
            vring.abandon()
            self._calls.bind(index, None)

    async def _reset(self) -> None:
        for vring in self._vrings:
            await vring.reset()
        self._features = self._device.driver_features = self._status = 0
        if (between := self._device.interception) is not None:
            between.reset()
        try:
            self._device.reset()
        except Exception as error:
            self._raised("reset()", error)

    # -- its memory --------------------------------------------------------------------------------------------------

    def _set_memory(self, make: Callable[[], GuestMemory], *, piecewise: bool = False) -> None:
        try:
            self._memory = make()
        except GuestMemoryError as error:
            raise RefusedError(str(error)) from error
        self._tracer.emit("memory_table", regions=len(self._memory.regions))
        lost: RingError | None = None
        for vring in self._vrings:
            try:
                vring.set_memory(self._memory, piecewise=piecewise)
                self._start(vring)
            except RingError as error:
                lost = lost or error
        if lost is not None:
            raise lost

    def _get_inflight(self, message: Message, asked: Inflight) -> Message:
        room = max(asked.queue_size, ROOM) if asked.queue_size else 0
        try:
            buffer = InflightBuffer.create(asked.num_queues, room)
        except InflightError as error:
            self._refuse(message, error)
            return _reply(message, Inflight(0, 0, asked.num_queues, asked.queue_size))
        self._keep_inflight(buffer)
        return _reply(message, buffer.description, (buffer.fileno(),))

    async def _set_inflight(self, description: Inflight, fds: list[int]) -> None:
        await self._all_rest("the inflight buffer")
        try:
            self._keep_inflight(InflightBuffer.map(description, fds.pop(), require_seal=self._require_seal))
        except InflightError as error:
            raise RefusedError(str(error)) from error

    def _keep_inflight(self, buffer: InflightBuffer) -> None:
        if self._inflight is not None:
            self._inflight.close()
        self._inflight = buffer

    # -- its queues --------------------------------------------------------------------------------------------------

    async def _all_rest(self, what: str) -> None:
        """Let all rings be set up anew, or raise a RefusedError if one of them is enabled and runs."""
        if any(vring.queue is not None and vring.enabled for vring in self._vrings):
            raise RefusedError(f"{what} cannot change while a queue runs")
        for vring in self._vrings:
            await self._rest(vring)

    async def _rest(self, vring: Vring) -> None:
        """Let a ring that was disabled be set up anew."""
        if vring.queue is not None and not vring.enabled:
            with self._connection.watch(self._abandon):
                await vring.rest()

    async def _set_vring(self, message: Message, fds: list[int]) -> None:
        payload = message.payload
        assert isinstance(payload, VringState | VringAddr | VringFd)
        if payload.index >= len(self._vrings):
            raise RefusedError(f"no queue {payload.index} of {len(self._vrings)}")
        vring = self._vrings[payload.index]
        if message.request in _SET_UP:
            await self._rest(vring)
        match message.request, payload:
            case Request.SET_VRING_NUM, VringState(_, size):
                vring.set_size(size)
            case Request.SET_VRING_BASE, VringState(_, base):
                vring.set_base(base)
            case Request.SET_VRING_ADDR, VringAddr():
                vring.set_address(payload)
            case Request.SET_VRING_ENABLE, VringState(_, enabled):
                vring.set_enabled(enabled=bool(enabled))
                if enabled:
                    vring.must_work()
            case Request.SET_VRING_KICK, VringFd():
                kick = _needed(vring, fds, "kick")
                if kick is None:
                    raise vring.unusable(f"queue {vring.index} has no kick eventfd, and would have to be polled")
                vring.set_kick(kick)
            case Request.SET_VRING_CALL, VringFd():
                self._calls.bind(vring.index, _needed(vring, fds, "call"))
            case Request.SET_VRING_ERR, VringFd():
                vring.set_err(_eventfd(fds))
            case _:
                raise RefusedError("not served")
        self._start(vring)

    def _start(self, vring: Vring) -> None:
        started = vring.start(self._memory, self._features, self._inflight)
        if started and self._config_unread and self._channel is not None:
            # QEMU takes no word of it while no ring runs.
            self._channel.config_changed()


def _reply(message: Message, payload: U64 | VringState | ConfigSpace | Inflight, fds: tuple[int, ...] = ()) -> Message:
    return Message(message.request, payload, fds, reply=True)


def _name(message: Message) -> str:
    return message.request.name if isinstance(message.request, Request) else str(int(message.request))


def _all(fds: list[int]) -> list[int]:
    taken = fds[:]
    fds.clear()
    return taken


def _needed(vring: Vring, fds: list[int], what: str) -> EventFd | None:
    """Take the eventfd that came with a message, if one did; without the right one a guest would wait for ever."""
    try:
        return _eventfd(fds)
    except RefusedError as error:
        raise vring.unusable(f"the {what} of queue {vring.index} cannot be used: {error}") from error


def _eventfd(fds: list[int]) -> EventFd | None:
    """Take the eventfd that came with a message, if one did."""
    if not fds:
        return None
    try:
        eventfd = EventFd.from_fd(fds[0], owns=True)
    except (EventFdInvalidError, ClosedError) as error:
        raise RefusedError(str(error)) from error
    fds.clear()
    return eventfd
