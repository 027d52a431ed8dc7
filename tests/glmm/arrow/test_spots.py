"""The eliminator of spots beside dense algebra: one support's coefficients with unit variance make it a whole model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from pyrosplice._linalg.lowrank import LowRankSolver
from pyrosplice._linalg.sparse import SparseSolver
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.eliminator import InnerPoint
from pyrosplice.glmm._arrow.spots import SpotElimination, SpotEliminator, SpotMeasure
from pyrosplice.glmm._mode import Latents
from pyrosplice.likelihoods._contract import Likelihood, Multinomial
from pyrosplice.likelihoods._counts import NegativeBinomial, Poisson
from pyrosplice.likelihoods._isoform_shares import DirichletMultinomial
from tests.glmm.arrow.oracle import DenseModel, Values
from tests.glmm.test_laplace import grid

SUPPORTS = np.repeat([0, 1], [9, 16])
N, W = 25, 2
KINDS = {
    "field and noise": {"space": True, "noise": True},
    "field": {"space": True},
    "noise": {"noise": True},
    "nothing": {},
    "varying coefficient": {"space": True, "space_by": True, "noise": True},
}
LIKELIHOODS = {
    "negative binomial": (NegativeBinomial(), 1),
    "Poisson": (Poisson(), 1),
    "multinomial": (Multinomial(), 3),
    "Dirichlet-multinomial": (DirichletMultinomial(), 3),
}


def problem_of(
    kind: str = "field and noise", likelihood: str = "negative binomial", seed: int = 0, genes: int = 2
) -> EffectsProblem:
    rng = np.random.default_rng(seed)
    given, n_isos = LIKELIHOODS[likelihood]
    design = np.stack([np.ones(N), rng.standard_normal(N)], 1)
    blocks = sp.block_diag([grid(3).precision, grid(4).precision])
    effects = KINDS[kind]
    return EffectsProblem(
        counts=torch.tensor(rng.poisson(3.0, (genes, N, n_isos)), dtype=torch.float64),
        design=design,
        likelihood=given,
        offset=0.2 * rng.standard_normal(N),
        groups=(GroupBlock("section", SUPPORTS, design, np.eye(W)[None], ("sd",), ("a", "b"), ("1", "x")),),
        space=SparseSolver(blocks) if effects.get("space") else None,
        space_by=rng.standard_normal(N) if effects.get("space_by") else None,
        noise=bool(effects.get("noise")),
    )


def eliminator_of(problem: EffectsProblem) -> SpotEliminator:
    return SpotEliminator(problem, torch.tensor(problem.design), torch.tensor(SUPPORTS))


def point_of(eliminator: SpotEliminator, genes: Tensor, seed: int = 0) -> InnerPoint:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(len(genes), *shape, generator=generator, dtype=torch.float64)

    sds, hyper = normal(len(eliminator.inner)), 0.3 * normal(len(eliminator.hyper))
    if eliminator.hyper == ("concentration",):
        hyper = hyper + 2
    blocks = 0.2 * normal(1, eliminator.width).expand(-1, eliminator.n_supports, -1)
    return InnerPoint(genes, sds, hyper, blocks, eliminator.zeros(genes))


@dataclass(frozen=True)
class Fitted:
    """The mode of a model whose coefficients vary with unit variance between supports, and Laplace's value there."""

    at: InnerPoint
    own: Tensor
    elimination: SpotElimination
    hessian: Tensor
    measure: SpotMeasure

    @property
    def value(self) -> Tensor:
        outer = self.own.square().sum((1, 2)) + torch.logdet(self.hessian).sum(1)
        return self.measure.value - 0.5 * outer


