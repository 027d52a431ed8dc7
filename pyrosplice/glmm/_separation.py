r"""Genes whose coefficients have no finite estimate: some direction of theirs only ever improves the likelihood.

Along a direction D of the coefficients the predictors of spot i move by :math:`\delta_i = D' \tilde x_i` (0 for the
reference isoform). The likelihood of a spot never falls along it if every isoform that was seen there moves the most,

.. math:: \delta_{ik} \ge \delta_{im} \quad \text{for all } k \text{ seen at } i \text{ and all } m,

whatever the predictor is, and so whatever is added to it: a random effect changes nothing. The estimate is at infinity
exactly if some D fulfils all of these and one of them strictly (Albert & Anderson 1984, Biometrika 71:1, complete and
quasi-complete separation), which is a linear programme (Konis 2007, thesis, Oxford). It is solved for genes only whose
fitted predictors are extreme; an isoform that is never seen needs no programme.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor

FAR_LOGIT = 5.0  # span of the predictors of a spot above which a gene is looked at: searches that stop do so beyond 6
_RANK = 1e-9  # singular values below it, relative to the largest, are zero
_STRICT = 1e-5  # largest value of a programme without solution, which is 0 up to the solver's tolerance of 1e-9


def separated(counts: Tensor, design: Tensor, eta: Tensor) -> Tensor:
    """Whether the coefficients of each gene have no finite maximum-likelihood estimate, ``(G,)``.

    Parameters
    ----------
    counts
        ``(G, N, K)``. With K = 1 the totals are random: what moves is their log mean.
    design
        Columns whose coefficients have flat priors, ``(N, C)``; no unit much larger than another.
    eta
        Fitted predictors without random effect, ``(G, N, Q)``.
    """
    answer = torch.zeros(len(counts), dtype=torch.bool, device=counts.device)
    if not design.shape[1]:
        return answer
    relative = torch.nn.functional.pad(eta, (0, 1))
    span = relative.amax(-1) - relative.amin(-1)
    single = counts.shape[-1] == 1
    informed = torch.ones_like(span, dtype=torch.bool) if single else counts.sum(-1) > 0
    far = ((span > FAR_LOGIT) & informed).any(-1)
    for gene in torch.nonzero(far).squeeze(-1).tolist():
        rows = informed[gene]
        seen = counts[gene][rows] > 0
        if single:  # beside a reference that is seen everywhere
            seen = torch.nn.functional.pad(seen, (0, 1), value=True)
        answer[gene] = _recedes(seen.cpu().numpy(), design[rows].cpu().numpy())
    return answer


def _recedes(seen: NDArray[np.bool_], design: NDArray[np.float64]) -> bool:
    """Whether there is a direction of recession, isoforms ``seen`` ``(n, K)`` at spots of ``design`` ``(n, C)``."""
    pairs = np.unique(np.column_stack([seen, design]), axis=0)
    seen, design = pairs[:, : seen.shape[1]] > 0, pairs[:, seen.shape[1] :]
    equal, larger = [], []
    first = seen.argmax(1)
    for isoform in range(seen.shape[1]):
        for other in range(seen.shape[1]):
            rows = design[(first == isoform) & (other != isoform)]
            both = seen[(first == isoform) & (other != isoform), other]
            block = np.zeros((len(rows), seen.shape[1], design.shape[1]))
            block[:, isoform], block[:, other] = rows, -rows
            flat = block[:, :-1].reshape(
                len(rows), (seen.shape[1] - 1) * design.shape[1]
            )  # the reference does not move
            equal.append(flat[both])
            larger.append(flat[~both])
    free = _null_space(np.concatenate(equal))
    slack = np.concatenate(larger) @ free
    slack = slack[np.abs(slack).max(1, initial=0.0) > _RANK]
    if not slack.size:
        return False
    slack /= np.abs(slack).max(1, keepdims=True)
    return _farthest(slack, np.zeros(len(slack), dtype=bool)) is not None


def _null_space(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal basis of the directions that all ``rows`` ``(n, D)`` leave alone."""
    values, vectors = np.linalg.eigh(rows.T @ rows)
    return vectors[:, values <= max(values[-1], 1e-300) * _RANK]


def receding_rows(
    seen: NDArray[np.bool_], design: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Observations of random totals whose log mean runs to minus infinity at the supremum of a gene's likelihood.

    Parameters
    ----------
    seen
        Which observations have counts, ``(N,)``.
    design
        Columns with flat priors, of about one size, ``(N, C)``.

    Returns
    -------
    Which observations recede ``(N,)``, none of those seen, and a direction of the coefficients ``(C,)`` along which the
    predictors of just these fall, by one or more. The other observations are all that the likelihood knows of there,
    and no direction is left along which it only rises (Geyer 2009, Electron. J. Stat. 3:259).
    """
    free = _null_space(design[seen])
    rows, place = np.unique(-design @ free, axis=0, return_inverse=True)
    size = np.abs(rows).max(1, initial=0.0)
    fixed = size <= _RANK
    fixed[place[seen]] = True
    scaled = np.where(fixed, 0.0, 1 / np.where(fixed, 1.0, size))[:, None] * rows
    receded, direction = np.zeros(len(rows), dtype=bool), np.zeros(free.shape[1])
    for _ in range(free.shape[1]):
        found = _farthest(scaled, receded)
        if found is None:
            break
        new = scaled @ found > _STRICT / len(rows)
        direction, receded = direction + found, receded | new
    fall = (rows @ direction)[receded].min(initial=np.inf)
    return receded[place], free @ direction / fall


def _farthest(rows: NDArray[np.float64], done: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Direction along which no row falls and those not ``done`` rise most, in a box; None where none of them can."""
    found = linprog(
        -rows[~done].sum(0),
        A_ub=-rows,
        b_ub=np.zeros(len(rows)),
        bounds=(-1.0, 1.0),
        method="highs",
        options={"primal_feasibility_tolerance": 1e-9, "dual_feasibility_tolerance": 1e-9},
    )
    return np.asarray(found.x) if found.status == 0 and -found.fun > _STRICT else None
