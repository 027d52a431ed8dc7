r"""Posterior draws of a model with a list of effects: sites of :class:`~pyrosplice.glmm.CountGLMM`, by three methods.

``"laplace"`` and ``"importance"`` draw coefficients and all effects together from their Gaussian given standard
deviations and hyper-parameters, which are at their estimates or drawn too; the coefficients' prior is flat.
``"nuts"`` runs on the Pyro model itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrosplice._modes import outside_inference_mode
from pyrosplice.effects._isoform_effect import SoftmaxBasis, basis_of
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.glmm._arrow.arrow import ArrowUnknowns
from pyrosplice.glmm._arrow.effects_fit import EffectsFit, with_signs
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.laid_out import LaidOut
from pyrosplice.glmm._arrow.laplace_value import ArrowLaplace
from pyrosplice.glmm._arrow.parameter_posterior import parameter_posterior
from pyrosplice.glmm._arrow.parameter_search import LogPrior
from pyrosplice.glmm._arrow.unknowns_posterior import ArrowPosterior, UnknownsDraw
from pyrosplice.glmm._effects_model import CountGLMM
from pyrosplice.posterior._nuts import Coordinates, NutsOptions, require_samples, run_chains
from pyrosplice.posterior._progress import bar
from pyrosplice.posterior._sampling import OVERSAMPLED, WeightedSites, resampled
from pyrosplice.posterior._seeding import seeded
from pyrosplice.priors._sites import PLACES, SUPPORTS, Support, is_flat, log_prior

Array = NDArray[np.float64]
LANES = 256  # pairs of a gene and a draw of its variances whose modes are sought together
N_PILOT = 2000  # Laplace draws that set NUTS's coordinates
VALUE = "value"  # Laplace's, kept beside the sites for a while
MOST_SITES = N_PILOT // 2  # numbers that NUTS moves at most: their covariance is from those draws


def problem_of_gene(problem: EffectsProblem, gene: int) -> EffectsProblem:
    """The problem of one of its genes."""
    offset = problem.offset
    return replace(
        problem,
        counts=problem.counts[[gene]],
        offset=offset if offset is None or offset.ndim == 1 else offset[[gene]],
    )


@dataclass(frozen=True)
class ParameterPriors:
    """Priors of standard deviations and hyper-parameters, the same for every gene.

    Parameters
    ----------
    model
        The Pyro model of one gene, with the priors.
    """

    model: CountGLMM

    @classmethod
    def of(cls, problem: EffectsProblem, priors: Mapping[str, Any] | None) -> ParameterPriors:
        """Check priors by site; raises where a gene would have one of its own."""
        return cls(CountGLMM(problem_of_gene(problem, 0), priors=priors))

    @property
    def sites(self) -> list[str]:
        """Sites of parameters, in the engine's order."""
        problem = self.model.problem
        own = [f"{block.name}: {name}" for block in problem.groups for name in block.parameters]
        inner = {"space_sd": problem.space is not None, "noise_sd": problem.noise}
        return [*own, *(name for name, there in inner.items() if there), *problem.likelihood.free]

    @property
    def any(self) -> bool:
        """Whether any of them is not flat."""
        return not all(is_flat(self.model.priors[name]) for name in self.sites)

    def require_proper(self, what: str) -> None:
        """Raise where a parameter has a flat prior, under which there is no posterior."""
        flat = [name for name in self.sites if is_flat(self.model.priors[name])]
        if flat:
            raise InvalidArgumentError(
                f"{what}: expected proper priors of {', '.join(map(repr, flat))}, found flat ones, under which there "
                f"is no posterior. Give priors={{{flat[0]!r}: pyro.distributions.HalfNormal(1.0), ...}}."
            )

    def require_flat_coefficients(self, method: str) -> None:
        """Raise where the coefficients have a prior, which the Gaussian has not."""
        if not is_flat(self.model.priors["beta"]):
            raise InvalidArgumentError(
                f"priors['beta']: method {method!r} integrates coefficients under a flat prior; leave it out, or use "
                "method='nuts'."
            )

    def require_everywhere(self) -> None:
        """Raise where a parameter's prior leaves values out, from which no search finds its way."""
        for name in self.sites:
            support: Support = "real" if name in self.model.real_sites else "positive"
            places = torch.tensor(PLACES[support], dtype=torch.float64).unsqueeze(1)
            places = places if support == "real" else places.exp()
            density = log_prior(self.model.priors, {name: places}, genes=torch.zeros(len(places), dtype=torch.int64))
            if not bool(density.isfinite().all()):
                raise InvalidArgumentError(
                    f"priors[{name!r}]: expected a density above zero everywhere on {SUPPORTS[support]}, found none at "
                    f"{float(places[~density.isfinite()][0, 0]):.3g}; use one, such as HalfNormal, or method='nuts'."
                )

    def log_density(self, *, of_logs: bool) -> LogPrior:
        """Log density of the engine's parameters; ``of_logs``: of the logs of hyper-parameters, not of these."""
        bases = [block.basis for block in self.model.problem.groups]

        def density(psi: Tensor, sds: Tensor, log_hyper: Tensor) -> Tensor:
            value = psi.detach().numpy()
            signs = torch.from_numpy(np.where(with_signs(value, list(bases)) * value < 0, -1.0, 1.0))
            columns = _columns(torch.cat([psi * signs, sds.abs(), log_hyper.exp()], 1))
            values = dict(zip(self.sites, columns, strict=True))
            out = log_prior(self.model.priors, values, genes=torch.zeros(len(psi), dtype=torch.int64))
            return out + log_hyper.sum(1) if of_logs else out

        return density


