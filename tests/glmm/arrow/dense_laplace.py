"""Laplace's method written plainly for one gene, with dense matrices and autograd; and random problems to try it on."""

import math

import numpy as np
import torch
from torch.func import grad, hessian

from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.likelihoods import Binomial, DirichletMultinomial, Multinomial, NegativeBinomial, Normal, Poisson


def triangle(q, *, diagonal=False):
    basis = []
    for i in range(q):
        for j in range(i if diagonal else 0, i + 1):
            basis.append(np.zeros((q, q)))
            basis[-1][i, j] = 1
    return np.array(basis)


def block(levels, columns, *, n_levels=None, diagonal=False, root=None, name="effect"):
    n_levels, q = n_levels or int(levels.max()) + 1, columns.shape[1]
    basis = triangle(q, diagonal=diagonal)
    return GroupBlock(
        name=name,
        levels=np.asarray(levels, np.intp),
        columns=columns,
        basis=basis,
        parameters=tuple(f"p{j}" for j in range(len(basis))),
        level_names=tuple(f"l{d}" for d in range(n_levels)),
        column_names=tuple(f"c{k}" for k in range(q)),
        root=root,
    )


def random_problem(layout, family, seed, *, n_genes=3, n_cells=60):
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(n_cells), rng.integers(0, 2, n_cells), rng.normal(size=n_cells)])
    a, b = rng.integers(0, 6, n_cells), rng.integers(0, 3, n_cells)
    kinship = np.linalg.cholesky(0.4 * np.ones((6, 6)) + 0.6 * np.eye(6))
    one, slope = x[:, :1], x[:, [0, 2]]
    missing = np.where(rng.random(n_cells) < 0.2, -1, a)
    groups = {
        "none": (),
        "intercept": (block(a, one),),
        "slopes": (block(a, slope),),
        "uncorrelated": (block(a, slope, diagonal=True),),
        "nested": (block(a, one), block(a * 3 + b, one, n_levels=18)),
        "nested slopes": (block(a, slope), block(a * 3 + b, x[:, 1:2], n_levels=18)),
        "crossed": (block(a, slope), block(b, one)),
        "crossed twice": (block(a, one), block(b, one), block(rng.integers(0, 4, n_cells), x[:, 2:])),
        "missing": (block(missing, slope, n_levels=7), block(b, one)),
        "root": (block(b, one), block(a, slope, root=kinship)),
        "root alone": (block(a, one, root=kinship),),
        "same factor": (block(a, one), block(a, x[:, 2:])),
    }[layout]
    n_out = {"multinomial": 3, "dirichlet": 3, "binomial": 2}.get(family, 1)
    offset = rng.normal(0, 0.3, n_cells)
    shape = (n_genes, n_cells, n_out)
    if family == "normal":
        counts = rng.normal(size=shape) + 0.5 * rng.normal(size=6)[a][None, :, None]
    else:
        counts = rng.poisson(2 * np.exp(0.5 * rng.normal(size=6)[a]))[None, :, None] + rng.poisson(1.0, shape)
    likelihood = {
        "nb": NegativeBinomial(),
        "nb held": NegativeBinomial(dispersion=0.4),
        "poisson": Poisson(),
        "binomial": Binomial(),
        "multinomial": Multinomial(),
        "dirichlet": DirichletMultinomial(),
        "normal": Normal(),
    }[family]
    return EffectsProblem(torch.as_tensor(counts, dtype=torch.float64), x, likelihood, offset, groups)


def random_outer(problem, seed, *, restricted):
    """Parameters of every gene: psi, logs of hyper-parameters, coefficients."""
    rng = np.random.default_rng(seed + 100)
    n_genes = len(problem.counts)
    n_predictors = problem.likelihood.n_predictors(problem.counts.shape[-1])
    psi = rng.normal(0, 0.6, (n_genes, sum(len(g.basis) for g in problem.groups)))
    starts = np.log([problem.likelihood.hyperparameters[name] for name in problem.likelihood.free]).reshape(1, -1)
    log_hyper = starts + rng.normal(0, 0.3, (n_genes, starts.shape[1]))
    n_beta = 0 if restricted else problem.design.shape[1] * n_predictors
    return psi, log_hyper, rng.normal(0, 0.3, (n_genes, n_beta))


def design_of(problem, psi):
    """Dense map from all standardised effects (levels slowest) to the predictors, for one of the predictors."""
    parts, at = [torch.zeros(len(problem.design), 0, dtype=torch.float64)], 0
    for group in problem.groups:
        basis = torch.as_tensor(group.basis)
        scale = torch.einsum("j,jkl->kl", psi[at : at + len(basis)], basis)
        at += len(basis)
        n_levels = len(group.level_names)
        root = torch.eye(n_levels, dtype=torch.float64) if group.root is None else torch.as_tensor(group.root)
        chosen = torch.zeros(len(problem.design), n_levels, dtype=torch.float64)
        seen = group.levels >= 0
        chosen[np.flatnonzero(seen), group.levels[seen]] = 1.0
        z = torch.as_tensor(group.columns) @ scale
        parts.append(((chosen @ root)[:, :, None] * z[:, None, :]).flatten(1))
    return torch.cat(parts, 1)


def dense_value(problem, gene, outer, *, restricted):
    """Laplace's value of a gene at (psi, log_hyper, coefficients)."""
    psi, log_hyper, beta = (torch.as_tensor(part) for part in outer)
    x, z = torch.as_tensor(problem.design), design_of(problem, psi)
    n_predictors = problem.likelihood.n_predictors(problem.counts.shape[-1])
    bound = problem.likelihood.bind(
        {n: log_hyper[k].exp().reshape(1, 1) for k, n in enumerate(problem.likelihood.free)}
    )
    counts, offset = problem.counts[gene : gene + 1], torch.as_tensor(problem.offset)[:, None]
    n_fixed = x.shape[1] * n_predictors

    def joint(flat):
        b = flat[:n_fixed] if restricted else beta
        v = flat[n_fixed if restricted else 0 :].reshape(-1, n_predictors)
        eta = x @ b.reshape(-1, n_predictors) + z @ v + offset
        return bound.log_prob(counts, eta[None]).sum() - 0.5 * v.square().sum()

    flat = torch.zeros(z.shape[1] * n_predictors + (n_fixed if restricted else 0), dtype=torch.float64)
    if not len(flat):
        return float(joint(flat))
    for _ in range(100):
        step = torch.linalg.solve(-hessian(joint)(flat), grad(joint)(flat))
        length = 1.0
        while joint(flat + length * step) < joint(flat) - 1e-10 and length > 1e-8:
            length /= 2
        flat = flat + length * step
        if float(step.abs().max()) < 1e-11:
            break
    logdet = torch.logdet(-hessian(joint)(flat))
    constant = 0.5 * n_fixed * math.log(2 * math.pi) if restricted else 0.0
    return float(joint(flat) - 0.5 * logdet) + constant
