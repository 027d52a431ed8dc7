r"""Posterior of the expression GLM: Gaussians at the mode, importance draws or NUTS, as the tree that ArviZ reads.

Genes share nothing, so a batch of G genes is G small problems: :math:`q(a_g, b_g) = N(\hat\theta_g, H_g^{-1})`, with
log weights :math:`\log p(y, a, b) - \log q(a, b)` and their Pareto k̂.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._expression.engine.laplace_guide import fit_mode
from pyrosplice._expression.estimator import Estimator
from pyrosplice._expression.expression_model import ExpressionModel
from pyrosplice._expression.noise_models import mean_link
from pyrosplice._expression.own_expression import model_arguments
from pyrosplice._tables.names import places_of
from pyrosplice.errors import InvalidArgumentError, check_option
from pyrosplice.likelihoods._cell_counts import CellCounts
from pyrosplice.posterior._chains import ChainOptions, in_chains
from pyrosplice.posterior._draw_options import METHODS
from pyrosplice.posterior._nuts import Coordinates, NutsOptions, run_chains
from pyrosplice.posterior._progress import bar, progress
from pyrosplice.posterior._sampling import OVERSAMPLED, WeightedSites, resampled
from pyrosplice.posterior._seeding import seeded
from pyrosplice.posterior._tree import GROUPS, whole_numbers
from pyrosplice.priors._named import Priors, check_priors

Arrays = dict[str, tuple[tuple[str, ...], Any]]
HYPER_OF_EFFECTS = ("plug-in", "integrate")
LARGEST_ETA = 30.0  # of a prior draw: e^30 counts


def weak_priors() -> dict[str, dist.TorchDistribution]:
    """Weakly informative priors: ``location`` Normal(0, 5), ``scale`` Normal(1, 2).

    Natural log units. For negative-binomial noise the scale is −log dispersion: 95 % of prior dispersions are between
    0.007 and 19.
    """
    location, scale = torch.tensor([[0.0, 5.0], [1.0, 2.0]], dtype=torch.float64)
    return {"location": dist.Normal(*location), "scale": dist.Normal(*scale)}


@dataclass(frozen=True)
class Data:
    """Counts and Pyro model of some genes, and how free coefficients become all of them."""

    counts: Tensor
    model: ExpressionModel
    estimator: Estimator
    genes: Tensor

    def log_likelihood(self, theta: Tensor) -> Tensor:
        """Log likelihood of each count ``(..., G, N)`` at free coefficients ``(..., G, D)``."""
        return self.distribution(theta).log_prob(self.counts)

    def distribution(self, theta: Tensor) -> CellCounts:
        """Distribution of the counts at these coefficients, ``(..., G, N)``."""
        p, _ = self.model.n_coefficients
        eta = theta[..., :p] @ self.model.location.T + self.model.offset
        zeta = theta[..., p:] @ self.model.scale.T + self.model.zeta_offset
        limit = LARGEST_ETA if self.model.likelihood.of_counts else torch.inf
        return CellCounts(self.model.likelihood, eta.clamp_max(limit), zeta.clamp(-limit, limit))

    def log_prior(self, theta: Tensor) -> Tensor:
        """Log prior density of each gene's coefficients, ``(..., G)``."""
        p, _ = self.model.n_coefficients
        return self.model.location_prior.log_prob(theta[..., :p]) + self.model.scale_prior.log_prob(theta[..., p:])

    def full(self, theta: Tensor) -> dict[str, Tensor]:
        """Coefficients and quantities derived from them, by name ``(..., G, ·)``."""
        inputs, (p, _) = self.estimator.input_data, self.model.n_coefficients
        sites = {}
        for name, own, constraints in (
            ("location", theta[..., :p], inputs.constraints_loc),
            ("scale", theta[..., p:], inputs.constraints_scale),
        ):
            if own.shape[-1]:
                sites[name] = own @ torch.from_numpy(constraints.matrix.T.copy()) + torch.from_numpy(constraints.shift)
        likelihood = self.model.likelihood
        if mean_link(likelihood) == "log":
            sites["log2_effect"] = sites["location"] / np.log(2)
        if "scale" in sites and sites["scale"].shape[-1] == 1:
            name = likelihood.free[0]
            sites[name] = torch.exp(likelihood.scale_sign * sites["scale"][..., 0])
        return sites


