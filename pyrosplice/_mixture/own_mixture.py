"""The part of :class:`~pyrosplice.GaussianMixture` that follows a Pyro model of a person's own, where there is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyrosplice._mixture.component_order import in_order_of
from pyrosplice._mixture.density_module import GaussianMixtureModel
from pyrosplice._mixture.em.loop import why_ended
from pyrosplice._mixture.em.row_blocks import RowBlocks, require_finite
from pyrosplice._mixture.gaussian_mixture import MixtureParameters, as_matrices, gaussian_mixture
from pyrosplice._mixture.mixture_prior import (
    CovarianceType,
    MixturePrior,
    MixturePriors,
    SitePriors,
    closed_priors,
    mixture_priors_of_cells,
    one_prior,
    without_closed_form,
)
from pyrosplice._modes import works_in_any_mode
from pyrosplice.errors import InvalidArgumentError, RefusedModelError
from pyrosplice.guides import FitOptions, init_to_center
from pyrosplice.guides._agreement import SHARP, overridden, same_support
from pyrosplice.guides._first_points import Site, normal_numbers
from pyrosplice.guides._own_fit import OwnFit, SavedSites, Task, log_density_of, observed_density
from pyrosplice.guides._own_model import (
    SHIPPED_ENGINE,
    Program,
    bound_model,
    check_model,
    latent_values,
    name_of,
    unused,
)
from pyrosplice.guides._separate_units import unit_density
from pyrosplice.guides._unit_density import ModelCall, UnitDensity
from pyrosplice.reasons import Reason

PARTS = ("weights", "means", "covariances")


class MixturePoints:
    """A Pyro guide with every parameter of a mixture at its estimate; the argument is the model's.

    Parameters
    ----------
    parameters
        The estimates.
    """

    def __init__(self, parameters: MixtureParameters) -> None:
        self.parameters = parameters

    def __call__(self, x: Tensor | None = None) -> dict[str, Tensor]:
        """Sample every parameter."""
        fitted, tied = self.parameters, self.parameters.covariance_type == "tied"
        values = {"weights": pyro.sample("weights", dist.Delta(fitted.weights.clone(), event_dim=1))}
        if tied:
            values["covariances"] = pyro.sample("covariances", dist.Delta(fitted.covariances.clone(), event_dim=2))
        with pyro.plate("components", fitted.n_components, dim=-1):
            for name in ("means",) if tied else ("covariances", "means"):
                value = getattr(fitted, name).clone()
                values[name] = pyro.sample(name, dist.Delta(value, event_dim=value.ndim - 1))
        return values


@works_in_any_mode
class FollowedMixture:
    """Which Pyro model a mixture has, the fit of one of a person's own, and what is known of it."""

    num_components: int
    covariance_type: CovarianceType
    prior: MixturePrior | None
    priors: MixturePriors
    model_: GaussianMixtureModel
    converged_: bool
    num_iter_: int
    nll_: float
    _own: OwnFit | None = None
    _saved_own: SavedSites | None = None
    _saved_reason: Reason | None = None  # of the fit of a file, which the fits here leave behind
    _stepwise: Any = None

    @property
    def model(self) -> Program:
        """The Pyro model, yours or the shipped one; called with cells ``(N, D)``."""
        given = self.__dict__["model"]
        if given is None:
            return partial(gaussian_mixture, **self._arguments())
        check_model(given)
        return bound_model(given, self._arguments(), self._given_options(), data=("x",))

    @model.setter
    def model(self, value: Program | None) -> None:
        self.__dict__["model"] = value

    @property
    def guide(self) -> Callable[..., dict[str, Tensor]]:
        """A Pyro guide with every parameter at its estimate; of a model of your own, the guide that fitted it."""
        if self._own is not None:
            return self._own.guide
        check_is_fitted(self, "model_")
        if self._saved_own is not None:
            raise RefusedModelError(f"guide: a loaded mixture has none of {self._saved_own.name}; call fit.")
        return MixturePoints(self.model_.parameters_of())

    @property
    def engine(self) -> str:
        """Which way a fit goes: the engine of the shipped model, or the guide of one of your own, and what it did."""
        own = self._saved_own if self._own is None else self._own
        return SHIPPED_ENGINE if own is None else own.engine

    @property
    def reason_(self) -> Reason:
        """How the fit ended: ``converged_`` in a word, whose ``text`` is a sentence."""
        check_is_fitted(self, "converged_")
        if self._saved_reason is not None:
            return self._saved_reason
        if self._own is not None:
            return next((r for r in self._own.guide.optimum.reason if r != Reason.CONVERGED), Reason.CONVERGED)
        if self.converged_ or (self._stepwise is None and self._saved_own is None):
            return why_ended(converged=self.converged_, singular=False)
        return Reason.FAILED if self._stepwise is None else Reason.RUNNING

    @property
    def sites(self) -> dict[str, Tensor]:
        """Estimates of every continuous latent site of the model, those of your own model among them; copies."""
        own = self._saved_own if self._own is None else self._own
        if own is not None:
            return own.copies()
        check_is_fitted(self, "model_")
        fitted = self.model_.parameters_of()
        return {name: getattr(fitted, name).clone() for name in PARTS}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments, as they were given.

        Examples
        --------
        >>> from pyrosplice import GaussianMixture
        >>> parameters = GaussianMixture(3, covariance_type="diag").get_params()
        >>> parameters["num_components"], parameters["covariance_type"]
        (3, 'diag')
        """
        names = self._get_param_names()  # type: ignore[attr-defined]  # of scikit-learn
        return {name: self.__dict__["model"] if name == "model" else getattr(self, name) for name in names}

    def _arguments(self) -> dict[str, Any]:
        """What a Pyro model of cells is made with."""
        shape = {"n_components": self.num_components, "covariance_type": self.covariance_type}
        return {**shape, "prior": self.prior, "priors": self.priors}

    def _given_options(self) -> dict[str, str]:
        """Arguments of the Pyro model of which something was asked for, in words."""
        asked = {}
        if self.num_components != 1:
            asked["n_components"] = f"num_components={self.num_components}"
        if self.covariance_type != "diag":
            asked["covariance_type"] = f"covariance_type={self.covariance_type!r}"
        if self.prior is not None:
            asked["prior"] = "prior"
        if self.priors is not None:
            asked["priors"] = "priors"
        return asked

    def _closed_priors(self, n_features: int) -> MixturePriors | SitePriors:
        """The priors, but flat where an M-step has no closed form for what was given; raises for other shapes."""
        given = one_prior(self.prior, self.priors)
        return closed_priors(given, self.num_components, n_features, self.covariance_type)

    def _known_priors(self, cells: Tensor) -> SitePriors:
        given = mixture_priors_of_cells(one_prior(self.prior, self.priors), cells, self.num_components)
        return SitePriors.of(given, self.num_components, cells.shape[1], self.covariance_type)

    def _without_closed_form(self) -> str:
        """What was given that an M-step has no closed form for, in words."""
        return in_words(without_closed_form(self.priors, self.covariance_type))

    def _has_own(self) -> bool:
        return self.__dict__["model"] is not None or "model" in overridden(type(self))[1]

    def _own_program(self, cells: Tensor) -> tuple[Program, str] | None:
        """The model that a person gave and its name; None where it has the density of the shipped one."""
        given = self.__dict__["model"]
        program = self.model
        name = name_of(program if given is None else given)
        latent_values(program, name, cells)
        known, mine = (_density(one, cells) for one in (partial(gaussian_mixture, **self._arguments()), program))
        if _same(known, mine):
            return None
        self._refuse_unread(mine, name, cells)
        return program, name

    def _refuse_unread(self, mine: UnitDensity, name: str, cells: Tensor) -> None:
        """Raise where the model is the same with another value of an option that was given."""
        other_type = "diag" if self.covariance_type == "full" else "full"
        others = {
            "n_components": ("num_components", self.num_components + 1),
            "covariance_type": ("covariance_type", other_type),
            "prior": ("prior", None),
            "priors": ("priors", None),
        }
        for argument, words in self._given_options().items():
            option, other = others[argument]
            before = getattr(self, option)
            try:
                setattr(self, option, other)
                unread = _same(mine, _density(self.model, cells))
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
                unread = False  # it reads the value, and cannot do with the other one
            finally:
                setattr(self, option, before)
            if unread:
                raise unused(words, name)

    def _fit_own(self, program: Program, name: str, cells: Tensor, start: MixtureParameters) -> None:
        """Fit a model of a person's own from a fit of the shipped one, and keep it."""
        own = followed_from(in_order_of(self._known_priors(cells), start), program, name, cells)
        fitted = self._parameters_of(own, cells)
        self._own = own
        if fitted is None:
            self.__dict__.pop("model_", None)
        else:
            self.model_ = GaussianMixtureModel.from_parameters(fitted, torch.float64)
        self.converged_ = bool(own.guide.converged.all())
        self.num_iter_ = int(own.guide.optimum.evaluations.max())
        self.nll_ = -float(observed_density(own.guide.density, own.values)) / len(cells)

    def _parameters_of(self, own: OwnFit, cells: Tensor) -> MixtureParameters | None:
        """The mixture of the sites' values, if the model's cells have its density at any values: told at two points."""
        density, point = own.guide.density, own.guide.density.unconstrain(own.values, own.guide.density.latents)
        if not {*PARTS} <= density.latents.keys():
            return None
        for step in (0.05, 0.0):
            values, _ = density.constrain(point + step * normal_numbers(point, 3))
            weights, means, covariances = (values[part].detach() for part in PARTS)
            found = MixtureParameters(weights, means, covariances, self.covariance_type)
            expected = _log_likelihood(found, cells)
            if expected is None or not _close(observed_density(density, values), expected):
                return None
        return found

    def _require_gaussian(self) -> None:
        if self._own is not None and not hasattr(self, "model_"):
            raise RefusedModelError(
                "This needs cells with the density of a Gaussian mixture of weights, means and covariances, and those "
                f"of {self._own.name} have another. Its components are pyro.infer.infer_discrete of "
                "poutine.condition(model, data=sites)."
            )

    def _require_three_parts(self) -> None:
        """Raise where a criterion would count other parameters than there are."""
        own = self._saved_own if self._own is None else self._own
        if own is not None and {*self.sites} != {*PARTS}:
            raise RefusedModelError(
                f"aic, bic: {own.name} has other sites beside weights, means and covariances ({sorted(self.sites)}), "
                "and how many parameters these count for is not known; compare score()."
            )

    def _shipped_only(self, what: str) -> None:
        own = self._saved_own if self._own is None else self._own
        if own is not None or self.__dict__["model"] is not None:
            name = name_of(self.__dict__["model"]) if own is None else own.name
            raise RefusedModelError(
                f"{what}: it is worked out for the shipped model, and this mixture's is {name}. Its guide is an "
                "AutoGuide (guide.laplace_approximation(x)), and pyro.infer.NUTS takes the model."
            )

    def saved_sites(self) -> SavedSites | None:
        """What a file holds of a model of your own; None of the shipped one.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> mixture = GaussianMixture(2, random_state=0).fit(x)
        >>> mixture.saved_sites() is None  # no model of your own
        True
        """
        self._require_gaussian()
        return self._saved_own if self._own is None else SavedSites.of(self._own)

    def take_saved(self, saved: SavedSites | None, reason: Reason | None = None) -> None:
        """Take what a file holds of a model of your own.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> mixture = GaussianMixture(2, random_state=0).fit(x)
        >>> mixture.take_saved(None, mixture.reason_)
        >>> mixture.reason_.value
        'converged'
        """
        self._own, self._saved_own, self._saved_reason = None, saved, reason


