"""EventFdCtx: the in-process half of an eventfd."""

# pyright: reportPrivateUsage=false
# (these classes see into each other, as C structures do)
from __future__ import annotations

import operator
from types import CellType
from typing import TYPE_CHECKING, Final, SupportsIndex, cast

from aioirqfd.counter._python.core import MASK, MAX, amount, lock, unraisable
from aioirqfd.counter._python.fd import begin_add, has_count, read_now
from aioirqfd.errors import ClosedError

if TYPE_CHECKING:
    from aioirqfd.counter._python.core import Handler, Irqfd
    from aioirqfd.counter._python.drain import Drain
    from aioirqfd.counter._python.top_half import TopHalf

# A semaphore is read one at a time: so many of whoever counts them in one dispatch, and so many where it is to be emptied. What is
# beyond that stays in the eventfd: nobody can be made to read 2**64 ones.
SEMAPHORE_AT_ONCE: Final = 256
SEMAPHORE_AT_MOST: Final = 2**20


class EventFdCtx:
    """The in-process half of an eventfd; base class of :class:`aioirqfd.EventFd`.

    While somebody in this process listens, signals are counted here and dispatched without a system call; otherwise they are
    written to the fd, for whoever else holds it.
    """

    __slots__ = (
        "__weakref__",
        "_count",
        "_drain",
        "_event",
        "_fast",
        "_fd",
        "_fresh",
        "_generation",
        "_gsi",
        "_handler",
        "_held",
        "_irqfd",
        "_leftover",
        "_listening",
        "_owed",
        "_posted_to",
        "_queued_here",
        "_route",
        "_running",
        "_semaphore",
        "_signals",
        "_taken",
        "_told",
        "_top_half",
        "_unreadable",
        "_wakeups",
        "_want_count",
        "_who",
    )

    def __init__(self, fd: int, *, semaphore: bool = False) -> None:
        self._fd = operator.index(fd)
        self._semaphore = bool(semaphore)
        self._generation = 0  # of its registration
        self._posted_to: Drain | None = None  # whose mailbox it is in
        self._count = self._signals = self._wakeups = self._fast = 0
        self._drain: Drain | None = None
        self._top_half: TopHalf | None = None
        self._irqfd: Irqfd | None = None
        self._route: CellType | None = None  # with its gsi's Interrupt, unless the gsi goes elsewhere by now
        self._listening = self._want_count = self._owed = self._held = False
        self._event = self._fresh = self._leftover = False
        self._gsi = 0
        self._handler: Handler | None = None
        self._who: object = None  # what the handler is called with
        self._taken = 0  # counted for the handler, not given to it yet
        self._queued_here = False  # in its top half's ready queue
        self._running: object = None  # the task that runs the handler just now, while bound
        self._told = 0  # the count that it was given
        self._unreadable = False  # a read has failed, and was reported

    @property
    def _queued(self) -> bool:
        return self._taken > 0

    @property
    def _registered(self) -> bool:
        return self._drain is not None

    def signal(self, n: SupportsIndex = 1, /) -> int:
        """Add n (1..2**64-2) to the count, saturating at 2**64-2, and wake whoever listens.

        On the thread of the loop that listens the wakeup runs at once, unless it is called from within a wakeup; from
        elsewhere the loop is woken. Where nobody in this process listens, it is a write(2) to the fd.

        Args:
            n: How much to add, 1..2**64-2.

        Returns:
            What was added: n, or less when the count is near its top.

        Raises:
            ValueError: n is out of range; nothing was added.
            ClosedError: The eventfd is closed.

        Threads:
            Safe from any thread and, through the fd, from any process.

        Source:
            eventfd(2); rows E07, E18.
        """
        n = amount(n, 1, "a signal")
        # Looking whether somebody listens, and counting where, is one step: the loop's thread may be about to stop listening,
        # and then takes what was counted here along (_spill).
        with lock:
            if self._fd < 0:
                raise ClosedError("the eventfd is closed")
            drain = self._drain if self._listening else None
            if drain is None or drain._dead:
                finish = begin_add(self._fd, n)
                added, owes_now = 0, False
            else:
                finish = None
                added, owes_now = self._add(n), self._owe()
        if finish is not None:
            return finish()
        if owes_now and drain is not None:
            if not drain.dispatching and drain._here() and self._drain is drain:
                drain._dispatch(self)
            else:
                self._post()
        return added

    def _post(self) -> None:
        """Post it, owed as it is, to where it is registered just now; from any thread."""
        with lock:  # it may be about to change loops
            if self._drain is not None:
                self._drain._post(self)

    def _add(self, n: int) -> int:
        with lock:
            before = self._count
            self._count = after = before + n if n <= MAX - before else MAX
        return after - before

    def _discharge(self) -> bool:
        with lock:
            owed, self._owed = self._owed, False
        return owed

    def _owe(self) -> bool:
        with lock:
            owed, self._owed = self._owed, True
        return not owed

    @property
    def _by_ones(self) -> bool:
        """Whether a dispatch takes 1: of a semaphore (row P06), but not if somebody has to be told of every signal."""
        return self._semaphore and not self._want_count

    def _take_counted(self, *, by_ones: bool) -> int:
        with lock:
            count = self._count
            if by_ones and count:
                self._count = count - 1
                return 1
            self._count = 0
        return count

    def _put_back(self, n: int) -> None:
        """Undo a _consume whose injection could not even be queued: the next dispatch finds n again."""
        if n:
            self._signals = (self._signals - self._add(n)) & MASK
            return
        self._event = True
        if self._leftover:
            self._leftover, self._fresh = False, True

    def _consume(self) -> int | None:
        """What this dispatch stands for; 0: what was left unread; None: nothing is there, because somebody else read it."""
        by_ones = self._by_ones
        total = self._take_counted(by_ones=by_ones)
        known = total > 0
        # What was there at assign time goes with the next signal, wherever that comes from (row P04).
        if self._event or (self._leftover and total):
            injected = not self._event  # then what the kernel holds is what was there at assign time
            fresh, self._event, self._fresh = self._fresh, False, False
            if fresh and not self._want_count:
                # What was there at assign time is injected once and stays until the next write (rows P01, P03, P04).
                self._leftover = known = True
            else:
                # Of a semaphore one in all, wherever it is.
                read = 0 if by_ones and total else self._read_kernel(SEMAPHORE_AT_ONCE)
                self._leftover = False
                known = known or read != 0
                value = read or 0
                if injected:
                    # Taken along, and owed no injection of its own.
                    self._signals = (self._signals + value) & MASK
                    value = 0
                if total + value > MASK:
                    # Two counters near the top: hand on one now and the other by a dispatch of its own.
                    value -= self._add(value)
                    if self._owe():
                        self._post()
                total += value
        self._signals = (self._signals + total) & MASK
        return total if known else None

    def _read_kernel(self, most: int) -> int | None:
        """A dispatch's part of the kernel's counter, and of a semaphore that somebody counts so many at the most.

        None: it cannot be read, which was reported. Whatever an event stood for, there is no more to be known of it then.
        """
        if self._fd < 0:
            return 0
        try:
            value = read_now(self._fd)
            if value and self._semaphore and self._want_count:
                while value < most and read_now(self._fd):
                    value += 1
        except OSError as error:
            if not self._unreadable:
                # Its fd was closed behind our back, say. Once, for every event comes here.
                self._unreadable = True
                unraisable(error)
            return None
        if value == most and self._semaphore and self._want_count:
            # No event comes for the rest.
            self._event = True
            if self._owe():
                self._post()
        return value

    def _take(self) -> int:
        total = self._take_counted(by_ones=self._semaphore)
        with lock:  # the fd is not closed meanwhile
            if self._fd < 0 or (self._semaphore and total):
                return total
            try:
                value = read_now(self._fd)
            except OSError:
                self._add(total)
                raise
        if total + value > MASK:
            value -= self._add(value)
        return total + value

    def _spill(self) -> None:
        with lock:
            if not self._count or self._fd < 0:
                return
            finish = begin_add(self._fd, self._count)
            rest, self._count = self._count, 0
        added = 0
        try:
            added = finish()
        finally:
            self._add(rest - added)  # what does not fit in there stays here, for the next read

    def _let_go(self) -> int:
        """Forget the fd and return it, -1 if it was forgotten before. Nobody uses it any more then, in any thread."""
        with lock:
            fd, self._fd = self._fd, -1
        return fd

    def _readable(self) -> bool:
        with lock:
            return self._count > 0 or (self._fd >= 0 and has_count(self._fd))

    def _dispatch(self) -> None:
        """Do now what the drain's next pass would; nothing from within a pass. The loop's thread."""
        if self._drain is not None and not self._drain.dispatching and self._owed:
            self._drain._dispatch(self)

    def _bind(
        self,
        top_half: TopHalf,
        irqfd: Irqfd,
        want_count: bool,  # noqa: FBT001  the native signature
        handler: Handler | None,
        who: object,
        /,
    ) -> None:
        if self._top_half is not None or self._drain is None:
            raise RuntimeError("_bind() takes a registered, unbound eventfd")
        self._top_half, self._irqfd, self._want_count = top_half, irqfd, want_count
        self._handler, self._who = handler, who
        self._listening, self._leftover = True, False

    def _unbind(self) -> None:
        with lock:
            self._listening = self._want_count = self._event = self._fresh = self._leftover = False
            self._discharge()
        if self._top_half is not None:
            self._top_half._unhold(self)
        self._running, self._told = None, 0  # a handler that is under way is the old irqfd's, and knows it
        self._route = self._irqfd = self._top_half = self._handler = self._who = None

    def _recall(self) -> int:
        """Take back the count that waits for the handler."""
        count, self._taken, self._queued_here = self._taken, 0, False
        return count

    def _arm(self, route: CellType | None, /) -> None:
        """Let the fast path inject what this cell holds, as long as it does; None forbids it."""
        if not isinstance(route, CellType | None):  # pyright: ignore[reportUnnecessaryIsInstance]  as the native one
            raise TypeError(f"_arm() takes a cell or None, not {route!r}")
        self._route = None if self._top_half is None else route

    @property
    def _interrupt(self) -> object:
        """What may be injected for it without asking the irqfd; None: nothing."""
        if self._route is None or self._top_half is None or self._top_half.paused:
            return None
        try:
            return cast("object", self._route.cell_contents)
        except ValueError:
            return None

    def _on_ready(self) -> None:
        """A registered eventfd without an irqfd became readable."""

    def __del__(self) -> None:
        drain: Drain | None = getattr(self, "_drain", None)
        if drain is not None:
            drain.remove(self)
