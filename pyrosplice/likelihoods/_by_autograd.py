"""Closed forms of a likelihood held against its ``log_prob`` by numbers; autograd in their place where they differ."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pyrosplice._overrides import is_ours
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.likelihoods._contract import Likelihood, shaped
from pyrosplice.likelihoods._guarded import guarded
from pyrosplice.likelihoods._wrapped import Wrapped

CLOSED_FORMS = ("log_kernel", "score", "information", "curvature", "information_gradient", "hyper_gradient")
COMPARED_GENES, COMPARED_SPOTS = 3, 8
SHARP = 1e-6  # of the largest entry of a gene: up to which a closed form is the derivative that it says it is


class ByAutograd(Wrapped):
    """The density of another likelihood, with all derivatives from its ``log_prob``.

    Parameters
    ----------
    inner
        The other one.
    """

    def __init__(self, inner: Likelihood) -> None:
        super().__init__(inner)
        self.additive = self.log_concave = False

    def bind(self, values: Mapping[str, Tensor]) -> ByAutograd:
        """Copy with hyper-parameters at ``values``."""
        return ByAutograd(self.inner.bind(values))

    def select(self, genes: Tensor) -> ByAutograd:
        """Take the likelihood of some of the genes."""
        return ByAutograd(self.inner.select(genes))

    def log_prob(self, counts: Tensor, eta: Tensor) -> Tensor:
        """Log density of each spot's counts."""
        return self.inner.log_prob(counts, eta)

    def mean(self, eta: Tensor) -> Tensor:
        """Expected usage."""
        return self.inner.mean(eta)

    def sample(self, totals: Tensor, eta: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Counts drawn."""
        return self.inner.sample(totals, eta, generator=generator)

    def start(self, counts: Tensor) -> Tensor:
        """Intercepts at which searches start."""
        return self.inner.start(counts)


def as_fitted(likelihood: Likelihood, counts: Tensor, eta: Tensor) -> tuple[Likelihood, tuple[str, ...]]:
    """The likelihood as engines use it, and the closed forms of its own that are not derivatives of its ``log_prob``.

    A gene for which a likelihood that somebody wrote raises an error fails alone. With a wrong closed form, all of them
    are worked out from ``log_prob``.

    Parameters
    ----------
    likelihood
        Likelihood with its hyper-parameters bound.
    counts, eta
        Where they are compared, ``(G, N, K)`` and ``(G, N, Q)``.
    """
    if is_ours(type(likelihood)):
        return likelihood, ()
    safe = guarded(likelihood, [])
    wrong = tuple(_wrong(safe, ByAutograd(safe), counts, eta))
    return (ByAutograd(safe), wrong) if wrong else (safe, ())


def refuse_wrong_forms(likelihood: Likelihood, counts: Tensor) -> None:
    """Raise where a likelihood of a person's own gives a closed form that is not the derivative of its ``log_prob``.

    A search that follows a wrong score may stop anywhere and call it an optimum. Compared at the fullest spots of a
    gene, by autograd: some 10 ms a fit (three isoforms), for classes that give any.

    Parameters
    ----------
    likelihood
        The likelihood; free hyper-parameters take their start values.
    counts
        What it is fitted to, ``(G, N, K)``.
    """
    kind = type(likelihood)
    if is_ours(kind) or all(getattr(kind, name) is getattr(Likelihood, name) for name in CLOSED_FORMS):
        return
    for gene in counts.sum((1, 2)).topk(min(COMPARED_GENES, len(counts))).indices.split(1):
        some = counts[gene]
        some = some[:, some.sum((0, 2)).topk(min(COMPARED_SPOTS, some.shape[1])).indices]
        size = (*some.shape[:2], likelihood.n_predictors(some.shape[-1]))
        eta = torch.linspace(-7.0, 7.0, math.prod(size), dtype=some.dtype, device=some.device).sin().reshape(size)
        one = likelihood.select(gene).bind_start(1, some)
        try:
            wrong = _wrong(one, ByAutograd(one), some, eta)
        except InvalidArgumentError:  # of another shape than asked for
            raise
        except Exception:  # of whatever kind: a gene for which it raises ends with that reason in the fit
            continue
        break
    else:
        return
    if wrong:
        raise InvalidArgumentError(
            f"likelihood: {type(likelihood).__name__} gives {', '.join(wrong)}, which does not follow from its "
            "log_prob; leave it out, or see pyrosplice.testing.check_likelihood."
        )


def _checked(likelihood: Likelihood, method: str, counts: Tensor, eta: Tensor) -> Tensor:
    """What a closed form returns, refused if it has another shape."""
    shape = eta.shape if method == "score" else (*eta.shape, eta.shape[-1])
    return shaped(f"{method} of {type(likelihood).__name__}", getattr(likelihood, method)(counts, eta), shape)


def _wrong(likelihood: Likelihood, exact: Likelihood, counts: Tensor, eta: Tensor) -> list[str]:
    weight = torch.eye(eta.shape[-1]).to(eta).expand(*eta.shape, eta.shape[-1])
    names = [name for name in likelihood.hyperparameters if isinstance(getattr(likelihood, name), Tensor)]
    pairs = {
        "log_kernel": (_rise(likelihood, counts, eta), _rise(exact, counts, eta)),
        "score": (_checked(likelihood, "score", counts, eta), exact.score(counts, eta)),
        "information": (_checked(likelihood, "information", counts, eta), exact.information(counts, eta)),
        "information_gradient": (
            likelihood.information_gradient(counts, eta, weight),
            exact.information_gradient(counts, eta, weight),
        ),
    }
    if names:
        pairs["hyper_gradient"] = (
            likelihood.hyper_gradient(counts, eta, names, eta, weight)[0],
            exact.hyper_gradient(counts, eta, names, eta, weight)[0],
        )
    return [name for name, (found, expected) in pairs.items() if not _agree(found, expected)]


def _rise(likelihood: Likelihood, counts: Tensor, eta: Tensor) -> Tensor:
    """What the density is above that at η = 0."""
    return likelihood.kernel(counts, eta) - likelihood.kernel(counts, torch.zeros_like(eta))


def _agree(found: Tensor, expected: Tensor) -> bool:
    scale = expected.nan_to_num().flatten(1).abs().amax(1).reshape(-1, *[1] * (expected.ndim - 1))
    return bool((((found - expected).abs() <= SHARP * (1 + scale)) | expected.isnan()).all())
