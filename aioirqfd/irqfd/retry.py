"""How often, and how soon, a failed injection is tried again."""

from __future__ import annotations

from dataclasses import dataclass

from aioirqfd.integers import integer


@dataclass(frozen=True, slots=True)
class Retry:
    """Capped exponential back-off.

    Args:
        attempts: Further attempts after the first failure, 0 or more. Then the irqfd is marked broken, its interrupt kept.
        initial: Seconds before the first of them.
        maximum: Seconds that no pause exceeds.

    Raises:
        ValueError: Out of range, or NaN.
        TypeError: ``attempts`` is no integer, or what are to be seconds no number.
    """

    attempts: int = 5
    initial: float = 0.01
    maximum: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "attempts", integer(self.attempts, "attempts of a back-off", 0))
        for name in ("initial", "maximum"):
            object.__setattr__(self, name, _seconds(getattr(self, name), f"{name} of a back-off"))
        # The other way round would let NaN pass.
        if not 0 <= self.initial <= self.maximum:
            raise ValueError(f"a back-off has 0 <= initial <= maximum, not {self!r}")

    def delay(self, failures: int) -> float:
        """Seconds to wait after the n-th failure in a row, n = 1, 2, ..."""
        return min(self.initial * 2.0 ** min(failures - 1, 64), self.maximum)


def _seconds(value: object, what: str) -> float:
    # Another kind of number may not multiply with floats, which would come to light at the first failure.
    try:
        if not isinstance(value, (bool, str, bytes)):
            return float(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{what} is a number of seconds, not {value!r}: {error}") from None
    raise TypeError(f"{what} is a number of seconds, not {value!r}")