def followed_from(start: MixtureParameters, program: Program, name: str, cells: Tensor) -> OwnFit:
    """Find the mode of a Pyro model of cells ``(N, D)``, from a mixture where it has the same sites."""
    first = {part: getattr(start, part) for part in PARTS}

    def begin(site: Site) -> Tensor:
        value = first.get(site["name"])
        fits = value is not None and value.shape == site["fn"].shape() and bool(site["fn"].support.check(value).all())
        return value.double() if value is not None and fits else init_to_center(site)

    try:
        return Task(name=name, n_units=None, options=FitOptions(), start=begin).fit(program, cells)
    except torch.linalg.LinAlgError as error:
        raise InvalidArgumentError(
            f"{name}: the search came to covariances that are not positive definite. Without a prior that holds them "
            "they collapse onto few or equal cells, where the density has no maximum: give priors={'covariances': ...} "
            "(InverseGamma of variances, pyrosplice.priors.InverseWishart of matrices), or fewer components. A prior "
            "with a corner at its mode, such as Laplace's, has no derivative to follow there: give a smooth one."
        ) from error


def in_words(not_conjugate: Mapping[str, str]) -> str:
    """Sites and their priors in one line."""
    return ", ".join(f"{site} ~ {prior}" for site, prior in not_conjugate.items())