@outside_inference_mode
def plugged_in(problem: EffectsProblem, fit: EffectsFit, n_draws: int, generator: torch.Generator) -> WeightedSites:
    """Draws at the parameters of a fit of these genes; NaN for a gene that has none."""
    engine, out = _Engine(problem), _Blank(n_draws, len(fit.reason))
    with bar(n_draws * len(fit.reason), "posterior", "draw") as shown:
        for genes, laplace in engine.at_fit(fit):
            for s, draw in enumerate(ArrowPosterior(laplace).draws(n_draws, generator)):
                out.put(s, genes, engine.sites(laplace, draw, generator), draw.log_ratio)
                shown.update(len(genes))
    return out.sites(problem)


@outside_inference_mode
def integrated(
    problem: EffectsProblem, priors: ParameterPriors, n_draws: int, generator: torch.Generator, *, method: str
) -> WeightedSites:
    """Draws with parameters from their own posterior.

    ``"importance"``: proposals, :data:`~pyrosplice.posterior._sampling.OVERSAMPLED` times as many, with the weights
    that make them exact. ``"laplace"``: these chosen by what Laplace's method says of their parameters, so that these
    are from its marginal posterior, with the weights that are left.
    """
    n_proposals = OVERSAMPLED * n_draws
    law = parameter_posterior(problem, priors.log_density(of_logs=True))
    drawn = law.sample(n_proposals, generator)
    engine, out = _Engine(problem), _Blank(n_proposals, len(law.mean))
    genes = torch.from_numpy(np.flatnonzero(np.isfinite(law.root).all((1, 2))))
    lanes = torch.cartesian_prod(torch.arange(n_proposals), genes)
    with bar(len(lanes), "posterior", "draw") as shown:
        for some in lanes.split(LANES) if len(genes) else ():
            rows, own = some.unbind(1)
            beta = law.fit.coefficients[own].flatten(1).numpy()
            posterior = ArrowPosterior(engine.laplace(own, drawn.x[rows.numpy(), own.numpy()], beta))
            (draw,) = posterior.draws(1, generator)
            sites = engine.sites(posterior.laplace, draw, generator)
            sites[VALUE] = torch.from_numpy(posterior.laplace.value[:, None])
            out.put(rows, own, sites, draw.log_ratio + drawn.log_weight[rows.numpy(), own.numpy()])
            shown.update(len(some))
    whole = out.sites(problem)
    value = whole.values.pop(VALUE)[..., 0] if VALUE in whole.values else torch.full_like(whole.log_weights, torch.nan)
    if method == "importance":
        return whole
    of_parameters = value + torch.from_numpy(drawn.log_weight)
    of_parameters = of_parameters.masked_fill(whole.log_weights == -torch.inf, -torch.inf)
    left = (whole.log_weights - of_parameters)[..., None]
    kept = resampled(WeightedSites({**whole.values, VALUE: left}, of_parameters), n_draws, "importance", generator)[0]
    left = kept.pop(VALUE)[..., 0]
    return WeightedSites(kept, left)


