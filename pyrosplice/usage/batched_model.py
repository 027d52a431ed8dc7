"""What the multinomial models share: data, parameters, options, their record of the fit and their representation."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any, TypeVar

import pandas as pd
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrosplice.devices import as_device
from pyrosplice.effects.isoform_effect import IsoformEffect
from pyrosplice.errors import InvalidArgumentError, NotReadyError, check_option, is_number
from pyrosplice.glmm.objective import LogPrior
from pyrosplice.guides.agreement import overridden
from pyrosplice.guides.own_model import Program, check_model
from pyrosplice.likelihoods.contract import Likelihood, Multinomial
from pyrosplice.likelihoods.guarded import guarded
from pyrosplice.modes import ordinary_attributes, works_in_any_mode
from pyrosplice.optimize.convergence import Convergence
from pyrosplice.overrides import refuse_set_methods
from pyrosplice.priors.named import Priors, check_priors, named_priors
from pyrosplice.priors.prior_tables import SHIPPED, describe, prior_table
from pyrosplice.priors.sites import complete_priors, is_flat, log_prior
from pyrosplice.reasons import Reason, describe_reasons
from pyrosplice.representation import Described
from pyrosplice.usage.own_usage import FollowedModel, place_parameters
from pyrosplice.usage.reading.inputs import as_counts, as_design, as_tensor, spot_names

logger = logging.getLogger("pyrosplice")

ModelType = TypeVar("ModelType", bound="BaseModel")


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


@works_in_any_mode
class BaseModel(Described, FollowedModel):
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

    bias_eta: Tensor
    fitting_method: str
    _prior_sites: tuple[str, ...] = ("beta", "bias_eta")

    def __init__(self, *, likelihood: Likelihood | None, priors: Priors, model: Program | None = None) -> None:
        super().__init__()
        check_likelihood(likelihood)
        check_model(model)
        self._given = model
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

    def _site_shapes(self, counts: Tensor, design: Tensor) -> dict[str, tuple[int, ...]]:
        """Shape of each site that takes a prior, genes first."""
        n_genes, _, n_isos = counts.shape
        n_logits = self.likelihood.n_predictors(n_isos)
        own = dict.fromkeys(self.likelihood.free, (n_genes, 1))
        return {"beta": (n_genes, design.shape[1], n_logits), "bias_eta": (n_genes, n_logits), **own}

    def prior_table(self) -> pd.DataFrame:
        """Every site that takes a prior: shape of a gene's values, support, prior, role."""
        self._require_data()
        return prior_table(self.priors, self._site_shapes(self.counts, self.design_mtx))

    def _free_priors(self) -> dict[str, TorchDistribution]:
        """Priors of the sites that a fit estimates, without the flat ones."""
        priors = complete_priors(self.priors, self._site_shapes(self.counts, self.design_mtx))
        return {name: prior for name, prior in priors.items() if not is_flat(prior)}

    def _log_prior(self) -> LogPrior | None:
        """What engines add to their log likelihood, or None if every prior is flat."""
        priors = self._free_priors()
        if not priors:
            return None
        return lambda values, genes: log_prior(priors, {name: values[name] for name in priors}, genes=genes)

    def log_prior_density(self) -> Tensor:
        """Log prior density of each gene at the present parameters, ``(G,)``."""
        self._shipped_only("log_prior_density", "forward(), which has all of it")
        priors = self._free_priors()
        if not priors:
            return self.bias_eta.new_zeros(self.n_genes)
        return log_prior(priors, {name: getattr(self, name) for name in priors})

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
        self._own = self._decided = None

    def _set_parameters(self, values: Mapping[str, Tensor]) -> None:
        place_parameters(self, values)

    def _require_followed(self) -> None:
        """Raise where a subclass has an objective or a predictor of its own, which no fit would follow."""
        shipped, names = overridden(type(self))
        for name in sorted({"forward", "linear_predictor"} & {*names}):
            other = self.clone()
            start = torch.Generator().manual_seed(0)
            for value in other.parameters():
                value.data += 0.1 * torch.rand(value.shape, generator=start, dtype=value.dtype).to(value.device)
            with torch.no_grad():
                found, expected = getattr(other, name)(), getattr(shipped, name)(other)
            if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-9, atol=1e-9):
                raise InvalidArgumentError(
                    f"{name}: {type(self).__name__} overrides it, and fits follow that of {shipped.__name__}. Give the "
                    "Pyro model (model=), which is what is fitted, or change priors= or likelihood=."
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
        record.finish(genes, Reason.MAX_EPOCHS)
        return record

    def _finish(self, record: Convergence, seconds: float, *, verbose: bool, quiet: bool) -> None:
        if self._errors:
            failed = [gene for gene, reason in enumerate(record.reason) if reason == Reason.NOT_FINITE]
            record.finish(torch.tensor(failed, dtype=torch.int64), Reason.RAISED)
        self.logger, self.fitting_time = record, seconds
        if verbose:
            for epoch, loss in enumerate(record.loss_history.sum(1).tolist()):
                logger.info("%s: epoch %d, loss %.6f", type(self).__name__, epoch, loss)
        if not quiet:
            logger.info("%s: %s", type(self).__name__, self._status())

    def _status(self) -> str:
        if not self.n_genes:
            return "no data; call setup_data()"
        if Reason.RUNNING in self.logger.reason:
            return "not fitted; call fit()"
        return f"fitted in {self.fitting_time:.3g} s: {describe_reasons(self.logger.reason)}"

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
        own = {} if self._own is None else {"model": self._own.name, "engine": self._own.engine}
        return own | {
            "likelihood": self.likelihood.name,
            "priors": ", ".join(f"{name} ~ {describe(prior)}" for name, prior in self.priors.items())
            or self._priors_name
            or "flat",
            "fitting": ", ".join(f"{key}={value!r}" for key, value in self._options().items()),
            "status": self._status(),
        }
