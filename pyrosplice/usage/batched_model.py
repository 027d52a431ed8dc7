"""What the multinomial models share: data, parameters, options, their record of the fit and their representation."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from pyrosplice.devices import as_device
from pyrosplice.effects.isoform_effect import IsoformEffect
from pyrosplice.errors import InvalidArgumentError, NotReadyError, check_option, is_number
from pyrosplice.glmm.multinomial import MultinomialGLM
from pyrosplice.guides.agreement import overridden, random_values, require_same_density
from pyrosplice.likelihoods.contract import Likelihood, Multinomial
from pyrosplice.likelihoods.guarded import guarded
from pyrosplice.modes import ordinary_attributes, works_in_any_mode
from pyrosplice.optimize.convergence import Convergence
from pyrosplice.overrides import refuse_set_methods
from pyrosplice.priors.named import Priors, check_priors, named_priors
from pyrosplice.priors.prior_tables import SHIPPED, describe
from pyrosplice.representation import Described
from pyrosplice.usage.reading.inputs import as_counts, as_design, as_tensor, spot_names

logger = logging.getLogger("pyrosplice")

ModelType = TypeVar("ModelType", bound="BaseModel")


REAL = {"beta", "bias_eta", "theta_logit", "nu"}  # sites on the real line; all others are positive


def check_likelihood(likelihood: Any) -> None:
    """Raise unless it is a likelihood, or None for the default; lists the shipped ones."""
    if likelihood is not None and not isinstance(likelihood, Likelihood):
        known = ", ".join(f"{name}()" for name in SHIPPED)
        hint = f" (call it: {likelihood.__name__}())" if isinstance(likelihood, type) else ""
        raise InvalidArgumentError(
            f"likelihood: expected an object of pyrosplice.likelihoods, one of {known}, or of your own subclass of "
            f"Likelihood; found {likelihood!r}{hint}."
        )
    refuse_set_methods(likelihood, "likelihood")
    for name in likelihood.hyperparameters if likelihood is not None else ():
        _check_held(name, getattr(likelihood, name))


def _check_held(name: str, value: Any) -> None:
    """Raise unless a likelihood's hyper-parameter is free, a positive number, or one a gene, ``(G, 1)``."""
    single = is_number(value) or (isinstance(value, Tensor) and (value.ndim == 0 or value.shape[1:] == (1,)))
    held = torch.as_tensor(value) if single else None
    if value is not None and (held is None or not bool((torch.isfinite(held) & (held > 0)).all())):
        raise InvalidArgumentError(
            f"likelihood: expected {name} to be a positive finite number, or a tensor (G, 1) of them, or None to "
            f"estimate it, found {value!r}."
        )


def place_parameters(model: Module, values: Mapping[str, Tensor]) -> None:
    """(Re)place parameters; they carry no gradient unless the user asks (``requires_grad_()``)."""
    for name, value in values.items():
        model.register_parameter(name, Parameter(value.detach().clone(), requires_grad=False))


