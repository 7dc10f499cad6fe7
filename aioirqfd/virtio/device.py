"""The base class of a virtio device: what is served, and the only thing a device's author writes."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Final

from aioirqfd.errors import SnapshotError
from aioirqfd.virtio.blockfile import BlockFile

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from aioirqfd.virtio.chain import Chain
    from aioirqfd.virtio.interception import Interception, Transport

MAX_CONFIG: Final = 256
"""Bytes of the largest configuration space."""
ENTROPY: Final = 4
"""The device id of a source of randomness."""
NEEDS_RESET: Final = -1
"""What :meth:`Device.failed` returns where a request can be neither done nor answered as failed: its queue stops."""


class Device:
    """A virtio device. Subclass it, say what it is, and write :meth:`handle`.

    Attributes:
        name: What traces and terminals call it; empty, as here: as its class.
        device_id: The virtio device id (virtio 1.2, section 5); the front-end is told by its own configuration, so this
            is for people and traces.
        num_queues: How many virtqueues it has, 1..256.
        features: Its own feature bits (bits 0..23, and 50 and above). Those of the ring are the back-end's to offer.
        config: Its configuration space, at most 256 bytes. Read whenever the driver reads it, so a subclass may make it a
            property. After a change, call :meth:`config_changed`.
        concurrency: How many requests of one queue may be under way at once, counting those that wait for something.
            With 1, requests are handled strictly one after the other.
        receive_queues: The queues whose requests wait for something that may never come, such as a network's receive
            queue. When such a queue stops, its waiting requests are cancelled and stay with the driver, where other
            queues wait for what is under way, for as long as the front-end is there. Its answers go back in the order
            that the requests came in: one that is ready before an older one's waits for it, and is void if the queue
            stops first. So with a ``concurrency`` above 1, give what is received to the oldest request.
        file: For block devices: the file that the queues read and write by themselves, without a call of :meth:`handle`
            for each request. Leave it None where :meth:`handle` does anything else with a read or a write.
        driver_features: The features that the driver has agreed on; 0 before.
        config_watchers: Whom :meth:`config_changed` tells: for the back-ends to fill in.
        interception: What comes between the device and whoever serves it (:meth:`intercept`), or None.
        transport: Who serves it: for the back-end to fill in.

    Threads: everything is called on the back-end's loop.
    """

    name: str = ""
    device_id: int = 0
    num_queues: int = 1
    features: int = 0
    config: bytes = b""
    concurrency: int = 1
    receive_queues: Collection[int] = ()
    file: BlockFile | None = None
    driver_features: int = 0
    config_watchers: tuple[Callable[[], None], ...] = ()
    interception: Interception | None = None
    transport: Transport | None = None

    async def handle(self, request: Chain) -> int | None:
        """Serve one request: read ``request.readable``, fill ``request.writable``.

        It is begun as soon as the driver's kick arrives, before anything else gets a turn, and an answer given without
        waiting costs no task. What waits goes on in a task of its own. ``asyncio.current_task()`` is right from the
        first line on, so that timeouts and cancellation scopes work.

        Args:
            request: The chain of buffers. The driver may change what is in them at any time: copy, then decide.

        Returns:
            How many bytes were written, from the first writable buffer on: ``0..request.writable_size``; None is 0.

        Cancellation:
            The queue is stopping, or the front-end has gone. The request stays with the driver, and comes again when the
            queue starts. Once this method has ended, the request's buffers are the driver's again: wait for whoever still
            uses them, such as a thread.
        """
        raise NotImplementedError

    def failed(self, request: Chain, error: BaseException) -> int:
        """Answer a request whose :meth:`handle` raised.

        The error has been reported: the tracer hears of it as often as :mod:`aioirqfd.ratelimit` lets it. Where there is
        none, the loop's exception handler does, which writes the traceback to standard error: of each place that raises,
        once in a front-end's time.

        A device whose answers have a status overrides this, and writes that the request has failed.

        Returns:
            How many bytes were written. Or ``NEEDS_RESET``: a request of this device cannot fail. Its queue stops as if the driver had
            broken it (``vring_stopped`` has the reason), the driver is told as far as the transport can tell it (virtio 1.2, 2.1.2),
            and nothing is lost but time: the driver has its requests back when it resets the device.

            This method answers with no bytes, which most drivers can see. An entropy device gives one byte or more (5.4.6.2), so for
            it this method says ``NEEDS_RESET``. Linux' virtio_rng asks for nothing more after an empty answer.
        """
        del request, error
        return NEEDS_RESET if self.device_id == ENTROPY else 0

    def interrupt(self, queue: int, ring: Callable[[], None]) -> bool | None:
        """The driver wants to hear that requests have been answered; called once for each batch.

        A subclass that interrupts in its own time overrides this, and then answers for every interrupt that it withholds.
        Should it raise, that is traced, and the interrupt goes out at once.

        Args:
            queue: The queue.
            ring: Interrupts; may be called at any time, any number of times.

        Returns:
            Whether it withholds the interrupt. This is called for the next batch, too, then. A driver with ``EVENT_IDX``
            would not be seen to want that: it names the next answer to hear of when it has heard of the last.
        """
        del queue
        ring()
        return False

    def stopping(self, queue: int) -> None:
        """A queue is about to stop, and waits for its requests under way: end what was held back. Does nothing here."""

    def write_config(self, offset: int, data: bytes, *, live_migration: bool = False) -> None:
        """The driver writes its configuration space (``SET_CONFIG``).

        Called on the loop between two messages; requests may be under way.

        Args:
            offset: Where, in bytes: 0..2**32-1, as the front-end says; it may be beyond the end of ``config``.
            data: What: at most 256 bytes.
            live_migration: It is not the driver who writes, but the front-end, after the guest has moved here: what was in
                the configuration space of the device there, read-only fields too. Left out for the driver.

        Raises:
            ValueError: It is not to be written; the message is acknowledged as failed. This method always says so, unless
                a guest that moves here brings what is there already.
        """
        if live_migration and self.config[offset : offset + len(data)] == data:
            return
        raise ValueError(f"{len(data)} bytes at {offset} of the configuration space are not the driver's to write")

    def config_changed(self) -> None:
        """Tell the driver that :attr:`config` has changed: a disk that has grown, a link that has gone down.

        The front-end is told (``CONFIG_CHANGE_MSG``), reads the configuration, and interrupts the driver. Where it cannot
        be told now, it is as soon as it can. Where there is no front-end, or it did not agree on ``BACKEND_REQ``, nothing
        happens.

        The queues take :attr:`file` anew.

        Threads: the loop's.
        """
        for tell in self.config_watchers:
            tell()

    def report(self, what: str) -> None:
        """Say that something went wrong which is nobody's mistake here, such as a frame for which there was no room.

        The tracer hears of it (``device_trouble``), as often as :mod:`aioirqfd.ratelimit` lets it, and a program's terminal does. Where
        the device is not served, nobody does.

        Args:
            what: A constant text: what a guest may choose is not to be in it.

        Threads: the loop's.
        """
        if self.transport is not None:
            self.transport.report(what)

    def intercept(self, interception: Interception | None) -> None:
        """From now on, have requests and interrupts go by this; None: by nobody, as at first. For :mod:`aioirqfd.faults`.

        Threads: the loop's, while the device is served.
        """
        self.interception = interception
        if self.transport is not None:
            self.transport.look_again()

    def describe(self, request: Chain) -> tuple[str, dict[str, int]] | None:
        """Say what a request is, for :mod:`aioirqfd.faults` to find it by.

        Returns:
            Its kind, such as "read", and its fields. None, as this method says: by its device id and queue.
        """
        del request
        return None

    def inspect(self) -> Mapping[str, object]:
        """What it shows of itself in the tree of :mod:`aioirqfd.inspect`, beside its queues: names, and values that ``json`` takes.

        Called on the back-end's loop, and only when somebody looks. It changes nothing, and does not wait. Nothing here.
        """
        return {}

    def save_state(self) -> Mapping[str, object]:
        """What the device is, beside :attr:`config` and what its driver has agreed on, as a dict that ``json`` takes.

        Called where a :class:`~aioirqfd.virtio_pci.VirtioPci` is saved. No request is under way, but the driver may have given it
        buffers of its :attr:`receive_queues`, which come again. Nothing here: override it where something was received that no
        buffer was there for, say.
        """
        return {}

    def restore_state(self, state: dict[str, object], /) -> None:
        """Take what :meth:`save_state` returned elsewhere; called before the first request comes, as after a reset.

        What was in :attr:`config` there comes by :meth:`write_config` before this, with ``live_migration``.

        Raises:
            SnapshotError: It cannot be taken; what else is raised is told as one.
        """
        if state:
            raise SnapshotError(f"{type(self).__qualname__} has no state of its own, but was given {', '.join(state)}")

    async def background(self) -> None:
        """What the device does beside requests, such as to watch what it serves. Does nothing here.

        A task of its own, from when a back-end is entered until it is left. It may end; what it raises is reported like
        what :meth:`handle` does, and the device is served on.

        Cancellation:
            The back-end is left, and waits for this to end.
        """

    def reset(self) -> None:
        """The driver has reset the device (``RESET_DEVICE``), or its front-end has gone. No request is under way."""

    def close(self) -> None:
        """Let go of what the device has opened; called by a program's ``main()`` at the end. Does nothing here.

        Whoever serves it otherwise calls it after that, if it is to be called.
        """


def check(device: Device) -> None:
    """Raise if a device cannot be what it says. Else it would be found out by a driver, which can tell nobody."""
    count = device.num_queues
    if not 1 <= count <= 256:
        raise ValueError(f"a device has 1..256 queues, not {count}")
    if not all(0 <= queue < count for queue in device.receive_queues):
        raise ValueError(f"receive queues {device.receive_queues} of {count}")
    if device.concurrency < 1:
        raise ValueError(f"a queue has 1 or more requests under way at once, not {device.concurrency}")
    if len(memoryview(device.config)) > MAX_CONFIG:
        raise ValueError(f"a configuration space of {len(device.config)} bytes, more than {MAX_CONFIG}")
    # Devices are written without a type checker, too.
    if not inspect.iscoroutinefunction(device.handle):
        raise TypeError(f"handle() is a coroutine function, not {device.handle!r}")
    if not inspect.iscoroutinefunction(device.background):
        raise TypeError(f"background() is a coroutine function, not {device.background!r}")
    file = device.file
    if file is not None and not isinstance(file, BlockFile):  # pyright: ignore[reportUnnecessaryIsInstance]  as above
        raise TypeError(f"a file is a BlockFile, not {file!r}")
