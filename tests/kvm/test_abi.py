from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from aioirqfd.kvm import exits, ioctls, states, structures

HEADER = Path("/usr/include/linux/kvm.h")
SIZES = {
    "KvmIrqfd": 32,
    "KvmIoeventfd": 64,
    "KvmIrqLevel": 8,
    "KvmMsi": 32,
    "KvmIrqRoutingIrqchip": 8,
    "KvmIrqRoutingMsi": 16,
    "KvmIrqRoutingEntry": 48,
    "KvmIrqRouting": 8,
    "KvmUserspaceMemoryRegion": 32,
    "KvmEnableCap": 104,
    "KvmPitConfig": 64,
    "KvmInterrupt": 4,
    "KvmCpuid2": 8,
    "KvmCpuidEntry2": 40,
    "KvmMpState": 4,
    "KvmPicState": 16,
    "KvmIoapicState": 216,
    "KvmIrqchip": 520,
    "KvmLapicState": 1024,
    "KvmRegs": 144,
    "KvmSegment": 24,
    "KvmDtable": 16,
    "KvmSregs": 312,
    "KvmRun": 2352,
    "KvmMsrEntry": 16,
    "KvmMsrs": 8,
    "KvmMsrList": 4,
    "KvmFpu": 416,
    "KvmXsave": 4096,
    "KvmXcr": 16,
    "KvmXcrs": 392,
    "KvmVcpuEvents": 64,
    "KvmDebugregs": 128,
    "KvmClockData": 48,
    "KvmPitChannelState": 24,
    "KvmPitState2": 112,
}
STRUCTURES = {
    name: value
    for module in (structures, states)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, ctypes.Structure) and name.startswith("Kvm")
}
NUMBERS = {
    name: value
    for module in (ioctls, structures, states)
    for name, value in vars(module).items()
    if name.startswith("KVM_") and isinstance(value, int)
}
# Fields that C reaches by another expression than the name of the ctypes field.
C_FIELDS = {
    ("kvm_irqchip", "dummy"): "chip.dummy",
    ("kvm_irqchip", "pic"): "chip.pic",
    ("kvm_irqchip", "ioapic"): "chip.ioapic",
}


def c_name(name):
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


def fields(structure):
    anonymous = getattr(structure, "_anonymous_", ())
    for name, kind, *_ in structure._fields_:
        if name in anonymous:
            yield from (inner for inner, *_ in kind._fields_)
        else:
            yield name


def test_every_structure_has_its_known_size():
    assert {name: ctypes.sizeof(structure) for name, structure in STRUCTURES.items()} == SIZES


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("KVM_CREATE_VM", 0xAE01),
        ("KVM_IRQ_LINE", 0x4008AE61),
        ("KVM_GET_IRQCHIP", 0xC208AE62),
        ("KVM_SET_IRQCHIP", 0x8208AE63),
        ("KVM_IRQ_LINE_STATUS", 0xC008AE67),
        ("KVM_SET_GSI_ROUTING", 0x4008AE6A),
        ("KVM_IRQFD", 0x4020AE76),
        ("KVM_IOEVENTFD", 0x4040AE79),
        ("KVM_SIGNAL_MSI", 0x4020AEA5),
        ("KVM_RUN", 0xAE80),
        ("KVM_GET_SUPPORTED_CPUID", 0xC008AE05),
        ("KVM_SET_CPUID2", 0x4008AE90),
        ("KVM_GET_CPUID2", 0xC008AE91),
        ("KVM_GET_LAPIC", 0x8400AE8E),
        ("KVM_GET_MSRS", 0xC008AE88),
        ("KVM_SET_MSRS", 0x4008AE89),
        ("KVM_GET_XSAVE", 0x9000AEA4),
        ("KVM_SET_XCRS", 0x4188AEA7),
        ("KVM_GET_VCPU_EVENTS", 0x8040AE9F),
        ("KVM_SET_PIT2", 0x4070AEA0),
        ("KVM_GET_CLOCK", 0x8030AE7C),
    ],
)
def test_ioctl_numbers(name, number):
    assert NUMBERS[name] == number


def test_everything_agrees_with_the_header_of_this_machine(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not HEADER.exists():
        pytest.skip("needs a C compiler and <linux/kvm.h>")
    expected = {f"sizeof {c_name(name)}": ctypes.sizeof(structure) for name, structure in STRUCTURES.items()}
    expressions = {f"sizeof {c_name(name)}": f"sizeof(struct {c_name(name)})" for name in STRUCTURES}
    for name, structure in STRUCTURES.items():
        for field in fields(structure):
            key = f"{c_name(name)}.{field}"
            expected[key] = getattr(structure, field).offset
            expressions[key] = f"offsetof(struct {c_name(name)}, {C_FIELDS.get((c_name(name), field), field)})"
    expected["union"] = exits._UNION
    expressions["union"] = "offsetof(struct kvm_run, io)"
    expected["mmio data"] = exits.MMIO_DATA
    expressions["mmio data"] = "offsetof(struct kvm_run, mmio.data)"
    expected |= NUMBERS
    expressions |= {name: name for name in NUMBERS}
    lines = [f'printf("%s=%llu\\n", "{key}", (unsigned long long)({value}));' for key, value in expressions.items()]
    head = "#include <stddef.h>\n#include <stdio.h>\n#include <linux/kvm.h>\n"
    source = tmp_path / "abi.c"
    source.write_text(head + "int main(void) {\n" + "\n".join(lines) + "\nreturn 0;\n}\n")
    subprocess.run([compiler, "-o", tmp_path / "abi", source], check=True)
    output = subprocess.run([tmp_path / "abi"], check=True, capture_output=True, text=True).stdout
    assert {key: int(value) for key, value in (line.rsplit("=", 1) for line in output.splitlines())} == expected


def test_irq_level_status_is_signed():
    assert structures.KvmIrqLevel(irq=0xFFFFFFFF).status == -1
    assert structures.KvmIrqLevel(irq=2).status == 2


def test_lapic_registers_and_vectors():
    lapic = structures.KvmLapicState()
    lapic.set_register(0x210, 1 << 17)  # IRR of vectors 32..63
    lapic.set_register(0x100, 1)  # ISR of vectors 0..31
    lapic.set_register(0x170, 1 << 31)  # ISR of vectors 224..255
    assert lapic.register(0x210) == 1 << 17
    assert lapic.requested() == {32 + 17}
    assert lapic.in_service() == {0, 255}