def fitted(eliminator: SpotEliminator, start: InnerPoint) -> Fitted:
    own, at = torch.zeros_like(start.blocks), start
    for _ in range(60):
        elimination = eliminator.linearize(at)
        hessian = elimination.information + torch.eye(eliminator.width)
        rhs = elimination.score - own
        step = torch.linalg.solve(hessian, rhs.unsqueeze(-1)).squeeze(-1)
        if float((elimination.decrement + (rhs * step).sum((1, 2))).max()) < 1e-22:
            break
        length = float(1 / step.abs().amax().clamp_min(1.0))
        own = own + length * step
        latents = at.latents.moved(elimination.advance(step), length)
        at = replace(start, blocks=start.blocks + own, latents=latents)
    measure = elimination.measure(torch.linalg.inv(hessian))
    return Fitted(at, own, elimination, hessian, measure)


CASES = [
    ("field and noise", "negative binomial"),
    ("varying coefficient", "negative binomial"),
    ("field", "multinomial"),
    ("noise", "multinomial"),
    ("nothing", "multinomial"),
    ("field and noise", "multinomial"),
    ("field and noise", "symmetric"),
    ("field", "Poisson"),
    ("noise", "Dirichlet-multinomial"),
    ("field", "Dirichlet-multinomial"),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("kind", "likelihood"), CASES)
def test_value_and_gradient_are_those_of_the_dense_oracle(kind: str, likelihood: str, seed: int) -> None:
    symmetric = likelihood == "symmetric"
    problem = problem_of(kind, "multinomial" if symmetric else likelihood, seed)
    problem = replace(problem, isoform_effect="symmetric" if symmetric else "independent")
    eliminator, genes = eliminator_of(problem), torch.tensor([1, 0])
    found = fitted(eliminator, point_of(eliminator, genes, seed))
    adjoint = torch.linalg.solve(found.hessian, found.measure.tilt.unsqueeze(-1)).squeeze(-1)
    gradient = found.measure.gradient(adjoint)
    for k, gene in enumerate(genes.tolist()):
        q = eliminator.width // W
        fixed, slope = (found.at.blocks - found.own)[k, 0].reshape(W, q), gradient.blocks[k].sum(0).reshape(W, q)
        if eliminator.basis is not None:
            basis = eliminator.basis.select(genes[[k]])
            fixed, slope = basis.logits(fixed[None])[0], basis.logit_slope(slope[None])[0]
        sds = dict(zip(eliminator.inner, found.at.sds[k], strict=True))
        values = Values((torch.ones(1, dtype=torch.float64),), sds.get("space"), sds.get("noise"))
        values = replace(values, coefficients=fixed, log_hyper=found.at.log_hyper[k] if eliminator.hyper else None)
        values = values.each(lambda x: x.detach().clone().requires_grad_(True))
        expected = DenseModel(problem, gene).laplace(values)
        exact = values.gradient(expected)
        torch.testing.assert_close(found.value[k], expected.detach(), rtol=0, atol=1e-9)
        torch.testing.assert_close(slope, exact.coefficients, rtol=0, atol=1e-7)
        for j, name in enumerate(eliminator.inner):
            torch.testing.assert_close(gradient.sds[k, j], getattr(exact, name), rtol=0, atol=1e-7)
        if eliminator.hyper:
            torch.testing.assert_close(gradient.log_hyper[k], exact.log_hyper, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("kind", "likelihood"), CASES[:6])
def test_value_near_the_mode_is_carried_to_it(kind: str, likelihood: str) -> None:
    """A Newton step from the mode the error is of second order in it: four times smaller for a half of it."""
    eliminator, genes = eliminator_of(problem_of(kind, likelihood)), torch.tensor([0, 1])
    at_mode = fitted(eliminator, point_of(eliminator, genes))
    errors = []
    for h in (0.02, 0.01):
        field, noise = (h * torch.ones_like(x) for x in (at_mode.at.latents.field, at_mode.at.latents.noise))
        latents = at_mode.at.latents.moved(Latents(field, noise * float(eliminator.inner[-1:] == ("noise",))))
        own = at_mode.own + h
        near = replace(at_mode.at, blocks=at_mode.at.blocks + h, latents=latents)
        elimination = eliminator.linearize(near)
        hessian = elimination.information + torch.eye(eliminator.width)
        rhs = elimination.score - own
        step = torch.linalg.solve(hessian, rhs.unsqueeze(-1)).squeeze(-1)
        measure = elimination.measure(torch.linalg.inv(hessian))
        value = measure.value - 0.5 * (own.square().sum((1, 2)) + torch.logdet(hessian).sum(1))
        decrement = elimination.decrement + (rhs * step).sum((1, 2))
        errors.append(value + 0.5 * decrement + (measure.tilt * step).sum((1, 2)) - at_mode.value)
    assert bool((errors[0].abs() < 0.05).all())
    assert bool((errors[1].abs() < 0.3 * errors[0].abs() + 1e-9).all())


