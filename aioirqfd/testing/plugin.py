"""A pytest plugin. It brings fixtures and nothing else: no hooks, no options, no autouse, no async plugin of its own.

Say ``pytest_plugins = ["aioirqfd.testing.plugin"]`` in the ``conftest.py`` at the root of your tests, or
``pytest -p aioirqfd.testing.plugin``. ``irq_manager`` is a plain function, so it works under pytest-asyncio, anyio's plugin
or a bare ``asyncio.run``::

    async def test_my_device(irq_manager, recording_sink):
        async with irq_manager() as irqs:
            ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from aioirqfd.irqfd.manager import IrqManager
    from aioirqfd.sinks import RecordingSink
    from aioirqfd.testing.frontend import FrontEnd
    from aioirqfd.testing.linux import Guest
    from aioirqfd.testing.tracer import RecordingTracer
    from aioirqfd.vfio_user.client import Client


class MakeManager(Protocol):
    """What the ``irq_manager`` fixture gives."""

    def __call__(self, sink: object = ..., /, **options: object) -> IrqManager:
        """Make a manager with this sink, by default ``recording_sink``, and these options of :class:`IrqManager`."""
        ...


@pytest.fixture
def recording_sink() -> RecordingSink:
    """A sink that keeps every interrupt in ``interrupts``."""
    from aioirqfd.sinks import RecordingSink  # noqa: PLC0415  a suite that does not use it does not pay for it

    return RecordingSink()


@pytest.fixture
def recording_tracer() -> RecordingTracer:
    """A tracer that keeps every event in ``events``."""
    from aioirqfd.testing.tracer import RecordingTracer  # noqa: PLC0415  as above

    return RecordingTracer()


@pytest.fixture
def irq_manager(recording_sink: RecordingSink, recording_tracer: RecordingTracer) -> MakeManager:
    """Makes managers, to be entered by the test, that tell ``recording_sink`` and ``recording_tracer`` unless told otherwise."""
    from aioirqfd.irqfd.manager import IrqManager  # noqa: PLC0415  as above

    def make(sink: object = recording_sink, /, **options: object) -> IrqManager:
        arguments: dict[str, object] = {"tracer": recording_tracer, **options}
        return IrqManager(sink, **arguments)  # type: ignore[arg-type]

    return make


@pytest.fixture
def vhost_user_frontend() -> Callable[..., AbstractAsyncContextManager[FrontEnd]]:
    """Gives :func:`aioirqfd.testing.vhost_user_frontend`, an async context manager."""
    from aioirqfd.testing.frontend import vhost_user_frontend  # noqa: PLC0415  as above

    return vhost_user_frontend


@pytest.fixture
def vfio_user_client() -> Callable[..., AbstractAsyncContextManager[Client]]:
    """Gives :func:`aioirqfd.testing.vfio_user_client`, an async context manager."""
    from aioirqfd.testing.vfio import vfio_user_client  # noqa: PLC0415  as above

    return vfio_user_client


@pytest.fixture
def guest() -> Callable[..., AbstractAsyncContextManager[Guest]]:
    """Gives :func:`aioirqfd.testing.guest`, an async context manager. What fails in it shows the console."""
    from aioirqfd.testing.linux import guest  # noqa: PLC0415  as above

    return guest
