"""Score, Wald and likelihood-ratio tests of covariates: what is tested beside what, one batch of genes at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice.data.design import Design
from pyrosplice.errors import InvalidArgumentError, check_option
from pyrosplice.estimators.fitted import FittedGene, ModelSpec, stacked
from pyrosplice.estimators.gene_tests import linearised
from pyrosplice.hypothesis.dispersion import trace_sf
from pyrosplice.hypothesis.likelihood_ratio import likelihood_ratio_test
from pyrosplice.hypothesis.score import (
    CovariateTest,
    Linearised,
    ScoreVariance,
    covariate_information,
    score_test,
    score_variance,
)
from pyrosplice.hypothesis.wald import contrast_test
from pyrosplice.inference.glm import covariance_from_information
from pyrosplice.inference.newton import solve_curvature

By = Literal["covariate", "factor"]
Variance = Literal["robust", "model"]


@dataclass(frozen=True)
class Term:
    """Covariates that are tested together.

    Attributes
    ----------
    name
        Of the covariate or factor.
    columns
        Their positions, linearly independent beside the nuisance.
    nuisance
        Positions of the covariates that the test adjusts for.
    """

    name: str
    columns: tuple[int, ...]
    nuisance: tuple[int, ...]

    @property
    def full(self) -> tuple[int, ...]:
        """Covariates of the larger model."""
        return tuple(sorted(self.columns + self.nuisance))


@dataclass(frozen=True)
class Contrast:
    """Combinations ``(C, P)`` of the coefficients, levels of a factor centred, that are tested to be zero together."""

    name: str
    rows: NDArray[np.float64]


def terms_of(design: Design, by: By) -> list[Term]:
    """One term a covariate or a factor.

    A level by itself is tested without the factor's other levels: this level against all others.
    """
    check_option("by", by, ("covariate", "factor"))
    if by == "covariate":
        return [
            Term(name, (i,), tuple(j for j in design.estimable if design.factors[j] != design.factors[i]))
            for i, name in enumerate(design.names)
        ]
    terms = []
    for term in dict.fromkeys(design.terms):
        own = [i for i, name in enumerate(design.terms) if name == term]
        columns = tuple(i for i in own if i in design.estimable)
        nuisance = tuple(i for i in design.estimable if i not in own)
        terms.append(Term(design.names[own[0]] if len(own) == 1 else term, columns, nuisance))
    return terms


def contrasts_of(design: Design, by: By, given: Any) -> list[Contrast]:
    """The contrasts that are asked for, or one a covariate or factor.

    Parameters
    ----------
    given
        ``{name: {covariate: weight, …}}``, ``{name: weights (P,) or (C, P)}``, or a matrix ``(T, P)`` of T contrasts of
        one row each; None for those of ``by``.

    Raises
    ------
    InvalidArgumentError
        Unknown covariates, another number of weights than covariates, weights that are not finite, rows that are zero
        or depend on each other.
    """
    unit = np.eye(len(design.names))
    if given is None:
        return [Contrast(term.name, unit[list(term.columns)]) for term in terms_of(design, by)]
    if not isinstance(given, Mapping):
        rows = np.atleast_2d(np.asarray(given, dtype=np.float64))
        given = {f"contrast_{i + 1}": row for i, row in enumerate(rows)}
    if not given:
        raise InvalidArgumentError("contrasts: expected at least one, found none.")
    return [Contrast(str(name), _weights(str(name), value, design)) for name, value in given.items()]


def same_nuisance(terms: Sequence[Term]) -> list[list[int]]:
    """Positions of the terms, those with the same nuisance together."""
    return [
        [t for t, term in enumerate(terms) if term.nuisance == nuisance]
        for nuisance in dict.fromkeys(term.nuisance for term in terms)
    ]


@dataclass(frozen=True)
class Estimates:
    """Coefficients of a batch with all covariates, levels of a factor centred.

    Attributes
    ----------
    beta
        ``(B, P, Q)``.
    covariance
        Of ``[β; b]``, ``(B, (P + 1) Q, (P + 1) Q)``, NaN for a gene whose coefficients the data do not identify.
    by_model
        The same without the variance of the residuals.
    variance
        That of the score; None where ``covariance`` is the model's.
    influence
        ``(B, (P + 1) Q, D)``: from the score to ``[β; b]``.
    """

    beta: Tensor
    covariance: Tensor
    by_model: Tensor
    variance: ScoreVariance | None
    influence: Tensor

    def dof(self, contrast: Tensor) -> Tensor | None:
        """Degrees of freedom ``(B,)`` of the variance of ``contrast @ β``, ``(C, P)``; None where it is the model's."""
        if self.variance is None:
            return None
        n_logits = self.beta.shape[-1]
        rows = torch.kron(contrast.contiguous(), torch.eye(n_logits, dtype=contrast.dtype))
        return self.variance.dof(rows @ self.influence[:, : rows.shape[1]])


def estimates(counts: Tensor, spec: ModelSpec, genes: Sequence[FittedGene], design: Design, robust: bool) -> Estimates:
    """What the fits of a batch ``(B, N, K)`` with the covariates of ``design`` say of their coefficients."""
    model, beta = spec.rebuild_estimable(counts, genes), stacked(genes)["beta"]
    information, scaling = model.observed_information()
    n_genes, _, n_logits = beta.shape
    eye = torch.eye(n_logits, dtype=torch.float64)
    recode = torch.kron(torch.from_numpy(design.coding), eye)
    back = (recode @ torch.kron(scaling.matrix, eye)).expand(n_genes, -1, -1)
    influence = solve_curvature(information, back.mT).mT

    def coded(covariance: Tensor) -> Tensor:
        known = torch.isfinite(covariance).flatten(1).all(-1)[:, None, None]
        return recode @ torch.where(known, covariance, torch.nan) @ recode.T

    by_model = coded(covariance_from_information(information, scaling, n_logits))
    if not robust:
        return Estimates(beta, by_model, by_model, None, influence)
    fit, covariates = linearised(model), scaling.design
    expected = covariate_information(fit.precision_product, covariates, n_genes, n_logits)
    variance = score_variance(fit, covariates, expected, covariates.shape[1])
    covariance = coded(covariance_from_information(information, scaling, n_logits, variance.matrix))
    return Estimates(beta, covariance, by_model, variance, influence)


