"""A random effect of groups of observations, as engines take it: numbers only, no names of a table's columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class GroupBlock:
    r"""A latent Gaussian effect of groups: intercepts and slopes of each level of a factor.

    .. math::
        \eta_i \mathrel{+}= z_i' u_{l(i)}, \qquad u_l = L(\psi)\, v_l, \quad v_l \sim N(0, I_q),
        \qquad L(\psi) = \sum_j \psi_j E_j

    one of each linear predictor, with the same ψ. L is linear in ψ, so that a standard deviation of zero is an ordinary
    point: the likelihood is smooth there, and even in the sign of a column of L.

    Attributes
    ----------
    name
        As a formula writes it, ``"1 + condition | donor"``.
    levels : (N,)
        Level of each observation, 0 to D − 1; −1 for one that has none of them.
    columns : (N, q)
        z of each observation.
    basis : (J, q, q)
        E: one matrix a parameter. One matrix of one entry for a single variance; the entries of a lower triangle for
        a full covariance; diagonal entries for uncorrelated slopes.
    parameters
        J names, ``("sd(1)", ...)``.
    level_names, column_names
        D and q names.
    root : (D, D), optional
        R where levels are related, :math:`U = R V L'` for the ``(D, q)`` matrix of all levels' effects, so that their
        covariance is :math:`R R' \otimes L L'` (a kinship, an autoregression); None for independent levels.
    """

    name: str
    levels: NDArray[np.intp]
    columns: NDArray[np.float64]
    basis: NDArray[np.float64]
    parameters: tuple[str, ...]
    level_names: tuple[str, ...]
    column_names: tuple[str, ...]
    root: NDArray[np.float64] | None = None

    def at_levels(self, effects: Tensor) -> Tensor:
        """What effects of all levels ``(..., D, q, Q)`` add to the predictors of each observation, ``(..., N, Q)``."""
        levels = torch.as_tensor(self.levels)
        columns = torch.as_tensor(self.columns * (self.levels >= 0)[:, None])
        return torch.einsum("nk,...nkq->...nq", columns, effects[..., levels.clamp_min(0), :, :])