@dataclass(frozen=True, kw_only=True)
class ExpressionDrawOptions(ChainOptions):
    """What is asked of the posterior of expression; :meth:`pyrosplice.ExpressionGLM.posterior` documents it."""

    priors: Priors = None
    genes: str | Sequence[str | int] | None = None
    groups: Sequence[str] | None = None
    hyper: str | None = None

    def __post_init__(self) -> None:
        check_option("method", self.method, METHODS)
        self.check_chains()
        if self.hyper is not None:
            check_option("hyper", self.hyper, HYPER_OF_EFFECTS)
        for group in self.groups or ():
            check_option("groups", group, GROUPS)


def expression_posterior(estimator: Estimator, asked: ExpressionDrawOptions) -> xr.DataTree:
    """Draw from the posterior of expression; :meth:`pyrosplice.ExpressionGLM.posterior` says how."""
    if asked.hyper is not None:
        raise InvalidArgumentError(
            f"hyper: without random effects the hyper-parameter is drawn with the coefficients, found {asked.hyper!r}; "
            "leave it out."
        )
    data = data_of(estimator, asked.priors, asked.genes)
    made = GROUPS if asked.groups is None else asked.groups
    kept, seed = asked.within_memory(_numbers_per_draw(data, made)), asked.seed
    method, n_draws, options = kept.method, kept.num_samples, kept.nuts_options or NutsOptions()
    with progress(quiet=asked.quiet):
        if method == "nuts":
            theta, stats = _nuts(data, n_draws, seed, options)
        else:
            theta, stats = _laplace(data, n_draws, method, torch.Generator().manual_seed(seed))
        tree = _tree(data, theta, stats, made, method, seed)
    return in_chains(tree, asked, kept)


def _numbers_per_draw(data: Data, groups: Sequence[str]) -> dict[str, float]:
    """Numbers that one draw takes, by the group that keeps them."""
    n_genes, n_cells = data.counts.shape
    sites = sum(data.model.n_coefficients) + data.model.n_coefficients[0] + 1  # with effects and dispersion
    by_cell = ("posterior_predictive", "log_likelihood", "prior_predictive")
    whole = {group: float(n_genes * n_cells) for group in by_cell if group in groups}
    whole |= {"sample_stats": 2.0 * n_genes, "log_prior": float(n_genes * ("log_prior" in groups))}
    return {"posterior": float(n_genes * sites), "prior": float(n_genes * sites * ("prior" in groups))} | whole


def data_of(estimator: Estimator, priors: Priors, genes: str | Sequence[str | int] | None) -> Data:
    """Counts and model of some genes of a fitted estimator."""
    inputs, design = estimator.input_data, estimator.source.design
    if design.weights is not None:
        raise InvalidArgumentError("weights: a posterior of weighted observations is not defined; fit without.")
    check_priors(priors, real=("location", "scale"))
    given = weak_priors()
    for name, prior in ({} if isinstance(priors, str) else priors or {}).items():
        check_option("priors", name, given)
        given[name] = prior
    which = places_of(genes, inputs.counts.gene_names, "genes")
    if not len(which):
        raise InvalidArgumentError("genes: expected at least one, found none.")
    arguments = model_arguments(inputs)
    if arguments["offset"].ndim == 2:
        arguments["offset"] = arguments["offset"][which]
    model = ExpressionModel(**arguments, location_prior=given["location"], scale_prior=given["scale"])
    return Data(torch.from_numpy(inputs.counts.genes(which).copy()), model, estimator, torch.from_numpy(which))


