"""The ledger: three books of one device's interrupts, joined. Each planted fault is named where it is."""

from __future__ import annotations

import json

import pytest

from aioirqfd.cli import main
from aioirqfd.flight import Flight, FlightKind
from aioirqfd.tracing import FlightRecorder
from aioirqfd.tracing.ledger import GuestVector, LedgerError, ledger, of_guest, of_qemu, taken

K = FlightKind
QEMU = "vfio_msi_interrupt  (vfio-user:/run/nvme.sock) vector {} 0xfee02004/0x24\n"
GUEST = """\
           CPU0       CPU1
  4:         88          0   IO-APIC   4-edge      ttyS0
 24:         {0}          0   PCI-MSI 16384-edge      nvme0q0
 25:          0         {1}   PCI-MSI 16385-edge      nvme0q1
LOC:        866        975   Local timer interrupts
ERR:          0
"""
NEWER = """\
            CPU0
  24:          {0}  PCI-MSIX-0000:00:02.0   0-edge      nvme0q0
  25:          {1}  PCI-MSIX-0000:00:02.0   1-edge      nvme0q1
"""


class Book:
    """What a device and its manager write, step by step, by a clock that the test turns."""

    def __init__(self, recorder: FlightRecorder) -> None:
        self.recorder = recorder
        self.manager = Flight(recorder, recorder.source("Nvme-vectors"))
        self.queue = Flight(recorder, recorder.source("Nvme queue 0"))

    def signal(self, vector, *steps, fd=7):
        for step in steps:
            self.manager.put(step, vector, 1, fd=fd)

    def sent(self, vector, times=1):
        for _ in range(times):
            self.signal(vector, K.SEEN, K.INJECTED)


@pytest.fixture
def book():
    with FlightRecorder() as recorder:
        yield Book(recorder)


def joined(book, *, qemu=None, guest=None, **options):
    if isinstance(qemu, dict):
        qemu = of_qemu(QEMU.format(vector) for vector, times in qemu.items() for _ in range(times))
    if guest is not None:
        guest = taken(GUEST.format(0, 0), GUEST.format(*guest))
    return ledger(book.recorder.log(), qemu=qemu, guest=guest, slow_ns=0, **options)


def entry(found, vector=1):
    return next(one for one in found.entries if one.vector == vector)


def test_all_of_it_has_arrived(book):
    book.sent(0, 2)
    book.sent(1, 5)
    found = joined(book, qemu={0: 2, 1: 5}, guest=(2, 5))
    assert not found.owed
    assert [(one.vector, one.signalled, one.injected, one.qemu, one.guest) for one in found.entries] == [
        (0, 2, 2, 2, 2),
        (1, 5, 5, 5, 5),
    ]
    assert [one.said for one in found.entries] == ["nothing is owed"] * 2
    assert [one.name for one in found.entries] == ["nvme0q0", "nvme0q1"]


def test_what_merges_on_the_way_is_not_owed(book):
    book.sent(1, 5)
    assert entry(joined(book, qemu={1: 4}, guest=(0, 3))).said == "nothing is owed; 2 merged on the way"


def test_the_recorder_alone_is_a_ledger(book):
    book.sent(1, 3)
    one = entry(joined(book))
    assert (one.qemu, one.guest, one.owed) == (None, None, False)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([K.SEEN], "the sink was called with it and has not returned"),
        ([K.WAKEUP], "it waits for a worker of the queue"),
        ([K.HELD], "it is held: the queue is full"),
        ([K.WAKEUP, K.INJECTING], "the sink has had it for"),
        ([K.WAKEUP, K.UNROUTED], "its gsi has no route, it is held since"),
        ([K.WAKEUP, K.HANDLER_BEGUN], "its handler was called and has not returned"),
        ([K.WAKEUP, K.HANDLER_BEGUN, K.HANDLER_RAISED], "its handler raised"),
        ([K.WAKEUP, K.FAILED], "the sink or its handler has raised"),
        ([K.MASKED, K.WAKEUP], "it is masked since"),
        ([K.WAKEUP, K.DROPPED], "dropped, for there was no route"),
    ],
)
def test_what_stops_in_this_process_is_named(book, steps, said):
    book.sent(0)
    book.signal(1, *steps)
    book.recorder.close()
    found = joined(book, qemu={0: 1}, guest=(1, 0))
    assert [one.vector for one in found.entries if one.owed] == [1]
    assert said in entry(found).said


