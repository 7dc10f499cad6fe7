"""Counts for Prometheus: a collector that reads the tree when it is scraped, and costs nothing in between.

::

    from prometheus_client import REGISTRY, start_http_server
    from aioirqfd.prometheus import IrqfdCollector

    REGISTRY.register(IrqfdCollector())
    start_http_server(9000)

It needs the package ``prometheus-client`` (``pip install 'aioirqfd[prometheus]'``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast, final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from aioirqfd.inspect.tree import TIMEOUT, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client import Metric

__all__ = ["IrqfdCollector"]

_IRQFD: Final = ("manager", "irqfd", "gsi")
_COUNTS: Final = {
    "signals": "Signals taken out of the eventfd.",
    "wakeups": "How often the loop noticed.",
    "injections": "Interrupts that reached the sink.",
    "fast": "Of these, taken by the sink at once.",
    "coalesced": "Signals that shared an injection with another.",
    "dropped": "Injections that went nowhere because the gsi had no route.",
    "retries": "Attempts after a failure of the sink or a handler.",
}
_FLAGS: Final = {
    "pending": "1 where an injection is owed.",
    "masked": "1 where it is masked.",
    "held": "1 where it waits for the manager to resume, for room, or for a route.",
    "offloaded": "1 where the sink watches the eventfd itself.",
    "running": "1 where its wakeup handler or the sink's inject() runs.",
}
_MANAGER: Final = {
    "paused": "1 while nothing is injected.",
    "held": "irqfds that are signalled, and wait for the manager to resume, for room, or for a route.",
    "broken": "irqfds that were given up after the sink had failed.",
    "offloaded": "irqfds that the sink watches itself.",
}
_QUEUE: Final = {"queued": "Items that wait.", "running": "Items that run.", "maxsize": "How many may wait."}
_QUEUE_COUNTS: Final = {"completed": "Runs that ended.", "refused": "Times that it was full."}
_VRING: Final = {
    "kicks": "The driver's kicks.",
    "requests": "Requests taken from the driver.",
    "answers": "Requests given back.",
    "failed": "Of these, those that the device raised for.",
    "calls": "Interrupts asked for.",
    "suppressed": "Batches that the driver did not want to hear of.",
}


@final
class IrqfdCollector:
    """A collector for a ``prometheus_client.CollectorRegistry``: irqfds, managers, their queues, doorbells, virtio queues.

    Args:
        timeout: Seconds within which the event loops have to answer. One that does not is left out of a scrape, and
            ``aioirqfd_silent`` is 1 for what belongs to it.

    Threads:
        Scraped in any, such as that of ``start_http_server``.
    """

    def __init__(self, *, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout

    def describe(self) -> list[Metric]:
        """Nothing: what there is shows at the first scrape, and to ask is not to read."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The counts as they are now."""
        managers = self._read("managers")
        silent = GaugeMetricFamily("aioirqfd_silent", "1 where an event loop has not answered.", labels=["part"])
        parts = {"managers": managers, "buses": self._read("buses"), "vhost_user": self._read("vhost_user")}
        for kind, nodes in parts.items():
            for key, node in nodes.items():
                silent.add_metric([f"{kind}/{key}"], float("error" in node))
        yield silent
        there = {
            kind: {key: node for key, node in nodes.items() if "error" not in node} for kind, nodes in parts.items()
        }
        yield from _irqfds(there["managers"])
        yield from _managers(there["managers"])
        yield from _buses(there["buses"])
        yield from _vrings(there["vhost_user"])

    def _read(self, path: str) -> dict[str, Any]:
        return cast("dict[str, Any]", read(path, timeout=self._timeout))


def _parts(node: Mapping[str, Any], name: str, has: str) -> Iterator[tuple[str, Any]]:
    """Those that have it: what raises when it is looked at, a program's own say, has a sentence in its place."""
    return ((key, one) for key, one in node[name].items() if not isinstance(one, str) and has in one)


def _irqfds(managers: Mapping[str, Any]) -> Iterator[Metric]:
    rows = [
        ((manager, name, str(one["gsi"])), one)
        for manager, node in managers.items()
        for name, one in _parts(node, "irqfds", "statistics")
    ]
    for field, help_ in _COUNTS.items():
        counter = CounterMetricFamily(f"aioirqfd_irqfd_{field}", help_, labels=_IRQFD)
        for labels, one in rows:
            counter.add_metric(labels, one["statistics"][field])
        yield counter
    for field, help_ in _FLAGS.items():
        gauge = GaugeMetricFamily(f"aioirqfd_irqfd_{field}", help_, labels=_IRQFD)
        for labels, one in rows:
            gauge.add_metric(labels, float(one[field] not in {None, False}))  # where it runs is said in words
        yield gauge


def _managers(managers: Mapping[str, Any]) -> Iterator[Metric]:
    for field, help_ in _MANAGER.items():
        gauge = GaugeMetricFamily(f"aioirqfd_manager_{field}", help_, labels=["manager"])
        for manager, node in managers.items():
            gauge.add_metric([manager], float(node[field]))
        yield gauge
    up = GaugeMetricFamily("aioirqfd_manager_lines_up", "Level-triggered lines that are up.", labels=["manager"])
    for manager, node in managers.items():
        up.add_metric([manager], sum(line["up"] for _, line in _parts(node, "lines", "up")))
    yield up
    for field, help_ in _QUEUE.items():
        gauge = GaugeMetricFamily(f"aioirqfd_queue_{field}", help_, labels=["manager"])
        for manager, node in managers.items():
            if field in node["queue"]:
                gauge.add_metric([manager], node["queue"][field])
        yield gauge
    for field, help_ in _QUEUE_COUNTS.items():
        counter = CounterMetricFamily(f"aioirqfd_queue_{field}", help_, labels=["manager"])
        for manager, node in managers.items():
            if field in node["queue"]:
                counter.add_metric([manager], node["queue"][field])
        yield counter


def _buses(buses: Mapping[str, Any]) -> Iterator[Metric]:
    writes = CounterMetricFamily(
        "aioirqfd_doorbell_writes", "Guest writes that a doorbell took.", labels=["bus", "doorbell"]
    )
    for bus, node in buses.items():
        for name, doorbell in _parts(node, "doorbells", "writes"):
            writes.add_metric([bus, name], doorbell["writes"])
    yield writes


def _vrings(backends: Mapping[str, Any]) -> Iterator[Metric]:
    for field, help_ in _VRING.items():
        counter = CounterMetricFamily(f"aioirqfd_virtqueue_{field}", help_, labels=["backend", "queue"])
        for backend, node in backends.items():
            for queue, one in _parts(node, "queues", "statistics"):
                counter.add_metric([backend, queue], one["statistics"][field])
        yield counter
    in_flight = GaugeMetricFamily(
        "aioirqfd_virtqueue_in_flight", "Requests that the device has.", labels=["backend", "queue"]
    )
    for backend, node in backends.items():
        for queue, one in _parts(node, "queues", "statistics"):
            in_flight.add_metric([backend, queue], 0 if one["ring"] is None else one["ring"]["in_flight"])
    yield in_flight
