"""A difference between two posteriors that is known up to Monte Carlo error: does it matter, and can one tell?"""

from __future__ import annotations

import math
from dataclasses import dataclass

MEAN_TOLERANCE = 0.15  # posterior sds
SD_TOLERANCE = 0.15  # relative
SURE = 2.0  # standard errors
MOST_DRAWS = 100_000


@dataclass(frozen=True)
class Difference:
    """A mean's difference in sds, or an sd's relative one, with its Monte Carlo errors and what is tolerated.

    Attributes
    ----------
    name, above, below
        Words: ``"mean"`` too ``"high"`` or ``"low"``.
    value, tolerance
        The difference, and how much of it does not matter.
    error
        Standard errors that the draws of the approximation and those of the reference give it.
    """

    name: str
    above: str
    below: str
    value: float
    tolerance: float
    error: tuple[float, float]

    @property
    def total_error(self) -> float:
        """Monte Carlo error of the difference, from those of both posteriors."""
        return math.hypot(*self.error)

    @property
    def outcome(self) -> str:
        """Say ``"agrees"`` or ``"differs"`` if two standard errors leave no doubt, else ``"cannot tell"``."""
        size, doubt = abs(self.value), SURE * self.total_error
        if size + doubt <= self.tolerance:
            return "agrees"
        return "differs" if size - doubt > self.tolerance else "cannot tell"

    @property
    def words(self) -> str:
        """Say the difference in words: ``mean 0.21 ± 0.03 sd too high``."""
        size, error = abs(self.value), self.total_error
        how = f"{size:.2f} ± {error:.2f} sd" if self.name == "mean" else f"{size:.0%} ± {error:.0%}"
        return f"{self.name} {how} too {self.above if self.value > 0 else self.below}"

    def more_draws(self, draws: tuple[int, int]) -> tuple[float, float]:
        """How many more draws of each would leave no doubt if the difference stays as it is, zero if none needed."""
        allowed = ((abs(self.value) - self.tolerance) / SURE) ** 2
        ours, theirs = (error**2 for error in self.error)
        if not math.isfinite(ours + theirs) or allowed == 0:
            return (math.inf, math.inf)
        if ours <= allowed / 2:
            return 0.0, max(draws[1] * (theirs / (allowed - ours) - 1), 0.0)
        part = allowed / 2 if theirs else allowed
        return draws[0] * (ours / part - 1), max(draws[1] * (theirs / part - 1), 0.0)


def mean_difference(value: float, error: tuple[float, float]) -> Difference:
    """Difference of two means, in posterior sds."""
    return Difference("mean", "high", "low", value, MEAN_TOLERANCE, error)


def sd_difference(value: float, error: tuple[float, float]) -> Difference:
    """Difference of two sds, relative."""
    return Difference("sd", "wide", "narrow", value, SD_TOLERANCE, error)


def counted(number: float) -> str:
    """Round a number of draws up to two figures; beyond what anyone has at the tolerance itself."""
    if number > MOST_DRAWS:
        return f"over {MOST_DRAWS:,}"
    step = 10 ** max(math.floor(math.log10(max(number, 1))) - 1, 0)
    return f"{math.ceil(number / step) * step:,}"
