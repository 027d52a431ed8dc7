"""The joint mode of all latent sites by Newton's method, and the Gaussian around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import init_to_value
from torch import Tensor
from torch.nn import Parameter

from pyrosplice.errors import NotReadyError, RefusedModelError, check_switches
from pyrosplice.guides._auto_units import AutoUnits
from pyrosplice.guides._curvature import Curvature
from pyrosplice.guides._first_points import SiteStart
from pyrosplice.guides._searches import FitOptions, Optimum, newton_optimum, search_units
from pyrosplice.guides._unit_density import Model
from pyrosplice.guides._unit_normal import UnitNormal


class AutoNewtonMAP(AutoUnits):
    """The most probable value of every latent site, found by Newton's method: ``AutoDelta`` without a learning rate.

    Discrete sites are summed out, and flat (improper) priors are taken: without a proper prior this is maximum
    likelihood. The guide's parameter ``loc``, the unconstrained values ``(G, d)``, is where SVI goes on from.

    Parameters
    ----------
    model, units, init_loc_fn, create_plates
        As for :class:`~pyrosplice.guides.AutoUnits`.
    jacobian
        Take the mode of the density of the unconstrained coordinates, as ``AutoLaplaceApproximation`` does, instead of
        that of the sites' own density, as ``AutoDelta`` does. They differ where a support is constrained.

    Examples
    --------
    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from pyrosplice.guides import AutoNewtonMAP
    >>> def model(counts):
    ...     with pyro.plate("genes", len(counts), dim=-2):
    ...         rate = pyro.sample("rate", dist.ImproperUniform(dist.constraints.positive, (), ()))
    ...         with pyro.plate("cells", counts.shape[1], dim=-1):
    ...             pyro.sample("counts", dist.Poisson(rate), obs=counts)
    >>> counts = torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 1.0]])
    >>> guide = AutoNewtonMAP(model).fit(counts)
    >>> [round(x, 6) for x in guide.median()["rate"].flatten().tolist()]
    [2.0, 3.0]
    >>> guide.report()["converged"].tolist()
    [True, True]
    """

    def __init__(
        self,
        model: Model,
        *,
        units: str | None = "auto",
        jacobian: bool = False,
        init_loc_fn: SiteStart | None = None,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        check_switches(jacobian=jacobian)
        super().__init__(model, units=units, init_loc_fn=init_loc_fn, create_plates=create_plates)
        self.jacobian = jacobian

    def _jacobian_sites(self) -> frozenset[str]:
        return self._latent_names() if self.jacobian else frozenset()

    def _check_path(self) -> None:
        if self._asked == "engine":
            raise RefusedModelError(
                "path='engine': the sparse engine integrates a random effect, and AutoNewtonMAP integrates nothing; "
                "use path='generic', or AutoMarginalLaplace."
            )

    def _search(self, options: FitOptions) -> Optimum:
        density = self.density
        self._curvature = curvature = Curvature(density, tuple(density.latents))
        none = density.start[:, :0]

        def search(attempt: int, rows: Tensor) -> Optimum:
            return newton_optimum(curvature, none, self._first_point(attempt), rows, options)[0]

        best = search_units(search, density.n_units, options)
        self.loc = Parameter(best.point.clone())
        self._path = self._describe("generic", f"joint mode of {curvature.describe()}")
        return best

    def _is_point(self, name: str) -> bool:
        return True

    def _of_point(self) -> Tensor:
        self.optimum  # noqa: B018 (which raises before a fit)
        return self.loc

    def _vector(self) -> Tensor:
        return self._of_point()

    def _scale(self) -> Tensor:
        return torch.zeros_like(self._of_point())

    def get_posterior(self, *args: Any, **kwargs: Any) -> dist.Delta:
        """Distribution with all mass at the unconstrained values: batch shape ``(G,)``.

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
        >>> guide.get_posterior(counts).batch_shape
        torch.Size([2])
        """
        return dist.Delta(self._of_point(), event_dim=1)

    def laplace_approximation(self, *args: Any, options: FitOptions | None = None, **kwargs: Any) -> AutoUnitNormal:
        """The Gaussian at the mode of the unconstrained coordinates, as a guide (as Pyro's guide of that name has it).

        Without ``jacobian`` that mode is looked for first, from the one that was found.

        Parameters
        ----------
        *args, **kwargs
            What the model is called with.
        options
            Options of that search.

        Raises
        ------
        RefusedModelError
            A unit whose density does not curve down in every direction at its mode.

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
        >>> gaussian = guide.laplace_approximation(counts)
        >>> gaussian.sample_posterior(100, seed=0)["level"].shape
        torch.Size([100, 2, 1])
        """
        start = init_to_value(values=self.median())
        source = self
        if not self.jacobian:
            source = AutoNewtonMAP(self._plain[0], units=self._units, jacobian=True, init_loc_fn=start)
            source.fit(*args, options=options, **kwargs)
        guide = AutoUnitNormal(self._plain[0], units=self._units, init_loc_fn=start, create_plates=self.create_plates)
        guide._setup_prototype(*args, **kwargs)
        guide.take(source)
        return guide


class AutoUnitNormal(AutoUnits):
    """Gaussian of each unit over all unconstrained coordinates: ``AutoNewtonMAP.laplace_approximation`` returns it.

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
    >>> gaussian = guide.laplace_approximation(counts)
    >>> type(gaussian).__name__, gaussian.median()["level"].shape
    ('AutoUnitNormal', torch.Size([2, 1]))
    """

    def _jacobian_sites(self) -> frozenset[str]:
        return self._latent_names()

    def take(self, source: AutoNewtonMAP) -> None:
        """Make the optimum of another guide, and the curvature there, one's own.

        Of a guide that knows its data: one that ``laplace_approximation`` has made, or that was fitted itself.

        Raises
        ------
        NotReadyError
            A guide that has not seen data, or a source that was not fitted.

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
        >>> gaussian = guide.laplace_approximation(counts)
        >>> gaussian.take(guide)
        >>> bool((gaussian.median()["level"] == guide.median()["level"]).all())
        True
        """
        found = source.optimum  # which raises where the source was not fitted
        if self._density is None:
            raise NotReadyError(
                f"{type(self).__name__}.take: this guide has seen no data, at which the curvature could be taken; call "
                f"laplace_approximation(*data) of the fitted guide, which makes a {type(self).__name__} that has."
            )
        with torch.inference_mode(False), torch.enable_grad():
            curvature = Curvature(self.density, tuple(self.density.latents))
            point = source.loc.detach().clone()
            hessian = curvature.expand(point[:, :0], point).hessian
            self._optimum, self._path = found, source.path
            try:
                self._posterior = UnitNormal(point, hessian, curvature)
            except ValueError as error:
                raise RefusedModelError(
                    f"laplace_approximation: the density has no Gaussian curvature at the mode ({error}) See report()."
                ) from error

    def _search(self, options: FitOptions) -> Optimum:
        raise RefusedModelError("fit: fit an AutoNewtonMAP and take its laplace_approximation().")

    def get_posterior(self, *args: Any, **kwargs: Any) -> UnitNormal:
        """Gaussian of the unconstrained coordinates: batch shape ``(G,)``, event shape ``(d,)``.

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
        >>> guide.laplace_approximation(counts).get_posterior(counts).event_shape  # one number a gene
        torch.Size([1])
        """
        self.optimum  # noqa: B018 (which raises before a fit)
        return self._posterior

    def _is_point(self, name: str) -> bool:
        return False

    def _vector(self) -> Tensor:
        posterior = self.get_posterior().to_event(1)
        return pyro.sample(f"_{self._pyro_name}_latent", posterior, infer={"is_auxiliary": True})

    def _of_point(self) -> Tensor:
        return self.get_posterior().loc

    def _scale(self) -> Tensor:
        return self.get_posterior().variance.sqrt()
