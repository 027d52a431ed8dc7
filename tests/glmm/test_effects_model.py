"""The Pyro model of any list of effects: its density is the dense formula and the engine's; Pyro's tools run on it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm import CountGLMM, log_density
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.eliminator import InnerPoint
from pyrosplice.glmm._arrow.spots import SpotEliminator
from pyrosplice.glmm._latents import Latents
from tests.glmm.arrow.oracle import DenseModel, Values
from tests.glmm.arrow.random_problems import group, random_problem


def random_values(model: CountGLMM, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    positive = model.site_shapes().keys() - set(model.real_sites)
    out = {}
    for name, shape in model.latent_shapes().items():
        draw = 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
        out[name] = (draw.exp() if name in positive else draw).requires_grad_(True)
    return out


def group_effects(model: CountGLMM, values: dict[str, Tensor]) -> list[Tensor]:
    """Effects ``(G, D q, Q)`` of the levels of each group on the predictors."""
    out = []
    for block in model.problem.groups:
        names = [f"{block.name}: {name}" for name in block.parameters]
        scale = torch.einsum("gj,jkl->gkl", torch.cat([values[n] for n in names], 1), torch.as_tensor(block.basis))
        out.append(torch.einsum("gkl,gdlq,rq->gdkr", scale, values[block.name], model.between).flatten(1, 2))
    return out


def constants(problem: EffectsProblem, values: dict[str, Tensor]) -> float:
    """What densities of the latents have beside their quadratic forms."""
    latents = [values[name] for name in (*(b.name for b in problem.groups), "space", "noise") if name in values]
    out = -0.5 * math.log(2 * math.pi) * sum(x[0].numel() for x in latents)
    if problem.space is not None:
        out += 0.5 * values["space"].shape[-1] * problem.space.prior_logdet
    return out


SEEDS = range(10)


@pytest.mark.parametrize("seed", SEEDS)
def test_density_is_that_of_the_dense_formula(seed: int) -> None:
    problem = random_problem(seed)
    model = CountGLMM(problem)
    values = random_values(model, seed)
    density = log_density(model, values)
    trace = pyro.poutine.trace(pyro.poutine.condition(model, data=values)).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), density.sum())
    for gene in range(len(problem.counts)):
        oracle = DenseModel(problem, gene)
        turn = torch.linalg.solve(oracle.between, model.between)  # from the model's latents to the oracle's
        own = {name: x[gene].detach() for name, x in values.items()}
        parts = [own["beta"], *((own[b.name] @ turn.T) for b in problem.groups)]
        if problem.space is not None:
            root = torch.linalg.cholesky(problem.space.dense_covariance())
            parts.append(torch.linalg.solve(root, own["space"] @ turn.T))
        parts += [own["noise"] @ turn.T] if problem.noise else []
        psi = tuple(torch.cat([own[f"{b.name}: {name}"] for name in b.parameters]) for b in problem.groups)
        hyper = [own[name].log() for name in problem.likelihood.free]
        at = Values(psi, own.get("space_sd"), own.get("noise_sd"), torch.cat(hyper) if hyper else None)
        expected = oracle.log_joint(torch.cat([p.flatten() for p in parts]), at) + constants(problem, values)
        torch.testing.assert_close(density[gene].detach(), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
def test_joint_density_and_gradient_of_the_engine_are_the_models_own(seed: int) -> None:
    """In every latent and parameter: the engine's derivatives at its links, pulled through what makes these."""
    problem = random_problem(seed)
    model = CountGLMM(problem)
    values = random_values(model, seed)
    density = log_density(model, values)
    exact = torch.autograd.grad(density.sum(), list(values.values()), allow_unused=True)
    columns = [torch.as_tensor(problem.design)]
    for block in problem.groups:
        inside = torch.as_tensor(block.levels)[:, None] == torch.arange(len(block.level_names))
        columns.append((inside[:, :, None] * torch.as_tensor(block.columns)[:, None]).flatten(1))
    n_genes, n = problem.counts.shape[:2]
    eliminator = SpotEliminator(problem, torch.cat(columns, 1), torch.zeros(n, dtype=torch.int64))
    coordinates = (lambda x: x) if eliminator.basis is None else eliminator.basis.coordinates
    blocks = coordinates(torch.cat([values["beta"], *group_effects(model, values)], 1)).reshape(n_genes, 1, -1)
    genes = torch.arange(n_genes)
    latents = eliminator.zeros(genes)
    sent = [coordinates(values[k] @ model.between.T) if k in values else None for k in ("space", "noise")]
    field, noise = (own if x is None else x for x, own in zip(sent, (latents.field, latents.noise), strict=True))
    sds = [values[f"{name}_sd"] for name in eliminator.inner]
    logs = [values[name].log() for name in eliminator.hyper]
    empty = torch.zeros(n_genes, 0, dtype=torch.float64)
    at = InnerPoint(genes, torch.cat([empty, *sds], 1), torch.cat([empty, *logs], 1), blocks, Latents(field, noise))
    still = InnerPoint(
        genes, *(x.detach() for x in (at.sds, at.log_hyper, at.blocks)), Latents(field.detach(), noise.detach())
    )
    prior = -0.5 * sum((values[b.name].square().sum((1, 2, 3)) for b in problem.groups), torch.zeros(n_genes))
    value = eliminator.log_joint(still) + prior + constants(problem, values)
    torch.testing.assert_close(value, density, rtol=0, atol=1e-8)
    elimination = eliminator.linearize(still)
    step = elimination.step
    raw = elimination.measure(torch.zeros(n_genes, 1, eliminator.width, eliminator.width).double()).raw_score
    inner = step.pull_back(step.score, step.latents)
    surrogate = (at.blocks * raw).sum() + (field * inner.field).sum() + (noise * inner.noise).sum() + prior.sum()
    along = {"space": still.latents.field, "noise": still.latents.noise}
    for k, name in enumerate(eliminator.inner):
        moved = along[name] if name == "noise" else step.model.solver.spread(along[name])
        surrogate = surrogate + (at.sds[:, k] * (step.score * moved).sum((1, 2))).sum()
    if eliminator.hyper:
        likelihood = step.model.likelihood
        slope, _ = likelihood.hyper_gradient(step.model.counts, step.eta, eliminator.hyper, None, None)
        surrogate = surrogate + (at.log_hyper * slope).sum()
    found = torch.autograd.grad(surrogate, list(values.values()), allow_unused=True)
    for name, expected, own in zip(values, exact, found, strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-7, msg=name)