class Dense:
    """The joint density of one gene in all of (b, z, e)."""

    def __init__(self, eliminator: SpotEliminator, at: InnerPoint) -> None:
        self.eliminator, self.at = eliminator, at
        self.sizes = [at.blocks.numel(), at.latents.field.numel(), at.latents.noise.numel()]
        self.flat = torch.cat([at.blocks.flatten(), at.latents.field.flatten(), at.latents.noise.flatten()])

    def gradient(self) -> Tensor:
        """Derivatives by central differences."""
        eye, h = torch.eye(len(self.flat), dtype=torch.float64), 1e-5
        return torch.stack([(self.joint(self.flat + h * e) - self.joint(self.flat - h * e)) / (2 * h) for e in eye])

    def joint(self, flat: Tensor) -> Tensor:
        blocks, field, noise = flat.split(self.sizes)
        at = self.at
        latents = Latents(field.reshape(at.latents.field.shape), noise.reshape(at.latents.noise.shape))
        moved = replace(at, blocks=blocks.reshape(at.blocks.shape), latents=latents)
        return self.eliminator.log_joint(moved)[0]


@pytest.mark.parametrize(("kind", "likelihood"), CASES[:4])
def test_score_and_decrement_are_those_of_the_joint_density(kind: str, likelihood: str) -> None:
    """With all of the inner effects at their mode the score of b is the gradient of the joint density."""
    problem = problem_of(kind, likelihood, genes=1)
    eliminator, genes = eliminator_of(problem), torch.tensor([0])
    at = point_of(eliminator, genes)
    for _ in range(30):
        elimination = eliminator.linearize(at)
        at = replace(at, latents=at.latents.moved(elimination.advance(torch.zeros_like(at.blocks))))
    dense = Dense(eliminator, at)
    gradient = dense.gradient().split(dense.sizes)
    torch.testing.assert_close(gradient[0], elimination.score.flatten(), rtol=0, atol=1e-6)
    assert float(gradient[1].abs().sum() + gradient[2].abs().sum()) < 1e-5
    assert float(elimination.decrement) < 1e-18


@pytest.mark.parametrize(("kind", "likelihood"), [*CASES[:6], ("noise", "Dirichlet-multinomial")])
def test_response_is_how_the_mode_moves(kind: str, likelihood: str) -> None:
    eliminator, genes = eliminator_of(problem_of(kind, likelihood)), torch.tensor([0, 1])
    start, h = point_of(eliminator, genes), 1e-5
    base, change = fitted(eliminator, start), point_of(eliminator, genes, seed=1)

    def moved(h: float) -> Fitted:
        return fitted(
            eliminator,
            InnerPoint(
                genes,
                start.sds + h * change.sds,
                start.log_hyper + h * change.log_hyper,
                start.blocks + h * change.blocks,
                base.at.latents,
            ),
        )

    response = base.elimination.respond(h * change.blocks, h * change.sds, h * change.log_hyper)
    own = torch.linalg.solve(base.hessian, response.score.unsqueeze(-1)).squeeze(-1)
    latents = response.advance(own)
    ahead, behind = moved(h), moved(-h)
    torch.testing.assert_close((ahead.own - behind.own) / (2 * h), own / h, rtol=1e-4, atol=1e-4)
    for name in ("field", "noise"):
        exact = (getattr(ahead.at.latents, name) - getattr(behind.at.latents, name)) / (2 * h)
        torch.testing.assert_close(exact, getattr(latents, name) / h, rtol=1e-4, atol=1e-4)


