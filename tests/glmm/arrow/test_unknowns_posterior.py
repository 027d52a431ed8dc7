"""Draws and predictor moments of any list of effects: those of the dense inverse Hessian, by no engine's code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice.glmm import CountGLMM
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.fitting import fit_effects
from pyrosplice.glmm._arrow.predictor_moments import NEW_LEVEL, NO_LEVEL, NewRows, new_predictors
from pyrosplice.glmm._arrow.predictors_in_space import fitted_predictors, predictors_in_space
from pyrosplice.posterior._effects_draws import plugged_in
from pyrosplice.spatial._new_spots import FieldPlaces, NewSpots
from tests.glmm.arrow import dense_laplace
from tests.glmm.arrow.oracle import DenseModel, Values
from tests.glmm.arrow.random_problems import random_problem

LAYOUTS = (
    "intercept",
    "slopes",
    "nested",
    "nested slopes",
    "crossed",
    "crossed twice",
    "missing",
    "root",
    "root alone",
)


def named(problem: EffectsProblem) -> EffectsProblem:
    groups = tuple(replace(block, name=f"effect {k}") for k, block in enumerate(problem.groups))
    return replace(problem, isoform_effect="independent", groups=groups)


def somewhere(problem: EffectsProblem, seed: int) -> EffectsFit:
    """A fit with parameters that are no estimates."""
    fit, rng = fit_effects(problem), np.random.default_rng(seed)
    parameters = torch.from_numpy(rng.uniform(0.2, 0.8, fit.parameters.shape))
    return fit.changed({"parameters": parameters, "sds": torch.from_numpy(rng.uniform(0.2, 0.8, fit.sds.shape))})


class Dense:
    """The posterior of one gene by dense algebra: mode, Hessian, and the sites of the Pyro model at latents."""

    def __init__(self, problem: EffectsProblem, fit: EffectsFit, gene: int) -> None:
        self.problem, self.oracle = problem, DenseModel(problem, gene)
        sizes = [len(block.basis) for block in problem.groups]
        there = {"space": problem.space is not None, "noise": problem.noise}
        inner = {name: sd for name, sd in zip(fit.inner, fit.sds[gene], strict=True) if there[name]}
        logs = [fit.hyper[name][gene].log() for name in problem.likelihood.free]
        psi = tuple(fit.parameters[gene].split(sizes)) if sizes else ()
        self.values = Values(psi, inner.get("space"), inner.get("noise"), torch.cat(logs) if logs else None)
        self.mode = self.oracle.mode(self.values)
        self.hessian = -torch.func.hessian(self.log_joint)(self.mode)

    def log_joint(self, flat: Tensor) -> Tensor:
        return self.oracle.log_joint(flat, self.values)

    def latents(self, sites: dict[str, Tensor]) -> Tensor:
        """Latents of the dense model from sites of one gene."""
        parts = [sites["beta"], *(sites[block.name] for block in self.problem.groups)]
        if self.problem.space is not None:
            root = torch.linalg.cholesky(self.problem.space.dense_covariance())
            parts.append(torch.linalg.solve(root, sites["space"]))
        parts += [sites["noise"]] if self.problem.noise else []
        return torch.cat([part.flatten() for part in parts])

    def slopes(self, problem: EffectsProblem) -> Tensor:
        """Derivatives (N, all) of the predictors of a problem (Q = 1) in the latents."""
        model, columns = CountGLMM(problem), []
        names = [f"{block.name}: {name}" for block in problem.groups for name in block.parameters]
        held = dict(zip(names, torch.cat([torch.zeros(0), *self.values.psi]).reshape(-1, 1, 1), strict=True))
        held |= {f"{k}_sd": getattr(self.values, k).reshape(1, 1) for k in ("space", "noise") if self.there(k)}
        sizes = {"beta": (problem.design.shape[1], 1)}
        sizes |= {b.name: (len(b.level_names), b.columns.shape[1], 1) for b in problem.groups}
        sizes |= {name: (len(problem.design), 1) for name in ("space", "noise") if self.there(name)}
        for unit in torch.eye(len(self.mode), dtype=torch.float64):
            parts = unit.split([int(np.prod(size)) for size in sizes.values()])
            sites = {k: p.reshape(1, *size) for (k, size), p in zip(sizes.items(), parts, strict=True)}
            if problem.space is not None:
                sites["space"] = torch.linalg.cholesky(problem.space.dense_covariance()) @ sites["space"]
            columns.append(model.linear_predictor({**held, **sites})[0, :, 0] - model.offset.reshape(-1))
        return torch.stack(columns, 1)

    def there(self, name: str) -> bool:
        return getattr(self.values, name) is not None

    def variance(self, problem: EffectsProblem) -> Tensor:
        slopes = self.slopes(problem)
        return (slopes @ torch.linalg.inv(self.hessian) * slopes).sum(1)


def one(problem: EffectsProblem, gene: int) -> EffectsProblem:
    return replace(problem, counts=problem.counts[[gene]])


@pytest.mark.parametrize("seed", [pytest.param(k, marks=[pytest.mark.slow] * (k == 3)) for k in range(10)])
def test_draws_have_the_dense_inverse_hessian_as_their_covariance(seed: int) -> None:
    # d = A e with e standard normal; |e|² = d'Hd for every draw says A'HA = I, so that A A' is the inverse of H
    problem = named(random_problem(seed))
    fit = somewhere(problem, seed)
    drawn = plugged_in(problem, fit, 12, torch.Generator().manual_seed(seed))
    for gene in range(len(problem.counts)):
        dense, left = Dense(problem, fit, gene), []
        for s in range(12):
            flat = dense.latents({name: value[s, gene] for name, value in drawn.values.items()})
            away = flat - dense.mode
            left.append(dense.log_joint(flat) + 0.5 * away @ dense.hessian @ away - drawn.log_weights[s, gene])
        assert len(left) == 12 and float(torch.stack(left).std()) < 2e-4  # modes to 1e-6 sd


@pytest.mark.parametrize("layout", LAYOUTS)
def test_draws_cross_groups_and_follow_relations(layout: str) -> None:
    problem = named(dense_laplace.random_problem(layout, "nb", 2, n_genes=2))
    fit = somewhere(problem, 2)
    drawn = plugged_in(problem, fit, 400, torch.Generator().manual_seed(0))
    dense = Dense(problem, fit, 1)
    flat = torch.stack([dense.latents({k: v[s, 1] for k, v in drawn.values.items()}) for s in range(400)])
    white = (flat - dense.mode) @ torch.linalg.cholesky(dense.hessian)
    assert white.mean(0).abs().max() < 5 / 20 and abs(float(white.square().mean()) - 1) < 0.06
    correlation = torch.corrcoef(white.T) - torch.eye(white.shape[1])
    assert correlation.abs().max() < 5.5 / 20


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["nb"])
def test_predictors_of_fitted_and_of_other_levels_have_the_dense_variance(layout: str, family: str) -> None:
    problem = named(dense_laplace.random_problem(layout, family, 4, n_genes=2))
    fit, rng = somewhere(problem, 1), np.random.default_rng(3)
    order = rng.permutation(len(problem.design))
    other = replace(  # other combinations of levels, other covariates
        problem,
        groups=tuple(
            replace(b, levels=b.levels[rng.permutation(order)], columns=b.columns[order]) for b in problem.groups
        ),
    )
    for asked in (problem, other):
        levels = np.column_stack([np.where(b.levels < 0, NO_LEVEL, b.levels) for b in asked.groups])
        columns = tuple(b.columns * (b.levels >= 0)[:, None] for b in asked.groups)
        found = new_predictors(problem, fit, NewRows(asked.design, levels, columns))
        for gene in range(2):
            dense = Dense(problem, fit, gene)
            torch.testing.assert_close(
                torch.from_numpy(found.variance[gene]), dense.variance(one(asked, gene)), rtol=1e-5, atol=1e-9
            )
            mean = dense.slopes(one(asked, gene)) @ dense.mode
            torch.testing.assert_close(torch.from_numpy(found.mean[gene]), mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 5, 6])
def test_fitted_predictors_have_the_dense_variance_beside_fields_and_noise(seed: int) -> None:
    problem = named(random_problem(seed))
    fit = somewhere(problem, seed)
    found = fitted_predictors(problem, fit).of_one
    for gene in range(2):
        expected = Dense(problem, fit, gene).variance(one(problem, gene))
        torch.testing.assert_close(torch.from_numpy(found.variance[gene]), expected, rtol=1e-5, atol=1e-9)
    fit = fit_effects(problem)
    mean = fit.linear_predictor(problem)[..., 0].numpy()
    mean = mean - (0.0 if problem.offset is None else problem.offset)
    np.testing.assert_allclose(fitted_predictors(problem, fit).of_one.mean, mean, atol=1e-9)


def test_a_new_level_has_the_variance_of_its_effect_and_a_new_cell_that_of_its_own() -> None:
    problem = named(dense_laplace.random_problem("slopes", "poisson", 0, n_genes=1))
    noisy = replace(problem, noise=True)
    z = np.array([[1.0, 0.0], [1.0, 2.0]])
    x = np.tile(problem.design[:1], (2, 1))
    for asked, noise in ((problem, 0.0), (noisy, 1.0)):
        fit = somewhere(asked, 5)
        none = new_predictors(asked, fit, NewRows(x, np.full((2, 1), NO_LEVEL), (0 * z,), noise=False))
        new = new_predictors(asked, fit, NewRows(x, np.full((2, 1), NEW_LEVEL), (z,)))
        added = np.einsum("nk,kl,nl->n", z, fit.effect_covariance(0)[0].numpy(), z)
        added = added + (noise * float(fit.sds[0, 0]) ** 2 if noise else 0.0)
        np.testing.assert_allclose(new.variance[0] - none.variance[0], added, rtol=1e-9)
        np.testing.assert_allclose(new.mean, none.mean)


def with_new_spots(problem: EffectsProblem, seed: int) -> tuple[NewRows, FieldPlaces, Tensor]:
    """New observations, some at fitted places, and what the field there is of that at the fitted ones."""
    rng, n = np.random.default_rng(seed), 8
    at = rng.integers(0, len(problem.design), n)
    levels = np.column_stack([np.zeros((n, 0), np.int64), *(rng.permutation(b.levels)[at] for b in problem.groups)])
    levels[levels < 0] = NO_LEVEL
    columns = tuple(b.columns[at] * (levels[:, [k]] >= 0) for k, b in enumerate(problem.groups))
    links = sp.random(5, len(problem.design), 0.2, random_state=seed).tocsr()
    solver = SparseSolver(sp.diags([rng.uniform(1.5, 2.5, 5)], [0]).tocsc())
    variance = torch.from_numpy(1 / solver.precision.diagonal())
    new = NewSpots(solver, links, variance, np.ones(5, bool))
    fitted = np.array([-1, 3, -1, -1, 11, -1, 0, -1])
    places = FieldPlaces(fitted, new)
    return NewRows(problem.design[at], levels, columns), places, places.weights(np.arange(n), len(problem.design))


@pytest.mark.parametrize("seed", [0, 10, 15, 20])
def test_predictors_at_other_places_have_the_dense_variance(seed: int) -> None:
    problem = replace(named(random_problem(seed)), space_by=None)
    assert problem.space is not None
    fit = somewhere(problem, seed)
    rows, places, weights = with_new_spots(problem, seed)
    found = predictors_in_space(problem, fit, rows, places).of_one
    root = torch.linalg.cholesky(problem.space.dense_covariance())
    for gene in range(2):
        dense = Dense(problem, fit, gene)
        alone = replace(problem, space=None, noise=False, design=rows.design, offset=None)
        blocks = [(b, rows.levels[:, k], rows.columns[k]) for k, b in enumerate(problem.groups)]
        groups = tuple(replace(b, levels=np.maximum(level, -1), columns=z) for b, level, z in blocks)
        fixed = Dense(replace(alone, groups=groups, counts=problem.counts[:, : len(rows.design)]), fit, gene)
        own = fixed.slopes(one(fixed.problem, gene))
        field = dense.values.space * weights @ root
        noise = torch.zeros(len(own), len(problem.design) * problem.noise)
        slopes = torch.cat([own, field, noise], 1)
        expected = (slopes @ torch.linalg.inv(dense.hessian) * slopes).sum(1)
        expected = expected + dense.values.space**2 * torch.from_numpy(places.variance)
        expected = expected + (dense.values.noise**2 if problem.noise else 0.0)
        torch.testing.assert_close(torch.from_numpy(found.variance[gene]), expected, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(torch.from_numpy(found.mean[gene]), slopes @ dense.mode, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", [2, 3, 7, 8, 12, 13, 17, 23, 28])
def test_several_predictors_at_the_fitted_places_are_the_fitted_ones(seed: int) -> None:
    """Two ways to one covariance: solves for every row, and the selected inverse of the fit; fields multiplied too."""
    problem = replace(named(random_problem(seed)), noise=False)
    fit = fit_effects(problem)
    n = len(problem.design)
    levels = np.column_stack([np.zeros((n, 0), np.int64), *(b.levels for b in problem.groups)])
    levels[levels < 0] = NO_LEVEL
    columns = tuple(b.columns * (b.levels >= 0)[:, None] for b in problem.groups)
    rows = NewRows(problem.design, levels, columns, space_by=problem.space_by)
    places = None if problem.space is None else FieldPlaces(np.arange(n), None)
    found, expected = predictors_in_space(problem, fit, rows, places), fitted_predictors(problem, fit)
    assert found.mean.shape[-1] == problem.counts.shape[-1] - 1
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-7)
    np.testing.assert_allclose(found.covariance, expected.covariance, atol=1e-7)
    offset = 0.0 if problem.offset is None else problem.offset[:, None]
    np.testing.assert_allclose(found.mean, fit.linear_predictor(problem).numpy() - offset, atol=1e-6)
