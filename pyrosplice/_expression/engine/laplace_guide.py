r"""Mode and Laplace guide of :class:`pyrosplice._expression.expression_model.ExpressionModel`.

Genes share nothing, so the posterior's curvature is block-diagonal: one small Gaussian a gene over its location and
scale coefficients jointly, :math:`(a_g, b_g) \sim N(\hat\theta_g, H_g^{-1})`.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrosplice._expression.count_matrix import CountMatrix
from pyrosplice._expression.engine.basis import Basis
from pyrosplice._expression.engine.gene_fits import GlmFit, fit_glm
from pyrosplice._expression.engine.joint_newton import LogPrior, NewtonOptions
from pyrosplice._expression.engine.pseudo_cells import Derivatives
from pyrosplice._expression.engine.row_source import Design, RowSource
from pyrosplice._expression.expression_model import ExpressionModel
from pyrosplice._overrides import is_ours
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.guides._agreement import random_values, require_same_density


class LaplaceGuide:
    """Pyro guide with one multivariate normal a gene at the mode.

    Parameters
    ----------
    model
        The model that it guides.
    theta : Tensor (G, D)
        Mode, location then scale.
    information : Tensor (G, D, D)
        Minus the Hessian of the log joint density there, in the coordinates of ``basis``.
    basis
        Well-conditioned coordinates of the coefficients; the model's own by default.

    Raises
    ------
    InvalidArgumentError
        Where the information of a gene is not positive definite (a flat prior and data that do not identify it).
    """

    def __init__(
        self, model: ExpressionModel, theta: Tensor, information: Tensor, *, basis: Basis | None = None
    ) -> None:
        factor, info = torch.linalg.cholesky_ex(torch.nan_to_num(information))
        bad = (info > 0) | ~torch.isfinite(theta).all(1)
        if bool(bad.any()):
            genes = bad.nonzero()[:5, 0].tolist()
            raise InvalidArgumentError(
                f"information: not positive definite for {int(bad.sum())} gene(s), first {genes}; "
                "leave them out or give the coefficients a proper prior."
            )
        self.model, self.theta = model, theta
        inner = torch.cholesky_inverse(factor)
        if basis is None or basis.trivial:
            self.covariance, self.factor = inner, torch.linalg.cholesky(inner)
        else:
            out = torch.as_tensor(basis.matrix).to(inner)
            self.covariance = out @ inner @ out.T
            upper = torch.linalg.qr((out @ torch.linalg.cholesky(inner)).mT, mode="r")[1]
            self.factor = (upper * torch.where(upper.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0)[..., None]).mT

    @property
    def distribution(self) -> dist.MultivariateNormal:
        """The Gaussian of each gene's coefficients."""
        return dist.MultivariateNormal(self.theta, scale_tril=self.factor)

    def __call__(self, counts: Tensor | None = None, *, n_genes: int | None = None) -> dict[str, Tensor]:
        """Sample ``location`` and ``scale`` ``(G, 1, ·)``; the arguments are the model's."""
        p, _ = self.model.n_coefficients
        joint = dist.MultivariateNormal(self.theta.unsqueeze(1), scale_tril=self.factor.unsqueeze(1))
        with pyro.plate("genes", len(self.theta), dim=-2):
            draw = pyro.sample("coefficients", joint, infer={"is_auxiliary": True})
            a = pyro.sample("location", dist.Delta(draw[..., :p], event_dim=1))
            b = pyro.sample("scale", dist.Delta(draw[..., p:], event_dim=1))
        return {"location": a, "scale": b}

    def sample(self, n_draws: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws of the coefficients ``(S, G, D)``."""
        noise = torch.randn(n_draws, *self.theta.shape, dtype=self.theta.dtype, generator=generator)
        return self.theta + (self.factor @ noise.to(self.theta.device).unsqueeze(-1)).squeeze(-1)


def log_prior(model: ExpressionModel) -> LogPrior | None:
    """Derivatives of the model's log prior at ``theta`` ``(G, D)``, by autograd; None where it is flat."""
    p, _ = model.n_coefficients
    flat = [isinstance(prior, dist.ImproperUniform) for prior in (model.location_prior, model.scale_prior)]
    if all(flat):
        return None

    def prior(theta: Tensor, _: Tensor) -> Derivatives:
        with torch.enable_grad():
            t = theta.detach().requires_grad_(True)
            parts = [model.location_prior.log_prob(t[:, :p]), model.scale_prior.log_prob(t[:, p:])]
            value = sum((part for part, is_flat in zip(parts, flat, strict=True) if not is_flat), theta.new_zeros(1))
            (gradient,) = torch.autograd.grad(value.sum(), t, create_graph=True)
            rows = [torch.autograd.grad(gradient[:, k].sum(), t, retain_graph=True)[0] for k in range(t.shape[1])]
        return Derivatives(value.detach(), gradient.detach(), -torch.stack(rows, 1).detach())

    return prior


def fit_mode(
    model: ExpressionModel, counts: Tensor, *, options: NewtonOptions | None = None
) -> tuple[GlmFit, LaplaceGuide]:
    """Mode of the posterior of every gene given ``counts`` ``(G, N)``, and the Laplace guide there.

    Raises
    ------
    InvalidArgumentError
        A subclass of the model with another density or other sites: the engine would not follow it.
    """
    if not is_ours(type(model)):
        known = ExpressionModel.__new__(ExpressionModel)
        known.__dict__.update(vars(model))
        sizes = zip(("location", "scale"), model.n_coefficients, strict=True)
        shapes = {name: (len(counts), 1, size) for name, size in sizes}
        require_same_density(model, known, partial(random_values, shapes, lambda _: False), counts)
    x, z, offset, zeta_offset = (
        np.asarray(t.cpu(), np.float64) for t in (model.location, model.scale, model.offset, model.zeta_offset)
    )
    design = Design(x, z, np.ascontiguousarray(offset.T), zeta_offset)
    matrix = CountMatrix(np.asarray(counts.cpu()).T, counts=model.likelihood.of_counts)
    prior = log_prior(model)
    source = RowSource(matrix, design, model.likelihood, device=counts.device)
    fit = fit_glm(source, prior=None if prior is None else lambda _: prior, options=options)
    theta, information = (torch.as_tensor(a, device=counts.device) for a in (fit.theta, fit.inner_information))
    return fit, LaplaceGuide(model, theta, information, basis=fit.basis)


def gene_log_density(model: ExpressionModel, counts: Tensor, theta: Tensor) -> Tensor:
    """The model's own log joint density of each gene ``(G,)`` at ``theta`` ``(G, D)``."""
    p, _ = model.n_coefficients
    sites = {"location": theta[:, None, :p], "scale": theta[:, None, p:]}
    trace = poutine.trace(poutine.condition(model, data=sites)).get_trace(counts)
    trace.compute_log_prob()
    scored = [trace.nodes[name]["log_prob"].sum(-1) for name in ("location", "scale", "counts")]
    return torch.stack(torch.broadcast_tensors(*scored)).sum(0)
