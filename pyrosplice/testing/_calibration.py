r"""Simulation-based calibration: is the posterior of this likelihood, with these priors, what it says it is?

Parameters are drawn from their priors, counts from the likelihood, draws from the posterior of these counts. The rank
of each true value among its draws is then uniform, whatever the model, if the posterior is right (Talts et al. 2018,
arXiv:1804.06788). Ranks are taken of every entry of every site, and of the log likelihood of the counts, which depends
on all of them and on the data: a posterior that is wrong in a way that no single parameter shows, such as one that is
the prior, changes its ranks (Modrák et al. 2025, Bayesian Anal. 20:461).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from pyrosplice._usage.glm import MultinomGLM
from pyrosplice._usage.glmm import MultinomGLMM
from pyrosplice._usage.records import check_jobs
from pyrosplice.errors import InvalidArgumentError, check_integer, check_option, check_share, check_switches
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.posterior._draw_options import HYPER, METHODS
from pyrosplice.posterior._draws import n_chains
from pyrosplice.posterior._nuts import NutsOptions
from pyrosplice.posterior._seeding import seeded
from pyrosplice.posterior._tree import prior_draws
from pyrosplice.priors._named import Priors
from pyrosplice.priors._sites import is_flat
from pyrosplice.testing._rank_statistics import PosteriorCalibration

THINNED = 10  # draws of NUTS for each one that is kept: ranks need independent ones


def calibrate(  # noqa: PLR0913 (options of a simulation, all by keyword)
    model: Likelihood | MultinomGLM,
    priors: Priors = None,
    data_shape: tuple[int, ...] | None = None,
    *,
    totals: object = None,
    design: object = None,
    covariance: object = None,
    n_simulations: int = 500,
    n_draws: int = 99,
    method: str = "laplace",
    hyper: str = "integrate",
    nuts_options: NutsOptions | None = None,
    confidence: float = 0.99,
    seed: int = 0,
    batch_size: int = 50,
    n_jobs: int = 1,
    print_progress: bool = True,
) -> PosteriorCalibration:
    """Check by simulation whether the posterior of a likelihood with priors, shipped or your own, is right.

    Parameters
    ----------
    model
        A likelihood: its GLM, or with ``covariance`` its spatial GLMM. Or a
        :class:`~pyrosplice.MultinomGLM` or :class:`~pyrosplice.MultinomGLMM` that has data: priors, spots, isoforms,
        totals (those of its genes in turn), covariates and covariance are its own then, and not given here.
    priors
        Proper priors of every site: Pyro distributions by site, or ``"weak"``.
    data_shape
        ``(N, K)``: spots and isoforms of a data set.
    totals
        Molecules of each spot: a number (50), ``(N,)``, or ``(S, N)`` for each simulation. Of no use to likelihoods
        whose totals are random, and refused there.
    design
        Covariates ``(N, P)``, or their number: standard normal ones are drawn then. None for none.
    covariance
        V of the spatial random effect, as ``corr_sp`` of :meth:`MultinomGLMM.setup_data`; None for the GLM.
    n_simulations, n_draws
        Data sets S, and posterior draws of each. Effective draws: ranks are of n_draws + 1 values.
    method, hyper
        As of :meth:`MultinomGLM.posterior`. ``"nuts"`` is thinned by ten.
    nuts_options
        Options of NUTS; one chain by default.
    confidence
        Confidence of the bands, and of all verdicts together.
    seed
        Seed of everything random. The same seed gives the same ranks, whatever ``n_jobs``.
    batch_size
        Data sets fitted together.
    n_jobs
        Processes.
    print_progress
        A progress bar.

    Returns
    -------
    PosteriorCalibration
        ``print`` it for a sentence; ``ranks``, ``table``, ``plot()``.

    Raises
    ------
    InvalidArgumentError
        Flat priors, which cannot be drawn from; shapes that do not fit; arguments that a model with data has already;
        joint fits and a σ that is held; a likelihood that cannot ``sample``.

    Examples
    --------
    >>> from pyrosplice.likelihoods import Binomial
    >>> from pyrosplice.testing import calibrate
    >>> found = calibrate(Binomial(), "weak", (20, 2), n_simulations=60, print_progress=False)
    >>> found.table["quantity"].tolist()
    ['bias_eta', 'log_likelihood']
    """
    check_option("method", method, METHODS)
    check_option("hyper", hyper, HYPER)
    check_switches(print_progress=print_progress)
    confidence = check_share("confidence", confidence)
    size, own = check_integer("n_simulations", n_simulations, least=2), check_integer("seed", seed, least=0)
    n_draws, n_jobs = check_integer("n_draws", n_draws), check_jobs(n_jobs, "cpu")
    given: dict[str, Any] = {"data_shape": data_shape, "totals": totals, "design": design, "covariance": covariance}
    with seeded(own):
        if isinstance(model, Likelihood):
            world = _of_likelihood(model, priors, size, given)
        else:
            world = _of_model(model, size, {"priors": priors, **given})
        counts, truth = world.draw()
    options = NutsOptions(num_chains=1) if method == "nuts" and nuts_options is None else nuts_options
    asked = {"method": method, "hyper": hyper, "nuts_options": options}
    batches = torch.arange(size).split(check_integer("batch_size", batch_size))
    tasks = (
        delayed(_ranks)(
            world, counts[some], {name: v[some] for name, v in truth.items()}, n_draws, own * size + int(some[0]), asked
        )
        for some in batches
    )
    found = Parallel(n_jobs=n_jobs, return_as="generator")(tasks)
    with tqdm(total=size, desc="calibrate", unit="simulation", disable=not print_progress) as bar:
        parts = []
        for part in found:
            parts.append(part)
            bar.update(len(part))
    table = pd.concat(parts, ignore_index=True)
    about = {"model": world.name, "n_simulations": size, "seed": own, "method": method, "hyper": hyper}
    return PosteriorCalibration.of(table, n_draws, about, confidence)


@dataclass(frozen=True)
class World:
    """Where data sets come from and how they are fitted.

    Attributes
    ----------
    estimator
        The model of all simulations, as genes, with totals but no counts of theirs yet.
    space
        Spatial covariance as arguments of ``setup_data``.
    totals
        ``(S, N)``.
    """

    estimator: MultinomGLM
    space: Mapping[str, Any]
    totals: Tensor

    @property
    def name(self) -> str:
        """The likelihood, and whether there is a random effect."""
        return f"{self.estimator.likelihood.name} {'GLMM' if self.space else 'GLM'}"

    def draw(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Counts ``(S, N, K)`` and the sites' values that drew them, with the log likelihood of each data set."""
        program = self.estimator.posterior_problem().program()
        flat = [name for name, prior in program.priors.items() if is_flat(prior) and prior.event_shape.numel()]
        if flat:
            raise InvalidArgumentError(
                f"priors: expected a proper prior of every site, found none (flat) of {flat}; priors='weak' has all."
            )
        program.likelihood.require("sample")
        values = prior_draws(program, 1, torch.arange(len(self.totals)))
        truth = {name: value[0].double() for name, value in values.items()}
        eta = program.linear_predictor(truth)
        bound = program.likelihood.bind({name: truth[name] for name in program.likelihood.free})
        counts = bound.draw(self.totals, eta)
        density = bound.log_prob(counts, eta).sum(-1, keepdim=True)
        sites = {name: value for name, value in truth.items() if name != "nu" and value[0].numel()}
        return counts, {**sites, "log_likelihood": density}

    def fit(self, counts: Tensor) -> MultinomGLM:
        """The model of some of the data sets, fitted."""
        model = self.estimator.clone()
        model.setup_data(counts, design_mtx=self.estimator.design_mtx, **self.space)
        model.fit(quiet=True)
        return model


