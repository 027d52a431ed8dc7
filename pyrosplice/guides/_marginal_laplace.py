"""Random effects integrated out by Laplace's method, the other sites at the mode of what is left, or Gaussian there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError, RefusedModelError, check_option
from pyrosplice.guides._auto_units import AutoUnits
from pyrosplice.guides._curvature import Curvature
from pyrosplice.guides._effect_normal import EffectNormal
from pyrosplice.guides._engine_problem import EngineProblem
from pyrosplice.guides._engine_search import EngineDensity
from pyrosplice.guides._first_points import SiteStart
from pyrosplice.guides._gate import read_problem
from pyrosplice.guides._marginal_density import Marginal, MarginalDensity, MarginalFunction, MarginalValue
from pyrosplice.guides._outer_search import OuterNormal, marginal_optimum, outer_normal
from pyrosplice.guides._searches import FitOptions, Optimum, search_units
from pyrosplice.guides._unit_density import Model, sample_sites
from pyrosplice.guides._unit_normal import UnitNormal

Outer = Literal["delta", "gaussian"]
SHIFTS = (-1.0, -2.5, 0.0)  # of the logs of positive outer sites, by attempt


@dataclass(frozen=True)
class _Fitted:
    """The mode, and the Gaussian of the integrated sites there.

    ``integrated`` are the sites whose densities ``marginal`` has of its own, so that the model's are not asked for.
    """

    marginal: Marginal
    outer: Tensor
    at: MarginalValue
    inner: UnitNormal | EffectNormal | None
    spread: OuterNormal | None
    integrated: tuple[str, ...] = ()


class AutoMarginalLaplace(AutoUnits):
    """Guide for any model with random effects: some sites integrated out, the others at their best values.

    The sites in ``marginalize`` (random effects) are integrated out by Laplace's method, unit by unit. The others are
    at the maximum of the marginal density, as TMB, glmmTMB and INLA's first stage have it. Discrete sites are summed
    out first.

    Parameters
    ----------
    model, units, init_loc_fn, create_plates
        As for :class:`~pyrosplice.guides.AutoUnits`.
    marginalize
        Names of the sites to integrate out.
    outer
        ``"delta"``: the other sites are points. ``"gaussian"``: they are Gaussian, in unconstrained coordinates, around
        the mode of their density in these.

    Notes
    -----
    Laplace's method is exact where the model is Gaussian in the integrated sites, and an approximation elsewhere. Its
    error is not measured here; :mod:`pyrosplice.posterior` has means to.

    Examples
    --------
    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyrosplice.guides import AutoMarginalLaplace
    >>> def model(y):
    ...     with pyro.plate("genes", len(y), dim=-2):
    ...         sd = pyro.sample("sd", dist.ImproperUniform(dist.constraints.positive, (), ()))
    ...         with pyro.plate("cells", y.shape[1], dim=-1):
    ...             effect = pyro.sample("effect", dist.Normal(0.0, sd.expand(y.shape)))
    ...             pyro.sample("y", dist.Normal(effect, 1.0), obs=y)
    >>> y = torch.tensor([[3.0, -3.0, 1.0, -1.0]], dtype=torch.float64)
    >>> guide = AutoMarginalLaplace(model, marginalize=["effect"]).fit(y)
    >>> round(float(guide.median()["sd"] ** 2), 5)  # mean square 5, less the variance of the noise
    4.0
    """

    def __init__(
        self,
        model: Model,
        marginalize: Sequence[str],
        *,
        outer: Outer = "delta",
        units: str | None = "auto",
        init_loc_fn: SiteStart | None = None,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        check_option("outer", outer, get_args(Outer))
        if isinstance(marginalize, str) or not len(marginalize):
            raise InvalidArgumentError(
                f"marginalize: expected a list of names of sites, at least one, found {marginalize!r}."
            )
        super().__init__(model, units=units, init_loc_fn=init_loc_fn, create_plates=create_plates)
        self.marginalize, self.outer = tuple(marginalize), outer
        self._state: _Fitted | None = None

    def _jacobian_sites(self) -> frozenset[str]:
        latent = self._latent_names()
        sites = sample_sites(self.prototype_trace)
        for name in self.marginalize:
            if name not in latent:
                raise RefusedModelError(
                    f"marginalize: {name!r} is no latent site of the model, which has {sorted(latent)}."
                )
            if sites[name]["fn"].support.is_discrete:
                raise RefusedModelError(f"marginalize: {name!r} is discrete, and summed out without being named.")
        return latent if self.outer == "gaussian" else frozenset(self.marginalize)

    def _first_point(self, attempt: int) -> Tensor:
        """First point, with positive outer sites (standard deviations among them) low: near no random effect.

        From a large one the search can climb to where a mode loses its curvature, and Laplace's value its meaning:
        zero-inflated counts of 80 cells, sd 0.3, did so from sd 0.8 in 4 of 8 genes, and from here in none.
        """
        point, shift = super()._first_point(attempt), SHIFTS[attempt % len(SHIFTS)]
        if attempt == 0 and self._given_start is not None:
            return point
        for site in self.density.latents.values():
            if site.name not in self.marginalize and site.is_exponential():
                point[:, site.columns] += shift
        return point

    def _left_out(self) -> frozenset[str]:
        return frozenset(self.marginalize) if self._asked != "generic" else frozenset()

    def _search(self, options: FitOptions) -> Optimum:
        self._state = None
        if self._asked == "generic":
            return self._generic_search(options, "asked for")
        try:
            problem = read_problem(self.density, self.marginalize)
        except RefusedModelError as error:
            if self._asked == "engine":
                raise RefusedModelError(f"path='engine': {error}") from error
            self._density = self._set_up(without=frozenset())
            return self._generic_search(options, f"not by the sparse engine: {str(error).rstrip('.')}")
        return self._engine_search(problem, options)

    def _generic_search(self, options: FitOptions, why: str) -> Optimum:
        density = self.density
        curvature = Curvature(density, self.marginalize)
        marginal = MarginalDensity(curvature)

        def search(attempt: int, rows: Tensor) -> Optimum:
            return marginal_optimum(marginal, self._first_point(attempt), rows, options)

        best = search_units(search, density.n_units, options)
        outer = best.point[:, curvature.rest]
        at = marginal(outer, best.point[:, curvature.columns])
        normal = UnitNormal(at.inner, at.hessian, curvature) if bool(at.found.all()) else None
        self._path = self._describe(
            f"generic ({why})",
            f"{', '.join(self.marginalize)} by Laplace's method, {curvature.describe()}; the other {outer.shape[1]} "
            "unknowns by BFGS",
        )
        return self._take(_Fitted(partial(marginal, start=at.inner), outer, at, normal, None), best)

    def _engine_search(self, problem: EngineProblem, options: FitOptions) -> Optimum:
        engine = EngineDensity(problem)

        def search(attempt: int, rows: Tensor) -> Optimum:
            informed = attempt == 0 and self._given_start is None
            return engine.search(self._first_point(attempt), rows, options, informed=informed)

        best = search_units(search, self.density.n_units, options)
        outer = best.point
        at = engine(outer)
        normal = EffectNormal(at.inner, engine, outer) if bool(at.found.all()) else None
        self._path = self._describe(
            f"engine ({problem.describe()})",
            f"{problem.effect} by Laplace's method; the other {outer.shape[1]} unknowns by BFGS, each run of the model "
            "giving the derivatives of its own part",
        )
        return self._take(_Fitted(engine, outer, at, normal, None, problem.integrated), best)

    def _take(self, state: _Fitted, best: Optimum) -> Optimum:
        """Keep the state of a fit; its optimum, with all unknowns, and with the Gaussian where that is asked for."""
        if self.outer == "gaussian":
            spread, best = outer_normal(state.marginal, state.outer, state.at, best)
            state = replace(state, spread=spread)
        self._state = state
        return replace(best, point=self._join(state.outer, state.at.inner))

    def _join(self, outer: Tensor, inner: Tensor) -> Tensor:
        """Join all unknowns ``(..., G, d)`` from those of the outer and of the integrated sites."""
        columns = [torch.arange(self.density.size)[self.density.latents[name].columns] for name in self._order]
        return torch.cat([outer, inner], -1)[..., torch.cat(columns).argsort()]

    @property
    def _outer_names(self) -> tuple[str, ...]:
        return tuple(name for name in self.density.latents if name not in self.marginalize)

    @property
    def _order(self) -> tuple[str, ...]:
        """Sites, the integrated ones last."""
        return (*self._outer_names, *(name for name in self.density.latents if name in self.marginalize))

    @property
    def _fitted(self) -> _Fitted:
        self.optimum  # noqa: B018 (which raises before a fit)
        assert self._state is not None
        return self._state

    def _inner(self) -> UnitNormal | EffectNormal:
        normal = self._fitted.inner
        if normal is None:
            units = (~self._fitted.at.found).nonzero()[:, 0].tolist()
            raise RefusedModelError(
                f"{', '.join(self.marginalize)}: units {units} have no mode with Gaussian curvature, and so no "
                "posterior; see report()."
            )
        return normal

    def _spread(self) -> OuterNormal:
        spread = self._fitted.spread
        assert spread is not None
        if spread.failed:
            raise RefusedModelError(
                f"outer='gaussian': units {spread.failed} have no Gaussian curvature in the other sites; see report()."
            )
        return spread

    def get_posterior(self, *args: Any, **kwargs: Any) -> UnitNormal | EffectNormal:
        """Gaussian of the integrated sites' unconstrained values, the others at their mode: batch shape ``(G,)``.

        Examples
        --------
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyrosplice.guides import AutoMarginalLaplace
        >>> def model(y):
        ...     with pyro.plate("genes", len(y), dim=-2):
        ...         sd = pyro.sample("sd", dist.Exponential(torch.ones(len(y), 1)))
        ...         with pyro.plate("cells", y.shape[1], dim=-1):
        ...             effect = pyro.sample("effect", dist.Normal(0.0, sd.expand(y.shape)))
        ...             pyro.sample("y", dist.Normal(effect, 1.0), obs=y)
        >>> y = torch.tensor([[3.0, -3.0, 1.0, -1.0]], dtype=torch.float64)
        >>> guide = AutoMarginalLaplace(model, marginalize=["effect"]).fit(y)
        >>> posterior = guide.get_posterior(y)
        >>> posterior.batch_shape, posterior.event_shape  # genes; four effects
        (torch.Size([1]), torch.Size([4]))
        """
        return self._inner()

    def log_marginal(self, values: Mapping[str, Tensor], *, prior: bool = False) -> Tensor:
        """Log density of the data at values of the other sites, the marginalized ones integrated out: ``(G,)``.

        Differentiable, once: a factor for one's own NUTS or SVI over the hyper-parameters::

            def hyper():
                sd = pyro.sample("sd", dist.HalfNormal(torch.ones(1)))
                pyro.factor("data", guide.log_marginal({"sd": sd}).sum())

        Parameters
        ----------
        values
            Values of every latent continuous site that is not marginalized, shaped as in the model.
        prior
            Whether to add the log prior density of ``values``.

        Raises
        ------
        InvalidArgumentError
            A site too many, one that is missing, or one of another shape.
        RefusedModelError
            Without ``prior``: a site among ``values`` that depends on a marginalized one, and so has no prior.

        Examples
        --------
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyrosplice.guides import AutoMarginalLaplace
        >>> def model(y):
        ...     with pyro.plate("genes", len(y), dim=-2):
        ...         sd = pyro.sample("sd", dist.Exponential(torch.ones(len(y), 1)))
        ...         with pyro.plate("cells", y.shape[1], dim=-1):
        ...             effect = pyro.sample("effect", dist.Normal(0.0, sd.expand(y.shape)))
        ...             pyro.sample("y", dist.Normal(effect, 1.0), obs=y)
        >>> y = torch.tensor([[3.0, -3.0, 1.0, -1.0]], dtype=torch.float64)
        >>> guide = AutoMarginalLaplace(model, marginalize=["effect"]).fit(y)
        >>> near, far = (guide.log_marginal({"sd": torch.full((1, 1), sd).double()}) for sd in (2.0, 9.0))
        >>> bool(near > far)
        True
        """
        fitted, density, names = self._fitted, self.density, self._outer_names
        self._check_values(values, names)
        outer = density.unconstrain(values, names)
        whole = MarginalFunction.apply(outer, fitted.marginal)
        with torch.enable_grad():
            nu = fitted.at.inner.detach().clone().requires_grad_(True)
            unknowns = self._join(outer, nu)
            for name in names:
                if name in density.jacobian:
                    site = density.latents[name]
                    coordinates = site.unpack(unknowns)
                    whole = whole - site.log_volume(coordinates, site.transform(coordinates))
            if not prior:
                whole = whole - self._log_prior(unknowns, nu, names)
        return whole if outer.requires_grad else whole.detach()

    def _log_prior(self, unknowns: Tensor, nu: Tensor, names: Sequence[str]) -> Tensor:
        density = self.density
        terms = density.terms(density.trace(density.constrain(unknowns)[0], without=self._fitted.integrated))
        total = unknowns.new_zeros(density.n_units)
        for name in names:
            mine = terms.get(name)
            if mine is not None and mine.requires_grad:
                (slope,) = torch.autograd.grad(mine.sum(), nu, retain_graph=True, allow_unused=True)
                mine = None if slope is not None and bool((slope != 0).any()) else mine
            if mine is None:
                raise RefusedModelError(
                    f"{name}: its density depends on a site that is integrated or summed out, so that it has no prior "
                    "of its own; use prior=True."
                )
            total = total + mine.sum(1)
        return total

    def _check_values(self, values: Mapping[str, Tensor], names: Sequence[str]) -> None:
        if set(values) != set(names):
            raise InvalidArgumentError(f"values: expected the sites {sorted(names)}, found {sorted(values)}.")
        for name in names:
            wanted = self.density.latents[name].value_shape
            if tuple(values[name].shape) != wanted:
                raise InvalidArgumentError(
                    f"values[{name!r}]: expected shape {wanted}, found {tuple(values[name].shape)}."
                )

    def laplace_approximation(
        self, *args: Any, options: FitOptions | None = None, **kwargs: Any
    ) -> AutoMarginalLaplace:
        """Copy the guide with ``outer="gaussian"``, fitted from the values of this one.

        Parameters
        ----------
        *args, **kwargs
            What the model is called with.
        options
            Options of that search.

        Examples
        --------
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyrosplice.guides import AutoMarginalLaplace
        >>> def model(y):
        ...     with pyro.plate("genes", len(y), dim=-2):
        ...         sd = pyro.sample("sd", dist.Exponential(torch.ones(len(y), 1)))
        ...         with pyro.plate("cells", y.shape[1], dim=-1):
        ...             effect = pyro.sample("effect", dist.Normal(0.0, sd.expand(y.shape)))
        ...             pyro.sample("y", dist.Normal(effect, 1.0), obs=y)
        >>> y = torch.tensor([[3.0, -3.0, 1.0, -1.0]], dtype=torch.float64)
        >>> guide = AutoMarginalLaplace(model, marginalize=["effect"]).fit(y)
        >>> bool(guide.laplace_approximation(y).sample_posterior(100, seed=0)["sd"].std() > 0)  # sd varies as well
        True
        """
        guide = AutoMarginalLaplace(
            self._plain[0],
            self.marginalize,
            outer="gaussian",
            units=self._units,
            init_loc_fn=init_to_value(values=self.median()),
            create_plates=self.create_plates,
        )
        return guide.fit(*args, path=self._asked, options=options, **kwargs)

    def fit(self, *args: Any, **kwargs: Any) -> AutoMarginalLaplace:
        """Find the mode of every unit; returns the guide itself. Arguments as of :meth:`AutoUnits.fit`."""
        super().fit(*args, **kwargs)
        return self

    def _is_point(self, name: str) -> bool:
        return self.outer == "delta" and name not in self.marginalize

    def _vector(self) -> Tensor:
        fitted, label = self._fitted, f"_{self._pyro_name}"
        outer, center = fitted.outer, fitted.at.inner
        if self.outer == "gaussian":
            spread = self._spread()
            normal = dist.MultivariateNormal(outer, precision_matrix=spread.precision).to_event(1)
            outer = pyro.sample(f"{label}_outer", normal, infer={"is_auxiliary": True})
            center = center + (spread.response @ (outer - fitted.outer)[..., None])[..., 0]
        around = self._inner().centered().to_event(1)
        inner = center + pyro.sample(f"{label}_inner", around, infer={"is_auxiliary": True})
        outer = outer.expand(*inner.shape[:-1], outer.shape[-1])
        return self._join(outer, inner)

    def _of_point(self) -> Tensor:
        return self._join(self._fitted.outer, self._fitted.at.inner)

    def _scale(self) -> Tensor:
        fitted = self._fitted
        variance, outer = self._inner().variance, torch.zeros_like(fitted.outer)
        if self.outer == "gaussian":
            spread = self._spread()
            covariance = torch.linalg.inv(spread.precision)
            outer = torch.diagonal(covariance, dim1=1, dim2=2)
            variance = variance + torch.einsum("gip,gpq,giq->gi", spread.response, covariance, spread.response)
        return self._join(outer.sqrt(), variance.sqrt())
