"""How many components: AIC, BIC and held-out likelihood of every candidate for every patient."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._mixture.em.many import Fit, log_joint_of_cells
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.reasons import Reason

Floats = NDArray[np.float64]
MOST_NAMED = 6


@dataclass(frozen=True)
class Curves:
    """Criteria of P distributions × C candidates; all but the candidates ``(P, C)``, NaN where not computed.

    Attributes
    ----------
    components
        Candidate numbers of components.
    aic, bic
        On the training cells.
    train_nll, heldout_nll
        Mean negative log likelihood of a training cell, and of a cell left out.
    heldout_se
        Standard error of the latter, over cells.
    """

    components: tuple[int, ...]
    aic: Floats
    bic: Floats
    train_nll: Floats
    heldout_nll: Floats
    heldout_se: Floats

    def scores(self, metric: str) -> Floats:
        """The criterion to be minimised, ``(P, C)``."""
        return {"aic": self.aic, "bic": self.bic, "heldout_nll": self.heldout_nll}[metric]

    def at_edge(self, chosen: Sequence[int]) -> list[bool]:
        """Whether each distribution's number is the largest candidate, or the smallest and more than one."""
        low, high = min(self.components), max(self.components)
        return [k == high or (k == low and k > 1) for k in chosen]


def selection_table(gmm: Mapping[str, Any]) -> pd.DataFrame:
    """The criteria as a table, one row a patient and candidate.

    Parameters
    ----------
    gmm
        ``dataset.gmm`` after ``fit_gmm``, or ``adata.uns[gmm_key]``.

    Returns
    -------
    Columns ``patient``, ``n_components``, ``aic``, ``bic``, ``train_nll``, ``heldout_nll``, ``heldout_se``, ``chosen``,
    ``reason``: "" or why there is no error of the held-out likelihood, a word of :class:`~pyrosplice.reasons.Reason`.

    Raises
    ------
    InvalidArgumentError
        The number of components was fixed: there are no criteria.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice import TripletDataset, fit_gmm, selection_table
    >>> rng = np.random.default_rng(0)
    >>> cells = [rng.normal(size=(60, 2)) + 6 * rng.integers(0, 2, (60, 1)) + shift for shift in (0, 0, 3, 3)]
    >>> dataset = TripletDataset(cells, ["healthy", "healthy", "ill", "ill"])
    >>> _ = fit_gmm(dataset, k_comps=[1, 2, 3, 4], k_selection_metric="bic", verbose=False)
    >>> table = selection_table(dataset.gmm)
    >>> table.loc[table["chosen"], ["patient", "n_components"]]
       patient  n_components
    1        0             2
    5        1             2
    10       2             3
    13       3             2
    """
    if not isinstance(gmm, Mapping) or "weight_inference" not in gmm:
        raise InvalidArgumentError("gmm: expected dataset.gmm after fit_gmm, or adata.uns[gmm_key].")
    selection = gmm.get("selection")
    if selection is None:
        raise InvalidArgumentError("gmm: the number of components was fixed; give fit_gmm several k_comps.")
    candidates = np.asarray(selection["k_comps"])
    shared = gmm["component_sharing"] == "global"
    names = ["all patients"] if shared else list(gmm["weight_inference"]["distribution_ids"])
    counts = {"patient": np.repeat(names, len(candidates)), "n_components": np.tile(candidates, len(names))}
    table = pd.DataFrame(counts)
    for name, values in selection["curves"].items():
        table[name] = np.asarray(values).ravel()
    chosen = np.repeat(np.asarray(gmm["distribution_n_components"])[: len(names)], len(candidates))
    table["chosen"] = table["n_components"].to_numpy() == chosen
    return table.assign(reason=np.where(np.isfinite(table["heldout_se"]), "", Reason.FEW_CELLS.value))


