"""What the sinks with a chip behind them say of gsis when no table is given."""

from __future__ import annotations

import pytest

from aioirqfd import (
    Action,
    EventFd,
    InjectionError,
    Interrupt,
    IrqchipPin,
    IrqManager,
    Retry,
    RoutingError,
    RoutingTable,
)
from aioirqfd.kvm import Kvm
from aioirqfd.kvm.ioctls import KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_SLAVE
from aioirqfd.sinks import KvmSink, QtestSink
from tests.sinks.qtest_peer import Peer

PIC, IOAPIC = [IrqchipPin("pic", pin) for pin in range(16)], [IrqchipPin("ioapic", pin) for pin in range(24)]


@pytest.fixture
def vm():
    with Kvm() as kvm, kvm.create_vm() as vm:
        yield vm


@pytest.mark.kvm
async def test_kvm_says_what_the_kernel_says(vm):
    vm.create_irqchip()
    async with IrqManager(KvmSink(vm)) as irqs:
        assert irqs.routing.unrouted is None
        assert dict(irqs.routing) == {gsi: (IOAPIC[gsi], PIC[gsi]) if gsi < 16 else (IOAPIC[gsi],) for gsi in range(24)}
        with EventFd() as kick:
            irqs.assign(kick, gsi=11)
            kick.signal()
            await irqs.flush()
            assert vm.get_irqchip(KVM_IRQCHIP_PIC_SLAVE).pic.irr == 1 << 3, (
                "the guest that has no IOAPIC driver gets it too"
            )


@pytest.mark.kvm
async def test_kvm_with_a_split_irqchip_has_no_pins(vm):
    vm.create_split_irqchip()
    async with IrqManager(KvmSink(vm)) as irqs:
        assert (dict(irqs.routing), irqs.routing.unrouted) == ({}, None)


@pytest.mark.trouble
@pytest.mark.kvm
async def test_kvm_refuses_a_pin_that_it_has_not(vm):
    vm.create_irqchip()
    with KvmSink(vm) as sink, EventFd() as kick:
        before = vm.get_irqchip(KVM_IRQCHIP_IOAPIC).ioapic.irr
        for action in (Action.PULSE, Action.ASSERT):
            with pytest.raises(RoutingError, match=r"0\.\.23"):
                sink.try_inject(Interrupt(30, IrqchipPin("ioapic", 24), action))
        async with IrqManager(sink, routing=RoutingTable.default()) as irqs:
            with pytest.raises(RoutingError, match=r"0\.\.23"):
                irqs.assign(kick, gsi=24)
        with pytest.raises(InjectionError) as caught:
            async with IrqManager(sink, routing=RoutingTable.default(), retry=Retry(attempts=0)) as irqs:
                irqs.assign(kick, gsi=24, masked=True).unmask()
                kick.signal()
                await irqs.flush()
        assert isinstance(caught.value.__cause__, RoutingError)
        assert vm.get_irqchip(KVM_IRQCHIP_IOAPIC).ioapic.irr == before
        assert kick.read_nowait() == 1


@pytest.mark.parametrize(
    ("chips", "pins"),
    [
        ({"pic": ("/m", "/s"), "ioapic": "/i"}, IOAPIC),
        ({"ioapic": "/i"}, IOAPIC),
        ({"pic": ("/m", "/s")}, PIC),
        ({}, []),
    ],
    ids=["both", "ioapic", "pic", "none"],
)
async def test_qemu_has_the_pins_of_one_chip(tmp_path, chips, pins):
    async with (
        Peer(tmp_path / "qtest") as peer,
        await QtestSink.connect(peer.path, **chips) as sink,
        IrqManager(sink) as irqs,
    ):
        assert dict(irqs.routing) == {pin.pin: (pin,) for pin in pins}
        assert irqs.routing.unrouted is None
