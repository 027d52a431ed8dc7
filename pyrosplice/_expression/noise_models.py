"""Which likelihood the counts of a fit have: by the documented name, or an object, shipped or a person's own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pyrosplice._overrides import is_ours, refuse_set_methods
from pyrosplice.errors import InvalidArgumentError, call_hint, is_number
from pyrosplice.likelihoods._cell_terms import Terms, terms_by_autograd
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.likelihoods._counts import NegativeBinomial, Poisson
from pyrosplice.likelihoods._guarded import MISTAKES
from pyrosplice.likelihoods._normal import Normal

NOISE_MODELS: dict[str, type[Likelihood]] = {"nb": NegativeBinomial, "poisson": Poisson, "norm": Normal}


def likelihood_of(noise_model: Any) -> Likelihood:
    """The likelihood that ``noise_model`` names or is.

    Raises
    ------
    InvalidArgumentError
        Another name; no likelihood of one count a cell with one predictor and at most one hyper-parameter to estimate;
        one of exposures, or held at something else than one positive number.
    """
    if isinstance(noise_model, str) and noise_model in NOISE_MODELS:
        return NOISE_MODELS[noise_model]()
    if not isinstance(noise_model, Likelihood):
        raise InvalidArgumentError(
            f"noise_model: expected one of {sorted(NOISE_MODELS)} or a likelihood of one count a cell, as "
            f"pyrosplice.likelihoods.NegativeBinomial(), found {noise_model!r}"
            f"{call_hint(noise_model, Likelihood)}."
        )
    refuse_set_methods(noise_model, "noise_model")
    wrong = _unfit(noise_model)
    if wrong:
        raise InvalidArgumentError(f"noise_model: {type(noise_model).__name__} {wrong}")
    return noise_model


@contextmanager
def faults_named(likelihood: Likelihood) -> Iterator[None]:
    """Name a likelihood of a person's own in the error that it raises, mistakes of its code aside."""
    try:
        yield
    except (InvalidArgumentError, *MISTAKES):
        raise
    except Exception as error:
        if is_ours(type(likelihood)):
            raise
        raise raised_by(likelihood, error) from error


def raised_by(likelihood: Likelihood, error: Exception) -> InvalidArgumentError:
    """The error of a likelihood that raised another, which is no gene's."""
    return InvalidArgumentError(
        f"likelihood: {type(likelihood).__name__} raised {error!r}, for every gene; see "
        "pyrosplice.testing.check_likelihood."
    )


def _unfit(likelihood: Likelihood) -> str | None:
    """Why a likelihood is none of expression, and what to do."""
    found = likelihood.n_predictors(1)
    if found != 1:
        named = ", ".join(likelihood.predictors) or "K − 1 logits"
        return (
            f"has {found} predictors of one count ({named}), and expression has one, its location: set predictors = "
            '("location",) if it is of one count a cell; usage of isoforms is fitted by MultinomGLM.'
        )
    if likelihood.conditional:
        return "takes the total of a cell as given, which here is the count itself; set conditional = False."
    if len(likelihood.free) > 1:
        names = ", ".join(likelihood.free)
        return (
            f"has {len(likelihood.free)} hyper-parameters to estimate ({names}), and the scale is one: hold the others."
        )
    if isinstance(likelihood, Poisson) and likelihood.exposure is not None:
        return "has exposures of its own; give them as size_factors, which go with the cells that are fitted."
    for name in likelihood.hyperparameters:
        value = getattr(likelihood, name)
        if value is not None and not (is_number(value) and 0 < value < math.inf):
            return (
                f"holds {name}, and expression holds it at one positive number for all genes (None estimates it for "
                f"each): found {value!r}."
            )
    wrong = _wrong_terms(likelihood)
    if wrong:
        summed = (
            ""
            if wrong != ["value"]
            else "set by_totals = True if they are of cells of equal predictors, summed, with "
            "what does not depend on the predictors (−log y!) left out; else "
        )
        return (
            f"gives terms of which {', '.join(wrong)} do not follow from its log_prob; {summed}leave terms out, or see "
            "pyrosplice.testing.check_likelihood."
        )
    return None


def _wrong_terms(likelihood: Likelihood) -> list[str]:
    """Closed forms of a person's own, of cells one by one, that are not the density's, at five counts."""
    if is_ours(type(likelihood)) or likelihood.by_totals or type(likelihood).terms is Likelihood.terms:
        return []
    y = torch.tensor([[0.0, 1.0, 2.0, 4.0, 30.0]], dtype=torch.float64)
    eta, zeta = (y + 0.4).log(), (y / 4).sin()
    rows = (2 * y, torch.full_like(y, 2.0), eta, zeta)
    with faults_named(likelihood):
        found, exact = likelihood.terms(*rows), terms_by_autograd(likelihood.cell_log_prob, *rows)
    parts = Terms._fields if likelihood.free else ("value", "g_eta", "h_eta")
    return [p for p in parts if not torch.allclose(getattr(found, p), getattr(exact, p), rtol=1e-6, atol=1e-6)]


def one_choice(noise_model: str | Likelihood | None, likelihood: str | Likelihood | None) -> str | Likelihood:
    """Choose between ``noise_model`` and ``likelihood``, its name in usage; ``"nb"`` where both are None."""
    if likelihood is not None and noise_model is not None:
        raise InvalidArgumentError(
            f"likelihood: it is another name of noise_model, found {likelihood!r} and {noise_model!r}; leave one out."
        )
    given = noise_model if likelihood is None else likelihood
    chosen = "nb" if given is None else given
    likelihood_of(chosen)
    return chosen


def estimates_dispersion(likelihood: Likelihood) -> bool:
    """Whether each gene has a negative-binomial dispersion of its own."""
    return likelihood.is_negative_binomial and bool(likelihood.free)


def held_scale(likelihood: Likelihood) -> float | None:
    """The scale predictor at which a hyper-parameter is held; None where one is estimated or there is none."""
    held = [getattr(likelihood, name) for name in likelihood.hyperparameters]
    return None if likelihood.free or not held else likelihood.scale_sign * math.log(held[0])


def check_multiplies(likelihood: Likelihood) -> None:
    """Raise where the logarithm of a size factor, added to the predictor, does not multiply the mean.

    The normal likelihood, whose predictor is the mean, takes them as the documented interface does; a density of one's
    own that says no mean has to be one whose predictor they may be added to.
    """
    if likelihood.states("mean") and not is_ours(type(likelihood)) and mean_link(likelihood) != "log":
        raise InvalidArgumentError(
            f"size_factors: they multiply means that are exp(eta), and {type(likelihood).__name__} has others; leave "
            "them out, or give what is added to the predictor with size_factors_logged=False."
        )


def mean_link(likelihood: Likelihood) -> str | None:
    """Link ``"log"`` or ``"identity"`` where the mean of a count is a multiple of it at any predictor, else None."""
    if not likelihood.states("mean"):
        return None
    eta = torch.tensor([[[-1.0], [0.0], [2.0]]], dtype=torch.float64)
    try:
        with faults_named(likelihood):
            mean = likelihood.bind_start(1, eta).expected(eta).flatten().detach()
    except NotImplementedError:  # of a distribution that has no mean
        return None
    if torch.allclose(mean, mean[1] * eta.exp().flatten(), rtol=1e-9, atol=0.0):
        return "log"
    return "identity" if torch.allclose(mean, eta.flatten(), rtol=1e-9, atol=1e-12) else None
