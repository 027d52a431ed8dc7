"""Posterior of a Gaussian mixture by Gibbs sampling or NUTS, as the tree that ArviZ reads, labels aligned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform

from pyrosplice._mixture.em.loop import block_size
from pyrosplice._mixture.em.many import log_joint_of_cells
from pyrosplice._mixture.gaussian_mixture import MixtureParameters, as_matrices, gaussian_mixture
from pyrosplice._mixture.gibbs_posterior import (
    GibbsChains,
    aligned_to,
    as_tree,
    component_labels,
    proper_prior,
    sample_posterior,
)
from pyrosplice._mixture.mixture_prior import CovarianceType, MixturePrior, MixturePriors, SitePriors, one_prior
from pyrosplice._mixture.patients.triplets import TripletDataset
from pyrosplice._mixture.rows import as_rows
from pyrosplice._tables.names import text_names
from pyrosplice.errors import InvalidArgumentError, NotReadyError, check_integer, check_option, check_switches
from pyrosplice.posterior._chains import ASKED
from pyrosplice.posterior._memory import OVER_MEMORY, draws_within
from pyrosplice.posterior._nuts import Coordinates, NutsOptions, run_chains
from pyrosplice.posterior._progress import AFTER, bar, progress
from pyrosplice.posterior._seeding import seeded
from pyrosplice.posterior._tree import GROUPS

METHODS = ("gibbs", "nuts")
SITES = ("weights", "means", "covariances")
N_PILOT = 500  # Gibbs draws of each of four chains that set NUTS's coordinates


@dataclass(frozen=True, kw_only=True)
class MixtureDrawOptions:
    """What is asked of the posterior of a mixture; :meth:`pyrosplice.GaussianMixture.posterior` documents it."""

    num_samples: int
    method: str = "gibbs"
    prior: MixturePrior | None = None
    priors: MixturePriors = None
    num_chains: int = 4
    warmup_steps: int = 200
    groups: Sequence[str] | None = None
    names: Mapping[str, Sequence[Any]] | None = None
    seed: int = 0
    use_rep: str | None = None
    progress: bool | None = None
    quiet: bool = False
    max_memory: str | float | None = None
    over_memory: str = "refuse"
    thin: int = 1

    def check(self) -> None:
        """Raise for what no mixture could follow."""
        check_option("method", self.method, METHODS)
        check_switches(quiet=self.quiet)
        check_option("progress", self.progress, (None, True, False))
        if self.quiet and self.progress:
            raise InvalidArgumentError("progress, quiet: found True of both; leave one of them out.")
        check_option("over_memory", self.over_memory, OVER_MEMORY)
        check_integer("num_samples", self.num_samples)
        check_integer("num_chains", self.num_chains)
        check_integer("warmup_steps", self.warmup_steps, least=0)
        check_integer("seed", self.seed, least=0)
        for group in self.made:
            check_option("groups", group, GROUPS)

    def within_memory(self, per_draw: Mapping[str, float]) -> MixtureDrawOptions:
        """Keep one of as many draws as memory asks for (``over_memory="thin"``), else refuse."""
        limits: dict[str, Any] = {"max_memory": self.max_memory, "over_memory": self.over_memory}
        kept = draws_within(per_draw, self.num_samples, self.num_chains, least_by_step=1, **limits)
        return replace(self, num_samples=kept.n_draws, thin=kept.step)

    @cached_property
    def made(self) -> Sequence[str]:
        """The optional groups to make."""
        return GROUPS if self.groups is None else text_names(self.groups, "groups")


def mixture_posterior(X: object, fitted: MixtureParameters, asked: MixtureDrawOptions) -> xr.DataTree:
    """Draw from the posterior of a mixture; :meth:`pyrosplice.GaussianMixture.posterior` says how."""
    asked.check()
    kind = fitted.covariance_type
    rows = as_rows(X, size=block_size(fitted.means.shape[1], kind), use_rep=asked.use_rep, dtype=torch.float64)
    cells = torch.cat([rows.block(a, b)[0] for a, b in rows.spans()])
    prior = proper_prior(rows, fitted, one_prior(asked.prior, asked.priors))
    _check_names({} if asked.names is None else asked.names, cells, fitted)
    kept = asked.within_memory(_numbers_per_draw(cells, fitted, asked.made))
    with progress(quiet=asked.quiet or asked.progress is False, after=0.0 if asked.progress else AFTER):
        if kept.method == "gibbs":
            chains = GibbsChains(kept.num_samples, kept.warmup_steps, kept.num_chains, kept.seed, kept.thin)
            tree = sample_posterior(cells, fitted, chains, prior=prior)
        else:
            options = NutsOptions(kept.warmup_steps, kept.num_chains, thin=kept.thin)
            tree = _nuts(cells, fitted, prior, kept.num_samples, options, kept.seed)
        whole = _completed(tree, cells, fitted, prior, asked)
    if kept.num_samples != asked.num_samples:
        whole.attrs[ASKED] = int(asked.num_samples)
    return whole


def _check_names(names: Mapping[str, Sequence[Any]], cells: Tensor, fitted: MixtureParameters) -> None:
    features = cells.shape[1]
    sizes = {"cell": len(cells), "feature": features, "feature_other": features, "component": fitted.n_components}
    if not isinstance(names, Mapping):
        raise InvalidArgumentError(f"names: expected a mapping of names by dimension, found {type(names).__name__}.")
    for dim, given in names.items():
        check_option("names", dim, sizes)
        if isinstance(given, str) or not isinstance(given, Sized):
            raise InvalidArgumentError(f"names[{dim!r}]: expected {sizes[dim]} names, found {given!r}.")
        if len(given) != sizes[dim]:
            raise InvalidArgumentError(f"names[{dim!r}]: expected {sizes[dim]} names, one each, found {len(given)}.")


def _numbers_per_draw(cells: Tensor, fitted: MixtureParameters, groups: Sequence[str]) -> dict[str, float]:
    """Numbers that one draw takes, by the group that keeps them."""
    n_cells, n_features = cells.shape
    k = fitted.means.shape[1] if fitted.means.ndim == 3 else len(fitted.means)
    predictive = [group for group in ("posterior_predictive", "prior_predictive") if group in groups]
    sites = float(k * (n_features * n_features + 2 * n_features + 1) + 2)  # with what is said of the sampler
    whole = {group: float(n_cells * n_features) for group in predictive}
    prior = sites * ("prior" in groups)
    return {
        "posterior": sites,
        "prior": prior,
        "log_likelihood": float(n_cells * ("log_likelihood" in groups)),
        **whole,
    }


def posterior_of_patients(dataset: TripletDataset, *, num_samples: int = 500, **options: Any) -> dict[str, xr.DataTree]:
    """Posterior of each patient's own mixture, by patient, after :func:`pyrosplice.fit_gmm`.

    Parameters
    ----------
    dataset
        As ``fit_gmm`` returned it, with a mixture a patient. The draws are given all cells of a patient.
    num_samples, **options
        As of :meth:`pyrosplice.GaussianMixture.posterior`.

    Raises
    ------
    NotReadyError
        Before ``fit_gmm``.
    InvalidArgumentError
        Patients that share components: their posterior is not that of one patient's cells.
    """
    fitted = getattr(dataset, "gmm", None)
    if fitted is None:
        raise NotReadyError("dataset: expected one that fit_gmm returned.")
    if dataset.identical_supports:
        raise InvalidArgumentError("dataset: the patients share components; draw from mixtures of their own.")
    asked, trees = MixtureDrawOptions(num_samples=num_samples, **options), {}
    for patient, mixture in zip(dataset.patients(), _mixtures(dataset), strict=True):
        trees[patient.name] = mixture_posterior(patient.cells, mixture, asked)
    return trees


def _mixtures(dataset: TripletDataset) -> list[MixtureParameters]:
    assert dataset.weights is not None and dataset.covariances is not None
    kept = [weights > 0 for weights in dataset.weights]
    parts = zip(dataset.weights, dataset.supports, dataset.covariances, kept, strict=True)
    return [MixtureParameters(w[k], means[k], covariances[k], "full") for w, means, covariances, k in parts]


def _nuts(
    cells: Tensor, fitted: MixtureParameters, prior: SitePriors, n_draws: int, options: NutsOptions, seed: int
) -> xr.DataTree:
    """NUTS on the Pyro model, assignments summed out, in coordinates from Gibbs draws."""
    kind = fitted.covariance_type
    with progress(quiet=True):
        pilot = sample_posterior(cells, fitted, GibbsChains(N_PILOT, seed=seed), prior=prior)["posterior"]
    draws = {name: torch.from_numpy(np.array(pilot[name])).flatten(0, 1) for name in SITES}
    program = partial(gaussian_mixture, cells, n_components=fitted.n_components, covariance_type=kind, priors=prior)
    with bar(options.iterations(n_draws), "nuts", "iteration") as shown:
        with seeded(seed):
            coordinates = Coordinates(program, draws, _transforms(kind))
        chains = run_chains(coordinates, n_draws, options, (seed,), shown)
    flat = [
        torch.stack([sites[name] for sites, _ in chains], 1).flatten(0, 1)[None] for name in SITES
    ]  # (1, S · C, ...)
    state, n_chains = MixtureParameters(flat[0], flat[1], flat[2], kind), options.num_chains
    every = [state.select((torch.tensor(0), torch.tensor(j))) for j in range(n_draws * n_chains)]
    joints, labels = log_joint_of_cells([cells], [every])[0], component_labels([cells], fitted)
    overlap = torch.stack([_overlap(one, labels) for one in joints])
    aligned, moved = aligned_to(state, overlap, exchangeable=prior.exchangeable)
    log_likelihood = torch.stack([one.logsumexp(1).sum() for one in joints])
    sweeps = [slice(s * n_chains, (s + 1) * n_chains) for s in range(n_draws)]
    every_chain = slice(None)
    kept = [
        (aligned.select((every_chain, own)), log_likelihood[own], moved[own])  # type: ignore[arg-type]
        for own in sweeps
    ]
    tree = as_tree(kept, kind)
    diverging = torch.stack([one for _, one in chains]).numpy()
    tree["sample_stats"]["diverging"] = xr.DataArray(diverging, dims=("chain", "draw"))
    return tree


class PackedCovariance(Transform):
    """Covariance matrices ``(D, D)`` from D(D + 1)/2 real numbers: their Cholesky factor, its diagonal in logs."""

    domain = constraints.real_vector
    codomain = constraints.positive_definite
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        dim = math.isqrt(2 * x.shape[-1])
        row, column = torch.tril_indices(dim, dim)
        values = torch.where(row == column, x.exp(), x)
        flat = x.new_zeros(*x.shape[:-1], dim * dim).index_copy(-1, row * dim + column, values)
        factor = flat.unflatten(-1, (dim, dim))
        return factor @ factor.mT

    def _inverse(self, y: Tensor) -> Tensor:
        row, column = torch.tril_indices(*y.shape[-2:])
        values = torch.linalg.cholesky(y)[..., row, column]
        return torch.where(row == column, values.abs().log(), values)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log of the change of volume, ``D log 2 + Σ_i (D + 1 − i) log L_ii``, i = 0, 1, ..."""
        dim = y.shape[-1]
        row, column = torch.tril_indices(dim, dim)
        power = torch.where(row == column, dim + 1 - row, 0).to(x)
        return dim * math.log(2) + (x * power).sum(-1)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Shape D × D of the matrix that D(D + 1)/2 numbers become."""
        dim = math.isqrt(2 * shape[-1])
        return torch.Size([*shape[:-1], dim, dim])

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Number D(D + 1)/2 of the values that stand for a D × D matrix."""
        return torch.Size([*shape[:-2], shape[-1] * (shape[-1] + 1) // 2])


def _transforms(kind: CovarianceType) -> dict[str, Transform]:
    """Transformations of each site's values to real numbers."""
    matrix = kind in ("full", "tied")
    covariances = PackedCovariance() if matrix else biject_to(constraints.positive)
    spaces = {"weights": biject_to(constraints.simplex), "means": biject_to(constraints.real)}
    return {name: space.inv for name, space in {**spaces, "covariances": covariances}.items()}


def _overlap(joint: Tensor, labels: Tensor) -> Tensor:
    """Cells (M, M) by their likeliest component at a draw (row) and at the fit (column)."""
    m = joint.shape[1]
    return torch.bincount(joint.argmax(1) * m + labels, minlength=m * m).reshape(m, m)


def _completed(
    tree: xr.DataTree, cells: Tensor, fitted: MixtureParameters, prior: SitePriors, asked: MixtureDrawOptions
) -> xr.DataTree:
    """The tree with the groups asked for, derived quantities, observed cells and coordinates."""
    groups = asked.made
    kind, lead = fitted.covariance_type, ("chain", "draw")
    drawn = tree["posterior"].to_dataset()
    sites = {name: torch.from_numpy(drawn[name].values.copy()) for name in ("weights", "means", "covariances")}
    out = {"posterior": _with_sd(drawn, kind), "sample_stats": tree["sample_stats"].to_dataset()}
    with seeded(asked.seed):
        if "posterior_predictive" in groups:
            out["posterior_predictive"] = xr.Dataset(
                {"x": ((*lead, "cell", "feature"), _cells(sites, kind, len(cells)))}
            )
        if "prior" in groups or "prior_predictive" in groups:
            before = _prior_draws(sites, prior, kind)
        if "prior" in groups:
            shapes = {name: (drawn[name].dims, value.numpy()) for name, value in before.items()}
            out["prior"] = _with_sd(xr.Dataset(shapes), kind)
        if "prior_predictive" in groups:
            values = _cells(before, kind, len(cells))
            out["prior_predictive"] = xr.Dataset({"x": ((*lead, "cell", "feature"), values)})
    if "log_likelihood" in groups:
        out["log_likelihood"] = xr.Dataset({"x": ((*lead, "cell"), _log_likelihood(sites, kind, cells))})
    if "log_prior" in groups:
        out["log_prior"] = xr.Dataset({"lp": (lead, _log_prior(sites, prior, kind).numpy())})
    out["observed_data"] = xr.Dataset({"x": (("cell", "feature"), cells.numpy())})
    out["constant_data"] = xr.Dataset({"component_at_fit": (("cell",), component_labels([cells], fitted).numpy())})
    given = {"chain": range(drawn.sizes["chain"]), "draw": range(drawn.sizes["draw"]), **(asked.names or {})}
    for name, group in out.items():
        out[name] = group.assign_coords({k: np.asarray(v) for k, v in given.items() if k in group.dims})
    whole = xr.DataTree.from_dict(out)
    whole.attrs |= {"inference_library": "pyrosplice", "method": asked.method, "hyper": "integrate"}
    return whole


def _matrices(sites: Mapping[str, Tensor], kind: CovarianceType) -> Tensor:
    return as_matrices(sites["covariances"], sites["means"], kind)


def _with_sd(group: xr.Dataset, kind: CovarianceType) -> xr.Dataset:
    """Add ``sd``, the standard deviation of every feature in every component."""
    sites = {name: torch.from_numpy(group[name].values.copy()) for name in ("means", "covariances")}
    sd = torch.diagonal(_matrices(sites, kind), dim1=-2, dim2=-1).sqrt()
    return group.assign(sd=(("chain", "draw", "component", "feature"), sd.numpy()))


def _cells(sites: Mapping[str, Tensor], kind: CovarianceType, n_cells: int) -> np.ndarray:
    """Draw as many cells as were observed, at every draw: (C, S, N, D)."""
    weights, means = sites["weights"], sites["means"]
    roots = torch.linalg.cholesky(_matrices(sites, kind))
    label = torch.multinomial(weights.flatten(0, 1), n_cells, replacement=True).reshape(*weights.shape[:2], n_cells)
    noise = torch.randn(*label.shape, means.shape[-1], 1, dtype=means.dtype)
    chain, draw = (torch.arange(size) for size in label.shape[:2])
    at = (chain[:, None, None], draw[None, :, None], label)
    return (means[at] + (roots[at] @ noise)[..., 0]).numpy()


def _log_likelihood(sites: Mapping[str, Tensor], kind: CovarianceType, cells: Tensor) -> np.ndarray:
    """Log density of every cell at every draw: (C, S, N)."""
    out = []
    for chain in range(len(sites["weights"])):
        draws = [
            MixtureParameters(
                sites["weights"][chain, s], sites["means"][chain, s], sites["covariances"][chain, s], kind
            )
            for s in range(sites["weights"].shape[1])
        ]
        out.append(torch.stack([one.logsumexp(1) for one in log_joint_of_cells([cells], [draws])[0]]))
    return torch.stack(out).numpy()


def _log_prior(sites: Mapping[str, Tensor], prior: SitePriors, kind: CovarianceType) -> Tensor:
    """Log prior density of each draw, (C, S)."""
    like, m = sites["means"], sites["weights"].shape[-1]
    density = prior.weight_distribution(like, m).log_prob(sites["weights"])
    covariances = prior.covariance_distribution(like).log_prob(sites["covariances"])
    means = prior.mean_distribution(_matrices(sites, kind)).log_prob(like).sum(-1)
    return density + means + (covariances if kind == "tied" else covariances.sum(-1))


def _prior_draws(sites: Mapping[str, Tensor], prior: SitePriors, kind: CovarianceType) -> dict[str, Tensor]:
    """Draw from the prior as often as from the posterior."""
    like, (chains, draws, m) = sites["means"], sites["weights"].shape
    shape = torch.Size([chains, draws])
    covariances = prior.covariance_distribution(like).sample(shape)
    given = prior.mean_distribution(as_matrices(covariances, like, kind))
    means = given.sample(torch.Size([]) if len(given.batch_shape) > 1 else shape)
    weights = prior.weight_distribution(like, m).sample(shape)
    return {"weights": weights, "means": means, "covariances": covariances}
