"""What the guides of this folder share: a point, or a Gaussian, in the unconstrained coordinates of every unit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal, get_args

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor

from pyrosplice.errors import InvalidArgumentError, NotReadyError, check_integer, check_option
from pyrosplice.guides._first_points import Site, SiteStart, init_to_center, shifted
from pyrosplice.guides._latent_sites import LatentSite
from pyrosplice.guides._searches import FitOptions, Optimum
from pyrosplice.guides._separate_units import unit_density
from pyrosplice.guides._unit_density import Model, ModelCall, UnitDensity, sample_sites

Path = Literal["auto", "generic", "engine"]
logger = logging.getLogger("pyrosplice")


class AutoUnits(AutoGuide):
    """Base of guides that are fitted unit by unit; a Pyro ``AutoGuide``.

    Parameters
    ----------
    model
        A Pyro model.
    units
        Plate of the units (genes, patients) that are problems of their own; None for one problem. ``"auto"``: the
        plate ``"genes"`` if there is one, else the largest plate that holds every latent site, else one problem.
    init_loc_fn
        First point of each site, as for Pyro's guides; :func:`~pyrosplice.guides.init_to_center` by default.
    create_plates
        As for Pyro's guides.

    Notes
    -----
    ====================  ========  ===========================================
    what to override      required  for
    ====================  ========  ===========================================
    ``_search``           yes       fit the density that was set up
    ``_is_point``         yes       sites without a spread
    ``_vector``           yes       a draw of the unknowns
    ``_scale``            yes       standard deviations of the unknowns
    ``_jacobian_sites``   no        sites whose density is of coordinates
    ``_check_path``       no        a guide that does not have every path
    ``_left_out``         no        densities that setting up does not need
    ====================  ========  ===========================================

    Examples
    --------
    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyrosplice.guides import AutoNewtonMAP
    >>> def model(counts):
    ...     with pyro.plate("genes", len(counts), dim=-2):
    ...         level = pyro.sample("level", dist.Normal(torch.zeros(len(counts), 1), 3.0))
    ...         with pyro.plate("cells", counts.shape[1], dim=-1):
    ...             pyro.sample("counts", dist.Poisson(level.exp()), obs=counts)
    >>> counts = torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 1.0]])
    >>> guide = AutoNewtonMAP(model).fit(counts)
    >>> guide.median()["level"].exp().round(decimals=1).flatten().tolist()
    [2.0, 3.0]
    """

    def __init__(
        self,
        model: Model,
        *,
        units: str | None = "auto",
        init_loc_fn: SiteStart | None = None,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        if not callable(model):
            raise InvalidArgumentError(
                f"model: expected a Pyro model, something to call, found {type(model).__name__}."
            )
        self._given_start = init_loc_fn
        super().__init__(InitMessenger(self._start_of)(model), create_plates=create_plates)
        self._plain, self._units, self._doubled = (model,), units, False
        self._density: UnitDensity | None = None
        self._optimum: Optimum | None = None
        self._path = ""
        self._asked: Path = "generic"

    # fit

    def fit(self, *args: Any, path: Path = "auto", options: FitOptions | None = None, **kwargs: Any) -> AutoUnits:
        """Find the mode of every unit; returns the guide itself.

        Parameters
        ----------
        *args, **kwargs
            What the model is called with.
        path
            ``"generic"``: derivatives of the model by autograd. ``"engine"``: the library's sparse engine, for models
            with one ``SpatialEffect`` to integrate (:class:`~pyrosplice.guides.AutoMarginalLaplace`). ``"auto"``: the
            engine where the model is for it, else generic. :attr:`path` says what ran, and why.
        options
            When the searches end.

        Raises
        ------
        RefusedModelError
            A part of the model that cannot be done, named; with ``path="engine"``, one that the engine cannot do.
        InvalidArgumentError
            An unknown path.

        Examples
        --------
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyrosplice.guides import AutoNewtonMAP, FitOptions
        >>> def model(counts):
        ...     with pyro.plate("genes", len(counts), dim=-2):
        ...         level = pyro.sample("level", dist.Normal(torch.zeros(len(counts), 1), 3.0))
        ...         with pyro.plate("cells", counts.shape[1], dim=-1):
        ...             pyro.sample("counts", dist.Poisson(level.exp()), obs=counts)
        >>> counts = torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 1.0]])
        >>> guide = AutoNewtonMAP(model).fit(counts, options=FitOptions(tolerance=1e-8))
        >>> guide.converged.all().item()
        True
        """
        check_option("path", path, get_args(Path))
        self._asked, options = path, options or FitOptions()
        self._check_path()
        with torch.inference_mode(False), torch.enable_grad():
            self._optimum = None
            self._setup_prototype(*args, **kwargs)
            self._optimum = self._search(options)
        failed = [unit for unit, good in enumerate(self.converged.tolist()) if not good]
        if failed:
            logger.warning(
                "%s: %d of %d units have not converged (%s); see report().",
                type(self).__name__,
                len(failed),
                len(self.converged),
                self._optimum.reason[failed[0]],
            )
        return self

    def _search(self, options: FitOptions) -> Optimum:
        raise NotImplementedError

    def _check_path(self) -> None:
        """Refuse a path that this guide does not have."""

    def _left_out(self) -> frozenset[str]:
        """Sites whose density is not looked at while the model is set up."""
        return frozenset()

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        self._doubled = False
        try:
            super()._setup_prototype(*args, **kwargs)
        except RuntimeError as error:  # such as float64 data with a flat prior, which has no type of its own
            self._doubled = True
            try:
                super()._setup_prototype(*args, **kwargs)
            except RuntimeError:
                raise error from None
        self._call = ModelCall(self._plain[0], args, kwargs)
        self._density = self._set_up(without=self._left_out())

    def _set_up(self, *, without: frozenset[str]) -> UnitDensity:
        return unit_density(self._call, self._units, self._jacobian_sites(), init=self._start_of, without=without)

    def _start_of(self, site: Site) -> Tensor:
        discrete = site["fn"].support.is_discrete
        value = init_to_center(site) if self._given_start is None or discrete else self._given_start(site)
        return value.double() if self._doubled and not discrete else value

    def _jacobian_sites(self) -> frozenset[str]:
        return frozenset()

    def _latent_names(self) -> frozenset[str]:
        sites = sample_sites(self.prototype_trace).items()
        return frozenset(name for name, site in sites if not site["is_observed"])

    def _first_point(self, attempt: int) -> Tensor:
        return shifted(self.density.start, attempt, own=self._given_start is not None)

    # results

    @property
    def density(self) -> UnitDensity:
        """The log density of the model by unit."""
        if self._density is None:
            raise NotReadyError(f"{type(self).__name__}: call fit first.")
        return self._density

    @property
    def optimum(self) -> Optimum:
        """Where the search of each unit ended."""
        if self._optimum is None:
            raise NotReadyError(f"{type(self).__name__}: call fit first.")
        return self._optimum

    @property
    def converged(self) -> Tensor:
        """Whether each unit is at an optimum, ``(G,)``."""
        return self.optimum.converged

    @property
    def objective(self) -> Tensor:
        """The log density that was maximized, at its maximum, ``(G,)``."""
        return self.optimum.value.clone()

    @property
    def path(self) -> str:
        """Which way the fit went, and why."""
        self.optimum  # noqa: B018 (which raises before a fit)
        return self._path

    def report(self) -> pd.DataFrame:
        """Tabulate how the fit of each unit went, one row a unit.

        Returns
        -------
        DataFrame
            ``converged``, ``reason`` (a :class:`~pyrosplice.reasons.Reason`), ``log_density``,
            ``gradient_norm`` (nats per unit of the unconstrained coordinates), ``evaluations``, ``attempts`` (first
            points tried) and ``identified`` (whether the curvature is positive in every direction).

        Examples
        --------
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyrosplice.guides import AutoNewtonMAP
        >>> def model(counts):
        ...     with pyro.plate("genes", len(counts), dim=-2):
        ...         level = pyro.sample("level", dist.Normal(torch.zeros(len(counts), 1), 3.0))
        ...         with pyro.plate("cells", counts.shape[1], dim=-1):
        ...             pyro.sample("counts", dist.Poisson(level.exp()), obs=counts)
        >>> counts = torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 1.0]])
        >>> guide = AutoNewtonMAP(model).fit(counts)
        >>> guide.report()[["converged", "reason"]]
               converged     reason
        genes
        0           True  converged
        1           True  converged
        """
        found = self.optimum
        table = {
            "converged": found.converged.numpy(),
            "reason": [reason.value for reason in found.reason],
            "log_density": found.value.numpy(),
            "gradient_norm": found.gradient.norm(dim=1).numpy(),
            "evaluations": found.evaluations.numpy(),
            "attempts": found.attempts.numpy(),
            "identified": found.identified.numpy(),
        }
        return pd.DataFrame(table, index=pd.RangeIndex(len(found.value), name=self.density.unit_plate or "unit"))

    def _describe(self, path: str, how: str) -> str:
        plate, number = self.density.unit_plate, self.density.n_units
        units = "one problem" if plate is None else f"{number} units of the plate {plate!r}"
        summed = f"; summed over {', '.join(self.density.enumerated)}" if self.density.enumerated else ""
        return f"{path}: {units}; {how}{summed}"

    # Pyro's guide

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every latent site; values by site."""
        density, unknowns = self.density, self._vector()
        plates = self._create_plates(*args, **kwargs)
        result = {}
        for name, site in density.latents.items():
            value, log_density = self._value(site, unknowns)
            with ExitStack() as stack:
                for frame in site.frames:
                    stack.enter_context(plates[frame.name])
                point = dist.Delta(value, log_density=log_density, event_dim=site.event_dim)
                result[name] = pyro.sample(name, point)
        return result

    def _value(self, site: LatentSite, unknowns: Tensor) -> tuple[Tensor, Tensor | float]:
        """Value of a site, draws to the left of its plates, and its log density but for that of the unknowns."""
        coordinates = site.unpack(self._of_point() if self._is_point(site.name) else unknowns)
        lead = coordinates.shape[: coordinates.ndim - len(site.shape)]
        inner = lead[len(lead) - site.batch_dim :] if site.batch_dim else torch.Size()
        if len(lead) > site.batch_dim and inner.numel() == 1:  # plates of draws lie outside all of the model's own
            lead = lead[: len(lead) - site.batch_dim]
            coordinates = coordinates.reshape(*lead, *site.shape)
        value = site.transform(coordinates)
        if self._is_point(site.name):
            return value.to(site.dtype), 0.0
        logs = -site.transform.log_abs_det_jacobian(coordinates, value)
        logs = sum_rightmost(logs, logs.dim() - value.dim() + site.event_dim)
        return value.to(site.dtype), logs

    def _is_point(self, name: str) -> bool:
        raise NotImplementedError

    def _vector(self) -> Tensor:
        raise NotImplementedError

    def _scale(self) -> Tensor:
        raise NotImplementedError

    def _of_point(self) -> Tensor:
        """Unknowns at the optimum, ``(G, d)``."""
        return self.optimum.point

    def _values(self, unknowns: Tensor) -> dict[str, Tensor]:
        return {name: site.values(unknowns).clone() for name, site in self.density.latents.items()}

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Median of every latent site, copies; of sites that are points, the point."""
        return self._values(self._of_point().detach())

    @torch.no_grad()
    def quantiles(self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Quantiles of every latent site, ``(n, *shape)``, coordinate by coordinate.

        Examples
        --------
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyrosplice.guides import AutoNewtonMAP
        >>> def model(counts):
        ...     with pyro.plate("genes", len(counts), dim=-2):
        ...         level = pyro.sample("level", dist.Normal(torch.zeros(len(counts), 1), 3.0))
        ...         with pyro.plate("cells", counts.shape[1], dim=-1):
        ...             pyro.sample("counts", dist.Poisson(level.exp()), obs=counts)
        >>> counts = torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 1.0]])
        >>> guide = AutoNewtonMAP(model).fit(counts).laplace_approximation(counts)
        >>> guide.quantiles([0.05, 0.95])["level"].shape  # quantiles, genes, 1
        torch.Size([2, 2, 1])
        """
        at = torch.as_tensor(quantiles, dtype=torch.float64).reshape(-1, 1, 1)
        if not bool(((at >= 0) & (at <= 1)).all()):
            raise InvalidArgumentError(f"quantiles: expected numbers between 0 and 1, found {quantiles}.")
        scale = self._scale()
        steps = torch.where(scale > 0, dist.Normal(0.0, 1.0).icdf(at) * scale, 0.0)
        return self._values(self._of_point().detach() + steps)

    @torch.no_grad()
    def sample_posterior(self, num_samples: int = 1000, *, seed: int | None = None) -> dict[str, Tensor]:
        """Draws of every latent site, ``(num_samples, *shape)``, without a run of the model.

        Parameters
        ----------
        num_samples
            How many.
        seed
            Seed of these draws only; torch's own state is used, and moves on, if None.

        Examples
        --------
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyrosplice.guides import AutoNewtonMAP
        >>> def model(counts):
        ...     with pyro.plate("genes", len(counts), dim=-2):
        ...         level = pyro.sample("level", dist.Normal(torch.zeros(len(counts), 1), 3.0))
        ...         with pyro.plate("cells", counts.shape[1], dim=-1):
        ...             pyro.sample("counts", dist.Poisson(level.exp()), obs=counts)
        >>> counts = torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 1.0]])
        >>> guide = AutoNewtonMAP(model).fit(counts).laplace_approximation(counts)
        >>> guide.sample_posterior(100, seed=0)["level"].shape
        torch.Size([100, 2, 1])
        """
        check_integer("num_samples", num_samples)
        with ExitStack() as stack:
            stack.enter_context(poutine.block())
            if seed is not None:
                stack.enter_context(torch.random.fork_rng(devices=[]))
                torch.manual_seed(check_integer("seed", seed, least=0))
            stack.enter_context(pyro.plate("_draws", num_samples, dim=-1))
            unknowns = self._vector()
        draws = unknowns.expand(num_samples, *unknowns.shape[-2:])
        return self._values(draws)