def test_priors_and_names_are_checked() -> None:
    problem = random_problem(0)
    with pytest.raises(InvalidArgumentError, match="priors: expected a dictionary"):
        CountGLMM(problem, priors="weak")
    with pytest.raises(InvalidArgumentError, match="a name of its own for every effect, found '1' twice"):
        one = group("1", np.zeros(25, np.int64), np.ones((25, 1)))
        CountGLMM(replace(problem, groups=(one, one)))
    full = group("1 + x | donor", np.arange(25) % 3, problem.design)
    problem = replace(problem, groups=(full,))
    model = CountGLMM(problem, priors={"1 + x | donor: psi0": dist.HalfNormal(1.0)})
    assert set(model.real_sites) == {"beta", "1 + x | donor: psi1"}
    with pytest.raises(InvalidArgumentError, match="priors"):
        CountGLMM(problem, priors={"1 + x | donor: psi1": dist.HalfNormal(1.0)})


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.slow
def test_runs_under_predictive_svi_and_nuts(seed: int) -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    problem = replace(random_problem(3), noise=True)
    model = CountGLMM(problem)
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO(num_particles=2, vectorize_particles=True))
    losses = [svi.step() for _ in range(20)]
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < losses[0]
    draws = Predictive(pyro.poutine.uncondition(model), guide=guide, num_samples=3, parallel=bool(seed))()
    assert draws["counts"].shape[-3:] == problem.counts.shape and bool((draws["counts"] >= 0).all())
    kernel = NUTS(model, max_tree_depth=3)
    mcmc = MCMC(kernel, num_samples=2, warmup_steps=2, disable_progbar=True)
    mcmc.run()
    assert bool(torch.isfinite(mcmc.get_samples()["beta"]).all())