def test_what_runs_yet_is_not_said_to_be_paid(book):
    book.signal(1, K.WAKEUP, K.HANDLER_BEGUN)
    (one,) = ledger(book.recorder.log(), slow_ns=10**15).entries
    assert (one.signalled, one.injected, one.owed, one.said) == (1, 0, False, "1 under way, and not late yet")


def test_what_the_kernel_injects_is_not_said_to_be_missing(book):
    book.signal(1, K.OFFLOADED)
    one = entry(joined(book, qemu={0: 0}, guest=(0, 5)))
    assert (one.owed, one.said.partition(",")[0]) == (False, "offloaded: the kernel injects")


def test_a_completion_that_nobody_was_told_of_is_owed(book):
    book.queue.put(K.REQUEST_BEGUN, 0, 3)
    book.queue.put(K.REQUEST_COMPLETED, 0, 3)
    found = joined(book)
    assert found.owed
    assert "1 completions without an interrupt" in found.troubles[0]


def test_the_queues_of_two_devices_of_one_name_are_told_apart(book):
    book.queue.put(K.REQUEST_BEGUN, 0, 3)
    book.queue.put(K.REQUEST_COMPLETED, 0, 3)
    Book(book.recorder).sent(1)
    assert [joined(book, device=name).owed for name in ("Nvme", "Nvme 2")] == [True, False]


@pytest.mark.parametrize(
    ("qemu", "guest", "said"),
    [
        ({0: 1}, (1, 0), "QEMU was told and has not taken it: it has no eventfd of this vector"),
        ({0: 1, 1: 4}, (1, 0), "it has the interrupt disabled, or the vector masked"),
        (
            {0: 1, 1: 4},
            (5, 0),
            "the guest has none of them, but more of vector 0 than were sent by that: the wrong vector",
        ),
        (None, (1, 0), "4 were sent and the guest has counted none"),
        ({}, None, "QEMU was told and has not taken it"),
    ],
)
def test_what_stops_behind_this_process_is_named(book, qemu, guest, said):
    book.sent(0)
    book.sent(1, 4)
    one = entry(joined(book, qemu=qemu, guest=guest))
    assert one.owed
    assert said in one.said


def test_more_than_were_sent_came_from_somewhere(book):
    book.sent(0)
    book.sent(1, 4)
    assert entry(joined(book, qemu={0: 1, 1: 4}, guest=(5, 0)), 0).said == (
        "the guest took 4 more than were sent by this vector: they may be vector 1's"
    )
    assert entry(joined(book, qemu={0: 1, 1: 4}, guest=(1, 6))).said.endswith("who else has its message?")


def test_a_later_part_alone_is_counted_and_what_was_masked_before_is_known(book):
    book.sent(1, 3)
    book.manager.put(K.MASKED, 1, fd=7)
    later = book.recorder.log().records[-1].time_ns + 1
    while book.recorder.log().records[-1].time_ns < later:
        book.sent(0)
    book.signal(1, K.WAKEUP)
    book.recorder.close()
    found = joined(book, since_ns=later)
    assert entry(found).signalled == 1
    assert entry(found).injected == 0
    assert "it is masked since" in entry(found).said


def test_the_guests_counts_in_both_of_linux_ways():
    expected = {GuestVector("0000:00:02.0", 0): (3, "nvme0q0"), GuestVector("0000:00:02.0", 1): (4, "nvme0q1")}
    assert of_guest(NEWER.format(3, 4)) == expected
    found = of_guest(GUEST.format(3, 4))
    assert found == {GuestVector("0000:00:01.0", one.vector): what for one, what in expected.items()}