@works_in_any_mode
class BaseModel(Described, Module):
    """State of a model of isoform usage for a batch of genes with the same number of isoforms.

    Attributes
    ----------
    n_genes, n_spots, n_isos, n_factors
        Sizes G, N, K, P; zero (P: None) before ``setup_data``.
    counts, design_mtx
        The data, ``(G, N, K)`` and ``(N, P)``, float64.
    logger
        Per-gene :class:`~pyrosplice.optimize.convergence.Convergence`; every gene "running" before ``fit``.
    fitting_time
        Seconds of the last fit; 0 before.
    """

    counts: Tensor
    design_mtx: Tensor
    fitting_method: str
    fitting_configs: dict[str, Any]
    _prior_sites: tuple[str, ...] = ("beta", "bias_eta")

    def __init__(self, *, likelihood: Likelihood | None, priors: Priors) -> None:
        super().__init__()
        check_likelihood(likelihood)
        self.likelihood = ordinary_attributes(likelihood or Multinomial())
        self._errors: list[Exception] = []  # of the likelihood, in the last fit
        for site in priors if isinstance(priors, Mapping) else ():
            check_option("priors", site, (*self._prior_sites, *self.likelihood.free))
        self._priors_name = check_priors(priors)
        self.priors: dict[str, Any] = {} if isinstance(priors, str) else dict(priors or {})
        self.n_genes = self.n_spots = self.n_isos = 0
        self.n_factors: int | None = None
        self.device = torch.device("cpu")
        self.fitting_time = 0.0
        self.logger = Convergence.start(0)

    @property
    def model(self) -> MultinomialGLM:
        """The Pyro model of the data: a callable without arguments, as ``pyro.infer`` takes them."""
        raise NotImplementedError

    @property
    def bound_likelihood(self) -> Likelihood:
        """The likelihood with its hyper-parameters at their present values."""
        return self._guarded.bind({name: getattr(self, name) for name in self.likelihood.free})

    @property
    def _guarded(self) -> Likelihood:
        """The likelihood as engines use it: a gene for which it raises has NaN, and troubles no other."""
        return guarded(self.likelihood, self._errors)

    def _checked(self, counts: Any, design_mtx: Any, device: str | torch.device) -> tuple[Tensor, Tensor]:
        chosen = as_device(device)
        table = as_counts(counts, chosen, self.likelihood)
        return table, as_design(design_mtx, table.shape[1], chosen, spot_names(counts))

    def _named_priors(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        covariance: Any = None,
        isoform_effect: IsoformEffect = "independent",
    ) -> None:
        """Turn a name that was given as priors into those of this data."""
        if self._priors_name is not None:
            own = {"covariance": covariance, "likelihood": self.likelihood, "isoform_effect": isoform_effect}
            self.priors = named_priors(self._priors_name, shapes, **own)

    def _held(self) -> tuple[str, ...]:
        """Sites that a fit does not estimate."""
        return ()

    def _no_mode(self) -> str | None:
        """Why the estimates are no mode to draw around, if they are none."""
        return None

    def _set_data(self, counts: Tensor, design: Tensor) -> None:
        self.counts, self.design_mtx, self.device = counts, design, counts.device
        self.n_genes, self.n_spots, self.n_isos = counts.shape
        self.n_factors = design.shape[1]
        self.logger, self.fitting_time = Convergence.start(self.n_genes), 0.0

    def _set_parameters(self, values: Mapping[str, Tensor]) -> None:
        place_parameters(self, values)

    def _require_followed(self) -> None:
        """Raise where a subclass has a Pyro model, an objective or a predictor that fits would not follow."""
        shipped, names = overridden(type(self))
        if "model" in names:
            program, known = self.model, shipped.model.fget(self)  # type: ignore[attr-defined]  # a property
            shapes = known.latent_shapes()
            require_same_density(program, known, partial(random_values, shapes, lambda name: name not in REAL))
        for name in sorted({"forward", "linear_predictor"} & {*names}):
            other = self.clone()
            start = torch.Generator().manual_seed(0)
            for value in other.parameters():
                value.data += 0.1 * torch.rand(value.shape, generator=start, dtype=value.dtype).to(value.device)
            with torch.no_grad():
                found, expected = getattr(other, name)(), getattr(shipped, name)(other)
            if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-9, atol=1e-9):
                raise InvalidArgumentError(
                    f"{name}: {type(self).__name__} overrides it, and fits follow that of {shipped.__name__}. Change "
                    "priors= or likelihood= instead, or infer with Pyro on a model of your own."
                )

    def _require_data(self) -> None:
        if not self.n_genes:
            raise NotReadyError(f"{type(self).__name__} has no data yet: call setup_data() first.")

    def clone(self: ModelType) -> ModelType:
        """A model of its own with the same data, options, parameters and record of the fit.

        The data are shared (they are never changed in place), everything else is copied.
        """
        new = copy.copy(self)
        new._parameters = {}
        new.fitting_configs = dict(self.fitting_configs)
        new.priors = dict(self.priors)
        new.logger = copy.deepcopy(self.logger)
        place_parameters(new, dict(self.named_parameters(recurse=False)))
        return new

    def update_params_from_dict(self, params: Mapping[str, Any]) -> None:
        """Replace some parameters by the values in a dictionary.

        Raises
        ------
        InvalidArgumentError
            A name that is no parameter of this model, or a value of another shape. Nothing is changed then.
        NotReadyError
            Before ``setup_data``.
        """
        self._require_data()
        own = dict(self.named_parameters(recurse=False))
        values = {}
        for name, value in params.items():
            check_option("params", name, own)
            values[name] = as_tensor(value, f"params[{name!r}]").to(own[name])
            if values[name].shape != own[name].shape:
                raise InvalidArgumentError(
                    f"params[{name!r}]: expected shape {tuple(own[name].shape)}, found {tuple(values[name].shape)}."
                )
        for name, value in values.items():
            own[name].data.copy_(value)

    def _without_epochs(self) -> Convergence:
        """The record of a fit of ``max_epochs=0``, which leaves every parameter where it is."""
        genes = torch.arange(self.n_genes, device=self.device)
        record = Convergence.start(self.n_genes, device=self.device)
        record.record(-self(), genes)
        record.finish(genes, "max_epochs")
        return record

    def _finish(self, record: Convergence, seconds: float, *, verbose: bool, quiet: bool) -> None:
        if self._errors:
            failed = [gene for gene, reason in enumerate(record.reason) if reason == "not_finite"]
            record.finish(torch.tensor(failed, dtype=torch.int64), "raised")
        self.logger, self.fitting_time = record, seconds
        if verbose:
            for epoch, loss in enumerate(record.loss_history.sum(1).tolist()):
                logger.info("%s: epoch %d, loss %.6f", type(self).__name__, epoch, loss)
        if not quiet:
            logger.info("%s: %s", type(self).__name__, self._status())

    def _status(self) -> str:
        if not self.n_genes:
            return "no data; call setup_data()"
        if "running" in self.logger.reason:
            return "not fitted; call fit()"
        reasons = sorted({reason: self.logger.reason.count(reason) for reason in self.logger.reason}.items())
        counted = ", ".join(f"{number} {reason}" for reason, number in reasons)
        return f"fitted in {self.fitting_time:.3g} s: {counted}"

    def _options(self) -> dict[str, Any]:
        """What the fit depends on: the Newton methods take no first-order options, and ν is always at its mode."""
        used = set(self.fitting_configs) - {"update_nu_every_k"}
        if not self.fitting_method.endswith("gd"):
            used = {"tol", "max_epochs"}
        own = {name: value for name, value in self.fitting_configs.items() if name in used}
        return {"fitting_method": self.fitting_method, **own}

    def _title(self) -> str:
        if not self.n_genes:
            return type(self).__name__
        size = f"{self.n_genes} genes × {self.n_spots} spots × {self.n_isos} isoforms, {self.n_factors} covariates"
        return f"{type(self).__name__}: {size}"

    def _rows(self) -> dict[str, str]:
        return {
            "likelihood": self.likelihood.name,
            "priors": ", ".join(f"{name} ~ {describe(prior)}" for name, prior in self.priors.items())
            or self._priors_name
            or "flat",
            "fitting": ", ".join(f"{key}={value!r}" for key, value in self._options().items()),
            "status": self._status(),
        }