def all_cells(rows: RowBlocks, name: str, given: Mapping[str, bool]) -> Tensor:
    """Read all cells in float64, ``(N, D)``; raises for what a model of a person's own cannot follow.

    Parameters
    ----------
    rows
        The cells.
    name
        What the model is called.
    given
        Whether each option was.
    """
    for option, asked in given.items():
        if asked:
            raise InvalidArgumentError(
                f"{option}: {name} is fitted by a guide, to all cells at once, each of weight one; leave it out."
            )
    if rows.device.type != "cpu":
        raise InvalidArgumentError(f"accelerator: {name} is fitted on the CPU, found {str(rows.device)!r}.")
    cells = torch.cat([rows.block(a, b)[0] for a, b in rows.spans()]).double()
    require_finite(cells)
    return cells


def _density(program: Program, cells: Tensor) -> UnitDensity:
    return unit_density(ModelCall(program, (cells,)), None, frozenset(), init=_double_center)


def _double_center(site: Site) -> Tensor:
    value = init_to_center(site)
    return value.double() if value.is_floating_point() else value


def _same(known: UnitDensity, other: UnitDensity) -> bool:
    """Whether two models have the same continuous sites with the same supports and, at two points, the same density."""
    shapes = [{name: site.value_shape for name, site in one.latents.items()} for one in (known, other)]
    if shapes[0] != shapes[1]:
        return False
    for seed in (1, 2):
        values, _ = known.constrain(known.start + 0.3 * normal_numbers(known.start, seed))
        with torch.no_grad():
            traces = [one.trace(values).nodes for one in (known, other)]
            for name, value in values.items():
                here, there = (nodes[name]["fn"].support for nodes in traces)
                if not same_support(here, there, value):
                    return False
            if not _close(log_density_of(other, values), log_density_of(known, values)):
                return False
    return True


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool(((found - expected).abs() <= SHARP * (1 + 1e-3 * expected.abs())).all())


def _log_likelihood(fitted: MixtureParameters, cells: Tensor) -> Tensor | None:
    """Log likelihood of all cells, ``(1,)``; None where the parameters are of no mixture of that covariance type."""
    try:
        factors = torch.linalg.cholesky(as_matrices(fitted.covariances, fitted.means, fitted.covariance_type))
        normal = dist.MultivariateNormal(fitted.means, scale_tril=factors)
        return (fitted.weights.log() + normal.log_prob(cells[:, None])).logsumexp(1).sum().reshape(1)
    except (RuntimeError, ValueError):
        return None
