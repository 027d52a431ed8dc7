"""Posterior draws of every site of a fitted model, by one of three methods."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError, check_option
from pyrosplice.glmm._importance import RELIABLE, one_sided, pareto_k
from pyrosplice.posterior._ccd import MOST_HYPER, hyper_design
from pyrosplice.posterior._cloud import MOST_IN_CLOUD, hyper_cloud
from pyrosplice.posterior._draw_options import HYPER, DrawOptions
from pyrosplice.posterior._gaussian import HyperPosterior, draw_integrated, draw_plugged_in
from pyrosplice.posterior._grid import FINE, hyper_grid
from pyrosplice.posterior._nuts import NutsOptions, nuts
from pyrosplice.posterior._problem import PosteriorProblem, target_of
from pyrosplice.posterior._progress import bar
from pyrosplice.posterior._target import Target
from pyrosplice.priors._sites import is_flat

logger = logging.getLogger("pyrosplice")

FEWEST_FOR_K = 25  # draws below which k̂ is NaN
OVERSAMPLED = 4  # proposals a draw of importance resampling
EFFECTS = 16  # random effects tried at each of its hyper-parameters
N_PILOT = 2000  # Laplace draws that set NUTS's coordinates
_INTEGRATED_AT_ONCE = 16


@dataclass(frozen=True)
class Samples:
    """Draws of the sites.

    Attributes
    ----------
    sites
        Values by site, ``(C, S, G, ...)``: chains, draws, genes.
    stats
        Statistics of the sampler, ``(C, S, G)`` or ``(G,)``: ``log_weights`` and ``pareto_k`` of Laplace draws, what
        NUTS reports.
    method, hyper
        How they were made.
    genes
        Positions of the genes in the model, ``(G,)``.
    """

    sites: dict[str, Tensor]
    stats: dict[str, Tensor]
    method: str
    hyper: str
    genes: Tensor


def sample_posterior(problem: PosteriorProblem, asked: DrawOptions, genes: Tensor) -> Samples:
    """Draw from the posterior of some of the model's genes; see :meth:`~pyrosplice.MultinomGLM.posterior`."""
    num_samples, method, hyper, seed = asked.num_samples, asked.method, asked.hyper, asked.seed
    check_option("hyper", hyper, HYPER)
    if not 0 < len(genes) == len(set(genes.tolist()) & set(range(problem.n_genes))):
        found = genes.tolist()
        raise InvalidArgumentError(f"genes: expected different positions below {problem.n_genes}, found {found}.")
    if method == "nuts":
        _require_proper(problem, "method='nuts'")
        sites, stats = nuts(
            problem, genes, num_samples, seed, asked.nuts_options or NutsOptions(), _pilot(problem, seed)
        )
        return Samples(sites, stats, method, "integrate", genes)
    if hyper != "plug-in":
        _require_proper(problem, f"hyper={hyper!r}")
    samples = _weighted(problem, num_samples, method, hyper, genes, seed)
    _say_which_to_doubt(samples.stats["pareto_k"], method)
    return samples


def _weighted(
    problem: PosteriorProblem, num_samples: int, method: str, hyper: str, genes: Tensor, seed: int
) -> Samples:
    """Draws by Laplace's method, or resampled from more of them."""
    generator = torch.Generator().manual_seed(int(seed))
    n_draws = num_samples * (OVERSAMPLED if method == "importance" else 1)
    found, size = [], 10**9 if hyper == "plug-in" else _INTEGRATED_AT_ONCE
    chosen = [part for batch in problem.engine.batches() for part in batch[torch.isin(batch, genes)].split(size)]
    with bar(len(genes), method, "gene") as shown:
        for part in (part for part in chosen if len(part)):
            draws = _proposals(problem, part, n_draws, method, hyper, generator)
            found.append(resampled(draws, num_samples, method, generator))
            shown.update(len(part))
    order = torch.argsort(torch.argsort(genes))
    sites = {name: torch.cat([part[0][name] for part in found], 1)[:, order].unsqueeze(0) for name in found[0][0]}
    weights = torch.cat([part[1] for part in found], 1)[:, order].unsqueeze(0)
    k_hat = torch.cat([part[2] for part in found])[order]
    return Samples(sites, {"log_weights": weights, "pareto_k": k_hat}, method, hyper, genes)


def _say_which_to_doubt(k_hat: Tensor, method: str) -> None:
    """A line in the log where draws of some genes are far from exact."""
    doubtful = int((k_hat > RELIABLE).sum())
    if doubtful:
        instead = "method='importance', or nuts" if method == "laplace" else "method='nuts'"
        logger.warning("k̂ > %.1f for %d of %d genes: for these, use %s.", RELIABLE, doubtful, len(k_hat), instead)


def _pilot(problem: PosteriorProblem, seed: int) -> Callable[[int], dict[str, Tensor]] | None:
    """Laplace draws of a gene for NUTS to find its coordinates from; None where they cannot be made."""
    n_hyper = problem.n_components * (2 - len(problem.held)) + len(problem.likelihood.free)
    if n_hyper > MOST_HYPER or problem.no_mode is not None:
        return None
    hyper = "integrate" if n_hyper in (0, *FINE) else "ccd"

    def draws(gene: int) -> dict[str, Tensor]:
        few = _weighted(problem, N_PILOT, "laplace", hyper, torch.tensor([gene]), seed)
        return {name: value[0] for name, value in few.sites.items()}

    return draws


