"""The log of a run, as lines of JSON: which requests faults hit, what was done, and in which order requests were completed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from aioirqfd.faults.match import FaultError
from aioirqfd.faults.request import Plan

if TYPE_CHECKING:
    import os

    from aioirqfd.faults.request import Key

VERSION: Final = 1


@final
class Log:
    """Writes one. Each line is in the file when the call returns.

    Args:
        path: Where; what is there is overwritten.
        seed: With which the dice were thrown.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, seed: int) -> None:
        self._file = Path(path).open("w", encoding="utf-8", buffering=1)  # noqa: SIM115  closed by close()
        self.write(log="aioirqfd.faults", version=VERSION, seed=seed)

    def write(self, **entry: object) -> None:
        """Write an entry."""
        if not self._file.closed:
            self._file.write(json.dumps(entry) + "\n")

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._file.close()


@final
@dataclass(frozen=True)
class Recorded:
    """A log that was read.

    Attributes:
        plans: By request, what was done to it.
        order: In which order requests were completed; several where they were completed at once.
        after: By request, seconds from when it came until it was completed, where something kept it back.
    """

    plans: dict[Key, Plan] = field(default_factory=dict["Key", Plan])
    order: list[list[Key]] = field(default_factory=list[list["Key"]])
    after: dict[Key, float] = field(default_factory=dict["Key", float])

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Recorded:
        """Read a log.

        Raises:
            FaultError: It is none, or of another version; with the line.
            OSError: It cannot be read.
        """
        recorded = cls()
        batch = 0
        for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), 1):
            try:
                entry: dict[str, Any] = json.loads(line)
                if number == 1:
                    if (entry["log"], entry["version"]) != ("aioirqfd.faults", VERSION):
                        raise FaultError(f"a log of version {VERSION} is wanted")
                    continue
                request, nth = entry["request"]
                key = (str(request), int(nth))
                if entry["what"] == "fault":
                    recorded.plans[key] = Plan.again(entry["do"])
                elif entry["what"] == "complete":
                    if entry["batch"] and entry["batch"] == batch:
                        recorded.order[-1].append(key)
                    else:
                        recorded.order.append([key])
                    batch = entry["batch"]
                    if key in recorded.plans:
                        recorded.after[key] = float(entry["after"])
            except (ValueError, KeyError, TypeError) as error:
                raise FaultError(f"{path}, line {number}: no log of faults: {error!r}") from error
        return recorded
