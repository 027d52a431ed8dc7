"""How tests of covariates deal with variances that are not known: the law that they are held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from pyrosplice._hypothesis.coefficients.averaged_covariance import averaged
from pyrosplice._hypothesis.coefficients.identified import Coverage, identified_rows
from pyrosplice._hypothesis.coefficients.residual_variance import joint_dof
from pyrosplice._hypothesis.coefficients.restricted_posterior import (
    Posterior,
    Prior,
    Target,
    Variances,
    df_of_variance,
    half_normal,
    regular_factor,
    restricted_posterior,
)
from pyrosplice._hypothesis.coefficients.score import Linearized
from pyrosplice._hypothesis.coefficients.surrogates import Surrogates
from pyrosplice._hypothesis.coefficients.unequal_field import relative_deviations, slope_ratios
from pyrosplice._hypothesis.coefficients.working_model import Spectra, WorkingModel
from pyrosplice._usage.gene_tests.linearized import informed_spots, of_logits
from pyrosplice._usage.glmm import MultinomGLMM
from pyrosplice._usage.reading.design import Design
from pyrosplice.priors._sites import log_prior

SLOPES = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Changes of the log standard deviation of the field with a standard deviation of a covariate, each as likely."""
PATTERN_DF = 3.0
"""Degrees of freedom that each mode of what is tested gives to its variance, beside those of the posterior.

A contrast over few patterns meets whatever field a gene has in just these. Where that is Gaussian the posterior says
how well its variance is known; fields with edges scatter more from gene to gene, and the more counts, the plainer:
without this, usage in domains on 256 scattered spots at 10 counts a spot and three isoforms rejects 7.4 and 2.7 % of
null genes at 5 and 1 % where another domain is tested, with 3 a mode 5.3 and 1.4, and with two isoforms 6.4 and 1.8
(with 4, 5.9 and 1.9, 6.5 and 2.1; tests/studies/du_covariates.py). Draws of the CAR have about 20 modes there,
independent covariates 170: on a 16 × 16 grid the power of β = .3 at depth 1, 5 and 20 is .41, .88 and .99 (.44, .89
and .99 without), and .98 for independent ones either way.
"""
_AT_ONCE = 2**24  # numbers that the images of the leading eigenvectors of a batch may have


