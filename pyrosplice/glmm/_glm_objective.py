r"""The isoform GLM as an optimisation problem: loss, gradient and information of every gene at once.

With :math:`\tilde X = [X, 1]` and coefficients W = [β; b] ``(P + 1, Q)`` of a gene,

.. math::

   \ell(W) = \sum_i \log p(y_i \mid W' \tilde x_i) + \log \pi(W), \qquad
   \nabla \ell = \tilde X' S, \qquad
   I_{(p k),(q l)} = \sum_i \tilde x_{ip} \tilde x_{iq} [W_i]_{kl}

with S the scores and :math:`W_i` the information of the spots. The information of all genes is one matrix product of
the spots' :math:`[W_i]_{kl}` with the products :math:`\tilde x_{ip} \tilde x_{iq}`, block by block of spots.
Covariates are made orthonormal inside, so that neither their origin nor their unit nor their correlation matters; spots
without counts are left out, and spots of equal covariates are added up where the likelihood allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrosplice._linalg.rank import COLLINEAR
from pyrosplice._optimize.newton import solve_curvature
from pyrosplice.likelihoods._contract import Likelihood

_BLOCK = 2**24
"""Numbers held at once for the products of covariates (128 MB)."""

LogPrior = Callable[[dict[str, Tensor], Tensor], Tensor]
"""Log prior density ``(A,)`` from the values of ``beta`` and ``bias_eta`` of some genes, and their indices."""


@dataclass(frozen=True)
class StandardCoordinates:
    r"""The linear map :math:`W = A W_c` from coefficients of orthonormal columns to those of the given covariates.

    The columns span what the covariates and the intercept do, so that neither origin nor unit nor collinearity of the
    covariates matters to who works with them.

    ``matrix`` is A, ``(P + 1, P + 1)``; ``design`` is the orthogonal :math:`\tilde X`, ``(N, P + 1)``: columns of mean
    square one, the constant last.
    """

    matrix: Tensor
    design: Tensor

    @classmethod
    def of(cls, covariates: Tensor) -> StandardCoordinates:
        """Centre, scale and orthogonalise ``(N, P)`` covariates in their order.

        One that is constant, or a combination of those before it, becomes a column of zeros.
        """
        n_spots, n_factors = covariates.shape
        mean = covariates.mean(0)
        centered = covariates - mean
        shift = centered.mean(0)  # of rounding, where the mean is large
        mean, centered = mean + shift, centered - shift
        spread = centered.square().mean(0).sqrt()
        constant = spread <= 1e-12 * mean.abs()
        inverse = 1 / torch.where(constant, 1.0, spread)
        scaled = torch.where(constant, 0.0, centered * inverse)
        basis, combinations = _orthogonal(scaled)
        design = torch.cat([basis, covariates.new_ones(n_spots, 1)], 1)
        matrix = torch.eye(n_factors + 1, dtype=covariates.dtype, device=covariates.device)
        matrix[:n_factors, :n_factors] = inverse.unsqueeze(-1) * combinations
        matrix[n_factors, :n_factors] = -mean @ matrix[:n_factors, :n_factors]
        return cls(matrix, design)

    def of_columns(self) -> StandardCoordinates:
        """Take the orthonormal columns themselves for the given covariates."""
        return replace(self, matrix=torch.eye(len(self.matrix), dtype=self.matrix.dtype, device=self.matrix.device))

    def covariance(self, standardized: Tensor, n_logits: int) -> Tensor:
        """Covariance matrices ``(G, D, D)`` of the coefficients of the given covariates."""
        big = torch.kron(self.matrix, torch.eye(n_logits, dtype=self.matrix.dtype, device=self.matrix.device))
        return big @ standardized @ big.mT


@dataclass(frozen=True)
class GLMObjective:
    """Minus the log posterior density of the GLM coefficients of A genes, as a function of ``(A, (P + 1) Q)``.

    Attributes
    ----------
    counts
        ``(A, N, K)``.
    scaling
        How coefficients are given, and the whole design.
    design
        Rows of the design that are here, ``(N, P + 1)``.
    likelihood
        Density of a spot's counts.
    prior
        Log prior density, or None if flat.
    genes
        Which genes of the batch the rows are, ``(A,)``; the prior may differ between genes.
    constant
        What the kernel of the (summed) counts leaves out of the log likelihood, ``(A,)``.
    """

    counts: Tensor
    scaling: StandardCoordinates
    design: Tensor
    likelihood: Likelihood
    prior: LogPrior | None
    genes: Tensor
    constant: Tensor

    @classmethod
    def of(
        cls, counts: Tensor, covariates: Tensor, likelihood: Likelihood, prior: LogPrior | None = None
    ) -> GLMObjective:
        """The problem of all genes ``(G, N, K)``, stored isoform by isoform for vectorised likelihoods."""
        level = counts.new_zeros(*counts.shape[:2], likelihood.n_predictors(counts.shape[-1]))
        full = likelihood.log_prob(counts, level).sum(-1)
        scaling = StandardCoordinates.of(covariates)
        counts, rows = _sufficient(counts, covariates, likelihood)
        constant = full - likelihood.kernel(counts, level[:, : counts.shape[1]]).sum(-1)
        planar = counts.movedim(-1, 0).contiguous().movedim(0, -1)
        genes = torch.arange(len(counts), device=counts.device)
        return cls(planar, scaling, scaling.design[rows], likelihood, prior, genes, constant)

    @property
    def n_logits(self) -> int:
        """Length Q of a spot's linear predictor."""
        return self.likelihood.n_predictors(self.counts.shape[-1])

    def select(self, rows: Tensor) -> GLMObjective:
        """The problem of some of the genes."""
        counts = self.counts.movedim(-1, 0)[:, rows].movedim(0, -1)
        likelihood = self.likelihood.select(rows)
        return replace(self, counts=counts, likelihood=likelihood, genes=self.genes[rows], constant=self.constant[rows])

    def start(self) -> Tensor:
        """The likelihood's start for the intercepts, zero elsewhere: ``(A, D)``."""
        point = self.counts.new_zeros(len(self.counts), self.design.shape[1], self.n_logits)
        point[:, -1] = self.likelihood.start(self.counts)
        return point.flatten(1)

    def coefficients(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Sites ``beta`` ``(A, P, Q)`` and ``bias_eta`` ``(A, Q)`` of the given covariates."""
        weights = self.scaling.matrix @ self._weights(point)
        return weights[:, :-1], weights[:, -1]

    def point(self, beta: Tensor, bias_eta: Tensor) -> Tensor:
        """Unknowns of given ``beta`` and ``bias_eta``, the inverse of :meth:`coefficients`."""
        weights = torch.cat([beta, bias_eta.unsqueeze(-2)], -2)
        return torch.linalg.solve(self.scaling.matrix, weights).flatten(1)

    def linear_predictor(self, point: Tensor) -> Tensor:
        """Linear predictor η ``(A, N, Q)``, stored logit by logit."""
        return (self._weights(point).permute(2, 0, 1) @ self.design.T).movedim(0, -1)

    def rounding(self) -> Tensor:
        """Size of the rounding errors of the loss, ``(A,)``: it is a difference of numbers as large as ``constant``."""
        return 1e-12 * (1 + self.counts.sum((1, 2))) + 1e-14 * self.constant.abs()

    def loss(self, point: Tensor) -> Tensor:
        """Minus log likelihood minus log prior, ``(A,)``; differentiable."""
        kernel = self.likelihood.kernel(self.counts, self.linear_predictor(point)).sum(-1)
        return -self.constant - kernel - self._log_prior(point)

    def value_and_gradient(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Loss ``(A,)`` and its gradient ``(A, D)``."""
        eta = self.linear_predictor(point)
        loss = -self.constant - self.likelihood.kernel(self.counts, eta).sum(-1)
        gradient = self._likelihood_gradient(eta)
        if self.prior is None:
            return loss, gradient
        with torch.enable_grad():
            point = point.detach().requires_grad_(True)
            log_prior = self._log_prior(point)
            prior_gradient = torch.zeros_like(point)
            if log_prior.requires_grad:
                (prior_gradient,) = torch.autograd.grad(log_prior.sum(), point)
        return loss - log_prior.detach(), gradient - prior_gradient

    def derivatives(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient ``(A, D)`` and Hessian ``(A, D, D)`` of the loss."""
        eta = self.linear_predictor(point)
        gradient = self._likelihood_gradient(eta)
        hessian = self._assemble(self.likelihood.information(self.counts, eta))
        if self.prior is None:
            return gradient, hessian
        prior_gradient, prior_hessian = self._prior_derivatives(point)
        return gradient - prior_gradient, hessian - prior_hessian

    def step_limit(self, point: Tensor, step: Tensor) -> Tensor:
        """Limit a step to five units of any coefficient."""
        return (5.0 / step.abs().amax(-1).clamp_min(1e-300)).clamp_max(1.0)

    def curvature(self, point: Tensor) -> Tensor:
        """Diagonal of the information at ``point``, ``(A, D)``: a scale for first-order methods."""
        information = self.likelihood.information(self.counts, self.linear_predictor(point))
        diagonal = torch.diagonal(information, dim1=-2, dim2=-1).movedim(-1, 0)
        return (diagonal @ self.design.square()).permute(1, 2, 0).flatten(1)

    def _weights(self, point: Tensor) -> Tensor:
        return point.unflatten(-1, (-1, self.n_logits))

    def _likelihood_gradient(self, eta: Tensor) -> Tensor:
        score = self.likelihood.score(self.counts, eta).movedim(-1, 0)
        return -(score @ self.design).permute(1, 2, 0).flatten(1)

    def _log_prior(self, point: Tensor) -> Tensor:
        if self.prior is None:
            return point.new_zeros(len(point))
        beta, bias_eta = self.coefficients(point)
        return self.prior({"beta": beta, "bias_eta": bias_eta}, self.genes)

    def _prior_derivatives(self, point: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            point = point.detach().requires_grad_(True)
            log_prior, gradient = self._log_prior(point).sum(), torch.zeros_like(point)
            if log_prior.requires_grad:  # else it is a prior of other sites
                (gradient,) = torch.autograd.grad(log_prior, point, create_graph=True)
            if not gradient.requires_grad:
                return gradient.detach(), point.new_zeros(*point.shape, point.shape[-1])
            columns = [torch.autograd.grad(g.sum(), point, retain_graph=True)[0] for g in gradient.unbind(-1)]
        return gradient.detach(), torch.stack(columns, -1)

    def _assemble(self, information: Tensor) -> Tensor:
        """Sum ``Σ_i x_ip x_iq [W_i]_kl`` as ``(A, D, D)``, D in the order of ``[beta; bias_eta]``, logits fastest."""
        design, n_logits = self.design, self.n_logits
        n_columns = design.shape[1]
        first, second = torch.triu_indices(n_columns, n_columns, device=design.device)
        pairs = torch.triu_indices(n_logits, n_logits, device=design.device)
        planes = information[..., pairs[0], pairs[1]].movedim(-1, 0)
        block = max(1, _BLOCK // len(first))
        packed = planes.new_zeros(*planes.shape[:2], len(first))
        for i in range(0, len(design), block):
            rows = slice(i, i + block)
            packed += planes[..., rows] @ (design[rows, first] * design[rows, second])
        full = information.new_empty(len(information), n_columns, n_logits, n_columns, n_logits)
        for plane, k, m in zip(packed, *pairs.tolist(), strict=True):
            full[:, first, k, second, m] = full[:, second, k, first, m] = plane
            full[:, first, m, second, k] = full[:, second, m, first, k] = plane
        return full.flatten(3, 4).flatten(1, 2)


def covariance_from_information(
    information: Tensor, scaling: StandardCoordinates, n_logits: int, score_variance: Tensor | None = None
) -> Tensor:
    """Covariance ``(A, D, D)`` of ``[beta; bias_eta]`` from the information of the standardised coefficients.

    Its inverse, or ``information⁻¹ score_variance information⁻¹`` where the score has another variance than that. What
    is not identified has infinite variance.
    """
    eye = torch.eye(information.shape[-1], dtype=information.dtype, device=information.device).expand_as(information)
    inverse = solve_curvature(information, eye)
    own = inverse if score_variance is None else inverse @ score_variance @ inverse
    covariance = scaling.covariance(own, n_logits)
    unidentified = scaling.covariance(eye - inverse @ information, n_logits)
    share = torch.diagonal(unidentified, dim1=-2, dim2=-1)
    scale = torch.diagonal(scaling.covariance(eye, n_logits), dim1=-2, dim2=-1)
    return covariance + torch.diag_embed(torch.where(share > 1e-6 * scale, torch.inf, 0.0))


def _orthogonal(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Orthogonal columns of mean square one, ``columns @ combinations``, and the combinations that make them.

    A dependent one becomes zero, its combination the dependence; with a coefficient of 0 for it, those of ``columns``
    are the smallest that there are.
    """
    n_columns = columns.shape[1]
    dependent = torch.zeros(n_columns, dtype=torch.bool, device=columns.device)
    basis, combinations = torch.zeros_like(columns), torch.eye(n_columns, dtype=columns.dtype, device=columns.device)
    for i in range(n_columns):
        rest, combination = columns[:, i].clone(), combinations[:, i].clone()
        for _ in range(2):  # once more, against rounding
            along = basis[:, :i].T @ rest / len(columns)
            rest, combination = rest - basis[:, :i] @ along, combination - combinations[:, :i] @ along
        size = rest.square().mean().sqrt()
        dependent[i] = size <= COLLINEAR
        if not dependent[i]:
            basis[:, i], combination = rest / size, combination / size
        combinations[:, i] = combination
    if dependent.any():
        null, _ = torch.linalg.qr(combinations[:, dependent])
        combinations[:, ~dependent] -= null @ (null.T @ combinations[:, ~dependent])
    return basis, combinations


def _sufficient(counts: Tensor, covariates: Tensor, likelihood: Likelihood) -> tuple[Tensor, Tensor]:
    """Drop empty spots and add up those of equal covariates, if the likelihood allows.

    Returns the counts and which rows of the design go with them.
    """
    kept = torch.arange(len(covariates), device=counts.device)
    seen = (counts.sum(-1) > 0).any(0)
    if likelihood.conditional and seen.any() and not seen.all():
        counts, kept = counts[:, seen], kept[seen]
    if not likelihood.additive or not len(kept):
        return counts, kept
    # the column of ones changes nothing, but torch.unique refuses rows without entries
    padded = torch.nn.functional.pad(covariates[kept], (0, 1), value=1.0)
    rows, group = torch.unique(padded, dim=0, return_inverse=True)
    if len(rows) > len(kept) // 2:
        return counts, kept
    first = kept.new_full((len(rows),), len(covariates)).scatter_reduce(0, group, kept, "amin")
    return counts.new_zeros(len(counts), len(rows), counts.shape[-1]).index_add_(1, group, counts), first
