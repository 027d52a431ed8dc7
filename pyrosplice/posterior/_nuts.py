"""NUTS on the same Pyro model, one gene at a time, for the genes that one wants to be sure of.

The sampler moves in coordinates in which Laplace's posterior is a standard normal: the model and its posterior are
unchanged, but a trajectory is several times shorter and warm-up has less to learn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam.reparam import Reparam, ReparamMessage, ReparamResult
from torch import Tensor
from tqdm import tqdm

from pyrosplice.errors import InvalidArgumentError, RefusedModelError, check_integer, check_share
from pyrosplice.glmm._distributions import SpatialEffect
from pyrosplice.glmm._multinomial import MultinomialGLM, MultinomialGLMM
from pyrosplice.posterior._problem import PosteriorProblem
from pyrosplice.posterior._progress import bar
from pyrosplice.posterior._seeding import seed_of_chain, seeded

logger = logging.getLogger("pyrosplice")
WHITE = "nu_white"
WIDTH = 2.0  # of the box that chains start in, in posterior sds either side (an sd of 1.15), as Stan's
TRIES = 100  # of a start with a finite density


@dataclass(frozen=True)
class NutsOptions:
    """Settings of the sampler: warm-up iterations, chains, target acceptance, greatest tree depth and thinning.

    Every chain has a start and a seed of its own, which do not depend on how many chains there are. Of ``thin``
    iterations one draw is kept: ``num_samples`` draws take ``thin`` times as many iterations after warm-up.

    Raises
    ------
    InvalidArgumentError
        A number of which the sampler could make nothing.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> from pyrosplice.posterior import NutsOptions
    >>> counts = torch.poisson(torch.full((2, 40, 3), 5.0), generator=torch.Generator().manual_seed(0))
    >>> model = MultinomGLM(priors="weak")
    >>> model.setup_data(counts, design_mtx=torch.linspace(-1, 1, 40)[:, None])
    >>> model.fit(quiet=True)
    >>> tree = model.posterior(genes=[0], method="nuts", num_samples=20, nuts_options=NutsOptions(20, num_chains=2))
    >>> dict(tree["posterior"]["beta"].sizes)
    {'chain': 2, 'draw': 20, 'gene': 1, 'covariate': 1, 'logit': 2}
    """

    warmup_steps: int = 200
    num_chains: int = 4
    target_accept_prob: float = 0.85
    max_tree_depth: int = 7
    thin: int = 1

    def __post_init__(self) -> None:
        check_integer("warmup_steps", self.warmup_steps, least=0)
        for name in ("num_chains", "max_tree_depth", "thin"):
            check_integer(name, getattr(self, name))
        check_share("target_accept_prob", self.target_accept_prob)

    def iterations(self, num_samples: int) -> int:
        """Iterations of all chains together, warm-up among them.

        Examples
        --------
        >>> from pyrosplice.posterior import NutsOptions
        >>> NutsOptions(warmup_steps=100, num_chains=2).iterations(50)
        300
        """
        return self.num_chains * (self.warmup_steps + self.thin * num_samples)


class WhitenedEffect(Reparam):
    """The random effect as standard normal numbers in V's eigenbasis: what NUTS moves in without a funnel."""

    def apply(self, msg: ReparamMessage) -> ReparamResult:
        """Replace the site by a standard normal one and a deterministic function of it."""
        effect = cast(SpatialEffect, msg["fn"])
        zeros = torch.zeros(effect.event_shape, dtype=effect.sigma.dtype)
        white = pyro.sample(WHITE, dist.Normal(zeros, 1.0).to_event(2).expand(effect.batch_shape))
        value = effect.colored(white)
        return {"fn": dist.Delta(value, event_dim=2).mask(False), "value": value, "is_observed": True}


