r"""How the residuals of a fitted model scatter, beside what the model says.

With :math:`r_i` the residuals of the spots (:mod:`pyrosplice._hypothesis.coefficients.score`) and :math:`P_i` the
diagonal blocks of the marginal precision :math:`V^{-1}`, their covariance by the model; p coefficients a logit were
fitted. Two things may be more than the model knows.

*Dispersion between the logits.* The random effect of a GLMM has one variance for all logits, or one each, and no
covariance between them that is estimated; counts of several isoforms often say otherwise.

.. math::
   \Phi = \Big(\sum_i r_i r_i'\Big) \Big((1 - p / n) \sum_i P_i\Big)^{-1}

is Q × Q numbers: one where the model is right; for Q = 1 the sum of squares of the residuals over what the model
expects. Spots count as they inform: :math:`n = 1 / \sum_i w_i^2` with shares
:math:`w_i = \operatorname{tr}((\sum_j P_j)^{-1} P_i) / Q`, the number of spots if all inform the same (Kish's effective
sample size). With the root :math:`G = \Phi^{1/2}` the score :math:`U = (X \otimes I)' r` has variance
:math:`(I \otimes G)\, I_{XX}\, (I \otimes G)'`. G moves with the basis of the logits, so that tests do not depend on
it.

*Excess variance of independent spots.* A GLM has no random effect. If the logits of all spots vary with covariance R,
the n_i counts of a spot have the covariance

.. math:: S_i = P_i + c_i\, P_i R P_i, \qquad c_i = (n_i - 1) / n_i,

to first order in R: deep spots have more of it, a single count none. Where usage is the same in all spots that holds
whatever the law of the variation. Where it is not and the logits vary more at some usages than at others (those of
Dirichlet-multinomial counts at rare ones), S is right on average over the spots, and a covariate that varies only among
spots of one kind is better tested with that likelihood. R solves

.. math:: \sum_i \omega_i r_i r_i' = \Big(1 - \frac{p \sum_i \omega_i f_i w_i^2}{\sum_i \omega_i f_i w_i}\Big)
   \sum_i \omega_i S_i, \qquad \omega_i = c_i / f_i^2, \qquad f_i = 1 + c_i \max(\operatorname{tr}(R P_i), 0) / Q,

weights as for normal residuals, in three rounds from R = 0; it is bounded below so that no S_i is indefinite. The score
has variance :math:`(X \otimes I)' S (X \otimes I)`. Its degrees of freedom are those of the estimate of R as far as it
matters to a combination of the score: with :math:`g_i` what spot i adds to the combination's variance by the model,

.. math:: \nu = n\, (1 - p / n_w), \qquad
   n = \Big(\sum_i g_i f_i\Big)^2 \sum_i (c_i w_i / f_i)^2 \Big/ \Big(\sum_i g_i c_i w_i\Big)^2 ,

and :math:`n_w` is n for g = w.

A χ² statistic of c columns that is made with either is a Lawley–Hotelling trace: of one column Hotelling's T² on ν
(with Φ, n − p) degrees of freedom. Sources: McCullagh (1983) Ann. Statist. 11:59 and Williams (1982) Appl. Statist.
31:144 for one logit; McKeon (1974) Biometrika 61:381 for the F law of the trace.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import fdtrc
from torch import Tensor

ROUNDS = 3
SLACK = 0.9  # of the (negative) excess at which some spot's variance could be singular
MOST = 1e8  # degrees of freedom


@dataclass(frozen=True)
class Dispersion:
    """Spread of each gene's residuals: ``root`` G ``(B, Q, Q)`` and its degrees of freedom ν ``(B,)``; NaN without."""

    root: Tensor
    dof: Tensor