@dataclass(frozen=True)
class Law:
    """What tests of covariates take as given.

    Attributes
    ----------
    robust
        Whether the variance between the logits is that of the residuals.
    spectra
        Steeper spectra of the spatial effect, over which and over its variances tests are averaged; None for the
        covariance that was estimated.
    unequal
        Whether the standard deviation of the field may depend on the tested covariate.
    surrogates
        How covariates are redrawn, with which p-values are ranks; None for those of an F law.
    """

    robust: bool
    spectra: Spectra | None = None
    unequal: bool = False
    surrogates: Surrogates | None = None

    def genes_at_once(self, n_spots: int, n_predictors: int) -> int:
        """Genes that a test works on together within bounded memory."""
        if self.spectra is None:
            return 2**31
        width = max(1, self.spectra.for_predictors(n_predictors).vectors.shape[1])
        return max(1, _AT_ONCE // (n_spots * n_predictors**2 * width))


MODEL = Law(robust=False)
"""The variance that the fitted model says, at the estimates."""


@dataclass(frozen=True)
class Columns:
    """Columns of the covariates, in any coding: those of the fixed effects, then those of what is tested beside them.

    Attributes
    ----------
    values
        ``(N, C)``.
    kept
        Which a gene's spots tell from others
        (:func:`~pyrosplice._hypothesis.coefficients.identified.independent_columns`), ``(B, C)``.
    n_fixed
        How many the model has coefficients of.
    """

    values: Tensor
    kept: Tensor
    n_fixed: int


@dataclass(frozen=True)
class AveragedFit:
    """A batch at its posterior mean covariance.

    Attributes
    ----------
    fit
        As tests see it, of logits.
    response
        The working response, ``(B, N, Q)``, of logits.
    posterior_df
        Degrees of freedom with which the variance of what is tested is known, ``(B, T)``.
    law_df
        Degrees of freedom of the F law, ``(B, T)``: fewer, for a field that is not Gaussian (:data:`PATTERN_DF`).
    slope_ratio
        Likelihood ratio for a field whose standard deviation depends on a covariate, ``(B, T)``; 0 if not asked for.
    """

    fit: Linearized
    response: Tensor
    posterior_df: Tensor
    law_df: Tensor
    slope_ratio: Tensor


def averaged_fit(
    model: MultinomGLMM, law: Law, columns: Columns, target: Target, tested: Sequence[Tensor]
) -> AveragedFit:
    """The model at the posterior mean of its covariance.

    Parameters
    ----------
    model
        A fit of the fixed ``columns``.
    law
        With spectra. Where it is ``unequal``, fields are averaged over whose standard deviation depends on the one
        covariate that is tested.
    target
        What it is whose variance matters.
    tested
        The covariates ``(N, C_t)`` of each of what is tested. Where it is one, it is looked at for a field whose
        standard deviation depends on it.
    """
    if law.spectra is None:
        raise AssertionError("a law that is averaged has spectra")
    spectra, n_fixed = law.spectra, columns.n_fixed
    mode = model.posterior_mode()
    working, parameters = WorkingModel.at(mode, columns.values, spectra, columns.kept), mode.step.parameters
    largest, prior = (parameters.spatial.amax(1), parameters.white.amax((1, 2))), _variance_prior(model)

    def posterior(model: WorkingModel) -> Posterior:
        return restricted_posterior(model, n_fixed, target, largest=largest, prior=prior)

    ratio = torch.zeros(len(working.response), len(tested), dtype=torch.float64)
    single = {t: covariates[:, 0] for t, covariates in enumerate(tested) if covariates.shape[1] == 1}
    if law.unequal and 0 in single:
        scales = [relative_deviations(single[0], slope) for slope in SLOPES]
        each = [posterior(working.scaled(scale)) for scale in scales]
        working, variances, spread = _over_slopes(working, scales, each)
    else:
        found = posterior(working)
        variances, spread = found.variances, found.uncertainty
        if single:
            ratio[:, list(single)] = slope_ratios(working, variances, n_fixed, list(single.values()))
    basis = mode.step.model.basis
    fit = replace(of_logits(averaged(working, variances, n_fixed), basis), informed=informed_spots(model))
    response = working.response if basis is None else basis.logits(working.response)
    posterior_df = df_of_variance(spread)
    modes = [spectra.effective_modes(covariates) for covariates in tested]
    return AveragedFit(fit, response, posterior_df, law_df(posterior_df, modes), ratio)


def law_df(posterior_df: Tensor, modes: Sequence[float] | NDArray[np.float64]) -> Tensor:
    """Degrees of freedom ``(B, T)`` of the F law of what has these of its posterior, and these modes ``(T,)``."""
    return joint_dof(posterior_df, PATTERN_DF * torch.as_tensor(modes, dtype=torch.float64))


def tested_covariates(design: Design, tested: Sequence[Sequence[int]]) -> list[Tensor]:
    """The covariates ``(N, C_t)`` of each of what is tested."""
    values = torch.from_numpy(design.values)
    return [values[:, list(columns)] for columns in tested]


def schur_target(kept: Tensor, n_fixed: int, n_predictors: int, widths: Sequence[int]) -> Target:
    """Log variances of groups of columns that follow the fixed ones, each beside these alone.

    The mean over the group's coefficients that are ``kept`` ``(B, C)``, ``−log |I_tt − I_tn I_nn⁻¹ I_nt|`` over their
    number.
    """

    def target(information: Tensor, genes: Tensor) -> Tensor:
        first = n_fixed * n_predictors
        half = torch.linalg.solve_triangular(
            regular_factor(information[..., :first, :first]), information[..., :first, first:], upper=False
        )
        beside = information[..., first:, first:] - half.mT @ half
        found, start = [], 0
        for number, width in zip(kept[genes, n_fixed:].split(list(widths), 1), widths, strict=True):
            end = start + width * n_predictors
            log_variance = -2 * _log_diagonal(regular_factor(beside[..., start:end, start:end]))
            found.append(log_variance / (n_predictors * number.sum(1)))
            start = end
        return torch.stack(found, -1)

    return target


def contrast_target(contrasts: Sequence[Tensor], n_predictors: int, coverage: Coverage) -> Target:
    """Log variances of orthonormal combinations ``(R, C)`` of coefficients, as far as the genes identify them.

    Each contrast the mean over its rows and predictors.
    """
    eye = torch.eye(n_predictors, dtype=torch.float64)
    rows = [torch.kron(contrast.contiguous(), eye) for contrast in contrasts]
    parts = [_identified_part(contrast, coverage) for contrast in contrasts]
    spreads = [torch.einsum("bij,qr->biqjr", part, eye).flatten(3).flatten(1, 2) for part in parts]
    numbers = [torch.diagonal(spread, dim1=-2, dim2=-1).sum(-1) for spread in spreads]

    def target(information: Tensor, genes: Tensor) -> Tensor:
        factor, found = regular_factor(information), []
        for row, spread, number in zip(rows, spreads, numbers, strict=True):
            own = spread[genes]
            half = torch.linalg.solve_triangular(factor, row.T.expand(len(factor), -1, -1), upper=False)
            root = regular_factor(own @ (half.mT @ half) @ own + torch.eye(len(row)) - own)
            found.append(2 * _log_diagonal(root) / number[genes])
        return torch.stack(found, -1) if found else information.new_zeros(len(information), 0)

    return target


def _identified_part(contrast: Tensor, coverage: Coverage) -> Tensor:
    """Projectors ``(B, R, R)`` on what each gene identifies of the orthonormal rows ``(R, C)``."""
    every = torch.eye(len(contrast), dtype=torch.float64).repeat(len(coverage.informed), 1, 1)
    for gene in coverage.deficient:
        own = identified_rows(contrast, coverage.null_space(gene)) @ contrast.T
        every[gene] = own.T @ own
    return every


def _log_diagonal(factor: Tensor) -> Tensor:
    """Sum of the logs of a triangular matrix's diagonal ``(…,)``."""
    return torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1)


