"""A device of one's own, late and wrong when a test wants it: the console that answers in capitals, and :mod:`aioirqfd.faults`."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path

if not __package__:  # run as a path: python examples/howto_faults.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from aioirqfd.faults import AllOnes, Corrupt, Delay, Drop, Fail, FaultError, Faults, Match, Withhold
from aioirqfd.testing import vhost_user_frontend
from examples.nvme import Nvme
from examples.vhost_user_upper import Upper


async def the_second_line_is_wrong() -> None:
    """Three lines, and a test that waits for the moment."""
    # docs: begin three
    faults = Faults(nonconforming=True)
    device = faults.wrap(Upper())
    second = faults.add(Match("receive", nth=2), Corrupt("data", mask=0x20))
    # docs: end three
    # docs: begin test
    async with vhost_user_frontend(device) as front:
        receive, transmit = front.queues[0], front.queues[1]
        for text in (b"one", b"two", b"three"):
            await transmit.ask([text])
            print(await receive.ask([], [16]))
        await second.hit()
        print(second.hits, "of", second.requests)
    # docs: end test


async def a_line_waits() -> None:
    """Withheld until the test says so."""
    # docs: begin withhold
    faults = Faults()
    late = faults.add(Match("transmit"), Withhold())
    async with vhost_user_frontend(faults.wrap(Upper())) as front:
        front.queues[1].put([b"hello"])
        await late.hit()
        print(len(faults.held), "held")
        late.remove()
        await front.queues[1].answers()
        print(len(faults.held), "held")
    # docs: end withhold


def what_no_device_may_do() -> None:
    """Asked for, or refused."""
    # docs: begin refused
    try:
        Faults().add(Match("transmit"), Drop())
    except FaultError as error:
        print(error)
    # docs: end refused


def the_same_words_for_nvme(path: str) -> None:
    """A PCI device has registers, vectors and transfers, too."""
    # docs: begin pci
    faults = Faults(nonconforming=True)
    disk = faults.wrap(Nvme(path))
    third = faults.add(Match("write", nth=3), Fail())  # as for virtio-blk
    slow = faults.add(Match("register-read", register="status"), Delay(2.0))
    lost = faults.add(Match("interrupt", vector=1, every=10), Drop())
    # Pulled out, once gone.enable() is called:
    gone = faults.add(Match(("register-*", "config-*")), AllOnes(), enabled=False)
    # docs: end pci
    print([fault.name for fault in (third, slow, lost, gone)])
    disk.close()


async def the_same_again(log: Path) -> None:
    """A log, and its replay."""

    async def lines(faults: Faults) -> list[bytes]:
        async with vhost_user_frontend(faults.wrap(Upper())) as front:
            said: list[bytes] = []
            for text in (b"one", b"two", b"three", b"four"):
                await front.queues[1].ask([text])
                said.append(await front.queues[0].ask([], [16]))
        faults.close()
        return said

    # docs: begin log
    faults = Faults(seed=1, nonconforming=True, log=log)
    faults.add(Match("receive", probability=0.5), Corrupt("data", mask=0x20))
    first = await lines(faults)
    again = Faults()
    again.replay(log)
    print(first, first == await lines(again))
    # docs: end log


def what_a_log_says(log: Path) -> None:
    """One line of it: what was hit, and what was done."""
    entries = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    hit = next(entry for entry in entries if entry.get("what") == "fault")
    print(hit["faults"], hit["request"], hit["do"])


async def main() -> None:
    """One after the other."""
    await the_second_line_is_wrong()
    await a_line_waits()
    what_no_device_may_do()
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "faults.jsonl"
        await the_same_again(log)
        what_a_log_says(log)
        image = Path(directory) / "disk.img"
        image.write_bytes(bytes(1 << 20))
        the_same_words_for_nvme(str(image))


if __name__ == "__main__":
    asyncio.run(main())
