"""The estimator of expression with random effects: restricted maximum likelihood by Laplace's method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyrosplice._expression.call_options import is_default
from pyrosplice._expression.engine.basis import identity
from pyrosplice._expression.engine.cell_sandwich import RobustCovariance
from pyrosplice._expression.engine.gene_fits import GlmFit
from pyrosplice._expression.estimator import Estimator, FittedModel
from pyrosplice._expression.mixed.mixed_record import MixedRecord
from pyrosplice._expression.mixed.model_at_modes import ModelAtModes
from pyrosplice._expression.mixed.separated_genes import LimitFit, SeparatedGenes, limit_fits
from pyrosplice._expression.noise_models import held_scale
from pyrosplice._expression.prepared_inputs import InputData
from pyrosplice._hypothesis.coefficients.unit_law import fewest_units
from pyrosplice._optimize.convergence import FitCode
from pyrosplice.effects._explained import check_unexplained
from pyrosplice.effects._field import RHO
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._units import Coefficients, DesignUnits
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._arrow.effects_fit import EffectsFit, joined_fits
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.field_parameter import FieldParameterFit, fit_field_parameter
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.glmm._arrow.satterthwaite import CovarianceLaw, covariance_law
from pyrosplice.glmm._bound_effects import BoundEffects
from pyrosplice.likelihoods._counts import Poisson
from pyrosplice.reasons import Reason

Array = NDArray[np.float64]
Genes = NDArray[np.intp]
BLOCK_BYTES = 2**28  # counts of genes that are read together
OF_THE_GLM = {
    "init_a": "AUTO",
    "init_b": "AUTO",
    "quick_scale": False,
    "batch_size": None,
    "device": "cpu",
    "training_strategy": "AUTO",
    "train_args": None,
    "weights": None,
}


class MixedEstimator(Estimator):
    """Estimates of every gene with random effects of groups, in space, or of single cells.

    Coefficients and their covariance are those of the restricted likelihood; ``log_likelihood`` is that. Predictors,
    means and draws of ``model`` are given all random effects at their modes.

    Attributes
    ----------
    effects : BoundEffects
        The random effects.
    mixed : EffectsFit
        The engine's result.
    limits : list of LimitFit
        Fits of what is left of separated genes; none beside a field whose strength is estimated.
    """

    def __init__(self, input_data: InputData, *, dtype: str = "float64") -> None:
        super().__init__(input_data, dtype=dtype)
        effects = input_data.effects
        if effects is None:
            raise AssertionError("a GLM has an estimator of its own")
        self.effects: BoundEffects = effects
        self._mixed: EffectsFit | None = None
        self._fields: list[FieldParameterFit] = []
        self.limits: list[LimitFit] = []

    def _rows(self) -> dict[str, str]:
        rows = super()._rows()
        return {**{k: rows[k] for k in ("data", "noise", "location")}, "effects": str(self.effects), "fit": rows["fit"]}

    def train(self, **options: Any) -> None:
        """Fit every gene; there is one way to, which takes no options."""
        if options:
            raise InvalidArgumentError(f"training_strategy: a fit with random effects takes none, found {options}.")
        check_unexplained(self.coefficients, self.groups)
        family, blocks = self.effects.family, list(self.blocks())
        if family is not None:
            default = family.coordinate(RHO)
            self._fields = [fit_field_parameter(self.problem(genes), family, default=default) for genes in blocks]
            self._mixed = joined_fits([found.fit for found in self._fields], blocks)
        else:
            self._mixed = joined_fits([fit_effects(self.problem(genes)) for genes in blocks], blocks)
        self.limits = self._limit_fits(self._mixed)
        self._fit = glm_fit_of_effects(self._mixed, self.input_data, self.limits)
        self.lls.append(float(np.nansum(self._fit.log_likelihood)))

    @property
    def mixed(self) -> EffectsFit:
        """The engine's result."""
        _ = self.fit
        assert self._mixed is not None
        return self._mixed

    @cached_property
    def maximum(self) -> EffectsFit:
        """Unrestricted maxima of the likelihood, of the fields that were fitted."""
        blocks = list(self.blocks())
        return joined_fits([fit_effects(self.problem(genes), restricted=False) for genes in blocks], blocks)

    @property
    def field_coordinates(self) -> Array | None:
        """Where each gene's field is in its family, ``(G,)``, once it is estimated; None of a field that is given."""
        return np.concatenate([found.coordinate for found in self._fields]) if self._fields else None

    def problem(self, genes: Genes) -> EffectsProblem:
        """What the engine fits of some genes, those of one block: their field is the same, once it is estimated."""
        design, family, at = self.source.design, self.effects.family, self.field_coordinates
        offset = design.offset if design.offset.ndim == 1 else design.offset[:, genes].T
        counts = self.input_data.counts.genes(genes)
        problem = self.effects.problem(
            torch.from_numpy(np.ascontiguousarray(counts, dtype=np.float64)).unsqueeze(-1),
            design.x,
            self.input_data.likelihood,
            offset=offset if offset.ndim == 1 else offset[..., None],
        )
        if family is None or at is None:
            return problem
        if np.ptp(at[genes]) > 0:
            raise InvalidArgumentError(
                f"genes: {len(genes)} genes have fields of their own, whose rho was estimated; ask for one at a time."
            )
        return replace(problem, space=family.solver(float(at[genes[0]])))

    @cached_property
    def model(self) -> FittedModel:
        """The fitted model, all random effects at their modes."""
        return ModelAtModes(self, self._predictor)

    def _predictor(self, genes: Genes) -> Array:
        out = np.empty((self.input_data.counts.shape[0], len(genes)))
        at = np.zeros(len(genes)) if self.field_coordinates is None else self.field_coordinates[genes]
        for value in np.unique(at):
            some = np.flatnonzero(at == value)
            fit = self.mixed.take(torch.from_numpy(genes[some]))
            out[:, some] = fit.linear_predictor(self.problem(genes[some]))[..., 0].T.numpy()
        return out

    def blocks(self) -> Iterator[Genes]:
        """Genes that are read together, in their order, and have the same field."""
        n_cells, n_genes = self.input_data.counts.shape
        size, at = int(np.clip(BLOCK_BYTES // (8 * n_cells), 1, n_genes)), self.field_coordinates
        starts = np.arange(0, n_genes, size)
        if at is not None:
            starts = np.union1d(starts, np.flatnonzero(np.diff(at)) + 1)
        return iter(np.split(np.arange(n_genes), starts[1:]))

    def _limit_fits(self, mixed: EffectsFit) -> list[LimitFit]:
        if self.effects.family is not None or not (mixed.reason == Reason.SEPARATED.value).any():
            return []
        units, out = self.units, []
        for genes in self.blocks():
            out += limit_fits(self.problem(genes), units, genes, mixed.reason[genes])
        return out

    @property
    def units(self) -> DesignUnits:
        """Units of contrasts of the free coefficients."""
        return DesignUnits(self.coefficients, self.groups, "cells", self.effects.sections)

    @cached_property
    def poisson_excess(self) -> Array | None:
        """Variance over mean of each gene's counts around the modes of its effects, ``(G,)``; None but of Poisson's."""
        likelihood = self.input_data.likelihood
        if not isinstance(likelihood, Poisson) or likelihood.is_negative_binomial:
            return None
        out = []
        for genes in self.blocks():
            problem = self.problem(genes)
            mean = self.mixed.take(torch.from_numpy(genes)).linear_predictor(problem).exp()
            out.append(((problem.counts - mean).square() / mean).mean((1, 2)).numpy())
        return np.concatenate(out)

    @property
    def separated(self) -> tuple[SeparatedGenes, ...]:
        """Separated genes of which something is left, and what is known of that."""
        return tuple(one.genes for one in self.limits)

    @property
    def groups(self) -> tuple[GroupBlock, ...]:
        """Effects of groups."""
        return self.effects.groups

    @cached_property
    def coefficients(self) -> Coefficients:
        """The design of the free coefficients."""
        names, location = self.input_data.constraints_loc.free_names, self.input_data.location
        terms = dict(zip(location.names, location.terms, strict=True))
        return Coefficients(
            self.source.design.x, names, [terms.get(name, name) for name in names], Coefficients.of(location).numeric
        )

    def contrast_law(self, rows: Array) -> RobustCovariance:
        """Covariance and degrees of freedom of contrasts ``(k, F)`` by their units."""
        fewest = fewest_units(self.units, rows, "clip", stacklevel=5)
        return self.record.contrast_law(rows, "clip", fewest).robust

    @cached_property
    def record(self) -> MixedRecord:
        """What tables, tests and files need."""
        parts = [
            covariance_law(self.problem(genes), self.mixed.take(torch.from_numpy(genes))) for genes in self.blocks()
        ]
        names = ("covariance", "slopes", "parameter_covariance")
        law = CovarianceLaw(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
        key, sections = ("", None) if self.effects.sections is None else self.effects.sections
        return MixedRecord(self.groups, self.mixed, law, self.coefficients, key, sections, self.separated)


def glm_fit_of_effects(mixed: EffectsFit, inputs: InputData, limits: Sequence[LimitFit]) -> GlmFit:
    """The estimates as tests and tables of a GLM take them: restricted, given the random effects' variances."""
    g = len(mixed.reason)
    location, covariance = mixed.coefficients[:, :, 0].numpy(), mixed.covariance.numpy()
    p, likelihood = location.shape[1], inputs.likelihood
    scale = np.full((g, 1), held_scale(likelihood) or 0.0)
    for values in mixed.hyper.values():
        scale = likelihood.scale_sign * np.log(values.numpy())
    known = np.isfinite(covariance).all((1, 2))
    fisher = np.full((g, p, p), np.nan)
    inverse, failed = torch.linalg.inv_ex(torch.from_numpy(covariance[known]))  # of columns that are nearly the same
    fisher[known] = torch.where((failed == 0)[:, None, None], inverse, torch.nan).numpy()
    information = np.zeros((g, p + 1, p + 1))
    information[:, :p, :p], information[:, p, p] = fisher, np.nan
    codes = np.array([FitCode.of(Reason(word)) for word in mixed.reason], dtype=np.int64)
    theta = np.concatenate([location, np.where(np.isnan(location[:, :1]), np.nan, scale)], 1)
    for limit in limits:
        theta[limit.genes.limit.genes, :p] = limit.coefficients
    return GlmFit(
        theta=theta,
        log_likelihood=mixed.log_likelihood.numpy(),
        code=codes,
        n_iter=mixed.n_iter.numpy(),
        gradient=np.zeros((g, p + 1)) + mixed.gradient_norm.numpy()[:, None],
        inner_information=information,
        inner_fisher=fisher,
        basis=identity(p + 1),
        reach=np.abs(inputs.design().x).max(0),
    )


def refuse_of_the_glm(options: Mapping[str, Any]) -> None:
    """Raise for options of the GLM's search, which a fit with random effects does not make."""
    for name, value in options.items():
        if name in OF_THE_GLM and not is_default(value, OF_THE_GLM[name]):
            raise InvalidArgumentError(f"{name}: a fit with random effects has none, found {value!r}; leave it out.")


def mixed_estimator(inputs: InputData, *, dtype: str) -> MixedEstimator:
    """Fit every gene with its random effects."""
    estimator = MixedEstimator(inputs, dtype=dtype)
    estimator.train()
    return estimator
