"""A sink that is a QEMU: interrupt lines of its 8259 pair and its IOAPIC, and messages, over its qtest socket.

It works with any accelerator, on a machine that runs or is stopped::

    qemu-system-x86_64 ... -qtest unix:qt.sock,server=on,wait=off -qmp unix:qmp.sock,server=on,wait=off

When an interrupt is QEMU's. QEMU answers every command, so the safe moment is its ``OK``: :meth:`QtestSink.inject` waits for it,
and what QEMU did not take is the manager's to try again, or to report as :class:`aioirqfd.InjectionError`. That costs a round
trip, but not a turn for each: with a work queue of several workers, as many irqfds' commands are on their way at once. With
``confirm=False`` an interrupt is taken as soon as its bytes are in the socket's buffer: less work for each, but should
QEMU refuse or die afterwards, it is too late to try again, and the error comes with the next interrupt or at the close.

QEMU aborts on a pin that a chip does not have. So pins are looked up once, by QMP, and nothing else is ever sent.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Self, final

from aioirqfd.integers import plain
from aioirqfd.irqfd.interrupt import IOAPIC_PINS, PIC_PINS, Action, IrqchipPin
from aioirqfd.irqfd.routing import RoutingTable
from aioirqfd.sinks.qmp import Qmp
from aioirqfd.sinks.qtest_client import QtestClient, QtestClosedError, QtestError
from aioirqfd.uncopied import refusal

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from aioirqfd.irqfd.interrupt import Interrupt
    from aioirqfd.sinks.qtest_client import OnIrq

__all__ = ["QtestClient", "QtestClosedError", "QtestError", "QtestSink"]

_GPIO: Final = "unnamed-gpio-in"
_PIC_PINS_EACH: Final = PIC_PINS // 2
_DEPTH: Final = 12
"""How deep the object tree is searched; the chips sit at 2 to 4."""


@final
class QtestSink:
    """Delivers into a QEMU over its qtest socket: pins of PIC and IOAPIC, and MSIs. Made by :meth:`connect`.

    A level-triggered line that a guest unmasks fires again after each of its ends of interrupt until it is lowered. QEMU does
    not tell of the end of an interrupt: call :meth:`aioirqfd.IrqManager.ack` where the device hears that the guest has served
    it, or intercept the 8259's output (:meth:`intercept_outputs`).

    Args:
        client: The connection; the sink closes it.
        pins: The QOM path of the device behind each pin, and its number there; nothing is sent for any other pin.
        confirm: Wait for QEMU's ``OK`` before an interrupt counts as delivered.
        maxsize: Without ``confirm``, how many commands may be without a reply before the top half is refused, at least 2.

    Attributes:
        client: For commands of one's own: set a chip up, read it back.
        levels: Of intercepted lines: what QEMU said last.
        raises: Of intercepted lines: how often they went up.
        on_irq: Called with line and level as QEMU says them, on the loop's thread; should not raise: what it raises goes to the
            loop's exception handler.
        unconfirmed: Without ``confirm``: the interrupts that were on their way when QEMU refused one, or died. No more than
            ``maxsize`` of them; which ones QEMU took before, it did not say.

    Used as ``async with``. Threads: the loop's thread, but :meth:`try_inject`, which refuses any other.
    """

    __slots__ = (
        "_commands",
        "_confirm",
        "_error",
        "_loop",
        "_maxsize",
        "_paths",
        "_told",
        "client",
        "levels",
        "on_irq",
        "raises",
        "unconfirmed",
    )

    def __init__(
        self,
        client: QtestClient,
        pins: Mapping[IrqchipPin, tuple[str, int]],
        *,
        confirm: bool = True,
        maxsize: int = 256,
    ) -> None:
        room = plain(maxsize, 2**32)
        if room is None or room < 2:
            raise ValueError(f"an edge is two commands, so 2 or more may be without a reply, not {maxsize!r}")
        self.client: Final = client
        self.levels: Final[dict[int, bool]] = {}
        self.raises: Final[dict[int, int]] = {}
        self.on_irq: OnIrq | None = None
        self.unconfirmed: Final[list[Interrupt]] = []
        self._loop = asyncio.get_running_loop()
        self._confirm = confirm
        self._maxsize = room
        self._error: QtestError | None = None
        self._told = False
        self._paths = dict(pins)
        self._commands = {pin: _line_commands(path, number) for pin, (path, number) in pins.items()}
        client.on_irq = self._take_irq

    @classmethod
    async def connect(
        cls,
        path: str | os.PathLike[str],
        *,
        qmp: str | os.PathLike[str] | None = None,
        pic: tuple[str, str] | None = None,
        ioapic: str | None = None,
        confirm: bool = True,
        maxsize: int = 256,
    ) -> Self:
        """Connect to a QEMU and find its interrupt controllers.

        Args:
            path: The qtest socket.
            qmp: The QMP socket, for the look-up. It is let go of before this returns.
            pic: Instead: the QOM paths of the master and slave 8259. Only what ``info qom-tree`` shows as ``isa-i8259`` will
                do: QEMU aborts when another device is handed a pin that it does not have.
            ioapic: Instead: the QOM path of the IOAPIC.
            confirm: See :class:`QtestSink`.
            maxsize: See :class:`QtestSink`.

        Returns:
            The sink. A chip that the machine does not have, or that was neither looked up nor given, has no pins.

        Raises:
            OSError: Nobody listens.
            QtestError: QEMU hung up, or it is none; ``aioirqfd.sinks.qmp.QmpError`` for the QMP socket.
        """
        pins: dict[IrqchipPin, tuple[str, int]] = {}
        if qmp is not None:
            async with await Qmp.connect(qmp) as monitor:
                pins = await find_pins(monitor)
        if pic is not None:
            pins |= {
                IrqchipPin("pic", pin): (pic[pin // _PIC_PINS_EACH], pin % _PIC_PINS_EACH) for pin in range(PIC_PINS)
            }
        if ioapic is not None:
            pins |= {IrqchipPin("ioapic", pin): (ioapic, pin) for pin in range(IOAPIC_PINS)}
        client = await QtestClient.connect(path)
        try:
            return cls(client, pins, confirm=confirm, maxsize=maxsize)
        except BaseException:
            await client.aclose()
            raise

    # -- injecting ---------------------------------------------------------------------------------------------------

    async def inject(self, interrupt: Interrupt) -> None:
        """Deliver it, and wait for QEMU's ``OK``.

        Raises:
            QtestError: QEMU refused it, the machine has no such pin, or a message names its sender, which qtest cannot say.
            QtestClosedError: QEMU is gone.

        Cancellation:
            What was sent stays sent.
        """
        if self._error is not None:
            raise self._error
        lines = self._lines(interrupt)
        if lines:
            await self.client.submit(*lines)

    def try_inject(self, interrupt: Interrupt) -> bool:
        """Without ``confirm``, deliver into the socket's buffer.

        Refuses with ``confirm``, off the loop's thread, after an error, and while ``maxsize`` commands are without a reply.
        """
        return self.try_inject_batch((interrupt,)) == 1

    def try_inject_batch(self, interrupts: Sequence[Interrupt], /) -> int:
        """The same for several, in one write."""
        # An ack may come from any thread, and brings the lowering of its line along.
        if self._confirm or self._error is not None or self.client.closed or not self._here:
            return 0
        room = self._maxsize - self.client.outstanding
        commands: list[str] = []
        taken = 0
        for interrupt in interrupts:
            try:
                lines = self._lines(interrupt)
            except QtestError:
                break  # inject() says it
            room -= len(lines)
            if room < 0:
                break
            commands += lines
            taken += 1
        if commands:
            self.client.submit(*commands).add_done_callback(self._confirmation(tuple(interrupts[:taken])))
        return taken

    def default_routing(self) -> RoutingTable:
        """The table of a manager that is given none: gsi n is pin n of the IOAPIC, or of the 8259 pair where there is no IOAPIC.

        Not of both, as a PC has it: each pin is a round trip of its own.
        """
        ioapic = [pin for pin in self._paths if pin.chip == "ioapic"]
        return RoutingTable.of_pins(ioapic or self._paths)

    @property
    def _here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def _confirmation(self, interrupts: tuple[Interrupt, ...]) -> Callable[[asyncio.Future[str]], None]:
        def confirmed(future: asyncio.Future[str]) -> None:
            error = future.exception()
            if error is not None:
                self._error = self._error or QtestError(f"QEMU did not take what it was sent: {error}")
                self._error.__cause__ = error
                self.unconfirmed.extend(interrupts)

        return confirmed

    def _lines(self, interrupt: Interrupt) -> tuple[str, ...]:
        route = interrupt.route
        if not isinstance(route, IrqchipPin):
            if route.devid is not None:
                raise QtestError(f"qtest cannot say from whom a message comes: {route!r}")
            return () if interrupt.action is Action.DEASSERT else (f"writel {route.address:#x} {route.data:#x}",)
        commands = self._commands.get(route)
        if commands is None:
            raise QtestError(f"this machine has no {route.chip} pin {route.pin}, or nobody said where it is")
        if interrupt.action is Action.PULSE:
            return commands
        return commands[:1] if interrupt.action is Action.ASSERT else commands[1:]

    # -- reading back ------------------------------------------------------------------------------------------------

    async def intercept_inputs(self, pin: IrqchipPin) -> None:
        """Hear of every change of the input lines of the chip behind the pin, ours and those of QEMU's own devices.

        QEMU can do this for one device, once; what the lines do to the chip goes on.

        Raises:
            QtestError: There is an interception already, or no such pin.
        """
        await self.client.command(f"irq_intercept_in {self._path(pin)}")

    async def intercept_outputs(self, pin: IrqchipPin) -> None:
        """Hear of the output lines instead: line 0 of an 8259 is its request to the CPU, or to the master.

        QEMU then takes the line away from the CPU. An IOAPIC has no output line. Raises as :meth:`intercept_inputs` does.
        """
        await self.client.command(f"irq_intercept_out {self._path(pin)}")

    def _path(self, pin: IrqchipPin) -> str:
        try:
            return self._paths[pin][0]
        except KeyError:
            raise QtestError(f"this machine has no {pin!r}, or nobody said where it is") from None

    def _take_irq(self, line: int, level: bool) -> None:  # noqa: FBT001  a line and its level, as QEMU says them
        self.levels[line] = level
        if level:
            self.raises[line] = self.raises.get(line, 0) + 1
        if self.on_irq is not None:
            self.on_irq(line, level)

    # -- closing -----------------------------------------------------------------------------------------------------

    def __reduce__(self) -> tuple[object, ...]:
        raise refusal(self, "It is one end of a connection: connect() another one.")

    async def flush(self) -> None:
        """Wait until QEMU has carried out everything that was sent before.

        Raises:
            QtestError: The first error since the start, without ``confirm``; or QEMU is gone.
        """
        if self._error is None:
            await self.client.command("endianness")
        if self._error is not None:
            raise self._error

    async def aclose(self) -> None:
        """Hang up; idempotent. QEMU goes on, its lines as they are. After the manager.

        Raises:
            QtestError: Without ``confirm``: QEMU did not take everything, see :attr:`unconfirmed`. Once.
        """
        try:
            if not self._confirm and not self.client.closed:
                with contextlib.suppress(QtestError):
                    await self.flush()
        finally:
            await self.client.aclose()
        if self._error is not None and not self._told:
            self._told = True
            raise self._error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.aclose()
        except QtestError:
            if exc_type is None:
                raise


def _line_commands(path: str, number: int) -> tuple[str, str]:
    return (f"set_irq_in {path} {_GPIO} {number} 1", f"set_irq_in {path} {_GPIO} {number} 0")


async def find_pins(monitor: Qmp) -> dict[IrqchipPin, tuple[str, int]]:
    """Where the pins of a machine's 8259 pair and of its first IOAPIC are: QOM path and number, of those that are there.

    Raises:
        QmpError: QEMU hung up.
    """
    pins: dict[IrqchipPin, tuple[str, int]] = {}
    level = ["/machine"]
    for _ in range(_DEPTH):
        below: list[str] = []
        for parent in level:
            for name, kind in (await monitor.qom_list(parent)).items():
                path = f"{parent}/{name}"
                if kind == "child<isa-i8259>":
                    master = await monitor.execute("qom-get", path=path, property="master")
                    await _add(monitor, pins, path, "pic", range(8) if master else range(8, 16))
                elif kind == "child<ioapic>" and IrqchipPin("ioapic", 0) not in pins:
                    await _add(monitor, pins, path, "ioapic", range(IOAPIC_PINS))
                elif kind.startswith("child<") and kind not in _LEAVES:
                    below.append(path)
        level = below
    return pins


_LEAVES: Final = frozenset({"child<irq>", "child<memory-region>", "child<qemu:memory-region>"})


async def _add(monitor: Qmp, pins: dict[IrqchipPin, tuple[str, int]], path: str, chip: str, numbers: range) -> None:
    there = await monitor.qom_list(path)
    for number, pin in enumerate(numbers):
        if f"{_GPIO}[{number}]" in there:
            pins.setdefault(IrqchipPin(chip, pin), (path, number))
