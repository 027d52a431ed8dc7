"""A likelihood as a function of other predictors, of which its own are linear combinations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyrosplice._linalg.blocks import congruent, planar, planar_matvec
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.likelihoods._wrapped import Wrapped


class Recombined(Wrapped):
    """Another likelihood at ``η = M u``, as a function of u; all of it by the other's own methods.

    Parameters
    ----------
    inner
        The likelihood of η ``(..., B, N, Q)``.
    matrix
        M, ``(B, 1, Q, R)`` or, the same for all genes, ``(Q, R)``; u is ``(..., B, N, R)``.
    """

    def __init__(self, inner: Likelihood, matrix: Tensor) -> None:
        super().__init__(inner)
        self.matrix = matrix

    def bind(self, values: Mapping[str, Tensor]) -> Recombined:
        """Copy with hyper-parameters at ``values``."""
        return Recombined(self.inner.bind(values), self.matrix)

    def select(self, genes: Tensor) -> Recombined:
        """Take the likelihood of some of the genes."""
        matrix = self.matrix if self.matrix.ndim == 2 else planar(self.matrix[genes])
        return Recombined(self.inner.select(genes), matrix)

    def n_predictors(self, n_isos: int) -> int:
        """Number R of predictors."""
        return self.matrix.shape[-1]

    def log_prob(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Log density of each spot's counts."""
        return self.inner.log_prob(counts, self._own(eta))

    def kernel(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Log density up to terms that do not depend on ``eta``."""
        return self.inner.kernel(counts, self._own(eta))

    def mean(self, eta: Tensor) -> Tensor:
        """Expected usage."""
        return self.inner.mean(self._own(eta))

    def sample(self, totals: Tensor, eta: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Counts drawn."""
        return self.inner.sample(totals, self._own(eta), generator=generator)

    def start(self, counts: Tensor) -> Tensor:
        """Predictors at which searches start: the u nearest to zero at the start of η."""
        own = self.inner.start(counts).unsqueeze(-1)
        matrix = self.matrix.expand(len(counts), 1, *self.matrix.shape[-2:])[:, 0]
        return (torch.linalg.pinv(matrix) @ own).squeeze(-1)

    def score(self, counts: Tensor, eta: Tensor) -> Tensor:
        """First derivative in u, ``M' s``."""
        return planar_matvec(self.matrix.mT, self.inner.score(counts, self._own(eta)))

    def information(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Information about u, ``M' W M``."""
        return congruent(self.matrix.mT, self.inner.information(counts, self._own(eta)))

    def curvature(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Minus the second derivative, as a differentiable function of ``eta``."""
        return congruent(self.matrix.mT, self.inner.curvature(counts, self._own(eta)))

    def information_gradient(self, counts: Tensor, eta: Tensor, weight: Tensor) -> Tensor:
        """Derivative of the information, ``M'`` times the gradient at ``M C M'``."""
        gradient = self.inner.information_gradient(counts, self._own(eta), congruent(self.matrix, weight))
        return planar_matvec(self.matrix.mT, gradient)

    def hyper_score(self, counts: Tensor, eta: Tensor, names: Sequence[str]) -> Tensor:
        """First derivative in the logs of hyper-parameters."""
        return self.inner.hyper_score(counts, self._own(eta), names)

    def hyper_gradient(
        self, counts: Tensor, eta: Tensor, names: Sequence[str], along: Tensor | None, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Derivatives in the logs of hyper-parameters, at ``M a`` and ``M C M'``."""
        own = None if along is None else self._own(along), None if weight is None else congruent(self.matrix, weight)
        return self.inner.hyper_gradient(counts, self._own(eta), names, *own)

    def _own(self, eta: Tensor) -> Tensor:
        return planar_matvec(self.matrix, eta)


def of_every_isoform(likelihood: Likelihood, eta: Tensor) -> tuple[Recombined, Tensor]:
    """A likelihood of logits as one of the K isoforms' effects on the scale of the softmax, and ``eta`` as such."""
    n_logits = eta.shape[-1]
    difference = torch.cat([torch.eye(n_logits), -torch.ones(n_logits, 1)], 1).to(eta)
    return Recombined(likelihood, difference), torch.nn.functional.pad(eta, (0, 1))