def _laplace(data: Data, n_draws: int, method: str, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Draws (1, S, G, D), resampled by their weights for ``"importance"``."""
    _, guide = fit_mode(data.model, data.counts)
    total = n_draws * (OVERSAMPLED if method == "importance" else 1)
    theta = guide.sample(total, generator=generator)
    proposal = guide.distribution.log_prob(theta)
    with bar(total, method, "draw") as shown:
        likelihood = torch.empty(theta.shape[:-1], dtype=theta.dtype)
        for place, one in enumerate(theta):
            likelihood[place] = data.log_likelihood(one).sum(-1)
            shown.update()
    draws = WeightedSites({"theta": theta}, likelihood + data.log_prior(theta) - proposal)
    sites, weights, k_hat = resampled(draws, n_draws, method, generator)
    weights = weights - weights.amax(0)
    stats = {"log_weight": weights.unsqueeze(0), "pareto_k": k_hat.expand(1, *weights.shape)}
    return sites["theta"].unsqueeze(0), stats


def _nuts(data: Data, n_draws: int, seed: int, options: NutsOptions) -> tuple[Tensor, dict[str, Tensor]]:
    """Draws (C, S, G, D) of the Pyro model, gene by gene, in the coordinates of Laplace's Gaussian."""
    _, guide = fit_mode(data.model, data.counts)
    p, found = data.model.n_coefficients[0], []
    with bar(len(data.genes) * options.iterations(n_draws), "nuts", "iteration") as shown:
        for row, gene in enumerate(data.genes.tolist()):
            with seeded(seed + gene):
                law = dist.MultivariateNormal(guide.theta[row], scale_tril=guide.factor[row])
                one, draws = _single(data.model, row), law.sample(torch.Size([2000]))
                pilot = {"location": draws[:, None, None, :p], "scale": draws[:, None, None, p:]}
                coordinates = Coordinates(partial(one, data.counts[[row]]), pilot)
            chains = run_chains(coordinates, n_draws, options, (seed, gene), shown)
            values = [torch.cat([sites["location"], sites["scale"]], -1)[:, 0, 0] for sites, _ in chains]
            found.append((torch.stack(values), torch.stack([diverging for _, diverging in chains])))
    theta, diverging = (torch.stack(parts, 2) for parts in zip(*found, strict=True))
    return theta, {"diverging": diverging}


def _single(model: ExpressionModel, row: int) -> ExpressionModel:
    offset = model.offset if model.offset.ndim == 1 else model.offset[[row]]
    one = ExpressionModel(
        model.location, model.scale, likelihood=model.likelihood, offset=offset, zeta_offset=model.zeta_offset
    )
    one.location_prior, one.scale_prior = model.location_prior, model.scale_prior
    return one


def _names(data: Data, theta: Tensor) -> dict[str, NDArray[Any]]:
    """What the entries of each dimension are called."""
    inputs = data.estimator.input_data
    return {
        "gene": np.asarray(inputs.counts.gene_names)[data.genes.numpy()],
        "coefficient": np.asarray(inputs.location.names),
        "scale_coefficient": np.asarray(inputs.scale.names),
        "chain": np.arange(theta.shape[0]),
        "draw": np.arange(theta.shape[1]),
    }


def _tree(
    data: Data, theta: Tensor, stats: dict[str, Tensor], groups: Sequence[str], method: str, seed: int
) -> xr.DataTree:
    draw, names, inputs = ("chain", "draw", "gene"), _names(data, theta), data.estimator.input_data
    own = {"location": ("coefficient",), "log2_effect": ("coefficient",), "scale": ("scale_coefficient",)}

    def dataset(arrays: Arrays) -> xr.Dataset:
        used = {dim for dims, _ in arrays.values() for dim in dims}
        return xr.Dataset(arrays, coords={k: v for k, v in names.items() if k in used})

    def sites(values: Tensor) -> xr.Dataset:
        return dataset({k: ((*draw, *own.get(k, ())), v.numpy()) for k, v in data.full(values).items()})

    tree = {"posterior": sites(theta), "sample_stats": dataset({k: (draw, v.numpy()) for k, v in stats.items()})}
    with seeded(seed):
        if "posterior_predictive" in groups:
            tree["posterior_predictive"] = dataset({"counts": ((*draw, "cell"), _drawn(data, theta))})
        if "prior" in groups:
            prior = _prior_draws(data, theta)
            tree["prior"] = sites(prior)
            if "prior_predictive" in groups:
                tree["prior_predictive"] = dataset({"counts": ((*draw, "cell"), _drawn(data, prior))})
    if "log_likelihood" in groups:
        tree["log_likelihood"] = dataset({"counts": ((*draw, "cell"), data.log_likelihood(theta).numpy())})
    if "log_prior" in groups:
        tree["log_prior"] = dataset({"lp": (draw, data.log_prior(theta).numpy())})
    tree["observed_data"] = dataset({"counts": (("gene", "cell"), whole_numbers(data.counts).numpy())})
    offset = data.model.offset
    tree["constant_data"] = dataset(
        {
            "design": (("cell", "coefficient"), inputs.location.matrix.copy()),
            "offset": (("cell",) if offset.ndim == 1 else ("gene", "cell"), offset.numpy().copy()),
        }
    )
    whole = xr.DataTree.from_dict(tree)
    whole.attrs |= {"inference_library": "pyrosplice", "method": method, "hyper": "integrate"}
    return whole


def _drawn(data: Data, theta: Tensor) -> np.ndarray:
    return whole_numbers(data.distribution(theta).sample()).numpy()


def _prior_draws(data: Data, like: Tensor) -> Tensor:
    shape = like.shape[:-1]
    priors = zip((data.model.location_prior, data.model.scale_prior), data.model.n_coefficients, strict=True)
    return torch.cat([prior.sample(shape).reshape(*shape, size) for prior, size in priors], -1).to(like)
