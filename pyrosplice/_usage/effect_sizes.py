r"""Effect sizes of covariates with standard errors: log odds of every isoform, and usage averaged over the spots.

With :math:`B = [\beta, 0]` the coefficients of all K isoforms (0 for the reference), the *centred log odds* are
:math:`B_{jk} - \tfrac1K \sum_m B_{jm}`: how much more isoform k gains, a unit of covariate j, than the isoforms do on
average (the centred log-ratio), which does not depend on the reference.

On the scale of usage the effect is an average over the spots as they are, fitted random effect included:

.. math::
    \text{continuous:}\quad \frac1N \sum_i p_{ik} \Big(B_{jk} - \sum_m p_{im} B_{jm}\Big), \qquad
    \text{levels:}\quad \frac1N \sum_i \Big(p_k(i; \ell) - \tfrac1L \sum_{m} p_k(i; m)\Big),

the derivative, or what usage would be with every spot at level ℓ against the mean over the L levels (for a covariate of
zeros and ones: at 1 against at 0, the other levels of its term at 0). Effects add up to zero over isoforms. Standard
errors by the delta method from the covariance of ``[β; b]``, the random effect held at its mode. Source: Agresti (2013)
"Categorical Data Analysis", chapters 8 and 16; Bartus (2005) Stata Journal 5:309 for average effects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrosplice._hypothesis.coefficients.wald import Effects


@dataclass(frozen=True)
class Change:
    """What is done to the covariates of all spots to see an effect.

    Attributes
    ----------
    columns
        Covariates C that are set together.
    levels
        Values that they are set to, ``(S, C)``; None for the derivative (C = 1).
    weights
        Effect of each column as a combination of the usage at the levels, ``(C, S)``.
    """

    columns: tuple[int, ...]
    levels: Tensor | None = None
    weights: Tensor | None = None

    def moved(self, shift: Tensor) -> Change:
        """Copy for covariates that have been moved by ``shift``, ``(P,)``."""
        return self if self.levels is None else replace(self, levels=self.levels + shift[list(self.columns)])


def changes_of(design: Tensor, terms: Sequence[str]) -> list[Change]:
    """What to do to see the effect of each covariate.

    Indicators of all levels of a factor (they sum to one) are compared with the mean of the levels; other zero-one
    covariates, of which a spot has at most one a term, with zero; the rest are derivatives.

    Parameters
    ----------
    design
        Covariates ``(N, P)``.
    terms
        What each covariate came from, P names; levels of a factor have the same.
    """
    changes = []
    for term in dict.fromkeys(terms):
        columns = tuple(j for j, name in enumerate(terms) if name == term)
        values = design[:, list(columns)]
        eye = torch.eye(len(columns), dtype=design.dtype, device=design.device)
        indicators, sums = bool(((values == 0) | (values == 1)).all()), values.sum(1)
        if indicators and len(columns) > 1 and bool((sums == 1).all()):
            changes.append(Change(columns, eye, eye - 1 / len(columns)))
        elif indicators and bool((sums <= 1).all()):
            none = torch.zeros_like(eye[:1])
            changes.append(Change(columns, torch.cat([none, eye]), torch.cat([none.T - 1, eye], 1)))
        else:
            changes.extend(Change((column,)) for column in columns)
    return changes


def centered_log_odds(beta: Tensor, covariance: Tensor) -> Effects:
    """Log odds of each isoform against the (geometric) mean of all, a unit of the covariate, ``(B, P, K)``.

    Parameters
    ----------
    beta
        ``(B, P, Q)``.
    covariance
        Covariance of ``[β; b]``, logits fastest, ``(B, (P + 1) Q, (P + 1) Q)``.
    """
    n_genes, n_factors, n_logits = beta.shape
    centring = torch.eye(n_logits + 1, n_logits, dtype=beta.dtype, device=beta.device) - 1 / (n_logits + 1)
    blocks = covariance.reshape(n_genes, n_factors + 1, n_logits, n_factors + 1, n_logits)
    own = torch.diagonal(blocks, dim1=1, dim2=3).permute(0, 3, 1, 2)[:, :n_factors]
    variance = torch.einsum("kq,bpqr,kr->bpk", centring, own, centring)
    return Effects(beta @ centring.T, variance.clamp_min(0.0).sqrt())


def average_usage_effects(
    eta: Tensor, beta: Tensor, covariance: Tensor, design: Tensor, changes: Sequence[Change]
) -> Effects:
    """Average effect of each covariate on the usage of each isoform, ``(B, P, K)``; 0.01 is a percentage point.

    Parameters
    ----------
    eta
        Linear predictor ``(B, N, Q)``, random effect included.
    beta
        ``(B, P, Q)``.
    covariance
        Covariance of ``[β; b]``, ``(B, (P + 1) Q, (P + 1) Q)``.
    design
        Covariates ``(N, P)``.
    changes
        As made by :func:`changes_of`; together they name every covariate once.
    """
    n_genes, n_factors, n_logits = beta.shape
    estimate = beta.new_zeros(n_genes, n_factors, n_logits + 1)
    rows = beta.new_zeros(n_genes, n_factors, n_logits + 1, covariance.shape[-1])
    for change in changes:
        columns = list(change.columns)
        found = _derivative if change.levels is None else _difference
        estimate[:, columns], rows[:, columns] = found(eta, beta, design, change)
    variance = torch.einsum("bpkd,bde,bpke->bpk", rows, covariance, rows)
    return Effects(estimate, variance.clamp_min(0.0).sqrt())


def _difference(eta: Tensor, beta: Tensor, design: Tensor, change: Change) -> tuple[Tensor, Tensor]:
    """Effects ``(B, C, K)`` of levels and their derivative in ``[β; b]``, ``(B, C, K, D)``."""
    if change.levels is None or change.weights is None:
        raise AssertionError("a difference has levels")
    columns, usages, slopes = list(change.columns), [], []
    for level in change.levels:
        moved = design.clone()
        moved[:, columns] = level
        usage = _usage(eta + (moved - design) @ beta)
        usages.append(usage.mean(1))
        slopes.append(_slope(usage, torch.ones_like(usage), moved))
    combine = change.weights
    return (
        torch.einsum("cs,sbk->bck", combine, torch.stack(usages)),
        torch.einsum("cs,sbkd->bckd", combine, torch.stack(slopes)),
    )


def _derivative(eta: Tensor, beta: Tensor, design: Tensor, change: Change) -> tuple[Tensor, Tensor]:
    """Effects ``(B, 1, K)`` of a unit of a covariate, as derivatives, and their derivative in ``[β; b]``."""
    usage, n_logits = _usage(eta), beta.shape[-1]
    jacobian = (torch.diag_embed(usage.mean(1)) - usage.mT @ usage / usage.shape[1])[..., :n_logits]
    (column,) = change.columns
    full = _with_reference(beta[:, column])
    excess = full.unsqueeze(1) - (usage @ full.unsqueeze(-1))
    effect = usage * excess
    row = _slope(usage, excess, design) - _outer(usage, effect[..., :n_logits], design)
    row[:, :, column * n_logits : (column + 1) * n_logits] += jacobian
    return effect.mean(1).unsqueeze(1), row.unsqueeze(1)


def _slope(usage: Tensor, scale: Tensor, design: Tensor) -> Tensor:
    """Mean over spots of ``scale_k ∂p_k / ∂[β; b]``, ``(B, K, D)``."""
    n_genes, n_spots, n_isos = usage.shape
    scaled, covariates = usage * scale, _with_intercept(design)
    own = torch.einsum("bnk,nc->bkc", scaled, covariates) / n_spots
    diagonal = torch.eye(n_isos, n_isos - 1, dtype=usage.dtype, device=usage.device)
    direct = torch.einsum("bkc,kl->bkcl", own, diagonal).reshape(n_genes, n_isos, -1)
    return direct - _outer(scaled, usage[..., :-1], design)


def _outer(left: Tensor, right: Tensor, design: Tensor) -> Tensor:
    """Mean over spots of ``left_k x̃_c right_l``, ``(B, K, C Q)``."""
    covariates = _with_intercept(design)
    weighted = (covariates.unsqueeze(-1) * right.unsqueeze(2)).flatten(2)  # (B, N, C Q)
    return left.mT @ weighted / left.shape[1]


def _usage(eta: Tensor) -> Tensor:
    return torch.softmax(_with_reference(eta), -1)


def _with_reference(values: Tensor) -> Tensor:
    return torch.cat([values, torch.zeros_like(values[..., :1])], -1)


def _with_intercept(design: Tensor) -> Tensor:
    return torch.cat([design, torch.ones_like(design[:, :1])], 1)
