"""Likelihoods: the density of one spot's counts given its linear predictor.

Shapes throughout: counts ``(..., N, K)``, linear predictor ``eta`` ``(..., N, Q)``; leading dimensions are
genes (or draws) and never interact. The methods keep the memory layout of their inputs, so that a caller who
stores predictors first (``eta.movedim(-1, 0)`` contiguous) gets vectorised code without another interface.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Likelihood:
    r"""Log density of the counts of a spot, :math:`\log p(y_i \mid \eta_i)`, and its derivatives in :math:`\eta_i`.

    ======================== ======== ===================================================================
    what to override         required for
    ======================== ======== ===================================================================
    ``log_prob``             yes      everything: fitting, tests and posteriors work from it by autograd
    ``mean``                 yes      fitted usage ratios
    ``sample``               no       simulation and posterior predictive draws
    ``n_predictors``         no       a likelihood whose predictor is not K − 1 logits
    ``log_kernel``           no       speed: ``log_prob`` without the terms that do not depend on eta
    ``additive``             no       speed: True if, but for a constant in eta, spots of equal eta have the
                                      log density of one spot with their summed counts
    ``score``                no       speed: first derivative, closed form
    ``information``          no       speed: minus the second derivative, closed form
    ``information_gradient`` no       speed: third derivative contracted with a matrix, closed form
    ======================== ======== ===================================================================
    """

    name: str = "likelihood"
    additive: bool = False

    def n_predictors(self, n_isos: int) -> int:
        """Length Q of the linear predictor of a gene with ``n_isos`` isoforms."""
        return n_isos - 1

    def log_prob(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Log density of each spot's counts, constants included: ``(..., N)``."""
        raise NotImplementedError

    def log_kernel(self, counts: Tensor, eta: Tensor) -> Tensor:
        """``log_prob`` up to terms that do not depend on ``eta``: ``(..., N)``."""
        return self.log_prob(counts, eta)

    def mean(self, eta: Tensor) -> Tensor:
        """Expected usage of each isoform, ``(..., N, K)``; sums to one over the last dimension."""
        raise NotImplementedError

    def sample(self, totals: Tensor, eta: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Counts ``(..., N, K)`` drawn for spots with ``totals`` ``(..., N)`` molecules."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to sample; override Likelihood.sample.")

    def score(self, counts: Tensor, eta: Tensor) -> Tensor:
        """First derivative of ``log_prob`` in ``eta``: ``(..., N, Q)``."""
        with torch.enable_grad():
            eta = eta.detach().requires_grad_(True)
            return torch.autograd.grad(self.log_prob(counts, eta).sum(), eta)[0]

    def information(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Minus the second derivative of ``log_prob`` in ``eta``: ``(..., N, Q, Q)``."""
        with torch.enable_grad():
            return self._information(counts, eta.detach().requires_grad_(True)).detach()

    def information_gradient(self, counts: Tensor, eta: Tensor, weight: Tensor) -> Tensor:
        r"""Derivative of :math:`\operatorname{tr}(C_i W_i)` in :math:`\eta_i`: ``(..., N, Q)``.

        ``weight`` is the symmetric matrix C, ``(..., N, Q, Q)``; W is :meth:`information`.
        """
        with torch.enable_grad():
            eta = eta.detach().requires_grad_(True)
            trace = (self._information(counts, eta) * weight).sum()
            return torch.autograd.grad(trace, eta)[0] if trace.requires_grad else torch.zeros_like(eta)

    def _information(self, counts: Tensor, eta: Tensor) -> Tensor:
        (score,) = torch.autograd.grad(self.log_prob(counts, eta).sum(), eta, create_graph=True)
        if not score.requires_grad:  # log_prob is linear in eta
            return eta.new_zeros(*eta.shape, eta.shape[-1])
        rows = [torch.autograd.grad(s.sum(), eta, create_graph=True)[0] for s in score.unbind(-1)]
        return -torch.stack(rows, -2)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Multinomial(Likelihood):
    r"""Multinomial with softmax link, the last category as reference.

    .. math:: y_i \mid \eta_i \sim \operatorname{Multinomial}(n_i, p_i), \quad p_i = \operatorname{softmax}([\eta_i, 0])

    A spot with :math:`n_i = 0` has log density 0 and zero derivatives.
    """

    name = "multinomial"
    additive = True

    def log_prob(self, counts: Tensor, eta: Tensor) -> Tensor:
        """``log n! − Σ log y! + y' [η, 0] − n log(1 + Σ e^η)``."""
        total = counts.sum(-1)
        coefficient = torch.lgamma(total + 1) - torch.lgamma(counts + 1).sum(-1)
        return coefficient + self.log_kernel(counts, eta)

    def log_kernel(self, counts: Tensor, eta: Tensor) -> Tensor:
        """``log_prob`` without the multinomial coefficient, the part that depends on ``eta``."""
        top = eta.amax(-1).clamp_min(0.0)
        normaliser = top + (torch.exp(eta - top.unsqueeze(-1)).sum(-1) + torch.exp(-top)).log()
        return (counts[..., :-1] * eta).sum(-1) - counts.sum(-1) * normaliser

    def mean(self, eta: Tensor) -> Tensor:
        """``softmax([η, 0])``."""
        return torch.softmax(torch.cat([eta, torch.zeros_like(eta[..., :1])], -1), -1)

    def sample(self, totals: Tensor, eta: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw one category a molecule and count."""
        usage = self.mean(eta)
        draws = torch.multinomial(
            usage.reshape(-1, usage.shape[-1]), max(int(totals.max()), 1), replacement=True, generator=generator
        )
        kept = torch.arange(draws.shape[-1], device=draws.device) < totals.reshape(-1, 1)
        counts = torch.zeros(draws.shape[0], usage.shape[-1], dtype=usage.dtype, device=usage.device)
        return counts.scatter_add_(1, draws, kept.to(usage.dtype)).reshape(usage.shape)

    def score(self, counts: Tensor, eta: Tensor) -> Tensor:
        """``y − n p`` of the free logits."""
        return counts[..., :-1] - self._usage(eta) * counts.sum(-1, keepdim=True)

    def information(self, counts: Tensor, eta: Tensor) -> Tensor:
        """``n (diag(p) − p p')``."""
        usage = self._usage(eta)
        expected = usage * counts.sum(-1, keepdim=True)
        information = -expected.unsqueeze(-1) * usage.unsqueeze(-2)
        torch.diagonal(information, dim1=-2, dim2=-1).add_(expected)
        return information

    def information_gradient(self, counts: Tensor, eta: Tensor, weight: Tensor) -> Tensor:
        """``n p_m (C_mm − Σ_k C_kk p_k − 2 (C p)_m + 2 p' C p)``."""
        usage = self._usage(eta)
        diagonal = torch.diagonal(weight, dim1=-2, dim2=-1)
        product = (weight * usage.unsqueeze(-2)).sum(-1)
        common = ((2 * product - diagonal) * usage).sum(-1, keepdim=True)
        return usage * counts.sum(-1, keepdim=True) * (diagonal - 2 * product + common)

    def _usage(self, eta: Tensor) -> Tensor:
        top = eta.amax(-1, keepdim=True).clamp_min(0.0)
        odds = torch.exp(eta - top)
        return odds / (odds.sum(-1, keepdim=True) + torch.exp(-top))
