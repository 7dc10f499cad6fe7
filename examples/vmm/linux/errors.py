"""What can be wrong with what is given to the machine."""

from __future__ import annotations


class BootError(Exception):
    """This cannot be booted; the text says why, and what to do."""


class MachineError(Exception):
    """The guest cannot go on, by no fault of its own; the text says why."""
