r"""Score test of covariates in a multinomial-logit model, with or without spatial random effect.

At a null fit with residuals r, the derivatives of the log (marginal) likelihood in the linear predictor of every spot
(Q free logits), and marginal precision :math:`V^{-1}` of the linearised model,

.. math::

   U = (X \otimes I_Q)' r, \qquad I = (X \otimes I_Q)' V^{-1} (X \otimes I_Q), \qquad
   T = U_t^{*\prime} (I_{tt} - I_{tn} I_{nn}^{-1} I_{nt})^{-1} U_t^*, \quad U_t^* = U_t - I_{tn} I_{nn}^{-1} U_n,

with t the tested columns and n the intercept and the nuisance covariates. For the GLM :math:`V^{-1} = W` and
r = y − n p; for the GLMM, given its estimated spatial covariance Σ,
:math:`V^{-1} = (W^{-1} + Σ)^{-1} = W - W (W + Σ^{-1})^{-1} W`, and r is the derivative of Laplace's approximation:
y − n p at the mode of the random effect, and what the curvature there adds to it. Columns are first made orthonormal to
the intercept and the nuisance, so that shift, unit and coding of a covariate make no difference. T is χ² with Q degrees
of freedom a (linearly independent) column.

The variance of :math:`U_t^*` may be the model's, as above, or what the residuals say: with a dispersion between the
logits, or, for the independent spots of a GLM, with the excess variance that counts have where usage varies
(:mod:`pyrosplice.hypothesis.dispersion`). Sources: Rao (1948); Breslow & Clayton (1993) JASA 88:9 for the GLMM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.hypothesis.dispersion import Dispersion, Excess, dispersed, dispersion_of, excess_of, trace_sf
from pyrosplice.hypothesis.likelihood_ratio import chi2_sf
from pyrosplice.linalg.blocks import matmul

PrecisionProduct = Callable[[Tensor], Tensor]
"""``V⁻¹ x`` of every gene: ``(B, N, Q, R)`` to ``(B, N, Q, R)``."""

_BLOCK = 2**24


@dataclass(frozen=True)
class Linearised:
    """A fitted model as the tests of covariates see it.

    Attributes
    ----------
    residual
        Derivative of the log (marginal) likelihood in the linear predictor of each spot, ``(B, N, Q)``.
    precision_product
        The product with V⁻¹.
    spot_precision
        Diagonal blocks of V⁻¹, ``(B, N, Q, Q)``.
    repeats
        Where spots are independent, so that V⁻¹ is its diagonal blocks: (n − 1) / n for the n counts of each spot,
        ``(B, N)``, or 1 if n is random. None for a model with a random effect.
    """

    residual: Tensor
    precision_product: PrecisionProduct
    spot_precision: Tensor
    repeats: Tensor | None = None


@dataclass(frozen=True)
class CovariateTest:
    """Score tests of T terms in B genes.

    Attributes
    ----------
    statistic, pvalue
        ``(B, T)``; NaN where not estimable.
    dof
        Degrees of freedom ``(T,)``.
    residual_dof
        Those of the residuals, ν ``(B, T)``; None with the model's variance.
    by_model
        The statistic with the model's variance, ``(B, T)``.
    """

    statistic: Tensor
    pvalue: Tensor
    dof: Tensor
    residual_dof: Tensor | None
    by_model: Tensor


def information_product(information: Tensor) -> PrecisionProduct:
    """The GLM's ``V⁻¹ x = W x`` from the information of the spots, ``(B, N, Q, Q)``."""
    return lambda x: matmul(information, x)