def test_a_device_on_another_bus_in_the_old_way():
    text = "           CPU0\n 30:   9   PCI-MSI 134742017-edge   eth0\n"  # domain 1, bus 0, device 15, function 7
    number = (1 << 16 | 0x00 << 8 | 15 << 3 | 7) << 11 | 1
    assert of_guest(text.replace("134742017", str(number))) == {GuestVector("0001:00:0f.7", 1): (9, "eth0")}


def test_books_that_are_none_or_do_not_fit(book):
    with pytest.raises(LedgerError, match="is it a copy of /proc/interrupts"):
        of_guest("nothing\n")
    with pytest.raises(LedgerError, match="the wrong way round"):
        taken(GUEST.format(4, 4), GUEST.format(3, 4))
    two = of_qemu(QEMU.replace("vfio-user:/run/nvme.sock", name).format(1) for name in "ab")
    with pytest.raises(LedgerError, match=r"which device in QEMU's trace\? It has a, b"):
        ledger(book.recorder.log(), qemu=two)
    with pytest.raises(LedgerError, match=r"no such PCI device in the flight file\? It has Nvme"):
        joined(book, device="Uart")
    with FlightRecorder() as empty, pytest.raises(LedgerError, match="there is no PCI device in the flight file"):
        ledger(empty.log())


@pytest.fixture
def files(tmp_path):
    paths = {name: tmp_path / name for name in ("flight", "qemu", "before", "after")}
    with FlightRecorder(paths["flight"]) as recorder:
        Book(recorder).sent(1, 4)
    paths["qemu"].write_text(QEMU.format(1) * 4)
    paths["before"].write_text(GUEST.format(7, 9))
    paths["after"].write_text(GUEST.format(7, 13))
    return paths


def run(files, *more):
    books = {"--recorder": ["flight"], "--qemu-trace": ["qemu"], "--guest": ["before", "after"]}
    arguments = [word for option, names in books.items() for word in (option, *(str(files[name]) for name in names))]
    return main(["ledger", *arguments, *more])


def test_the_command_says_that_nothing_is_owed(files, capsys):
    assert run(files) == 0
    assert capsys.readouterr().out == (
        "Nvme: nothing is owed\n"
        "\n"
        "vector  signalled   injected       QEMU      guest  where they differ\n"
        "     1          4          4          4          4  nothing is owed (nvme0q1)\n"
    )


def test_the_command_names_what_is_owed_first_and_has_a_status(files, capsys):
    files["after"].write_text(GUEST.format(7, 9))
    assert run(files) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Nvme: 1 owed"
    assert lines[1].startswith("vector 1 (nvme0q1): 4 were sent and the guest has counted none")
    assert len(lines) <= 10


def test_the_command_takes_one_copy_since_the_boot_and_no_three(files, capsys):
    arguments = ["ledger", "--recorder", str(files["flight"]), "--qemu-trace", str(files["qemu"]), "--guest"]
    files["after"].write_text(GUEST.format(0, 3))
    assert main([*arguments, str(files["after"])]) == 0
    assert "3  nothing is owed; 1 merged on the way (nvme0q1)" in capsys.readouterr().out
    assert main([*arguments, *[str(files["after"])] * 3]) == 2
    assert "--guest has two files at most" in capsys.readouterr().err


def test_the_command_in_json(files, capsys):
    assert run(files, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["owed"] is False
    assert said["entries"][0]["guest"] == 4


def test_the_command_says_what_it_cannot_read(files, capsys):
    files["qemu"].unlink()
    assert run(files) == 2
    assert capsys.readouterr().err.startswith("aioirqfd ledger: [Errno 2]")


def test_the_command_says_that_the_recorder_was_too_small(files, tmp_path, capsys):
    files["flight"] = tmp_path / "small"
    with FlightRecorder(files["flight"], capacity=4) as recorder:
        Book(recorder).sent(1, 4)
    run(files)
    assert "Give it a larger capacity" in capsys.readouterr().out
