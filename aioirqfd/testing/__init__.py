"""Fakes for the tests of people who use aioirqfd, and of aioirqfd itself. The pytest plugin is :mod:`aioirqfd.testing.plugin`."""

from __future__ import annotations

from aioirqfd.testing.sinks import FlakySink, GatedSink, RefusingSink
from aioirqfd.testing.tracer import RecordingTracer

__all__ = ["FlakySink", "GatedSink", "RecordingTracer", "RefusingSink"]