def score_test(
    fit: Linearised,
    design: Tensor,
    *,
    terms: Sequence[Sequence[int]] | None = None,
    nuisance: Sequence[Sequence[int]] | None = None,
    robust: bool = False,
) -> CovariateTest:
    r"""Score tests of terms, each beside the intercept and its own nuisance covariates only.

    Parameters
    ----------
    fit
        The null fit.
    design
        Covariates, ``(N, P)``.
    terms
        Columns of ``design`` that are tested together (the indicators of a factor). Default: each on its own.
    nuisance
        Columns of ``design`` that each term is adjusted for; those of the null fit must be among them. Default: none.
        The intercept is always adjusted for.
    robust
        The variance of the score from the residuals, as all covariates leave them (to first order), instead of the
        model; T has the law of a Lawley–Hotelling trace.

    Raises
    ------
    InvalidArgumentError
        A term without any variation beyond intercept and nuisance.
    """
    residual, n_logits = fit.residual, fit.residual.shape[-1]
    joint, bases = _orthonormal_terms(design.to(residual), terms, nuisance)
    score = (joint.T @ residual).flatten(1)  # logits fastest
    information = covariate_information(fit.precision_product, joint, len(residual), n_logits)
    observed = None
    if robust:
        step, rank = _least_squares(information, score)
        moved = (joint @ step.unflatten(1, (-1, n_logits))).unsqueeze(-1)
        left = replace(fit, residual=residual - fit.precision_product(moved).squeeze(-1))
        observed = score_variance(left, joint, information, rank / n_logits)
    eye = torch.eye(n_logits, dtype=joint.dtype, device=joint.device)
    found, expected, dof = [], [], []
    for base, group in bases:
        width = base.shape[1] * n_logits
        weights = torch.kron(joint.T @ torch.cat([base, group], 1), eye)
        part, variance, projection = _without_nuisance(score @ weights, weights.T @ information @ weights, width)
        value = plain = _quadratic(variance, part)
        if observed is not None:
            rows = projection @ weights.T
            dof.append(observed.dof(rows))
            value = _quadratic(rows @ observed.matrix @ rows.mT, part)
        expected.append(torch.where(torch.isfinite(plain), plain, torch.nan))
        found.append(torch.where(torch.isfinite(plain), value, torch.nan))
    ranks = torch.tensor([group.shape[1] for _, group in bases], device=joint.device)
    statistic, by_model = torch.stack(found, -1), torch.stack(expected, -1)
    if observed is None:
        return CovariateTest(statistic, chi2_sf(statistic, ranks * n_logits), ranks * n_logits, None, by_model)
    own = torch.stack(dof, -1)
    return CovariateTest(statistic, trace_sf(statistic, ranks, n_logits, own), ranks * n_logits, own, by_model)


@dataclass(frozen=True)
class ScoreVariance:
    """Variance that the residuals of a fit give the score.

    Attributes
    ----------
    matrix
        ``(B, D, D)``.
    information
        The same by the model.
    fit, columns
        What the score is of.
    source
        Dispersion or excess of the residuals.
    """

    matrix: Tensor
    information: Tensor
    fit: Linearised
    columns: Tensor
    source: Dispersion | Excess

    def dof(self, rows: Tensor) -> Tensor:
        """Degrees of freedom ν ``(B,)`` of the variance of combinations ``(B, R, D)`` of the score."""
        if isinstance(self.source, Dispersion):
            return self.source.dof
        metric = rows.mT @ _solve(rows @ self.information @ rows.mT, rows)
        n_genes, n_logits = len(rows), self.fit.residual.shape[-1]
        metric = metric.reshape(n_genes, -1, n_logits, self.columns.shape[1], n_logits).transpose(2, 3)
        pairs = (self.columns[:, :, None] * self.columns[:, None]).flatten(1)
        spots = pairs @ metric.flatten(3).flatten(1, 2)  # of each spot Q × Q
        return self.source.dof((spots * self.fit.spot_precision.flatten(2)).sum(-1))


def score_variance(
    fit: Linearised, columns: Tensor, information: Tensor, n_coefficients: Tensor | int
) -> ScoreVariance:
    """Of the score of ``columns`` ``(N, C)``; ``n_coefficients`` a logit were fitted.

    ``information`` is its variance by the model, ``(B, C Q, C Q)``.
    """
    if fit.repeats is None:
        dispersion = dispersion_of(fit.residual, fit.spot_precision, n_coefficients)
        return ScoreVariance(dispersed(dispersion.root, information), information, fit, columns, dispersion)
    excess = excess_of(fit.residual, fit.spot_precision, fit.repeats, n_coefficients)
    matrix = covariate_information(information_product(excess.variance), columns, *fit.residual.shape[::2])
    return ScoreVariance(matrix, information, fit, columns, excess)