@dataclass(frozen=True)
class WeightedSites:
    """Draws by site ``(S, B, ...)`` with their log weights ``(S, B)``."""

    values: dict[str, Tensor]
    log_weights: Tensor


def _proposals(
    problem: PosteriorProblem, genes: Tensor, n_draws: int, method: str, hyper: str, generator: torch.Generator
) -> WeightedSites:
    target, coefficients, phi = target_of(problem, genes, hyper=hyper)
    if phi.shape[1]:
        known = _hyper_posterior(hyper, target, coefficients, phi, n_draws, generator)
        n_effects = EFFECTS if method == "importance" and problem.has_effect else 1
        draws = draw_integrated(target, known, n_draws, generator, n_effects=n_effects)
    else:
        draws = draw_plugged_in(target, coefficients, phi, n_draws, generator)
    sites = target.engine.weights(draws.coefficients, genes)
    values = target.sites(draws.phi.flatten(0, 1))
    values = {name: value.reshape(n_draws, len(genes), -1) for name, value in values.items()}
    if problem.has_effect:
        sites |= {"nu": draws.nu, "sigma": values["sigma"], "theta_logit": values["theta_logit"]}
    for name in problem.likelihood.free:
        sites[name] = values[name] if name in values else problem.estimates[name][genes].expand(n_draws, -1, -1)
    return WeightedSites(sites, draws.log_weights)


def _hyper_posterior(
    hyper: str, target: Target, coefficients: Tensor, phi: Tensor, n_draws: int, generator: torch.Generator
) -> HyperPosterior:
    """How φ (B, d) is integrated over: by a design, or on a grid for one or two and a cloud of points for more."""
    if hyper == "ccd":
        return hyper_design(target, coefficients, phi)
    if phi.shape[1] in FINE:
        return hyper_grid(target, coefficients, phi)
    if phi.shape[1] > MOST_IN_CLOUD:
        raise InvalidArgumentError(
            f"hyper: 'integrate' is for up to {MOST_IN_CLOUD} hyper-parameters, found {phi.shape[1]}; use hyper='ccd', "
            "or nuts."
        )
    return hyper_cloud(target, coefficients, phi, n_draws, generator)


def resampled(
    draws: WeightedSites, num_samples: int, method: str, generator: torch.Generator
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Resample each gene's draws by their smoothed weights, systematically, and report k̂.

    A draw comes as often as its share of the weight says, rounded up or down: once at most where weights are even, and
    again and again where it has most of the weight. (Without replacement, σ of eleven Dirichlet-multinomial genes with
    uneven weights went only two thirds of the way from Laplace's mean to the weighted one.)
    """
    failed = draws.log_weights.isnan().all(0)  # genes whose likelihood cannot be worked out have no posterior
    if bool(failed.any()):
        lost = {name: _without(value, failed) for name, value in draws.values.items()}
        draws = replace(draws, values=lost)
    enough = len(draws.log_weights) >= FEWEST_FOR_K
    k_hat = pareto_k(draws.log_weights) if enough else torch.full_like(draws.log_weights[0], torch.nan)
    if method == "laplace":
        return draws.values, draws.log_weights, k_hat
    smooth = smoothed(draws.log_weights)
    edges = torch.softmax(smooth, 0).cumsum(0).T.contiguous()
    place = torch.arange(num_samples) + torch.rand(len(edges), 1, generator=generator, dtype=edges.dtype)
    rows = torch.searchsorted(edges, edges[:, -1:] * place / num_samples).clamp_max(len(smooth) - 1).T
    rows = rows[torch.rand(num_samples, generator=generator).argsort()]
    genes = torch.arange(smooth.shape[1])
    return {name: value[rows, genes] for name, value in draws.values.items()}, smooth[rows, genes], k_hat


def _without(values: Tensor, failed: Tensor) -> Tensor:
    """Draws (S, B, ...), NaN for the genes that failed."""
    return values.masked_fill(failed.reshape(-1, *[1] * (values.ndim - 2)), torch.nan)


def smoothed(log_weights: Tensor) -> Tensor:
    """Smooth log weights (S, B), less their largest: the tail becomes quantiles of a generalised Pareto law.

    Pareto smoothing (Vehtari et al. 2024, JMLR 25:72), truncated at the largest raw weight.
    """
    n_draws = len(log_weights)
    n_tail = min(n_draws // 5, math.ceil(3 * n_draws**0.5))
    out = torch.nan_to_num(log_weights - log_weights.amax(0), nan=-1e3, neginf=-1e3)
    if n_tail < 5:
        return out
    place = (torch.arange(n_tail, dtype=out.dtype) + 0.5) / n_tail
    for gene in range(out.shape[1]):
        order = out[:, gene].argsort()
        tail, cut = order[-n_tail:], out[order[-n_tail - 1], gene]
        excess = out[tail, gene].exp() - cut.exp()
        if not bool(excess[-1] > 1e-12) or one_sided(excess):
            continue
        k, sigma = fit_generalized_pareto(excess)
        quantile = sigma * torch.expm1(-k * torch.log1p(-place)) / k
        out[tail, gene] = (cut.exp() + quantile).log().clamp_max(0.0)
    return out


def _require_proper(problem: PosteriorProblem, what: str) -> None:
    priors = problem.complete_priors()
    flat = [name for name in problem.hyper_sites if name not in problem.held and is_flat(priors[name])]
    if flat:
        raise InvalidArgumentError(
            f"{what}: expected proper priors of {', '.join(flat)}, found flat ones, under which there is no posterior. "
            "Give the model priors=, for example priors='weak'."
        )
