"""A likelihood of one count a cell against its log density: moments, and the forms that expression uses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrosplice.likelihoods._cell_terms import Terms, terms_by_autograd
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.likelihoods._rising import log_rising
from pyrosplice.testing._problems import Problems

LOST_MASS = 1e-3
SHARP = 1e-6  # derivatives that claim to be closed forms, relative
LARGEST = 400  # count that the sums go up to
REACH, STEP = 200.0, 0.02  # of the grid that real numbers are integrated on


def check_moments(problems: Problems, likelihood: Likelihood, eta: Tensor) -> None:
    """Total mass, mean and variance, by sums over the counts, or on a grid of real numbers."""
    counts, weight = _every_count(likelihood, eta)
    mass = weight.sum(0)
    worst = float(mass.flatten()[(mass - 1).abs().argmax()])
    if not math.isclose(worst, 1.0, abs_tol=LOST_MASS):
        what = "counts" if likelihood.of_counts else "numbers"
        problems.add(
            f"log_prob: its probabilities of {what} from {counts.min():g} to {counts.max():g} add up to {worst:.4g}, "
            "expected 1 (constants included; of_counts = False for real numbers)."
        )
        return
    mean = (weight * counts).sum(0)
    for name, expected in (("mean", mean), ("variance", (weight * (counts - mean).square()).sum(0))):
        if likelihood.states(name):
            found = getattr(likelihood, name)(eta)
            if problems.shape(name, found, tuple(eta.shape)):
                problems.close(f"{name} and that of log_prob", found, expected, tolerance=LOST_MASS)


def _every_count(likelihood: Likelihood, eta: Tensor) -> tuple[Tensor, Tensor]:
    """Counts, or the points of a grid of real numbers, and their probabilities, both ``(V, G, N, 1)``."""
    real = not likelihood.of_counts
    values = torch.arange(-REACH if real else 0.0, REACH if real else LARGEST, STEP if real else 1.0)
    counts = values.double()[:, None, None, None].expand(-1, *eta.shape)
    density = likelihood.log_prob(counts, eta.expand(len(values), *eta.shape)).exp().unsqueeze(-1)
    return counts, density * (STEP if real else 1.0)


def check_cells(
    problems: Problems, likelihood: Likelihood, counts: Tensor, eta: Tensor, generator: torch.Generator
) -> None:
    """Check ``terms``, the rows that ``by_totals`` allows to sum, and ``location_information``."""
    if likelihood.scale_sign not in (-1, 1):
        problems.add(f"scale_sign: expected 1 or −1, found {likelihood.scale_sign!r}.")
        return
    y, e = counts[..., 0], eta[..., 0]
    weight = 0.5 + torch.rand(y.shape, generator=generator, dtype=torch.float64)
    zeta = 0.5 * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    if not likelihood.free:
        for name in likelihood.hyperparameters:
            zeta = (likelihood.scale_sign * torch.as_tensor(getattr(likelihood, name)).double().log()).expand_as(zeta)

    def left(y: Tensor, e: Tensor, z: Tensor) -> Tensor:
        """The density less what tables of counts serve."""
        value = likelihood.at_scale(z).log_prob(y, e)
        return value - _tabled(likelihood, y.squeeze(-1), z) if likelihood.by_totals else value

    found, exact = likelihood.terms(weight * y, weight, e, zeta), terms_by_autograd(left, weight * y, weight, e, zeta)
    _close_terms(problems, "terms", likelihood, found, exact)
    if likelihood.by_totals:
        at = e[:1], zeta[:1]
        whole = likelihood.terms((weight * y)[:2].sum(0, True), weight[:2].sum(0, True), *at)
        parts = likelihood.terms((weight * y)[:2], weight[:2], *(v.expand(2, -1) for v in at))
        summed = Terms(*(part.sum(0, True) for part in parts))
        _close_terms(problems, "by_totals: terms of the sum of two cells", likelihood, whole, summed)
    if type(likelihood).location_information is not Likelihood.location_information:
        values, chances = _every_count(likelihood.at_scale(zeta), eta)
        each = terms_by_autograd(left, values[..., 0], torch.ones(()), e.expand(values.shape[:-1]), zeta).h_eta
        information = likelihood.location_information(weight * y, weight, e, zeta)
        expected = weight * (chances[..., 0] * each).sum(0)
        problems.close("location_information and that expected of log_prob", information, expected, tolerance=LOST_MASS)


def _close_terms(problems: Problems, what: str, likelihood: Likelihood, found: Terms, expected: Terms) -> None:
    """Note parts that differ; those of a scale that is not estimated are not read."""
    for part in Terms._fields if likelihood.free else ("value", "g_eta", "h_eta"):
        value, wanted = getattr(found, part), getattr(expected, part)
        if problems.shape(f"{what}: {part}", value, tuple(wanted.shape)):
            problems.close(f"{what}: {part} and that of log_prob", value, wanted, tolerance=SHARP)


def _tabled(likelihood: Likelihood, y: Tensor, zeta: Tensor) -> Tensor:
    """What ``terms`` leave out of the density of a count, by the scale at most."""
    constant = -torch.lgamma(y + 1)
    return constant + log_rising(zeta.exp(), y) - y * zeta if likelihood.is_negative_binomial else constant