def covariate_information(precision_product: PrecisionProduct, columns: Tensor, n_genes: int, n_logits: int) -> Tensor:
    """``(X ⊗ I)' V⁻¹ (X ⊗ I)`` of covariates ``(N, C)``: ``(B, C Q, C Q)``, logits fastest."""
    n_spots = columns.shape[0]
    eye = torch.eye(n_logits, dtype=columns.dtype, device=columns.device)
    size = max(1, _BLOCK // (n_genes * n_spots * n_logits**2))
    parts = []
    for some in columns.split(size, 1):
        spread = torch.einsum("nc,qk->nqck", some, eye).flatten(2)
        image = precision_product(spread.expand(n_genes, *spread.shape))
        parts.append(torch.einsum("nc,bnqr->bcqr", columns, image).flatten(1, 2))
    information = torch.cat(parts, -1)
    return (information + information.mT) / 2


def _least_squares(information: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """One Fisher step ``(B, D)`` along what a gene's information knows, and how many directions that are ``(B,)``."""
    finite = torch.isfinite(information).flatten(1).all(-1)[:, None, None]
    scale = torch.diagonal(information, dim1=-2, dim2=-1).clamp_min(1e-300).rsqrt()
    scaled = torch.where(finite, scale[:, :, None] * information * scale[:, None], 0.0)
    values, vectors = torch.linalg.eigh(scaled)
    known = values > 1e-10 * values[:, -1:]
    along = (vectors.mT @ (scale * score).unsqueeze(-1)).squeeze(-1)
    step = scale * (vectors @ torch.where(known, along / values, 0.0).unsqueeze(-1)).squeeze(-1)
    return step, known.sum(-1).to(score.dtype)


def _quadratic(matrix: Tensor, vector: Tensor) -> Tensor:
    """``vector' matrix⁻¹ vector``, ``(B,)``."""
    return (vector.unsqueeze(-1) * _solve(matrix, vector.unsqueeze(-1))).sum((-2, -1))


def _without_nuisance(score: Tensor, information: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Score and information of what follows the first ``width`` coefficients, those projected out, and the projection
    ``(B, D − width, D)``.
    """
    n_genes, size = score.shape
    projection = score.new_zeros(n_genes, size - width, size)
    projection[..., :width] = -_solve(information[:, :width, :width], information[:, :width, width:]).mT
    torch.diagonal(projection[..., width:], dim1=-2, dim2=-1).fill_(1.0)
    variance = projection @ information[..., width:]
    return (projection @ score.unsqueeze(-1)).squeeze(-1), (variance + variance.mT) / 2, projection


def _orthonormal_terms(
    design: Tensor, terms: Sequence[Sequence[int]] | None, nuisance: Sequence[Sequence[int]] | None
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Orthonormal bases: of all columns, and for every term of intercept and nuisance, ``(N, S')``, and of what it adds
    to them.
    """
    terms = [[j] for j in range(design.shape[1])] if terms is None else terms
    nuisance = [()] * len(terms) if nuisance is None else [tuple(columns) for columns in nuisance]
    constant = torch.full_like(design[:, :1], len(design) ** -0.5)
    base_of = {
        beside: torch.cat([constant, _basis(design[:, list(beside)], constant)], 1) if beside else constant
        for beside in dict.fromkeys(nuisance)
    }
    bases = []
    for term, beside in zip(terms, nuisance, strict=True):
        base = base_of[beside]
        group = _basis(design[:, list(term)], base)
        if not group.shape[1]:
            raise InvalidArgumentError(
                f"design: column(s) {list(term)} are constant or a combination of the nuisance covariates; "
                "expected variation to test. Drop them."
            )
        bases.append((base, group))
    used = sorted({column for columns in (*terms, *nuisance) for column in columns})
    return torch.cat([constant, _basis(design[:, used], constant)], 1), bases


def _basis(columns: Tensor, base: Tensor) -> Tensor:
    """Orthonormal basis of the columns' part that is orthogonal to ``base``."""
    centred = columns - columns.mean(0)
    size = centred.norm(dim=0)
    varies = size > 1e-12 * columns.abs().amax(0) * len(columns) ** 0.5
    scaled = centred[:, varies] / size[varies]
    rest = scaled - base @ (base.T @ scaled)
    rest = rest - base @ (base.T @ rest)
    left, values, _ = torch.linalg.svd(rest, full_matrices=False)
    return left[:, values > 1e-8]


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """``matrix⁻¹ right``; NaN for a gene whose matrix is not positive definite."""
    scale = torch.diagonal(matrix, dim1=-2, dim2=-1).rsqrt().unsqueeze(-1)
    factor, info = torch.linalg.cholesky_ex(scale * matrix * scale.mT)
    singular = (info != 0) | (torch.diagonal(factor, dim1=-2, dim2=-1).amin(-1) < 1e-7)
    solution = scale * torch.cholesky_solve(scale * right, factor)
    return torch.where(singular[:, None, None], torch.nan, solution)
