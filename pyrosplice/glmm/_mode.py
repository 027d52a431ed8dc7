r"""Mixed models with a spatial random effect: the mode of the random effects by Newton's method.

For one gene, with coefficients Γ (the intercept is a column of the design X) and standard deviations a (spatial) and
c (independent), one of each a logit,

.. math::
    \eta = X \Gamma + a\,s + c\,e, \qquad s \sim N(0, V), \quad e \sim N(0, I),

so that :math:`\nu = a s + c e` has covariance :math:`\sigma^2(\theta V + (1-\theta) I)` with
:math:`a^2 = \sigma^2 \theta,\ c^2 = \sigma^2 (1 - \theta)`. In (s, e) everything stays finite and smooth at θ = 0, at
θ = 1 and at spots without counts.

With W the information of the likelihood (Q × Q blocks, one a spot), eliminating e from the Newton system leaves one
sparse system in s,

.. math::
    S = P \otimes I + a \tilde W a, \quad \tilde W = W - W c E c W, \quad E = (I + c W c)^{-1}, \quad P = V^{-1}.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy

import torch
from torch import Tensor

from pyrosplice._linalg.blocks import inverse_and_logdet, matmul, matvec, planar, positive_part, sandwich
from pyrosplice._linalg.solver import Factor, SpatialSolver
from pyrosplice.effects._isoform_effect import SoftmaxBasis
from pyrosplice.glmm._latents import Latents, Parameters
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.likelihoods._recombined import Recombined

PATIENCE = 5  # Newton steps of all genes before those that need more go on by themselves
NEAR, NEARER = 0.1, 1e-3  # decrement at which exact steps are tried, and how much nearer they are tried again
STALLED = 1e-10  # decrement below which one that no longer falls is rounding


class MixedModel:
    """Counts, design, likelihood and spatial covariance of a batch of genes.

    Parameters
    ----------
    counts
        (B, N, K).
    design
        (N, P), with its intercept column; None where the fixed part of η is given itself.
    solver
        The spatial covariance; None for a model whose random effect is independent between spots.
    likelihood
        Log density of a spot's counts given its logits (or whatever predictors it has). Its free hyper-parameters are
        named in ``hyper`` and have their start values until :meth:`bound`.
    basis
        Coordinates of the logits in which the random effect is independent; None if it is so in the logits themselves.
        All of the engine is in these coordinates, coefficients and random effects among it; :meth:`effect` is not.
    """

    def __init__(
        self,
        counts: Tensor,
        design: Tensor | None,
        solver: SpatialSolver | None,
        likelihood: Likelihood,
        basis: SoftmaxBasis | None = None,
    ):
        self.counts = planar(counts)
        self.design, self.solver, self.basis = design, solver, basis
        self.hyper = likelihood.free
        started = likelihood.bind_start(len(counts), counts)
        self.set_likelihood(started if basis is None else Recombined(started, basis.root))

    def set_likelihood(self, likelihood: Likelihood) -> None:
        """Take a likelihood, and the part of its density that does not depend on η."""
        self.likelihood = likelihood
        zero = planar(self.counts.new_zeros(*self.counts.shape[:2], self.n_predictors))
        self.constant = (likelihood.log_prob(self.counts, zero) - likelihood.kernel(self.counts, zero)).sum(-1)

    @property
    def n_predictors(self) -> int:
        """Number Q of linear predictors of a gene."""
        return self.likelihood.n_predictors(self.counts.shape[-1])

    @property
    def n_coefficients(self) -> int:
        """Number P of coefficients of a predictor, or N for a model without a design."""
        return self.counts.shape[1] if self.design is None else self.design.shape[1]

    @property
    def genes(self) -> Tensor:
        """Indices of the genes, (B,), on the device of the counts."""
        return torch.arange(len(self.counts), device=self.counts.device)

    def select(self, genes: Tensor) -> MixedModel:
        """Take the model of some of the genes."""
        model = copy(self)
        model.counts = planar(self.counts[genes])
        model.likelihood = self.likelihood.select(genes)
        model.basis = None if self.basis is None else self.basis.select(genes)
        model.constant = self.constant[genes]
        return model

    def bound(self, hyper: Mapping[str, Tensor]) -> MixedModel:
        """Copy with the likelihood's hyper-parameters at these values, (B, 1) each."""
        model = copy(self)
        model.set_likelihood(self.likelihood.bind(hyper))
        return model

    def without_field(self) -> MixedModel:
        """Copy with a random effect that is independent between spots."""
        model = copy(self)
        model.solver = None
        return model

    def zeros(self) -> Latents:
        """Random effects at zero."""
        n_genes, n_spots = self.counts.shape[:2]
        r = 0 if self.solver is None else self.solver.n_latent
        blank = self.counts.new_zeros
        return Latents(planar(blank(n_genes, r, self.n_predictors)), planar(blank(n_genes, n_spots, self.n_predictors)))

    def fixed_part(self, coefficients: Tensor) -> Tensor:
        """Part of the linear predictor that the covariates make, ``X Γ``: (B, N, Q)."""
        return coefficients if self.design is None else (self.design @ coefficients.permute(2, 1, 0)).permute(2, 1, 0)

    def coefficient_slope(self, slope: Tensor) -> Tensor:
        """Derivative in the coefficients of what has the derivative ``slope`` (B, N, Q) in η: ``X' s``."""
        return slope if self.design is None else (self.design.T @ slope.permute(2, 1, 0)).permute(2, 1, 0)

    def random_part(self, parameters: Parameters, latents: Latents) -> Tensor:
        """Part of the linear predictor that the random effects make, ``a s + c e``: (B, N, Q)."""
        out = latents.noise * parameters.white
        if self.solver is not None:
            out += self.solver.spread(latents.field) * parameters.spatial[:, None]
        return out

    def effect(self, parameters: Parameters, latents: Latents) -> Tensor:
        """Random effect ν on the scale of the logits: (B, N, Q)."""
        out = self.random_part(parameters, latents)
        return out if self.basis is None else self.basis.logits(out)

    @property
    def log_volume(self) -> float:
        """What the log density of a gene's random effect in the coordinates is above that of ν."""
        return 0.0 if self.basis is None else self.counts.shape[1] * self.basis.log_volume

    def log_joint(self, parameters: Parameters, latents: Latents) -> Tensor:
        """Joint log density, ``log p(y | η) − ½ z' P z − ½ e' e``: (B,), without the Gaussian constants."""
        eta = self.fixed_part(parameters.coefficients) + self.random_part(parameters, latents)
        value = self.likelihood.kernel(self.counts, eta).sum(-1) - 0.5 * latents.noise.square().sum((1, 2))
        if self.solver is not None:
            value -= 0.5 * (latents.field * self.solver.prior(latents.field)).sum((1, 2))
        return value + self.constant

    def newton(
        self, parameters: Parameters, latents: Latents, *, exact: Tensor | None = None, fields: Tensor | None = None
    ) -> NewtonStep:
        """Factorise at ``latents`` and solve for the Newton step to the mode.

        Genes that are not ``exact`` (B,): with the positive part of each spot's information, whose step always ascends.
        ``fields`` (B or 1, N, Q, R) of η are absorbed by the way.
        """
        return NewtonStep(self, parameters, latents, exact=exact, fields=fields)

    def mode(self, parameters: Parameters, latents: Latents, *, tolerance: float = 1e-8, max_iter: int = 100) -> Mode:
        """Maximise the joint density over the random effects, starting at ``latents``.

        Newton's method with step halving, each gene with its own step. Stops when the Newton decrement of every
        gene is at most ``tolerance`` nats²; that last step is taken too. Where the likelihood is not log-concave the
        search begins with the positive part of the information and goes on with the information itself, from near the
        mode: a gene whose posterior has no Gaussian curvature at its mode is then NaN, and not ``converged``.
        """
        value = self.log_joint(parameters, latents)
        exact = torch.full_like(value, self.likelihood.log_concave, dtype=torch.bool)
        near = torch.where(exact, 0.0, NEAR)  # decrement at which a gene's search turns exact
        before, ended = torch.full_like(value, torch.inf), torch.zeros_like(exact)
        for iteration in range(max_iter):
            step = self.newton(parameters, latents, exact=exact)
            early = exact & ~step.curved & (near > tolerance)
            if bool(early.any()):  # not curved here, but perhaps at the mode
                exact, near = exact & ~early, torch.where(early, NEARER * near, near)
                step = self.newton(parameters, latents, exact=exact)
            still = ~step.curved | ended  # these stay where they are, and trouble no other gene
            stalled = (step.decrement < STALLED) & (step.decrement > 0.5 * before)
            done = still | (exact & ((step.decrement <= tolerance) | stalled))
            moved, reached = self._line_search(step, value, ~done)
            if bool(still.any()):
                moved, reached = moved.replaced(still, latents.select(still)), torch.where(still, value, reached)
            latents, value = moved, reached
            if bool(done.all()):
                break
            before = torch.where(exact, step.decrement, torch.inf)
            exact = exact | (step.decrement <= near.clamp_min(tolerance))
            slow = (~done).nonzero()[:, 0]
            if iteration >= PATIENCE and 2 * len(slow) <= len(done):
                rest = self.select(slow).mode(
                    parameters.select(slow), latents.select(slow), tolerance=tolerance, max_iter=max_iter - iteration
                )
                latents = latents.replaced(slow, rest.latents)
                value = value.index_copy(0, slow, rest.log_joint)
                exact[slow], near[slow], ended[slow] = True, 0.0, ~rest.converged
        return Mode(step, latents, value, done & ~ended)

    def _line_search(self, step: NewtonStep, value: Tensor, checked: Tensor) -> tuple[Latents, Tensor]:
        """Halve the steps of the ``checked`` genes that do not bring enough."""
        length = torch.ones_like(value)
        proposal = step.latents.moved(step.direction)
        proposed = self.log_joint(step.parameters, proposal)
        for _ in range(40):
            short = ~(proposed >= value + 1e-4 * length * step.decrement - 1e-10 * value.abs()) & checked
            if not bool(short.any()):
                break
            length = torch.where(short, 0.5 * length, length)
            proposal = step.latents.moved(step.direction, length)
            proposed = self.log_joint(step.parameters, proposal)
        return proposal, proposed