def dispersion_of(residual: Tensor, spot_precision: Tensor, n_coefficients: Tensor | int) -> Dispersion:
    """Dispersion of the residuals of a model, NaN for a gene with a logit without information or without ν > 0.

    Parameters
    ----------
    residual
        ``(B, N, Q)``.
    spot_precision
        Diagonal blocks of V⁻¹, ``(B, N, Q, Q)``; zero for spots that do not inform.
    n_coefficients
        Fitted coefficients a logit, the intercept among them: one number, or ``(B,)``.
    """
    total, observed = spot_precision.sum(1), residual.mT @ residual
    factor, failed = _factor(total)
    failed = failed | ~torch.isfinite(observed).flatten(1).all(-1)
    share = (spot_precision * torch.cholesky_inverse(factor)[:, None]).sum((-2, -1)) / factor.shape[-1]
    effective = share.square().sum(-1).reciprocal()
    blank = failed[:, None, None]
    half = torch.linalg.solve_triangular(factor, torch.where(blank, factor, observed), upper=False)
    values, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(factor, half.mT, upper=False))
    root = (vectors * values.clamp_min(0.0).sqrt()[:, None]) @ vectors.mT
    root = torch.linalg.solve_triangular(factor, factor @ root, upper=False, left=False)
    dof = effective - n_coefficients
    dof = torch.where(failed | ~(dof > 0), torch.nan, dof)
    return Dispersion(root * (effective / dof).sqrt()[:, None, None], dof)


@dataclass(frozen=True)
class Excess:
    """Excess variance of the spots of every gene.

    Attributes
    ----------
    variance
        S, ``(B, N, Q, Q)``; NaN for a gene that has none.
    inflation, share, loading
        f, w and c w, ``(B, N)``.
    spots
        n of a gene in which no spot has two counts, so that S is known, else NaN, ``(B,)``.
    n_coefficients
        p, a number or ``(B,)``.
    """

    variance: Tensor
    inflation: Tensor
    share: Tensor
    loading: Tensor
    spots: Tensor
    n_coefficients: Tensor | int

    def dof(self, weight: Tensor) -> Tensor:
        """ν ``(B,)`` of a combination of the score with these g ``(B, N)``; NaN where it is not above 0."""
        room = 1 - self.n_coefficients / self._spots(self.share)
        known = (room > 0) & torch.isfinite(self.variance).flatten(1).all(-1)
        return torch.where(known, (self._spots(weight) * room).clamp_max(MOST), torch.nan)

    def _spots(self, weight: Tensor) -> Tensor:
        known = (self.loading / self.inflation).square().sum(1)
        ratio = (weight * self.inflation).sum(1) / (weight * self.loading).sum(1)
        return torch.where(torch.isnan(self.spots), ratio.square() * known, self.spots)


def excess_of(residual: Tensor, spot_precision: Tensor, repeats: Tensor, n_coefficients: Tensor | int) -> Excess:
    """Excess variance of independent spots, NaN for a gene with a logit without information or fewer spots than p.

    Parameters
    ----------
    residual
        ``(B, N, Q)``.
    spot_precision
        P, ``(B, N, Q, Q)``; zero for spots that do not inform.
    repeats
        c, ``(B, N)``: (n − 1) / n for n counts, 0 without any.
    n_coefficients
        Fitted coefficients a logit, the intercept among them: one number, or ``(B,)``.
    """
    n_logits = residual.shape[-1]
    factor, failed = _factor(spot_precision.sum(1))
    failed = failed | ~torch.isfinite(residual).flatten(1).all(-1)
    residual = torch.where(failed[:, None, None], 0.0, residual)
    whitened = torch.linalg.solve_triangular(factor[:, None], spot_precision, upper=False)
    whitened = torch.linalg.solve_triangular(factor[:, None], whitened.mT, upper=False)  # sums to one over the spots
    scores = torch.linalg.solve_triangular(factor, residual.mT, upper=False).mT
    share = torch.diagonal(whitened, dim1=-2, dim2=-1).mean(-1)
    leverage = torch.as_tensor(n_coefficients).to(share).reshape(-1, 1) * share
    largest = torch.linalg.eigvalsh(torch.where(failed[:, None, None, None], 0.0, whitened))[..., -1]
    floor = -SLACK / (repeats * largest).amax(1).clamp_min(1e-300)
    single = (repeats == 0).all(1)  # no spot with two counts: nothing can be more variable
    added, inflation = torch.zeros_like(factor), torch.ones_like(share)
    for _ in range(ROUNDS):
        weight = repeats / inflation.square()
        room = 1 - (weight * inflation * share * leverage).sum(1) / (weight * inflation * share).sum(1)
        observed = torch.einsum("bn,bnq,bnr->bqr", weight, scores, scores) / room[:, None, None]
        beyond = observed - torch.einsum("bn,bnqr->bqr", weight, whitened)
        added = _solve_between(weight * repeats, whitened, beyond)
        unknown = ~(room > 0) | ~torch.isfinite(added).flatten(1).all(-1)
        failed = failed | (unknown & ~single)
        values, vectors = torch.linalg.eigh(torch.where(unknown[:, None, None], 0.0, added))
        added = (vectors * torch.maximum(values, floor[:, None])[:, None]) @ vectors.mT
        inflation = 1 + repeats * torch.einsum("bqr,bnqr->bn", added, whitened).clamp_min(0.0) / n_logits
    variance = whitened + repeats[..., None, None] * (whitened @ added[:, None] @ whitened)
    variance = factor[:, None] @ variance @ factor.mT[:, None]
    variance = torch.where(failed[:, None, None, None], torch.nan, variance)
    spots = torch.where(single, share.square().sum(-1).reciprocal(), torch.nan)
    return Excess(variance, inflation, share, repeats * share, spots, n_coefficients)


