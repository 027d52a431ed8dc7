"""Ranks of true values among posterior draws: table, figure and a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chisquare

from pyrosplice._hypothesis.uniform_bands import rank_pvalue
from pyrosplice.plotting import rank_ecdf

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNRELIABLE = 0.7  # k̂ above which importance weights are not to be trusted (Vehtari et al. 2024, JMLR 25:72)
LEAST_EXPECTED = 5  # ranks a bin, for χ²
MOST_BINS = 20
FAR = 3.0  # standard errors of a mean rank


@dataclass(frozen=True)
class PosteriorCalibration:
    """Simulation-based calibration of a posterior; ``print`` says in a sentence what came out.

    Attributes
    ----------
    ranks
        Rank of the truth among ``n_draws`` draws, 0 to ``n_draws``: one row a data set, one column a quantity (entries
        of sites, and ``log_likelihood``). NaN where a data set has no posterior.
    pareto_k
        Value of k̂ for each data set, NaN where the method has none.
    n_draws
        Posterior draws of each data set.
    settings
        What was asked for.
    confidence
        Confidence of the band, and of all verdicts together.
    """

    ranks: pd.DataFrame
    pareto_k: NDArray[np.float64]
    n_draws: int
    settings: Mapping[str, Any]
    confidence: float = 0.99

    @classmethod
    def of(
        cls, found: pd.DataFrame, n_draws: int, settings: Mapping[str, Any], confidence: float
    ) -> PosteriorCalibration:
        """Make a calibration from ranks and, maybe, a column ``pareto_k``."""
        pareto_k = found["pareto_k"] if "pareto_k" in found else pd.Series(np.nan, index=found.index)
        return cls(found.drop(columns="pareto_k", errors="ignore"), pareto_k.to_numpy(), n_draws, settings, confidence)

    @property
    def table(self) -> pd.DataFrame:
        """Tabulate the ranks' tests, one row a quantity.

        ``quantity``; ``simulations`` with draws, ``missing`` without; ``mean_rank`` (½ if right); ``chi2_p`` of at
        most 20 bins; ``ecdf_p``, exact, of the whole distribution; ``verdict``: "uniform" where ``ecdf_p`` is not
        below its share of 1 − ``confidence`` (Holm), else what is wrong.
        """
        rows = []
        for name in self.ranks:
            ranks = self.ranks[name].dropna().to_numpy().astype(int)
            mean = float(ranks.mean() / self.n_draws) if len(ranks) else np.nan
            row = {"quantity": name, "simulations": len(ranks), "missing": len(self.ranks) - len(ranks)}
            ecdf = rank_pvalue(ranks, self.n_draws + 1) if len(ranks) else np.nan
            rows.append(row | {"mean_rank": mean, "chi2_p": chi2_pvalue(ranks, self.n_draws), "ecdf_p": ecdf})
        table = pd.DataFrame(rows)
        wrong = _holm(table["ecdf_p"].to_numpy(), 1 - self.confidence)
        words = [self._trouble(name) if bad else "uniform" for name, bad in zip(self.ranks, wrong, strict=True)]
        return table.assign(verdict=words)

    @property
    def unreliable(self) -> float:
        """Share of the data sets with k̂ above 0.7, which says that the draws are not to be trusted."""
        return float((self.pareto_k > UNRELIABLE).mean())

    @property
    def holds(self) -> bool:
        """Say whether no quantity is known to be wrong."""
        return bool((self.table["verdict"] == "uniform").all())

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw the difference of the ranks' distribution from uniform, with its exact band; what leaves it is named."""
        return rank_ecdf(self.ranks, n_draws=self.n_draws, confidence=self.confidence, ax=ax)

    def __str__(self) -> str:
        table = self.table
        about, size = self.settings, len(self.ranks)
        wrong = table[table["verdict"] != "uniform"]
        text = f"{about['method']} posterior of the {about['model']}, {size:,} simulations: "
        if len(wrong):
            each = "; ".join(f"{row.quantity}: {row.verdict} (p {row.ecdf_p:.1g})" for row in wrong.itertuples())
            text += f"not calibrated, {each}"
        else:
            least = table["ecdf_p"].min()
            text += f"all {len(table)} quantities have uniform ranks (smallest p {least:.2g}), as far as they can tell"
        missing = int(self.ranks.isna().any(axis=1).sum())
        text += f"; {missing:,} without draws" if missing else ""
        return f"{text}; k̂ > {UNRELIABLE} in {self.unreliable:.1%}." if self.unreliable else f"{text}."

    __repr__ = __str__

    def _trouble(self, name: str) -> str:
        share = self.ranks[name].dropna().to_numpy() / self.n_draws
        error = np.sqrt(1 / 12 / len(share))
        if abs(share.mean() - 0.5) > FAR * error:
            return "draws are too low" if share.mean() > 0.5 else "draws are too high"
        return "draws are too narrow" if ((share - 0.5) ** 2).mean() > 1 / 12 else "draws are too wide"


def chi2_pvalue(ranks: NDArray[np.int64], n_draws: int, *, bins: int | None = None) -> float:
    """χ² p-value of uniform ranks 0 to ``n_draws``, in bins of as equal width as ranks allow; NaN for too few."""
    bins = min(MOST_BINS, n_draws + 1, len(ranks) // LEAST_EXPECTED) if bins is None else bins
    if bins < 2:
        return np.nan
    bin_of = np.arange(n_draws + 1) * bins // (n_draws + 1)
    expected = np.bincount(bin_of, minlength=bins) * len(ranks) / (n_draws + 1)
    return float(chisquare(np.bincount(bin_of[ranks], minlength=bins), expected).pvalue)


def _holm(pvalues: NDArray[np.float64], level: float) -> NDArray[np.bool_]:
    """Which of some hypotheses are rejected, with at most a chance of ``level`` of a false one among them."""
    order, rejected = np.argsort(pvalues), np.zeros(len(pvalues), dtype=bool)
    for step, which in enumerate(order):
        if not pvalues[which] < level / (len(pvalues) - step):
            break
        rejected[which] = True
    return rejected
