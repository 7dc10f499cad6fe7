r"""AML, the byte code in which ACPI describes what cannot be found by probing. Each class here is one of its terms.

``bytes(term)`` is the code. It reads as the ASL that a disassembler (``iasl -d``) makes of it::

    Scope("\_SB_", Device("COM1", Name("_HID", EisaId("PNP0501"))))

Chapter 20 of the ACPI specification has the code, 19 the language, 6.4 the resources.
"""

from __future__ import annotations

import struct
from typing import Final


class Term:
    """A piece of AML.

    Args:
        code: Its bytes.
    """

    def __init__(self, code: bytes) -> None:
        self._code: Final = code

    def __bytes__(self) -> bytes:
        return self._code


Value = Term | int | str
"""What a name can stand for. An ``int`` is 0..2**64-1; a ``str`` is ASCII text."""


class Scope(Term):
    r"""Terms in a scope that exists, such as ``\_SB_``."""

    def __init__(self, path: str, *terms: Term) -> None:
        super().__init__(b"\x10" + _package(_name(path) + _joined(terms)))


class Device(Term):
    """A device: a scope of its own in the scope that it is in."""

    def __init__(self, name: str, *terms: Term) -> None:
        super().__init__(b"\x5b\x82" + _package(_name(name) + _joined(terms)))


class Name(Term):
    """A name for a value."""

    def __init__(self, name: str, value: Value) -> None:
        super().__init__(b"\x08" + _name(name) + _value(value))


class Package(Term):
    """A list of values, 255 at most."""

    def __init__(self, *values: Value) -> None:
        super().__init__(b"\x12" + _package(bytes((len(values),)) + b"".join(map(_value, values))))


class EisaId(Term):
    """A device's kind, three letters and four hexadecimal digits, as the number that ``_HID`` and ``_CID`` take."""

    def __init__(self, kind: str) -> None:
        letters = [ord(letter) - ord("@") for letter in kind[:3]]  # A is 1; five bits each
        number = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(kind[3:], 16)
        super().__init__(_value(int.from_bytes(number.to_bytes(4, "big"), "little")))


class ResourceTemplate(Term):
    """What ``_CRS`` stands for: the ports, the memory and the interrupts that are a device's. A buffer of descriptors."""

    def __init__(self, *resources: Resource) -> None:
        descriptors = _joined(resources) + b"\x79\x00"  # the end; a checksum of 0 is none
        super().__init__(b"\x11" + _package(_value(len(descriptors)) + descriptors))


class Resource(Term):
    """One of them."""


class Io(Resource):
    """Ports that do not move, 16 bits of them decoded."""

    def __init__(self, ports: range) -> None:
        super().__init__(struct.pack("<BBHHBB", 0x47, 1, ports.start, ports.start, 1, len(ports)))


class IrqNoFlags(Resource):
    """An ISA interrupt, 0..15: edge-triggered, active high, not shared."""

    def __init__(self, irq: int) -> None:
        super().__init__(struct.pack("<BH", 0x22, 1 << irq))


class Window(Resource):
    """A range of addresses that a bridge hands on to the bus behind it; neither end moves."""

    def __init__(self, tag: int, layout: str, kind: int, flags: int, window: range) -> None:
        first, last = window.start, window.stop - 1
        body = struct.pack("<BBB", kind, 0x0C, flags) + struct.pack(f"<5{layout}", 0, first, last, 0, len(window))
        super().__init__(struct.pack("<BH", tag, len(body)) + body)


class WordBusNumber(Window):
    """Numbers of buses."""

    def __init__(self, window: range) -> None:
        super().__init__(0x88, "H", 2, 0, window)


class WordIo(Window):
    """Ports."""

    def __init__(self, window: range) -> None:
        super().__init__(0x88, "H", 1, 3, window)


class DWordMemory(Window):
    """Memory below 4 GiB: writable, not cached."""

    def __init__(self, window: range) -> None:
        super().__init__(0x87, "I", 0, 1, window)


def _joined(terms: tuple[Term, ...]) -> bytes:
    return b"".join(map(bytes, terms))


def _value(value: Value) -> bytes:
    if isinstance(value, Term):
        return bytes(value)
    if isinstance(value, str):
        return b"\x0d" + value.encode("ascii") + b"\0"
    if value <= 1:
        return bytes((value,))
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4)):
        if value < 1 << 8 * size:
            return bytes((prefix,)) + value.to_bytes(size, "little")
    return b"\x0e" + value.to_bytes(8, "little")


def _name(path: str) -> bytes:
    r"""A name of four characters, ``_`` at its end where it is shorter; or a path of two, from the root ``\``."""
    root = path[: path.startswith("\\")]
    segments = [segment.ljust(4, "_").encode("ascii") for segment in path[len(root) :].split(".")]
    if not all(len(segment) == 4 for segment in segments) or len(segments) > 2:
        raise ValueError(f"{path!r} is no AML name of one segment or two, of up to four characters each")
    return root.encode() + b"\x2e" * (len(segments) - 1) + b"".join(segments)


def _package(contents: bytes) -> bytes:
    """The contents with their length before them, which counts itself.

    One byte has 6 bits of it. Of more bytes, the first has the lowest 4, and how many follow, 1 to 3, in its highest 2.
    """
    if len(contents) + 1 < 1 << 6:
        return bytes((len(contents) + 1,)) + contents
    for following in (1, 2, 3):
        length = len(contents) + 1 + following
        if length < 1 << 4 + 8 * following:
            return bytes((following << 6 | length & 0xF,)) + (length >> 4).to_bytes(following, "little") + contents
    raise ValueError(f"{len(contents)} bytes are too much for one AML term")