def _variance_prior(model: MultinomGLMM) -> Prior:
    """The model's own priors of σ and logit θ as one of a and c; where it has none, that of the law.

    Without a prior of σ, a and c are half-normal; without one of θ, all directions of (a, c) are as likely.
    """
    given = model.variance_priors
    if not given:
        return half_normal
    width = model.sigma.shape[1]

    def density(field: Tensor, white: Tensor, genes: Tensor) -> Tensor:
        field, white = torch.broadcast_tensors(field, white)
        squares = (field.square() + white.square()).clamp_min(1e-12)
        theta_logit = 2 * (field.clamp_min(1e-9).log() - white.clamp_min(1e-9).log())
        values = {"sigma": squares.sqrt(), "theta_logit": theta_logit}
        each = genes.repeat_interleave(field[0].numel())
        flat = {name: values[name].reshape(-1, 1).expand(-1, width) for name in given}
        out = log_prior(given, flat, genes=each).reshape(field.shape) / width
        if "sigma" not in given:
            out = out + half_normal(field, white, genes)
        elif bool((field > 0).any()):  # from σ and the angle to a and c
            out = out - 0.5 * squares.log()
        if "theta_logit" in given:  # from an even density of logit θ to one of the angle
            out = out + 0.5 * (softplus(theta_logit) + softplus(-theta_logit))
        return out

    return density


def _over_slopes(
    working: WorkingModel, scales: Sequence[Tensor], each: Sequence[Posterior]
) -> tuple[WorkingModel, Variances, Tensor]:
    """The working model, its variances and those of log variances given a slope, averaged over slopes.

    The field's variance at each spot is its posterior mean; correlations between spots stay those of V.
    """
    share = torch.softmax(torch.stack([one.log_evidence for one in each]), 0)
    field = torch.stack([one.variances.field for one in each])
    mean_field = (share.unsqueeze(-1) * field).sum(0)
    weight = share * field.sum(-1)
    weight = weight / weight.sum(0).clamp_min(1e-300)
    squares = torch.einsum("db,dni->bni", weight, torch.stack(list(scales)).square())
    white = (share * torch.stack([one.variances.white for one in each])).sum(0)
    within = torch.stack([one.uncertainty for one in each])
    spread = (share.unsqueeze(-1) * within).sum(0)
    return replace(working, spot_scale=squares.sqrt()), Variances(mean_field, white), spread
