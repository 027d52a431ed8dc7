"""Which tests of covariates the tissue can answer: modes of a covariate, and how well its variance is known."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyrosplice._tables.labels import read_labels
from pyrosplice._usage.analysis.prepare import Prepared
from pyrosplice._usage.gene_tests.covariate_law import law_df
from pyrosplice._usage.gene_tests.linearized import GeneTests
from pyrosplice.errors import UnreliableWarning
from pyrosplice.reasons import Reason

FEWEST, ENOUGH = 5.0, 25.0
"""Posterior degrees of freedom below which a test is refused, and from which its p-values are reliable.

Where they were set: one section of 256 spots and two of 144, covariates from an eigenvector to independent noise, usage
by the model, by domains and smoother (tests/studies/du_covariates.py).
"""
FEWEST_MODES = 3.0
"""Modes below which p-values are not called reliable: so few patterns hardly replicate the field along the covariate,
whose variance is then known from other patterns only. With 10 counts a spot, three isoforms and usage in domains, a
half has two and rejects 9 % of null genes at 5 % (tests/studies/du_covariates.py).
"""
UNEQUAL = 6.0
"""Likelihood ratio above which the field's standard deviation is taken to depend on a covariate."""
FEWEST_BETWEEN = 5  # degrees of freedom between sections below which a covariate that is constant in each is refused
WITHIN = 0.05  # share of a covariate's variance within sections below which it is as good as constant there


def between_sections(prepared: Prepared, columns: Sequence[int]) -> bool:
    """Whether covariates are as good as constant in every section, and these too few to be their replicates."""
    if prepared.section_key is None or prepared.design is None:
        return False
    sections = np.asarray(read_labels(prepared.data.adata.obs[prepared.section_key], "section_key").codes)
    n_sections = len(np.unique(sections))
    if n_sections < 2 or n_sections - 1 - len(columns) >= FEWEST_BETWEEN:
        return False
    values = prepared.design.values[:, list(columns)]
    within = sum(values[sections == one].var(0) * (sections == one).mean() for one in np.unique(sections))
    return bool((within < WITHIN * values.var(0)).all())


def shares_of_genes(table: pd.DataFrame, df: NDArray[np.float64], closed: NDArray[np.bool_]) -> pd.DataFrame:
    """Add to ``table`` what the ``df`` ``(G, T)`` come to; ``closed`` covariates are refused for every gene."""
    known = np.isfinite(df)
    counted = np.where(known.any(0), known.sum(0), np.nan)
    middle = np.array([np.median(own[own == own]) if (own == own).any() else np.nan for own in df.T])
    tested = (df >= FEWEST) & ~closed
    enough = tested & (df >= ENOUGH) & (table["modes"].to_numpy() >= FEWEST_MODES)
    shares = {"reliable": enough.sum(0) / counted, "few": (tested & ~enough).sum(0) / counted}
    table = table.assign(posterior_df=middle, like_spots=middle + 2, **shares)
    return table.assign(refused=1 - table["reliable"] - table["few"])


def refused(
    tests: GeneTests,
    prepared: Prepared,
    tested: Sequence[Sequence[int]],
    modes: NDArray[np.float64],
    *,
    of_posterior: bool = True,
) -> GeneTests:
    """Take away p-values that a tissue cannot give of covariates with these ``modes`` ``(T,)``, and say why.

    Few degrees of freedom matter to p-values ``of_posterior`` variances only, not to ranks among surrogates.
    """
    statistic, pvalue, reason = tests.statistic.copy(), tests.pvalue.copy(), tests.reason.copy()
    df = law_df(torch.from_numpy(tests.posterior_df), modes).numpy()
    for t, columns in enumerate(tested):
        undecided = np.isin(reason[:, t], ["", Reason.FEW_SPOTS.value])
        few = undecided & (tests.posterior_df[:, t] < FEWEST) & of_posterior
        # too few degrees of freedom for many isoforms may be those of the posterior and the modes
        few |= (reason[:, t] == Reason.FEW_SPOTS.value) & (df[:, t] < 2 * FEWEST) & of_posterior
        closed = undecided & between_sections(prepared, columns)
        for rows, why in ((few, Reason.FEW_MODES), (closed, Reason.BETWEEN_SECTIONS)):
            statistic[rows, t] = pvalue[rows, t] = np.nan
            reason[rows, t] = why.value
    return replace(tests, statistic=statistic, pvalue=pvalue, reason=reason)


def unequal_field(tests: GeneTests) -> NDArray[np.bool_]:
    """Where the field's standard deviation depends on the covariate that is tested, ``(G, T)``."""
    return np.nan_to_num(tests.slope_ratio) > UNEQUAL


def reliable(tests: GeneTests, modes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where there is a p-value that holds, ``(G, T)``, of covariates with these ``modes`` ``(T,)``.

    The variance of what is tested is known well enough, and the field's does not depend on the covariate.
    """
    return np.isfinite(tests.pvalue) & ~_few(tests, modes) & ~unequal_field(tests)


def _few(tests: GeneTests, modes: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (tests.posterior_df < ENOUGH) | (modes < FEWEST_MODES)


def warn_of_few_modes(tests: GeneTests, names: Sequence[str], modes: NDArray[np.float64], *, stacklevel: int) -> None:
    """Say once which covariates have p-values that may not hold, or none at all."""
    n_genes = len(tests.pvalue)
    doubtful = (np.isfinite(tests.pvalue) & _few(tests, modes)).sum(0)
    without = np.isin(tests.reason, [Reason.FEW_MODES.value, Reason.BETWEEN_SECTIONS.value]).sum(0)
    parts = [
        f"{name}: {', '.join(words)}"
        for name, words in zip(names, map(_counted, doubtful.tolist(), without.tolist()), strict=True)
        if words
    ]
    if parts:
        warnings.warn(
            f"of {n_genes} genes, {'; '.join(parts)}. These covariates vary like a few waves over the tissue, which "
            "holds few replicates of them; the results' 'reliable', 'posterior_df' and 'reason' say where, "
            "covariate_modes() why. More sections or donors would help.",
            UnreliableWarning,
            stacklevel=stacklevel + 1,
        )


def _counted(doubtful: int, without: int) -> list[str]:
    few = f"fewer than {ENOUGH:g} posterior degrees of freedom, or {FEWEST_MODES:g} modes"
    words = [f"p-values of {doubtful} are not reliable ({few})"]
    return [*(words if doubtful else []), *([f"{without} have none"] if without else [])]
