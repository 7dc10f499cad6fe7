"""The ports: which device answers ``in`` and ``out`` at which port, and who answers for all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioirqfd.kvm import ExitHandler


class PortDevice(Protocol):
    """A device on ports.

    Threads: it is called in the thread of the vCPU that asks, of several at the same time. So it must be quick and thread-safe.
    """

    @property
    def ports(self) -> Sequence[range]:
        """Where it is. Read once, when it is added."""
        ...

    def port_in(self, port: int, size: int, /) -> int:
        """What the guest reads: ``size`` bytes, 1, 2 or 4, as a number that fits them."""
        ...

    def port_out(self, port: int, size: int, value: int, /) -> None:
        """The guest writes ``size`` bytes, 1, 2 or 4, as a number."""
        ...

    def save_state(self) -> dict[str, object]:
        """What it is like, as JSON has it. On the loop, while the machine is paused."""
        ...

    def restore_state(self, state: dict[str, object], /) -> None:
        """Be like that. On the loop, before the vCPUs run."""


@final
class Nobody:
    """A bus without a device: what is read is all ones, what is written vanishes."""

    def port_in(self, port: int, size: int) -> int:  # noqa: ARG002
        return (1 << 8 * size) - 1

    def port_out(self, port: int, size: int, value: int) -> None:
        """Vanishes."""

    def mmio_read(self, address: int, size: int) -> int:  # noqa: ARG002
        return (1 << 8 * size) - 1

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """Vanishes."""


@final
class PortTable:
    """Answers the guest's accesses (an ``aioirqfd.kvm.ExitHandler``): each port has its device, and the bus gets the rest.

    An access belongs to the device at its first port, however many ports it reaches.

    Threads: filled before the vCPUs run. Then nothing in it changes any more, so that they need no lock.

    Attributes:
        bus: Who answers for all other ports, and for memory: the PCI bus, if there is one.
    """

    def __init__(self) -> None:
        self.bus: ExitHandler = Nobody()
        self._devices: Final[dict[int, PortDevice]] = {}

    def add(self, device: PortDevice) -> None:
        """Let a device answer for its ports.

        Raises:
            ValueError: One of them has a device already. None was added.
        """
        ports = [port for some in device.ports for port in some]
        for port in ports:
            if (other := self._devices.get(port)) is not None:
                raise ValueError(f"port {port:#x} of {device!r} is {other!r}'s already")
        self._devices.update(dict.fromkeys(ports, device))

    @property
    def devices(self) -> Sequence[PortDevice]:
        """Who is there, in the order in which they came."""
        return list(dict.fromkeys(self._devices.values()))

    def port_in(self, port: int, size: int) -> int:
        return self._devices.get(port, self.bus).port_in(port, size)

    def port_out(self, port: int, size: int, value: int) -> None:
        self._devices.get(port, self.bus).port_out(port, size, value)

    def mmio_read(self, address: int, size: int) -> int:
        return self.bus.mmio_read(address, size)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        self.bus.mmio_write(address, size, value)
