"""What KVM itself counts of a guest's interrupts: a witness beside the device and the guest.

QEMU's TCG, on which a nested guest runs, gives it an interrupt twice now and then. VMRUN delivers one and leaves its vector behind as if
an exception were still to be raised; where QEMU then stops the CPU for reasons of its own before the guest next leaves, that vector is
raised again. The guest's handler runs once more, and its last write to EOI ends nothing. Those are counted here.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

_TRACING: Final = Path("/sys/kernel/tracing")
_HISTOGRAMS: Final = {
    "kvm_msi_set_irq": "hist:keys=address,data:size=4096",
    "kvm_eoi": "hist:keys=vector if vector < 0",
}


class KvmCounts:
    """Counts for all virtual machines of this host, from when it is entered. Needs root, and a kernel with ``CONFIG_HIST_TRIGGERS``."""

    def __enter__(self) -> Self:
        if not (_TRACING / "events").exists():
            subprocess.run(["mount", "-t", "tracefs", "tracefs", _TRACING], check=True)
        for event, histogram in _HISTOGRAMS.items():
            self._file(event, "trigger").write_text(histogram)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for event, histogram in _HISTOGRAMS.items():
            self._file(event, "trigger").write_text(f"!{histogram}")

    def messages(self) -> list[int]:
        """How often KVM was given each message (address and data), of all MSI-X vectors.

        One that cannot be delivered where an eventfd is signalled, before the APICs are set up say, is counted once more later.
        """
        return self._hits("kvm_msi_set_irq")

    def repeated(self) -> int:
        """At most so many interrupts were taken twice: a guest may write to EOI for nothing by itself, too, but Linux 6.1 does not."""
        return sum(self._hits("kvm_eoi"))

    def _hits(self, event: str) -> list[int]:
        return [int(hits) for hits in re.findall(r"hitcount: +(\d+)", self._file(event, "hist").read_text())]

    def _file(self, event: str, name: str) -> Path:
        return _TRACING / "events/kvm" / event / name
