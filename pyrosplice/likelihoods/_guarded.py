"""A likelihood that raises an error for one gene: that gene's numbers are NaN, and no other gene knows of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrosplice._overrides import is_ours
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.likelihoods._contract import Likelihood, shaped
from pyrosplice.likelihoods._wrapped import Wrapped

MISTAKES = (NotImplementedError, TypeError, AttributeError, NameError)  # of the code, not of a gene: these go through


def guarded(likelihood: Likelihood, errors: list[Exception]) -> Likelihood:
    """The likelihood as engines use it: a shipped one itself, another so that a gene which raises fails alone.

    The first error goes to ``errors``.
    """
    return likelihood if is_ours(type(likelihood)) else Guarded(likelihood, errors)


class Guarded(Wrapped):
    """Another likelihood, evaluated gene by gene where it raises for all of them together.

    Parameters
    ----------
    inner
        What it evaluates, always by its own methods.
    errors
        Where the first error goes, shared with all that is made of this one.
    """

    def __init__(self, inner: Likelihood, errors: list[Exception]) -> None:
        super().__init__(inner)
        self.errors = errors

    def bind(self, values: Mapping[str, Tensor]) -> Guarded:
        """Copy with hyper-parameters at ``values``."""
        return Guarded(self.inner.bind(values), self.errors)

    def select(self, genes: Tensor) -> Guarded:
        """Take the likelihood of some of the genes."""
        return Guarded(self.inner.select(genes), self.errors)

    def log_prob(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Log density of each spot's counts."""
        return self._one_a_spot("log_prob", counts, eta)

    def kernel(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Log density up to terms that do not depend on ``eta``."""
        return self._one_a_spot("kernel", counts, eta)

    def mean(self, eta: Tensor) -> Tensor:
        """Expected usage."""
        return self.inner.mean(eta)

    def expected(self, eta: Tensor) -> Tensor:
        """Expected usage, refused where it is not stated for this density."""
        return self.inner.expected(eta)

    def draw(self, totals: Tensor, eta: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Counts drawn, checked."""
        return self.inner.draw(totals, eta, generator=generator)

    def sample(self, totals: Tensor, eta: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Counts drawn."""
        return self.inner.sample(totals, eta, generator=generator)

    def start(self, counts: Tensor) -> Tensor:
        """Intercepts at which searches start."""
        found = self._each("start", counts)
        return self._shaped("start", found, (len(counts), self.n_predictors(counts.shape[-1])))

    def score(self, counts: Tensor, eta: Tensor) -> Tensor:
        """First derivative."""
        return self._of_predictors("score", 1, counts, eta)

    def information(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Minus the second derivative."""
        return self._of_predictors("information", 2, counts, eta)

    def curvature(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Minus the second derivative, as a differentiable function of ``eta``."""
        return self._of_predictors("curvature", 2, counts, eta)

    def information_gradient(self, counts: Tensor, eta: Tensor, weight: Tensor) -> Tensor:
        """Third derivative, contracted."""
        return self._of_predictors("information_gradient", 1, counts, eta, weight)

    def hyper_score(self, counts: Tensor, eta: Tensor, names: Sequence[str]) -> Tensor:
        """First derivative in the logs of hyper-parameters."""
        return self._each("hyper_score", counts, eta, names)

    def hyper_gradient(
        self, counts: Tensor, eta: Tensor, names: Sequence[str], along: Tensor | None, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Derivatives in the logs of hyper-parameters."""
        return self._each("hyper_gradient", counts, eta, names, along, weight)

    def _one_a_spot(self, method: str, counts: Tensor, eta: Tensor) -> Tensor:
        found = self._each(method, counts, eta)
        expected = torch.broadcast_shapes(counts.shape[:-1], eta.shape[:-1])
        if not isinstance(found, Tensor) or found.shape != expected:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InvalidArgumentError(
                f"likelihood: expected log_prob of {type(self.inner).__name__} to be of each spot, shape "
                f"{tuple(expected)}, found {shape}; leave the sum over spots out."
            )
        return found

    def _of_predictors(self, method: str, order: int, counts: Tensor, eta: Tensor, *rest: Any) -> Tensor:
        """A derivative of that order in η."""
        shape = (*torch.broadcast_shapes(counts.shape[:-1], eta.shape[:-1]), *[eta.shape[-1]] * order)
        return self._shaped(method, self._each(method, counts, eta, *rest), shape)

    def _shaped(self, method: str, found: object, shape: tuple[int, ...]) -> Tensor:
        return shaped(f"{method} of {type(self.inner).__name__}", found, shape)

    def _each(self, method: str, counts: Tensor, *rest: Any) -> Any:
        try:
            return getattr(self.inner, method)(counts, *rest)
        except MISTAKES:
            raise
        except Exception as error:
            tensors = [value for value in rest if isinstance(value, Tensor)]
            if counts.ndim != 3 or any(value.shape[0] != len(counts) for value in tensors):
                raise
            self._say(method, error)
            return self._by_gene(method, counts, *rest)

    def _by_gene(self, method: str, counts: Tensor, *rest: Any) -> Any:
        found: list[Any] = []
        for gene in range(len(counts)):
            own = [value[gene : gene + 1] if isinstance(value, Tensor) else value for value in rest]
            one = self.inner.select(torch.tensor([gene], device=counts.device))
            try:
                found.append(getattr(one, method)(counts[gene : gene + 1], *own))
            except MISTAKES:
                raise
            except Exception:
                found.append(self._not_a_number(method, counts[gene : gene + 1], *own))
        if isinstance(found[0], tuple):
            return tuple(torch.cat(parts) for parts in zip(*found, strict=True))
        return torch.cat(found)

    def _not_a_number(self, method: str, counts: Tensor, *rest: Any) -> Any:
        """Return NaN of the shape that the method has for one gene."""
        lead, q = counts.shape[:-1], self.n_predictors(counts.shape[-1])
        n_hyper = len(self.hyperparameters)
        shape = {
            "log_prob": lead,
            "kernel": lead,
            "start": (1, q),
            "score": (*lead, q),
            "information": (*lead, q, q),
            "curvature": (*lead, q, q),
            "information_gradient": (*lead, q),
            "hyper_score": (*lead, n_hyper),
            "hyper_gradient": (1, n_hyper),
        }[method]
        if method.startswith("hyper"):
            shape = (*shape[:-1], len(rest[1]))
        blank = counts.new_full(shape, torch.nan)
        return (blank, blank) if method == "hyper_gradient" else blank

    def _say(self, method: str, error: Exception) -> None:
        if not self.errors:
            warnings.warn(
                f"likelihood: {type(self.inner).__name__}.{method} raised {error!r}; genes for which it does end with "
                "the reason 'raised', the others are fitted.",
                stacklevel=2,
            )
            self.errors.append(error)
