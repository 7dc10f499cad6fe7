"""The machine's map: what the guest's program and the devices agree on. ``build_guest.py`` hands it to the assembler."""

from __future__ import annotations

from typing import Final

LOAD: Final = 0x1000
"""Where the guest's image is loaded and entered, a physical address."""
MEMORY_SIZE: Final = 0x10000
"""The guest's RAM, bytes from address 0: one real-mode segment."""

TIMER_PIN: Final = 0
"""8259 pin of the timer, edge-triggered; the highest priority."""
ECHO_PIN: Final = 1
"""8259 pin of the echo device, edge-triggered; as the timer's, of higher priority than the slave's pins."""
SERIAL_PIN: Final = 10
"""8259 pin of the serial receiver, level-triggered, on the slave."""
POWER_PIN: Final = 11
"""8259 pin of the power button, edge-triggered, on the slave."""
NAMES: Final = {TIMER_PIN: "timer", ECHO_PIN: "echo", SERIAL_PIN: "serial", POWER_PIN: "power"}
"""The pins, for a recorder."""

CONSOLE_PORT: Final = 0x500
"""Out, 1 or 4 bytes: what the guest prints. In, 1 byte: has the machine take what was printed so far; the value is nothing."""
SERIAL_PORT: Final = 0x504
"""In, 1 or 4 bytes: takes the oldest bytes from the receiver, the oldest in the lowest byte."""
SERIAL_COUNT_PORT: Final = 0x508
"""In, 2 bytes: how many bytes the receiver holds."""
TIMER_PORT: Final = 0x50C
"""In, 4 bytes: how many ticks there have been."""
DOORBELL_PORT: Final = 0x510
"""Out, 1 byte: :data:`DOORBELL_VALUE` wakes the echo device (an ioeventfd with datamatch)."""
DOORBELL_VALUE: Final = 0x01
"""The only value that rings the doorbell."""
ECHO_PORT: Final = 0x514
"""Out, 4 bytes: the question. In, 4 bytes: the answer."""
READY_PORT: Final = 0x518
"""Out, 1 byte: the guest takes interrupts from here on."""
REPORT_PORT: Final = 0x51C
"""Out, 4 bytes each: what the guest counted, in the order of ``report.GuestCounts``."""
SHUTDOWN_PORT: Final = 0x520
"""Out, 1 byte: switches the machine off."""
