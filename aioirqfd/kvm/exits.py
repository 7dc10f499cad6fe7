"""What a guest asks of its VMM at an exit: a port, or an address without memory."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final, Protocol, final

from aioirqfd.kvm.ioctls import KVM_EXIT_IO_OUT

MMIO_DATA: Final = 40
"""Where the union's mmio part keeps its bytes, from the start of the page."""
_UNION: Final = 32
"""Where the union begins."""
_IO: Final = Struct("=BBHIQ").unpack_from
_MMIO: Final = Struct("=Q8xIB").unpack_from


# Not frozen: these are made at every exit, and frozen they would cost three times as much.
@final
@dataclass(slots=True)
class IoExit:
    """A guest's port access (``KVM_EXIT_IO``).

    Attributes:
        direction: ``KVM_EXIT_IO_IN`` or ``KVM_EXIT_IO_OUT``.
        size: Bytes an element: 1, 2 or 4.
        port: 0..65535.
        count: Elements; more than 1 for a string instruction.
        data: A view of the page shared with the kernel, ``size * count`` bytes: what the guest wrote, or where its
            answer
            goes (``exit.data[:] = ...``) before the next run. It is valid until then.
    """

    direction: int
    size: int
    port: int
    count: int
    data: memoryview

    @property
    def is_write(self) -> bool:
        """Whether the guest wrote."""
        return self.direction == KVM_EXIT_IO_OUT


@final
@dataclass(slots=True)
class MmioExit:
    """A guest's access to an address without memory (``KVM_EXIT_MMIO``).

    Attributes:
        phys_addr: The guest-physical address, 0..2**64-1.
        data: As in :class:`IoExit`, 1..8 bytes.
        is_write: Whether the guest wrote.
    """

    phys_addr: int
    data: memoryview
    is_write: bool


class ExitHandler(Protocol):
    """What :meth:`aioirqfd.kvm.Vcpu.serve` calls at the guest's accesses, in the vCPU's thread.

    Values are unsigned, as the guest has them in its register. One string instruction (``rep insb``) is one call for each
    element. An access to memory that crosses a page comes in two parts.
    """

    def port_in(self, port: int, size: int, /) -> int:
        """The guest reads a port.

        Args:
            port: 0..65535.
            size: Bytes: 1, 2 or 4.

        Returns:
            What it reads: 0..2**(8 * size)-1.
        """
        ...

    def port_out(self, port: int, size: int, value: int, /) -> None:
        """The guest writes a port.

        Args:
            port: 0..65535.
            size: Bytes: 1, 2 or 4.
            value: What it wrote: 0..2**(8 * size)-1.
        """
        ...

    def mmio_read(self, address: int, size: int, /) -> int:
        """The guest reads where there is no memory.

        Args:
            address: Guest-physical, 0..2**64-1.
            size: Bytes: 1..8.

        Returns:
            What it reads: 0..2**(8 * size)-1.
        """
        ...

    def mmio_write(self, address: int, size: int, value: int, /) -> None:
        """The guest writes where there is no memory (or where it may not, ``KVM_MEM_READONLY``).

        Args:
            address: Guest-physical, 0..2**64-1.
            size: Bytes: 1..8.
            value: What it wrote: 0..2**(8 * size)-1.
        """
        ...


@final
class Exits:
    """The page of a vCPU that is being served: hands the guest's accesses to a handler.

    The page is read by one unpack each. An object for each exit, and a view of its data, cost as much as the exit itself; the fields
    of a ctypes structure, one by one, a third as much.

    Args:
        view: The page, with the page of port data behind it.
        handler: Whom to ask.
    """

    __slots__ = ("_elements", "_port_in", "_port_out", "_read", "_view", "_write")

    def __init__(self, view: memoryview, handler: ExitHandler) -> None:
        self._view = view
        # An index into one of these is a number of that many bytes. Little-endian, as x86 is.
        self._elements = {1: view.cast("B"), 2: view.cast("H"), 4: view.cast("I"), 8: view.cast("Q")}
        self._port_in, self._port_out = handler.port_in, handler.port_out
        self._read, self._write = handler.mmio_read, handler.mmio_write

    def port(self) -> None:
        """Handle ``KVM_EXIT_IO``.

        Raises:
            ValueError: The handler's answer does not fit; TypeError: it is no integer. And whatever the handler raises.
        """
        direction, size, port, count, offset = _IO(self._view, _UNION)
        elements = self._elements[size]
        first: int = offset // size
        if direction == KVM_EXIT_IO_OUT:
            if count == 1:
                self._port_out(port, size, elements[first])
                return
            for index in range(first, first + count):
                self._port_out(port, size, elements[index])
            return
        for index in range(first, first + count):
            value = self._port_in(port, size)
            try:
                elements[index] = value
            except (ValueError, TypeError) as error:
                raise _unfit(error, f"port_in({port:#x}, {size})", size, value) from None

    def release(self) -> None:
        """Let go of the page, whoever still holds this object: the traceback of what the handler has raised does."""
        for elements in self._elements.values():
            elements.release()

    def mmio(self) -> None:
        """Handle ``KVM_EXIT_MMIO``. Raises as :meth:`port` does."""
        address, size, is_write = _MMIO(self._view, _UNION)
        elements = self._elements.get(size)
        if is_write:
            if elements is not None:
                place: int = MMIO_DATA // size
                value = elements[place]
            else:
                value = int.from_bytes(self._view[MMIO_DATA : MMIO_DATA + size], "little")
            self._write(address, size, value)
            return
        value = self._read(address, size)
        try:
            if elements is not None:
                elements[MMIO_DATA // size] = value
            else:
                self._view[MMIO_DATA : MMIO_DATA + size] = int.to_bytes(value, size, "little")
        except (ValueError, TypeError, OverflowError) as error:
            raise _unfit(error, f"mmio_read({address:#x}, {size})", size, value) from None


def _unfit(error: Exception, call: str, size: int, value: object) -> Exception:
    if isinstance(error, TypeError):
        return TypeError(f"{call} returned {value!r}: what the guest reads is an integer")
    return ValueError(f"{call} returned {value}, which does not fit: {size} bytes are 0..2**{8 * size}-1")
