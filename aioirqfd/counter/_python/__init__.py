"""The counter module in pure Python: the specification of the native one, and what runs where there was no compiler.

Four nouns. :class:`Counter` counts. :class:`EventFdCtx` is the in-process half of an eventfd. :class:`Drain` is the private
epoll of one loop, with a mailbox for the signals of other threads. :class:`TopHalf` is what a manager does at once with an
irqfd that is ready.

An irqfd *owes* a dispatch from the moment a signal was seen until its dispatch begins, and an irqfd that owes is in exactly
one place: the mailbox, the pass that is under way, or its manager's ``held`` list. Whoever dispatches clears the debt
*before* taking the count, so a signal that comes later makes a new one. That is the whole of "no interrupt is ever lost".

Its files are named as those of the native module. Where this differs from the native module: it reads the eventfd at every event (it never leaves a count unread),
and a lock stands in for the atomics.
"""

from __future__ import annotations

from aioirqfd.counter._python.core import MAX
from aioirqfd.counter._python.counter import Counter
from aioirqfd.counter._python.drain import Drain
from aioirqfd.counter._python.eventfd_ctx import EventFdCtx
from aioirqfd.counter._python.fd import fdinfo
from aioirqfd.counter._python.flight_ring import FlightRing
from aioirqfd.counter._python.stepped import Stepped
from aioirqfd.counter._python.top_half import TopHalf

__all__ = ["MAX", "Counter", "Drain", "EventFdCtx", "FlightRing", "Stepped", "TopHalf", "fdinfo"]