def _ranks(
    world: World, counts: Tensor, truth: Mapping[str, Tensor], n_draws: int, seed: int, asked: Mapping[str, Any]
) -> pd.DataFrame:
    """Rank of the truth among the draws (0 to n_draws), one row a data set; NaN where there are no draws."""
    nuts = asked["method"] == "nuts"
    chains = n_chains(asked["method"], asked["nuts_options"])
    n_samples = max(4, -(-THINNED * n_draws // chains)) if nuts else n_draws
    made: dict[str, Any] = {"num_samples": n_samples, "groups": ("log_likelihood",), "seed": seed, "quiet": True}
    tree = world.fit(counts).posterior(**made, **asked)
    kept = np.linspace(0, chains * n_samples - 1, n_draws).round().astype(int)

    def drawn(values: object) -> NDArray[np.float64]:
        flat = np.asarray(values).reshape(chains * n_samples, len(counts), -1)
        return flat[kept]

    found: dict[str, Any] = {}
    for site, value in truth.items():
        whole = tree["posterior"][site] if site != "log_likelihood" else tree[site]["counts"].sum("spot")
        draws, true = drawn(whole.values), value.flatten(1).numpy()
        below = np.where(np.isfinite(draws).all(0), (draws < true).sum(0), np.nan)
        names = [site] if true.shape[1] == 1 else [f"{site}_{entry}" for entry in range(true.shape[1])]
        found |= dict(zip(names, below.T, strict=True))
    statistics = tree["sample_stats"]
    if "pareto_k" in statistics:
        found["pareto_k"] = np.asarray(statistics["pareto_k"].values).reshape(-1, len(counts))[0]
    return pd.DataFrame(found)


def _of_likelihood(likelihood: Likelihood, priors: Priors, size: int, given: Mapping[str, Any]) -> World:
    """Data sets of a likelihood; covariates are the first that is drawn."""
    data_shape, design, covariance = given["data_shape"], given["design"], given["covariance"]
    if not isinstance(data_shape, Sequence) or isinstance(data_shape, str) or len(data_shape) != 2:
        raise InvalidArgumentError(f"data_shape: expected (n_spots, n_isoforms), found {data_shape!r}.")
    n_spots = check_integer("data_shape[0]", data_shape[0])
    n_isos = check_integer("data_shape[1]", data_shape[1], least=likelihood.n_categories[0])
    if isinstance(design, int | np.integer):
        design = torch.randn(n_spots, check_integer("design", design), dtype=torch.float64)
    molecules = _totals(given["totals"], likelihood, size, n_spots)
    settings: dict[str, Any] = {"likelihood": likelihood, "priors": priors}
    space: dict[str, Any] = {} if covariance is None else {"corr_sp": covariance}
    if space:
        settings |= {"fitting_method": "marginal_newton", "var_fix_sigma": False}
    model = MultinomGLMM(**settings) if space else MultinomGLM(**settings)
    model.setup_data(_without_usage(molecules, n_isos), design_mtx=design, **space)
    return World(model, space, molecules)


def _of_model(model: MultinomGLM, size: int, given: Mapping[str, Any]) -> World:
    """Data sets like those of a model with data."""
    if not isinstance(model, MultinomGLM):
        raise InvalidArgumentError(
            f"model: expected a likelihood, or a MultinomGLM or MultinomGLMM with data, found {type(model).__name__}."
        )
    double = [name for name, value in given.items() if value is not None]
    if double:
        raise InvalidArgumentError(f"{double[0]}: expected None with a model, which has its own.")
    space: dict[str, Any] = {}
    if isinstance(model, MultinomGLMM):
        if not model.is_marginal or model.var_fix_sigma:
            raise InvalidArgumentError(
                "model: expected a marginal fitting_method and var_fix_sigma=False; joint modes and a σ that is held "
                f"have no posterior to check, found {model.fitting_method!r} and {model.var_fix_sigma}."
            )
        covariance = model.shipped_model().covariance
        values, vectors = covariance.eigenvalues, covariance.eigenvectors
        dense = (vectors * values) @ vectors.T
        space = {"corr_sp": torch.eye(len(values)).double() if bool((values == 1).all()) else (dense + dense.T) / 2}
    totals = model.counts.sum(-1)[torch.arange(size) % model.n_genes]
    whole = model.clone()
    whole.setup_data(_without_usage(totals, model.n_isos), design_mtx=model.design_mtx, **space)
    return World(whole, space, totals)


def _totals(totals: object, likelihood: Likelihood, size: int, n_spots: int) -> Tensor:
    if totals is not None and not likelihood.conditional:
        raise InvalidArgumentError(f"totals: those of {likelihood.name} counts are random; expected None.")
    try:
        given = torch.as_tensor(50.0 if totals is None else totals, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"totals: expected whole numbers, found {totals!r}.") from error
    if given.ndim > 2 or (given.ndim and given.shape != (size, n_spots)[2 - given.ndim :]):
        raise InvalidArgumentError(
            f"totals: expected a number, ({n_spots},) or ({size}, {n_spots}), found shape {tuple(given.shape)}."
        )
    if not bool(((given >= 0) & (given == given.round()) & torch.isfinite(given)).all()):
        raise InvalidArgumentError("totals: expected whole numbers of at least 0.")
    return given.expand(size, n_spots)


def _without_usage(totals: Tensor, n_isos: int) -> Tensor:
    """Counts with these totals, for models that are about to draw others."""
    counts = totals.new_zeros(*totals.shape, n_isos)
    counts[..., 0] = totals
    return counts