def _solve_between(weight: Tensor, blocks: Tensor, right: Tensor) -> Tensor:
    """R with ``Σ_i weight_i blocks_i R blocks_i = right``, symmetric ``(B, Q, Q)``."""
    n_genes, q = right.shape[:2]
    flat = blocks.flatten(2)
    system = (flat.mT @ (weight.unsqueeze(-1) * flat)).reshape(n_genes, q, q, q, q).transpose(2, 3)
    found, _ = torch.linalg.solve_ex(system.reshape(n_genes, q * q, q * q), right.flatten(1).unsqueeze(-1))
    found = found.reshape(n_genes, q, q)
    return (found + found.mT) / 2


def _factor(total: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factor of the information of the logits, and where there is none (there the factor is of ones)."""
    deviation = torch.diagonal(total, dim1=-2, dim2=-1).sqrt()
    factor, info = torch.linalg.cholesky_ex(total / (deviation[:, :, None] * deviation[:, None]))
    failed = info != 0
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return torch.where(failed[:, None, None], eye, deviation[:, :, None] * factor), failed


def trace_sf(statistic: Tensor, n_columns: Tensor, n_logits: int, dof: Tensor) -> Tensor:
    """Chance ``P(T > statistic)`` of ``(B, T)`` statistics of ``n_columns`` ``(T,)`` covariates, ``dof`` ν ``(B, T)``.

    One column: Hotelling's law, exact for normal residuals, NaN for ν < Q. More: McKeon's F law, NaN for ν ≤ Q + 3.
    χ² as ν grows.
    """
    q, columns = n_logits, n_columns.to(statistic)
    numerator = q * columns
    spread = (dof + columns - q - 1) * (dof - 1) / ((dof - q - 3) * (dof - q)) - 1
    denominator = 4 + (numerator + 2) / spread
    scale = numerator * (denominator - 2) / (denominator * (dof - q - 1)) * dof
    single = columns == 1
    denominator = torch.where(single, dof - q + 1, denominator)
    scale = torch.where(single, dof * q / (dof - q + 1), scale)
    known = torch.where(single, dof >= q, dof > q + 3)
    ratio = torch.where(known, statistic.clamp_min(0.0) / scale, torch.nan)
    tail = fdtrc(*(x.cpu().numpy() for x in torch.broadcast_tensors(numerator, denominator, ratio)))
    return torch.as_tensor(tail).to(statistic).clamp_min(torch.finfo(torch.float64).tiny)


def joint_dof(first: Tensor | None, second: Tensor) -> Tensor:
    """Degrees of freedom of a variance that is a product of two independent ones; None for one that is known."""
    return second if first is None else 1 / (1 / first + 1 / second)


def dispersed(root: Tensor, information: Tensor) -> Tensor:
    """Information ``(I ⊗ G) information (I ⊗ G)'`` for ``(B, C Q, C Q)``, logits fastest."""
    n_genes, size = information.shape[:2]
    n_logits = root.shape[-1]
    blocks = information.reshape(n_genes, size // n_logits, n_logits, size // n_logits, n_logits)
    return torch.einsum("bkq,bcqdr,blr->bckdl", root, blocks, root).reshape(n_genes, size, size)
