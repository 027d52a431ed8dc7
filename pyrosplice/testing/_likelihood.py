"""The contract of a :class:`~pyrosplice.likelihoods._contract.Likelihood`, tested on numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.testing._cell_likelihood import LOST_MASS, SHARP, check_cells, check_moments
from pyrosplice.testing._problems import Problems

N_GENES, N_SPOTS = 3, 7
MOLECULES = 4


def check_likelihood(likelihood: Likelihood, *, n_isos: int | None = None, seed: int = 0) -> None:
    """Test a likelihood against its own log density, as usage and, where it is of one count a cell, expression use it.

    Shapes; finite values and derivatives, at extreme predictors too; genes that do not interact; a density that sums to
    one over the counts of a spot; ``log_kernel``, ``mean``, ``sample`` and the derivatives against ``log_prob``;
    ``conditional``, ``additive`` and ``log_concave`` where they are claimed; derivatives in the hyper-parameters.
    Of one count a cell: ``variance``, ``terms`` in location and scale, those of summed rows (``by_totals``), and
    ``location_information``.

    Parameters
    ----------
    likelihood
        An instance; free hyper-parameters take their start values.
    n_isos
        K; by default the least it is for, at least two where it allows more.
    seed
        Seed of the numbers that it is tried on.

    Raises
    ------
    ContractError
        With every finding in words (an ``AssertionError``).

    Examples
    --------
    >>> import torch
    >>> from pyrosplice.likelihoods import Likelihood
    >>> class Halved(Likelihood):
    ...     def log_prob(self, counts, eta):  # Poisson counts of half the predictor
    ...         return (counts * eta / 2 - (eta / 2).exp() - torch.lgamma(counts + 1)).sum(-1)
    ...     predictors, n_categories, conditional = ("location",), (1, 1), False
    >>> from pyrosplice.testing import check_likelihood
    >>> check_likelihood(Halved())
    """
    problems = Problems(likelihood)
    least, most = likelihood.n_categories
    k = n_isos or (least if most == least else max(least, 3))
    generator = torch.Generator().manual_seed(int(seed))
    counts = torch.poisson(torch.full((N_GENES, N_SPOTS, k), 2.5, dtype=torch.float64), generator=generator)
    counts[:, 0] = 0
    eta = torch.randn(N_GENES, N_SPOTS, likelihood.n_predictors(k), generator=generator, dtype=torch.float64)
    for name in likelihood.free:
        if not likelihood.hyperparameters[name] > 0:
            problems.add(f"hyperparameters[{name!r}]: expected a positive start value.")
    bound = likelihood.bind_start(N_GENES, counts)
    if _density(problems, bound, counts, eta):
        _derivatives(problems, bound, counts, eta)
        _claims(problems, bound, counts, eta)
        _total_mass(problems, bound, k, eta)
        _mean_and_sample(problems, bound, eta, generator)
        _hyperparameters(problems, likelihood, counts, eta)
        if k == 1 and eta.shape[-1] == 1 and not likelihood.conditional and len(likelihood.hyperparameters) <= 1:
            check_cells(problems, likelihood, counts, eta, generator)
    problems.finish()


def _density(problems: Problems, likelihood: Likelihood, counts: Tensor, eta: Tensor) -> bool:
    value = likelihood.log_prob(counts, eta)
    if not problems.shape("log_prob", value, (N_GENES, N_SPOTS)):
        return False
    if not bool(torch.isfinite(value).all()):
        problems.add("log_prob: expected finite numbers at ordinary counts and predictors, found NaN or infinity.")
        return False
    extreme = likelihood.log_prob(counts, torch.full_like(eta, 30.0)), likelihood.log_prob(counts, eta - 30.0)
    if any(bool(torch.isnan(x).any()) for x in extreme):
        problems.add("log_prob: found NaN at predictors of ±30; use log-sum-exp or softplus rather than log(exp(...)).")
    alone = likelihood.select(torch.tensor([1])).log_prob(counts[1:2], eta[1:2])
    problems.close("log_prob of one gene alone and in a batch", alone, value[1:2], tolerance=1e-9)
    stacked = likelihood.log_prob(counts, torch.stack([eta, eta]))
    if problems.shape("log_prob of two draws of eta (2, genes, spots, Q)", stacked, (2, N_GENES, N_SPOTS)):
        problems.close("log_prob of a stack of draws and of one", stacked[0], value, tolerance=1e-9)
    return not problems.found


def _derivatives(problems: Problems, likelihood: Likelihood, counts: Tensor, eta: Tensor) -> None:
    def by_autograd(method: str, *rest: Tensor) -> Tensor:
        return getattr(Likelihood, method)(_OnlyDensity(likelihood), counts, eta, *rest)

    q = eta.shape[-1]
    root = torch.linspace(-1, 1, N_GENES * N_SPOTS * q * q, dtype=torch.float64).reshape(N_GENES, N_SPOTS, q, q)
    weight = root @ root.mT
    for method, rest in (("score", ()), ("information", ()), ("information_gradient", (weight,))):
        value, expected = getattr(likelihood, method)(counts, eta, *rest), by_autograd(method, *rest)
        if not bool(torch.isfinite(expected).all()):
            problems.add(f"log_prob: its derivative for {method!r} is not finite; avoid where() over NaN and sqrt(0).")
        elif problems.shape(method, value, tuple(expected.shape)):
            problems.close(f"{method} and the derivative of log_prob", value, expected, tolerance=SHARP)
    kernel = likelihood.log_prob(counts, eta) - likelihood.kernel(counts, eta)
    other = likelihood.log_prob(counts, eta + 0.7) - likelihood.kernel(counts, eta + 0.7)
    problems.close(
        "log_prob − log_kernel at two values of eta (it must not depend on eta)", kernel, other, tolerance=1e-8
    )


class _OnlyDensity(Likelihood):
    """What is left of a likelihood without its closed forms."""

    def __init__(self, likelihood: Likelihood) -> None:
        self.likelihood = likelihood

    def log_prob(self, counts: Tensor, eta: Tensor) -> Tensor:
        return self.likelihood.log_prob(counts, eta)


def _claims(problems: Problems, likelihood: Likelihood, counts: Tensor, eta: Tensor) -> None:
    if likelihood.conditional:
        empty = likelihood.log_prob(torch.zeros_like(counts), eta)
        if not bool((empty - empty[:, :1]).abs().max() <= 1e-9):
            problems.add(
                "conditional: a spot without counts has a log density that depends on eta, so empty spots inform; "
                "set conditional = False, or take the total as given."
            )
    if likelihood.additive:
        level = eta[:, :1].expand(-1, 2, -1)
        pair = lambda shift: likelihood.log_prob(counts[:, 1:3], level + shift).sum(-1)  # noqa: E731
        joined = lambda shift: likelihood.log_prob(counts[:, 1:3].sum(1, keepdim=True), level[:, :1] + shift)[:, 0]  # noqa: E731
        change = (pair(0.5) - pair(0.0)) - (joined(0.5) - joined(0.0))
        problems.close(
            "additive: two spots and one with their summed counts", change, torch.zeros_like(change), tolerance=1e-8
        )
    if likelihood.log_concave:
        found = [torch.linalg.eigvalsh(likelihood.information(counts, scale * eta)) for scale in (0.1, 1.0, 3.0)]
        least = float(torch.stack(found).amin())
        if least < -1e-8:
            problems.add(f"log_concave: the information has an eigenvalue of {least:.3g} somewhere; set False.")


def _compositions(total: int, k: int) -> list[list[int]]:
    if k == 1:
        return [[total]]
    return [[first, *rest] for first in range(total + 1) for rest in _compositions(total - first, k - 1)]


def _total_mass(problems: Problems, likelihood: Likelihood, k: int, eta: Tensor) -> None:
    if not likelihood.conditional:
        if k == 1:
            check_moments(problems, likelihood, eta)
        return
    table: Sequence[Sequence[int]] = _compositions(MOLECULES, k)
    counts = torch.tensor(table, dtype=torch.float64)[:, None, None].expand(-1, *eta.shape[:-1], -1)
    masses = likelihood.log_prob(counts, eta.expand(len(table), *eta.shape)).exp().sum(0)
    mass = float(masses.flatten()[(masses - 1).abs().argmax()])
    if not math.isclose(mass, 1.0, abs_tol=LOST_MASS):
        which = f"all counts of {MOLECULES} molecules"
        problems.add(f"log_prob: its probabilities of {which} add up to {mass:.4g}, expected 1 (constants included).")


def _mean_and_sample(problems: Problems, likelihood: Likelihood, eta: Tensor, generator: torch.Generator) -> None:
    try:
        likelihood.require("mean")
        mean = likelihood.mean(eta)
    except NotImplementedError:
        return
    if likelihood.conditional and not bool(((mean.sum(-1) - 1).abs() < 1e-8).all()):
        problems.add("mean: expected usage that sums to one over the isoforms; it does not.")
    totals, n_draws = torch.full(eta.shape[:-1], 6.0, dtype=torch.float64), 4000
    try:
        likelihood.require("sample")
        draws = likelihood.sample(
            totals.expand(n_draws, *totals.shape), eta.expand(n_draws, *eta.shape), generator=generator
        )
    except NotImplementedError:
        return
    if not problems.shape("sample", draws, (n_draws, *mean.shape)):
        return
    if likelihood.conditional and not bool((draws.sum(-1) == totals).all()):
        problems.add("sample: expected counts that add up to the totals of their spots; they do not.")
    expected = totals.unsqueeze(-1) * mean if likelihood.conditional else mean
    error = draws.std(0) / n_draws**0.5
    if bool(((draws.mean(0) - expected).abs() > 6 * error + 1e-3 * expected).any()):
        problems.add("sample and mean: the mean of 4,000 draws is not the mean that is claimed (beyond 6 errors).")


def _hyperparameters(problems: Problems, likelihood: Likelihood, counts: Tensor, eta: Tensor) -> None:
    for name in likelihood.free:
        start = likelihood.bind_start(N_GENES, counts)
        value = getattr(start, name)
        at = [likelihood.bind_start(N_GENES, counts).bind({name: value * f}) for f in (math.exp(-1e-4), math.exp(1e-4))]
        low, high = (one.log_prob(counts, eta).sum(-1) for one in at)
        if bool((low == high).all()):
            problems.add(
                f"{name}: log_prob does not change with it; read it as self.{name}, which has shape (genes, 1)."
            )
            continue
        slope = start.hyper_gradient(counts, eta, (name,), None, None)[0][:, 0]
        problems.close(f"{name}: derivative of log_prob and its difference", slope, (high - low) / 2e-4, tolerance=1e-5)