def score_of_terms(
    counts: Tensor, spec: ModelSpec, genes: Sequence[FittedGene], design: Design, terms: Sequence[Term], robust: bool
) -> tuple[Tensor, Tensor]:
    """Score tests of terms with the same nuisance at fits with it, a batch ``(B, N, K)``: ``(B, T)`` and p-values."""
    test = _score_test(linearised(spec.rebuild(counts, genes)), design, terms, robust)
    return test.statistic, test.pvalue


def wald_of_contrasts(
    counts: Tensor,
    spec: ModelSpec,
    genes: Sequence[FittedGene],
    design: Design,
    contrasts: Sequence[Contrast],
    robust: bool,
) -> tuple[Tensor, Tensor]:
    """Wald tests of contrasts beside all covariates, levels of a factor centred: ``(B, T)`` each."""
    found = estimates(counts, spec, genes, design, robust)
    rows = [torch.from_numpy(contrast.rows) for contrast in contrasts]
    tests = [contrast_test(found.beta, found.covariance, some, found.dof(some)) for some in rows]
    return torch.cat([test[0] for test in tests], -1), torch.cat([test[1] for test in tests], -1)


def ratio_of_terms(
    counts: Tensor,
    spec: ModelSpec,
    fits: Sequence[tuple[FittedGene, ...]],
    design: Design,
    terms: Sequence[Term],
    robust: bool,
) -> tuple[Tensor, Tensor]:
    """Likelihood ratios of terms with the same nuisance, ``(B, T)`` and p-values.

    ``fits`` has for each gene that of the nuisance, which is the model of ``spec``, and then one with each term.
    ``robust`` ratios are multiplied by the quotient of the term's Wald statistics with the variance of the residuals
    and without: the likelihood's curvature along the term's effect is made that of the former (Chandler & Bate 2007,
    Biometrika 94:167, "vertical" adjustment). Where a coefficient has run away, the quotient is that of the score
    statistics.
    """
    log_marginal = -torch.tensor([[fit.best_loss for fit in gene] for gene in fits], dtype=torch.float64)
    ranks = torch.tensor([len(term.columns) for term in terms])
    n_logits = len(fits[0][0].values["bias_eta"])
    statistic, pvalue = likelihood_ratio_test(log_marginal[:, 1:], log_marginal[:, :1], ranks * n_logits)
    if not robust:
        return statistic, pvalue
    score = _score_test(linearised(spec.rebuild(counts, [gene[0] for gene in fits])), design, terms, robust)
    if score.residual_dof is None:
        raise AssertionError("a robust test has the degrees of freedom of the residuals")
    factor = torch.where(score.by_model == 0, 1.0, score.statistic / score.by_model)
    for t, term in enumerate(terms):
        own, larger = design.only(term.full), [gene[1 + t] for gene in fits]
        found = estimates(counts, spec.with_design(own), larger, own, robust)
        rows = torch.eye(len(term.full), dtype=torch.float64)[[term.full.index(column) for column in term.columns]]
        adjusted, expected = (contrast_test(found.beta, v, rows)[0][:, 0] for v in (found.covariance, found.by_model))
        lost = torch.tensor([fit.reason == "separated" for fit in larger]) | ~torch.isfinite(adjusted / expected)
        factor[:, t] = torch.where(lost, factor[:, t], adjusted / expected)
    statistic = statistic * factor
    return statistic, trace_sf(statistic, ranks, n_logits, score.residual_dof)


def _score_test(fit: Linearised, design: Design, terms: Sequence[Term], robust: bool) -> CovariateTest:
    return score_test(
        fit,
        torch.from_numpy(design.values),
        terms=[term.columns for term in terms],
        nuisance=[term.nuisance for term in terms],
        robust=robust,
    )


def _weights(name: str, given: Any, design: Design) -> NDArray[np.float64]:
    """Rows ``(C, P)`` of one contrast, checked."""
    if isinstance(given, Mapping):
        unknown = [str(covariate) for covariate in given if covariate not in design.names]
        if unknown:
            raise InvalidArgumentError(
                f"contrasts[{name!r}]: expected covariates among {list(design.names)}, found {unknown}."
            )
        rows = np.array([[float(given.get(covariate, 0.0)) for covariate in design.names]])
    else:
        rows = np.atleast_2d(np.asarray(given, dtype=np.float64))
    if rows.ndim != 2 or rows.shape[1] != len(design.names):
        raise InvalidArgumentError(
            f"contrasts[{name!r}]: expected {len(design.names)} weights, one a covariate {list(design.names)}, found "
            f"shape {rows.shape}."
        )
    if not np.isfinite(rows).all():
        raise InvalidArgumentError(f"contrasts[{name!r}]: expected finite weights, found {rows.tolist()}.")
    free = rows @ design.coding[:-1, :-1]
    if np.linalg.matrix_rank(free, tol=1e-9 * np.abs(rows).max()) < len(rows):
        raise InvalidArgumentError(
            f"contrasts[{name!r}]: expected rows that are linearly independent and not zero (the effects of a factor's "
            f"levels sum to zero by themselves), found {rows.tolist()}."
        )
    return rows