def nuts(
    problem: PosteriorProblem,
    genes: Tensor,
    num_samples: int,
    seed: int,
    options: NutsOptions,
    pilot: Callable[[int], dict[str, Tensor]] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draw by NUTS: sites ``(C, S, G, ...)`` and sampler statistics, ``diverging`` ``(C, S, G)``.

    Parameters
    ----------
    pilot
        Laplace draws of a gene by site, ``(S, 1, ...)``, for the coordinates; None for the model's own.

    Raises
    ------
    InvalidArgumentError
        A prior that differs between genes.
    """
    found = []
    require_samples(problem.priors)
    with bar(len(genes) * options.iterations(num_samples), "nuts", "iteration") as shown:
        for gene in genes.tolist():
            program = single_gene(problem, gene)
            with seeded(seed + gene):
                draws = None if pilot is None else whitened_sites(program, pilot(gene))
                coordinates = Coordinates(pyro.poutine.reparam(program, config={"nu": WhitenedEffect()}), draws)
            drawn = run_chains(coordinates, num_samples, options, (seed, gene), shown)
            chains = [_sites(program, *chain) for chain in drawn]
            found.append({name: torch.stack([chain[name] for chain in chains]) for name in chains[0]})
            logger.info("nuts: gene %d, %d divergent", gene, int(found[-1]["diverging"].sum()))
    draws = {name: torch.stack([one[name] for one in found], 2) for name in found[0]}
    return draws, {"diverging": draws.pop("diverging")}


def require_samples(priors: Mapping[str, Any]) -> None:
    """Raise unless every prior can be sampled from, as Pyro does to find its sites, before any warm-up."""
    for name, prior in priors.items():
        try:
            with seeded(0):
                _ = None if prior is None else prior.sample()
        except NotImplementedError as error:
            raise InvalidArgumentError(
                f"priors[{name!r}]: {type(prior).__name__} has no sample(), by which Pyro's NUTS finds its sites; give "
                "it one (any values in its support do), or use method='laplace' or 'importance'."
            ) from error


def single_gene(problem: PosteriorProblem, gene: int) -> MultinomialGLM:
    """The Pyro model of one gene."""
    rows, whole = torch.tensor([gene]), problem.program()
    differing = [name for name, prior in problem.priors.items() if _differs(prior, whole.priors[name])]
    if differing:
        raise InvalidArgumentError(f"method='nuts': expected the same prior for every gene, not so for {differing}.")
    settings: dict[str, Any] = {"likelihood": problem.likelihood.select(rows), "priors": problem.priors}
    if isinstance(whole, MultinomialGLMM):
        fixed = {name: value[rows] for name, value in whole.fixed.items()}
        space: dict[str, Any] = {"covariance": whole.covariance, "share_variance": whole.share_variance}
        space |= {"isoform_effect": whole.isoform_effect, "fixed": fixed}
        return MultinomialGLMM(whole.counts[rows], whole.design, **space, **settings)
    return MultinomialGLM(whole.counts[rows], whole.design, **settings)


def _differs(prior: dist.TorchDistribution, complete: dist.TorchDistribution) -> bool:
    n_dims = len(complete.batch_shape + complete.event_shape)
    shape = tuple(prior.batch_shape) + tuple(prior.event_shape)
    return len(shape) == n_dims and shape[0] > 1


class Coordinates:
    """Flat coordinates u in which pilot draws have mean zero and unit covariance, and the potential energy there.

    ``x = location + root @ u`` are the model's unconstrained sites, one after the other.

    Parameters
    ----------
    program
        A Pyro model without arguments.
    pilot
        Draws of its sites, ``(S, ...)``; the model's own coordinates if None.
    transforms
        Transformations from each site to the reals; PyTorch's if None.
    """

    def __init__(
        self,
        program: Callable[[], object],
        pilot: Mapping[str, Tensor] | None,
        transforms: Mapping[str, Any] | None = None,
    ) -> None:
        with pyro.validation_enabled(False), torch.enable_grad():
            start, self._energy, self._transforms, _ = initialize_model(
                program,
                jit_compile=True,
                skip_jit_warnings=True,
                transforms=None if transforms is None else dict(transforms),
            )
        self._shapes = {name: value.shape for name, value in start.items()}
        flat = torch.cat([value.flatten() for value in start.values()])
        self._location, self._root = flat, torch.eye(len(flat), dtype=flat.dtype)
        if pilot is not None:
            draws = self._flattened(pilot)
            self._location, self._root = draws.mean(0), torch.linalg.cholesky(torch.cov(draws.T))

    def energy(self, params: Mapping[str, Tensor]) -> Tensor:
        """Potential energy at ``{"u": (D,)}``."""
        return self._energy(self._split(params["u"]))

    def start(self) -> Tensor:
        """Point where a chain starts: uniform in a box around the pilot's mean, wider than the posterior.

        Raises
        ------
        RefusedModelError
            No finite density at any of :data:`TRIES` points.
        """
        for _ in range(TRIES):
            point = WIDTH * (2 * torch.rand_like(self._location) - 1)
            if bool(torch.isfinite(self.energy({"u": point}))):
                return point
        raise RefusedModelError(
            f"method='nuts': none of {TRIES} points around the pilot's mean has a finite posterior density to start a "
            "chain at; look at the fit of the gene and at the supports of the priors, or use method='importance'."
        )

    def sites(self, u: Tensor) -> dict[str, Tensor]:
        """Values of the sites at u (S, D)."""
        return {name: self._transforms[name].inv(value) for name, value in self._split(u).items()}

    def _split(self, u: Tensor) -> dict[str, Tensor]:
        x = self._location + u @ self._root.mT
        parts = x.split([shape.numel() for shape in self._shapes.values()], -1)
        return {
            name: part.reshape(*u.shape[:-1], *shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def _flattened(self, sites: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([self._transforms[name](sites[name]).flatten(1) for name in self._shapes], 1)


def whitened_sites(program: MultinomialGLM, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sites with ν as the standard normal numbers that NUTS moves."""
    if not isinstance(program, MultinomialGLMM):
        return dict(sites)
    return {**sites, WHITE: program.effect(sites).whitened(sites["nu"])}


Chain = tuple[dict[str, Tensor], Tensor]


def run_chains(
    coordinates: Coordinates, num_samples: int, options: NutsOptions, seed: tuple[int, ...], shown: tqdm
) -> list[Chain]:
    """Chains one after the other, each with a seed of its own that does not depend on their number.

    ``shown`` counts iterations of all chains of one gene after the other.
    """
    found, each = [], options.iterations(num_samples)
    unit = f"gene {shown.n // each + 1} of {shown.total // each}, " if shown.total else ""
    for chain in range(options.num_chains):
        shown.set_postfix_str(f"{unit}chain {chain + 1} of {options.num_chains}", refresh=False)
        with seeded(seed_of_chain(seed, chain)):
            found.append(run_chain(coordinates, num_samples, options, lambda *_: shown.update()))
    return found


def run_chain(
    coordinates: Coordinates, num_samples: int, options: NutsOptions, after_each: Callable[..., object] | None = None
) -> Chain:
    """Draws of the sites ``(S, ...)`` and which of them diverged ``(S,)``, or any that a draw was thinned from."""
    iterations = num_samples * options.thin
    kernel = NUTS(
        potential_fn=coordinates.energy,
        target_accept_prob=options.target_accept_prob,
        max_tree_depth=options.max_tree_depth,
    )
    with pyro.validation_enabled(False), torch.enable_grad():
        start = {"u": coordinates.start()}
        mcmc = MCMC(
            kernel,
            iterations,
            options.warmup_steps,
            initial_params=start,
            disable_progbar=True,
            hook_fn=after_each,
        )
        mcmc.run()
    diverging = torch.zeros(iterations, dtype=torch.bool)
    diverging[torch.tensor(mcmc.diagnostics()["divergences"]["chain 0"], dtype=torch.int64)] = True
    with torch.no_grad():
        kept = mcmc.get_samples()["u"][options.thin - 1 :: options.thin]
        return coordinates.sites(kept), diverging.unflatten(0, (num_samples, options.thin)).any(1)


def _sites(model: MultinomialGLM, values: dict[str, Tensor], diverging: Tensor) -> dict[str, Tensor]:
    """The isoform model's own sites of one gene."""
    num_samples = len(diverging)
    if isinstance(model, MultinomialGLMM):
        values |= {name: value.expand(num_samples, *value.shape) for name, value in model.fixed.items()}
        values["nu"] = model.effect(values).colored(values.pop(WHITE))
    if "beta" not in values:
        values["beta"] = values["bias_eta"].new_zeros(num_samples, 1, 0, values["bias_eta"].shape[-1])
    return {**{name: value.squeeze(1) for name, value in values.items()}, "diverging": diverging}