def warn_of_edges(curves: Curves, chosen: Sequence[int], names: Sequence[str], *, stacklevel: int) -> None:
    """Warn, once, of distributions whose best number of components may lie beyond the candidates."""
    ends = [(name, k) for name, k, edge in zip(names, chosen, curves.at_edge(chosen), strict=True) if edge]
    if not ends or len(curves.components) == 1:
        return
    shown = ", ".join(f"{name!r} ({k})" for name, k in ends[:MOST_NAMED]) + (", …" if len(ends) > MOST_NAMED else "")
    warnings.warn(
        f"k_comps: the number of components chosen for {len(ends)} of {len(names)} is at the edge of the candidates "
        f"{list(curves.components)}, and a better one may lie beyond: {shown}. Give candidates beyond the edge; where "
        "there are few cells choose by n_folds=5, from 200 cells also by k_selection_metric='bic' with prior='pooled' "
        "(AIC takes too many components).",
        UserWarning,
        stacklevel=stacklevel,
    )


@dataclass(frozen=True)
class Split:
    """Cells to fit and cells to judge, as indices."""

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]


def split_once(n_cells: int, train_size: float, seed: int) -> list[Split]:
    """Split cells at random: ``round(train_size · n_cells)`` to train, at least one, and the rest to judge."""
    order = np.random.default_rng(seed).permutation(n_cells)
    n_train = min(max(1, round(train_size * n_cells)), n_cells)
    return [Split(np.sort(order[:n_train]), np.sort(order[n_train:]))]


def split_folds(n_cells: int, n_folds: int, seed: int) -> list[Split]:
    """Split cells ``n_folds`` times, so that every cell is held out once."""
    folds = np.array_split(np.random.default_rng(seed).permutation(n_cells), n_folds)
    every = np.arange(n_cells)
    return [Split(np.setdiff1d(every, fold), np.sort(fold)) for fold in folds]


def curves_of(
    fits: Sequence[Sequence[dict[int, Fit]]], held_out: Sequence[Sequence[Tensor]], sizes: Sequence[Sequence[int]]
) -> Curves:
    """Criteria from fits, held-out cells and training sizes of each patient's folds; means over folds.

    Held-out cells of all folds are pooled, so each cell counts once.
    """
    components = tuple(fits[0][0])
    values = {name: np.full((len(fits), len(components)), np.nan) for name in _NAMES}
    for p, (own, cells, size) in enumerate(zip(fits, held_out, sizes, strict=True)):
        judged = [_heldout(fold, x) for fold, x in zip(own, cells, strict=True) if len(x)]
        nll = np.concatenate(judged, 1) if judged else None
        for c, k in enumerate(components):
            folds = [(fold[k], n) for fold, n in zip(own, size, strict=True)]
            values["aic"][p, c] = np.mean([2 * f.parameters.n_free() - 2 * f.log_likelihood for f, _ in folds])
            values["bic"][p, c] = np.mean(
                [f.parameters.n_free() * math.log(n) - 2 * f.log_likelihood for f, n in folds]
            )
            values["train_nll"][p, c] = np.mean([-f.log_likelihood / n for f, n in folds])
            if nll is not None:
                values["heldout_nll"][p, c], values["heldout_se"][p, c] = mean_and_se(nll[c])
    return Curves(components, **values)


_NAMES = ("aic", "bic", "train_nll", "heldout_nll", "heldout_se")


def mean_and_se(nll: Floats, weights: Floats | None = None) -> tuple[float, float]:
    """Weighted mean over cells and its standard error (NaN for one cell)."""
    share = np.full(len(nll), 1 / len(nll)) if weights is None else weights / weights.sum()
    mean, spread = share @ nll, 1 - share @ share
    return float(mean), float(np.sqrt(share**2 @ (nll - mean) ** 2 / spread)) if spread > 0 else math.nan


def _heldout(fits: dict[int, Fit], cells: Tensor) -> Floats:
    """Negative log likelihood of each held-out cell under each candidate, ``(C, N)``."""
    (joints,) = log_joint_of_cells([cells], [[f.parameters for f in fits.values()]])
    return -torch.stack([j.logsumexp(1) for j in joints]).numpy()