class NewtonStep:
    """The Newton system of a batch of genes at given random effects, factorised.

    ``taken`` is what :meth:`absorbed` makes of the ``fields`` that were given, if any.
    """

    def __init__(
        self,
        model: MixedModel,
        parameters: Parameters,
        latents: Latents,
        *,
        exact: Tensor | None = None,
        fields: Tensor | None = None,
    ):
        self.model, self.parameters, self.latents = model, parameters, latents
        a = parameters.spatial[:, None]
        eta = model.fixed_part(parameters.coefficients) + model.random_part(parameters, latents)
        self.eta = eta
        self.score = model.likelihood.score(model.counts, eta)
        self.information = model.likelihood.information(model.counts, eta)
        if exact is not None and not bool(exact.all()):
            self.information = torch.where(
                exact[:, None, None, None], self.information, positive_part(self.information)
            )
        self.noisy = bool((parameters.white != 0).any())  # else e stays at its prior, and all of it is skipped
        self._eliminate_noise()
        self.factor: Factor | None = None
        if model.solver is not None:
            self.factor = model.solver.factorize(sandwich(a, self.effective, a))
        gradient = self.pull_back(self.score, latents)
        self.direction, self.taken = self._solve_with(gradient, fields)
        self.decrement = (gradient.field * self.direction.field).sum((1, 2)) + (
            gradient.noise * self.direction.noise
        ).sum((1, 2))
        self.curved = torch.isfinite(self.decrement + self.white_logdet)  # the Hessian is negative definite

    def _eliminate_noise(self) -> None:
        c, w = self.parameters.white, self.information
        if not self.noisy:
            unit = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device).expand_as(w)
            self.white_covariance, self.transfer, self.effective = unit, unit, w
            self.white_logdet = torch.zeros_like(w[:, 0, 0, 0])
            return
        scaled = sandwich(c, w, c)
        torch.diagonal(scaled, dim1=-2, dim2=-1).add_(1.0)
        self.white_covariance, white_logdet = inverse_and_logdet(scaled)  # E
        self.white_logdet = white_logdet.sum(-1)
        # T = I − c E c W maps a s to the posterior mean of ν given s
        self.transfer = -matmul(sandwich(c, self.white_covariance, c), w)
        torch.diagonal(self.transfer, dim1=-2, dim2=-1).add_(1.0)
        self.effective = matmul(w, self.transfer)  # W̃

    def logdet(self) -> Tensor:
        """Log determinant of minus the Hessian in the random effects, less that of their prior precision, (B,)."""
        if self.model.solver is None or self.factor is None:
            return self.white_logdet
        return self.white_logdet + self.factor.logdet() - self.model.n_predictors * self.model.solver.prior_logdet

    def pull_back(self, field: Tensor, latents: Latents | None = None) -> Latents:
        """Derivatives in the random effects from those of the predictor, ``J' field``, less the prior's if given."""
        model, noise = self.model, field * self.parameters.white
        spatial = noise.new_zeros(noise.shape[0], 0, noise.shape[2])
        if model.solver is not None:
            spatial = model.solver.gather(field * self.parameters.spatial[:, None])
            if latents is not None:
                spatial = spatial - model.solver.prior(latents.field)
        return Latents(spatial, noise if latents is None else noise - latents.noise)

    def solve(self, rhs: Latents) -> Latents:
        """Solve with the Hessian of the joint density in (z, e), by eliminating e."""
        return self._solve_with(rhs, None)[0]

    def _solve_with(self, rhs: Latents, fields: Tensor | None) -> tuple[Latents, Tensor | None]:
        """Solve, and absorb R fields of η in the same pass through the factor."""
        if self.factor is None:
            return self._completed(rhs, rhs.field), None if fields is None else self.absorbed(fields)
        reduced = self._reduced(rhs)
        if fields is None:
            return self._completed(rhs, self.factor.solve(reduced)), None
        planes = [reduced[..., None].permute(2, 3, 1, 0), self._pulled(fields).permute(2, 3, 1, 0)]
        found = self.factor.solve(torch.cat(planes, 1).permute(3, 2, 0, 1))
        return self._completed(rhs, found[..., 0]), planar(found[..., 1:])

    def _reduced(self, rhs: Latents) -> Tensor:
        """What is left of a right-hand side for z once e is eliminated."""
        solver = self.model.solver
        if solver is None or not self.noisy:
            return rhs.field
        white = matvec(self.white_covariance, rhs.noise) * self.parameters.white
        return rhs.field - solver.gather(matvec(self.information, white) * self.parameters.spatial[:, None])

    def _completed(self, rhs: Latents, field: Tensor) -> Latents:
        """The solution of which ``field`` is the part in z."""
        a, c, solver = self.parameters.spatial[:, None], self.parameters.white, self.model.solver
        if not self.noisy:
            return Latents(field, rhs.noise)
        noise = rhs.noise
        if solver is not None:
            noise = noise - matvec(self.information, solver.spread(field) * a) * c
        return Latents(field, matvec(self.white_covariance, noise))

    def marginal_precision_product(self, fields: Tensor) -> Tensor:
        r"""Multiply R fields (B, N, Q, R) by ``(W⁻¹ + Σ)⁻¹``, as ``W̃ x − W̃ a F S⁻¹ F' a W̃ x``, inverting neither."""
        fields = planar(fields)
        return matmul(self.effective, self.left_over(fields, self.absorbed(fields)))

    def absorbed(self, fields: Tensor) -> Tensor:
        """Change of the field's latents that undoes R fields (B, N, Q, R) of η, ``S⁻¹ F' a W̃ x``: (B, r, Q, R)."""
        if self.factor is None:
            return fields.new_zeros(fields.shape[0], 0, *fields.shape[2:])
        return planar(self.factor.solve(self._pulled(fields)))

    def _pulled(self, fields: Tensor) -> Tensor:
        """Right-hand side of what absorbs R fields of η, ``F' a W̃ x``: (B, r, Q, R)."""
        pulled = self.parameters.spatial[:, None, :, None] * matmul(self.effective, fields)
        solver = self.model.solver
        return pulled if solver is None else solver.gather(pulled.flatten(2)).unflatten(2, fields.shape[2:])

    def left_over(self, fields: Tensor, absorbed: Tensor) -> Tensor:
        """What is left of R fields of η once the field has undone its part, ``x − a F absorbed``."""
        if self.model.solver is None:
            return fields
        undone = self.model.solver.spread(absorbed.flatten(2)).unflatten(2, fields.shape[2:])
        return fields - self.parameters.spatial[:, None, :, None] * undone

    def response(self, slope: Tensor, score: Tensor, change: Parameters) -> Latents:
        """First-order change of the mode, where the score is ``score``, when the standard deviations change.

        ``slope`` (B, N, Q) is the change of that score while the random effects stay.
        """
        pulled, noise = self.pull_back(slope), score * change.white
        if self.model.solver is None:
            return self.solve(Latents(pulled.field, pulled.noise + noise))
        field = self.model.solver.gather(score * change.spatial[:, None])
        return self.solve(Latents(pulled.field + field, pulled.noise + noise))


class Mode:
    """The joint mode of the random effects of a batch of genes, and how it moves with the parameters.

    Attributes
    ----------
    step
        The last Newton system; factorised one (tiny) step before the mode.
    latents, eta
        Random effects and linear predictor at the mode.
    log_joint
        ``log p(y | η̂) − ½ ẑ' P ẑ − ½ ê' ê``, (B,).
    score
        Derivative of the log likelihood in η at the mode, (B, N, Q).
    converged
        Whether each gene got to its mode, (B,).
    """

    def __init__(self, step: NewtonStep, latents: Latents, log_joint: Tensor, converged: Tensor):
        self.step, self.latents, self.log_joint = step, latents, log_joint
        self.converged = converged & torch.isfinite(log_joint) & step.curved
        model, parameters = step.model, step.parameters
        self.eta = model.fixed_part(parameters.coefficients) + model.random_part(parameters, latents)
        self.score = model.likelihood.score(model.counts, self.eta)

    def response(self, change: Parameters) -> Latents:
        """First-order change of the mode when the parameters change."""
        model = self.step.model
        moved = model.fixed_part(change.coefficients) + model.random_part(change, self.latents)
        return self.step.response(-matvec(self.step.information, moved), self.score, change)
