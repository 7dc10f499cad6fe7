"""The picture of a log: what is in it, that it is well formed, and that it fits a phone."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET

import pytest

from aioirqfd.cli.main import main
from aioirqfd.flight import FlightKind
from aioirqfd.tracing import FlightRecorder
from aioirqfd.tracing.journey import Journeys
from aioirqfd.tracing.plot import to_svg
from tests.tracing.test_journey import irq, log

K = FlightKind
SVG = "{http://www.w3.org/2000/svg}"


def picture(of):
    root = ET.fromstring(to_svg(of, Journeys.of(of)))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    return root, width, height


def test_the_waits_are_counted_in_bars_and_drawn_as_points():
    steps = [step for at in range(0, 5000, 100) for step in (irq(at, K.SEEN), irq(at + 50, K.INJECTED))]
    steps += [irq(6000, K.SEEN, 6, fd=8), irq(46000, K.INJECTED, 6, fd=8)]
    root, width, height = picture(log(*steps))
    texts = [one.text for one in root.iter(f"{SVG}text")]
    assert texts[0] == "51 interrupts: from signal to injection"
    assert "half within 50 ns, 99 % within 40 us, all within 40 us" in texts
    assert "timer (gsi 5, fd 7, Sink): 50" in texts
    assert "gsi 6 (fd 8, Sink): 1" in texts
    rects = [one.attrib for one in root.iter(f"{SVG}rect")]
    bars = [float(one["height"]) for one in rects if "x" in one and float(one["y"]) < 200]
    assert sorted(bars)[-2:] == [2.8, 140.0]  # one and fifty
    points = [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in root.iter(f"{SVG}circle")]
    assert len(set(points)) == 51
    assert width == 360
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    assert all(float(one.attrib["font-size"]) >= 12 for one in root.iter(f"{SVG}text"))


def test_a_log_without_an_injection_says_so():
    root, *_ = picture(log(irq(1, K.SEEN)))
    assert [one.text for one in root.iter(f"{SVG}text")] == ["No interrupt was injected in this time."]


def test_very_many_are_thinned_out_but_the_longest_are_there():
    steps = [step for at in range(9000) for step in (irq(at * 100, K.SEEN), irq(at * 100 + 50, K.INJECTED))]
    steps += [irq(900_000, K.SEEN), irq(5_900_000, K.INJECTED)]
    root, _, _ = picture(log(*steps, capacity=1 << 15))
    points = list(root.iter(f"{SVG}circle"))
    assert len(points) < 2100
    assert min(float(one.attrib["cy"]) for one in points) < 300


def test_the_command_draws_png_where_the_extra_is(tmp_path):
    pytest.importorskip("resvg_py")
    path, out = tmp_path / "flight", tmp_path / "out.png"
    with FlightRecorder(path) as recorder:
        recorder.ring.put(K.SEEN, 5, 7, 1)
        recorder.ring.put(K.INJECTED, 5, 7, 1)
    assert main(["trace", str(path), "--plot", str(out), "--slow", "3600"]) == 0
    data = out.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", data[16:20]) == (1080,)
    assert main(["trace", str(path), "--plot", str(out.with_suffix(".svg")), "--slow", "3600"]) == 0
    assert out.with_suffix(".svg").read_text().startswith("<svg ")