class _Engine(LaidOut):
    """A problem laid out, with draws of it as sites of the Pyro model.

    Under ``isoform_effect="symmetric"`` the engine works in coordinates of its own, in which isoforms have no order:
    coefficients become logits, and standardised effects are turned to the coordinates of the Pyro model.
    """

    def __init__(self, problem: EffectsProblem):
        super().__init__(problem)
        basis, q = basis_of(problem.isoform_effect, problem.counts), self.layout.n_predictors
        one = torch.eye(q, dtype=torch.float64).expand(len(problem.counts), q, q)
        self._root = one if basis is None else basis.root.reshape(-1, q, q)
        plain = one if basis is None else SoftmaxBasis.plain(q, self._root).root.expand_as(one)
        self._turn = torch.linalg.solve(plain, self._root)  # orthogonal

    def sites(self, laplace: ArrowLaplace, draw: UnknownsDraw, generator: torch.Generator) -> dict[str, Tensor]:
        """Sites of the Pyro model at a draw, (b, ...); levels without observations are from their prior."""
        outer, problem = laplace.mode.outer, self.problem
        turn = self._turn[outer.genes].mT
        out = self._latents(draw.unknowns, outer.genes, generator)
        names = [f"{block.name}: {name}" for block in problem.groups for name in block.parameters]
        out |= dict(zip(names, _columns(torch.from_numpy(outer.psi)), strict=True))
        out |= {f"{name}_sd": sd for name, sd in zip(self.eliminator.inner, _columns(outer.sds), strict=True)}
        out |= dict(zip(self.eliminator.hyper, _columns(outer.log_hyper.exp()), strict=True))
        if problem.space is not None:
            out["space"] = problem.space.spread(draw.latents.field) @ turn
        return out | ({"noise": draw.latents.noise @ turn} if problem.noise else {})

    def _latents(self, unknowns: ArrowUnknowns, genes: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        arrow, out, q = self.arrow, {}, self.layout.n_predictors
        beta = torch.from_numpy(unknowns.border[:, : arrow.n_coefficients].copy()).unflatten(1, (-1, q))
        out["beta"] = beta @ self._root[genes].mT
        for e, block in enumerate(self.problem.groups):
            effects: Array = arrow.effects(e, unknowns).copy()
            unseen = arrow.homes[e].group < 0
            if unseen.any():
                size = len(effects), int(unseen.sum()), effects.shape[2]
                effects[:, unseen] = torch.randn(size, generator=generator, dtype=torch.float64).numpy()
            if block.root is not None:  # the model applies it again
                effects = np.asarray(np.linalg.solve(block.root[None], effects), dtype=np.float64)
            standard = torch.from_numpy(np.ascontiguousarray(effects)).unflatten(2, (-1, q))
            out[block.name] = standard @ self._turn[genes].mT[:, None]
        return out


class _Blank:
    """Sites (S, G, ...) that fill up, NaN at first."""

    def __init__(self, n_draws: int, n_genes: int):
        self.shape, self._values = (n_draws, n_genes), dict[str, Tensor]()
        self.log_weights = torch.full(self.shape, torch.nan, dtype=torch.float64)

    def put(self, draws: int | Tensor, genes: Tensor, sites: Mapping[str, Tensor], log_weight: Array) -> None:
        """Set the sites of some draws and genes, where these have a mode."""
        weight = torch.from_numpy(log_weight)
        for name, value in sites.items():
            if name not in self._values:
                self._values[name] = value.new_full((*self.shape, *value.shape[1:]), torch.nan)
            known = weight.isfinite().reshape(-1, *[1] * (value.ndim - 1))
            self._values[name][draws, genes] = torch.where(known, value, torch.nan)
        self.log_weights[draws, genes] = weight

    def sites(self, problem: EffectsProblem) -> WeightedSites:
        """What was put; NaN of every site where no gene has a mode."""
        if not self._values:
            model = CountGLMM(problem)
            shapes = {name: shape[1:] for name, shape in model.latent_shapes().items()}
            self._values = {
                name: self.log_weights.new_full((*self.shape, *shape), torch.nan) for name, shape in shapes.items()
            }
        weights = self.log_weights  # NaN: without a mode, which has no weight in a gene of which other draws have one
        lost = weights.isnan() & weights.isfinite().any(0)
        return WeightedSites(self._values, weights.masked_fill(lost, -torch.inf))


def _columns(values: Tensor) -> list[Tensor]:
    return [values[:, [k]] for k in range(values.shape[1])]


def nuts_of_effects(
    problem: EffectsProblem, priors: Mapping[str, Any] | None, num_samples: int, seed: int, options: NutsOptions
) -> tuple[dict[str, Tensor], Tensor]:
    """Draw by NUTS, gene by gene: sites ``(C, S, G, ...)`` and which diverged ``(C, S, G)``.

    Raises
    ------
    InvalidArgumentError
        Priors that are flat or cannot be sampled from; more numbers than :data:`MOST_SITES`.
    """
    known = ParameterPriors.of(problem, priors)
    known.require_proper("method='nuts'")
    require_samples(known.model.priors)
    size = sum(math.prod(shape[1:]) for shape in known.model.latent_shapes().values())
    if size > MOST_SITES:
        raise InvalidArgumentError(
            f"method: 'nuts' moves at most {MOST_SITES} numbers of a gene, coefficients, levels and cells' effects "
            f"together, found {size}; use method='importance'."
        )
    found, n_genes = [], len(problem.counts)
    with bar(n_genes * options.iterations(num_samples), "nuts", "iteration") as shown:
        for gene in range(n_genes):
            own = problem_of_gene(problem, gene)
            with seeded(seed + gene):
                generator = torch.Generator().manual_seed(seed + gene)
                laplace = integrated(own, known, N_PILOT, generator, method="laplace").values
                pilot = laplace if all(bool(value.isfinite().all()) for value in laplace.values()) else None
                coordinates = Coordinates(CountGLMM(own, priors=priors), pilot)
            chains = run_chains(coordinates, num_samples, options, (seed, gene), shown)
            sites = {name: torch.stack([values[name][:, 0] for values, _ in chains]) for name in chains[0][0]}
            found.append((sites, torch.stack([diverging for _, diverging in chains])))
    values = {name: torch.stack([sites[name] for sites, _ in found], 2) for name in found[0][0]}
    return values, torch.stack([diverging for _, diverging in found], 2)
