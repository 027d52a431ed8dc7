"""What a check of calibration found, as numbers, a table, a figure and sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._hypothesis.uniform_bands import exact_interval
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.plotting import qq

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = (0.05, 0.01, 0.001)
KEY = ["test", "covariate", "rate", "effect"]
VERDICTS = {1: "rejects too often", -1: "rejects too rarely", 0: "holds"}


@dataclass(frozen=True)
class CalibrationCheck:
    """Tests of genes of which is known what is true; ``print`` says in sentences what came out.

    Attributes
    ----------
    pvalues
        One row a simulated gene, test and covariate: ``test`` ("SV score"), ``covariate`` ("" for tests of space),
        ``rate`` ("size" where the null hypothesis is true, "power" where it is not), ``effect`` (0 for sizes, NaN
        where none was given), ``gene`` (number of the simulated gene), ``source`` (the own gene that it is like),
        ``n_isoforms``, ``statistic``, ``pvalue``, ``reason`` ("" or why there is no p-value), ``reliable`` (what the
        test itself says of its p-value).
    settings
        What was asked for: ``truth``, ``n_genes``, ``seed`` and options of the test.
    left_out
        Own genes that no gene could be drawn from, and why: reasons of fits without finite estimates.
    confidence
        Confidence of the exact intervals.
    """

    pvalues: pd.DataFrame
    settings: Mapping[str, Any]
    left_out: Mapping[str, str]
    confidence: float = 0.99

    @property
    def table(self) -> pd.DataFrame:
        """Tabulate the rejections, one row a test, covariate and level.

        ``test``, ``covariate``, ``rate``, ``effect``, ``level`` (.05, .01, .001), ``genes`` (with a reliable p-value),
        ``unreliable`` (with one that the test itself does not call so) and ``share_unreliable`` (of these below the
        level), ``missing`` (without), ``rejected``, ``share``, ``lower``, ``upper`` (Clopper and Pearson's interval),
        and ``verdict``: for sizes "holds" where the interval has the level, else "rejects too often" or "rejects too
        rarely"; "" for powers, and where no gene has a p-value.
        """
        return pd.DataFrame([row for some in self._groups() for row in self._rows(some)])

    @property
    def reasons(self) -> pd.DataFrame:
        """How many genes have no p-value: ``test``, ``covariate``, ``rate``, ``effect``, ``reason``, ``genes``."""
        lost = self.pvalues[self.pvalues["reason"] != ""]
        return lost.groupby([*KEY, "reason"], sort=False, dropna=False).size().rename("genes").reset_index()

    @property
    def holds(self) -> bool:
        """Whether no size is known to be wrong, at any level."""
        table = self.table
        return bool((~table["verdict"].isin([VERDICTS[1], VERDICTS[-1]])).all())

    @property
    def sentences(self) -> list[str]:
        """Say the outcome, a sentence for each test and covariate."""
        return [self._sentence(some) for some in self._groups()]

    def plot(
        self, *, covariates: str | Sequence[str] | None = None, band: str = "simultaneous", ax: Axes | None = None
    ) -> Axes:
        """Draw a QQ plot of the p-values where the null hypothesis is true (of powers, if no sizes were asked for).

        Parameters
        ----------
        covariates
            Only the tests of these; all by default, at most seven curves.
        band
            ``"simultaneous"``: holds all p-values of a calibrated test at once with a chance of ``confidence``.
            ``"pointwise"``: each by itself.
        ax
            Axes to draw on.
        """
        shown = self.pvalues
        rate = "size" if (shown["rate"] == "size").any() else "power"
        shown = shown[shown["rate"] == rate]
        if covariates is not None:
            wanted = [covariates] if isinstance(covariates, str) else list(covariates)
            unknown = sorted(set(wanted) - set(shown["covariate"]))
            if unknown or not wanted:
                raise InvalidArgumentError(
                    f"covariates: expected some of {sorted(set(shown['covariate']))}, found {unknown or wanted}."
                )
            shown = shown[shown["covariate"].isin(wanted)]
        names = [_name(test, covariate) for test, covariate in zip(shown["test"], shown["covariate"], strict=True)]
        ax = qq(shown.assign(test=names), by="test", confidence=self.confidence, band=band, ax=ax)  # type: ignore[arg-type]
        ax.set_title(f"{rate}, truth: {self.settings['truth']}")
        return ax

    def __str__(self) -> str:
        words = self.sentences
        if self.left_out:
            counted = ", ".join(f"{n} {reason}" for reason, n in sorted(Counter(self.left_out.values()).items()))
            words.append(f"{len(self.left_out)} of your genes have no finite fit to draw from ({counted}).")
        return "\n".join(words)

    __repr__ = __str__

    def _groups(self) -> Iterator[pd.DataFrame]:
        for _, some in self.pvalues.groupby(KEY, sort=False, dropna=False):
            yield some

    def _rows(self, some: pd.DataFrame) -> list[dict[str, Any]]:
        pvalue = some["pvalue"].to_numpy(dtype=np.float64)
        given, told = ~np.isnan(pvalue), some["reliable"].to_numpy(dtype=bool)
        tested, doubtful = pvalue[given & told], pvalue[given & ~told]
        first = {name: some[name].iloc[0] for name in KEY}
        rows = []
        for level in LEVELS:
            rejected = int((tested < level).sum())
            low, high = exact_interval(rejected, len(tested), self.confidence)
            sized = first["rate"] == "size" and len(tested) > 0
            row = {**first, "level": level, "genes": len(tested), "missing": int((~given).sum())}
            row |= {"unreliable": len(doubtful), "share_unreliable": _part_below(doubtful, level)}
            row |= {"rejected": rejected, "share": _part_below(tested, level)}
            verdict = VERDICTS[int(low > level) - int(high < level)] if sized else ""
            rows.append({**row, "lower": low, "upper": high, "verdict": verdict})
        return rows

    def _sentence(self, some: pd.DataFrame) -> str:
        rows = self._rows(some)
        first = rows[0]
        name, truth = _name(first["test"], first["covariate"], of=True), self.settings["truth"]
        why = Counter(some.loc[some["reason"] != "", "reason"])
        lost = ", ".join(f"{n:,} {reason}" for reason, n in sorted(why.items()))
        doubts = ""
        if first["unreliable"]:
            below = f"{_percent(first['share_unreliable'])} of them below {_level(first['level'])}"
            doubts = f" {first['unreliable']:,} p-values that the test calls unreliable do not count ({below})."
        if not first["genes"]:
            without = f" {first['missing']:,} have none ({lost})." if first["missing"] else ""
            return f"{name}: none of {len(some):,} genes has a p-value that the test calls reliable.{doubts}{without}"
        if first["rate"] == "power":
            given = "" if np.isnan(first["effect"]) else f" for an effect of {first['effect']:g}"
            spatial = f", spatial variation by {truth}" if truth == "domains" and not first["covariate"] else ""
            text = f"{name}: power{given}{spatial}, {first['genes']:,} genes: " + ", ".join(map(self._power, rows[:2]))
        else:
            exact = f"exact {_level(self.confidence)} interval "
            shares = [f"{_share(row)} ({exact if row is first else ''}{_span(row)})" for row in rows]
            text = f"{name}: {_percent(first['share'])} of {first['genes']:,} null genes {', '.join(shares)}"
            found = [row["verdict"] for row in rows]
            text += ": " + next(
                (word for word in (VERDICTS[1], VERDICTS[-1]) if word in found),
                f"{VERDICTS[0]}, as far as {first['genes']:,} genes can tell",
            )
        missing = f" {first['missing']:,} more without p-value ({lost})." if first["missing"] else ""
        return f"{text}.{doubts}{missing}"

    @staticmethod
    def _power(row: Mapping[str, Any]) -> str:
        return f"{_percent(row['share'])} at {_level(row['level'])} ({_span(row)})"


def _name(test: str, covariate: str, *, of: bool = False) -> str:
    return f"{test} of {covariate}" if covariate and of else f"{test} {covariate}".strip()


def _part_below(pvalue: NDArray[np.float64], level: float) -> float:
    """Share of the p-values below a level; NaN of none."""
    return float((pvalue < level).mean()) if len(pvalue) else np.nan


def _share(row: Mapping[str, Any]) -> str:
    """Below the first level the share is said before; below the others here."""
    first = row["level"] == LEVELS[0]
    return f"below {_level(row['level'])}" if first else f"{_percent(row['share'])} below {_level(row['level'])}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.01 or share == 0 else f"{100 * share:.2g} %"


def _level(level: float) -> str:
    return f"{100 * level:g} %"


def _span(row: Mapping[str, Any]) -> str:
    return f"{_percent(row['lower'])[:-2]} to {_percent(row['upper'])}"