def test_genes_are_independent_and_may_come_in_any_order() -> None:
    problem = problem_of("field and noise", "negative binomial", genes=9)
    eliminator, every = eliminator_of(problem), torch.arange(9)
    at = point_of(eliminator, every)
    together = eliminator.linearize(at)
    part = torch.tensor([7, 2])
    few = InnerPoint(part, at.sds[part], at.log_hyper[part], at.blocks[part], at.latents.select(part))
    alone = eliminator.linearize(few)
    for name in ("score", "information", "decrement"):
        torch.testing.assert_close(getattr(alone, name), getattr(together, name)[part], rtol=0, atol=1e-10)
    torch.testing.assert_close(eliminator.log_joint(few), eliminator.log_joint(at)[part], rtol=0, atol=1e-10)
    broken = replace(at, blocks=at.blocks.clone())
    broken.blocks[4] = torch.nan
    others, beside = every != 4, eliminator.linearize(broken)
    assert beside.curved.tolist() == others.tolist()
    torch.testing.assert_close(beside.score[others], together.score[others], rtol=0, atol=1e-10)


def test_a_gene_that_is_not_curved_gets_a_step_that_ascends() -> None:
    class Far(Likelihood):
        """Student's t around the count: not log-concave away from it."""

        n_categories, predictors, conditional = (1, 1), ("location",), False

        def log_prob(self, counts: Tensor, eta: Tensor) -> Tensor:
            return -2 * torch.log1p((counts[..., 0] - eta[..., 0]).square())

    problem = replace(problem_of("field and noise"), likelihood=Far())
    eliminator = eliminator_of(problem)
    at = point_of(eliminator, torch.tensor([0, 1]))
    at = replace(at, sds=torch.full_like(at.sds, 2.0))
    found = eliminator.linearize(at)
    assert not bool(found.curved.any()) and bool((found.decrement > 0).all())
    step = at.latents.moved(found.advance(torch.zeros_like(at.blocks)), 1e-3)
    assert bool((eliminator.log_joint(replace(at, latents=step)) > eliminator.log_joint(at)).all())


def test_what_cannot_be_is_refused() -> None:
    problem = problem_of()
    dense = LowRankSolver.from_dense(problem.space.dense_covariance())
    with pytest.raises(InvalidArgumentError, match=r"space: expected a sparse precision .* 2 supports"):
        eliminator_of(replace(problem, space=dense))
    values, vectors = torch.linalg.eigh(problem.space.dense_covariance())
    short = LowRankSolver(values[-5:], vectors[:, -5:], variances=torch.ones(N, dtype=torch.float64))
    with pytest.raises(InvalidArgumentError, match="space: expected a covariance that is not truncated"):
        eliminator_of(replace(problem, space=short))
    with pytest.raises(InvalidArgumentError, match="space: expected a covariance of the 25 observations"):
        eliminator_of(replace(problem, space=SparseSolver(grid(4).precision)))
    with pytest.raises(InvalidArgumentError, match=r"found one of 25 spots and \(3,\)"):
        eliminator_of(replace(problem, space_by=np.ones(3)))
    with pytest.raises(InvalidArgumentError, match="space_by: expected None without a field"):
        eliminator_of(replace(problem, space=None, space_by=np.ones(N)))


def test_a_dense_covariance_of_one_support_is_the_sparse_one() -> None:
    problem = problem_of("varying coefficient", "multinomial")
    dense = LowRankSolver.from_dense(problem.space.dense_covariance())
    whole, genes = torch.zeros(N, dtype=torch.int64), torch.tensor([0, 1])
    columns = torch.tensor(problem.design)
    values = [
        fitted(eliminator, point_of(eliminator, genes)).value
        for eliminator in (SpotEliminator(replace(problem, space=s), columns, whole) for s in (problem.space, dense))
    ]
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-8)
