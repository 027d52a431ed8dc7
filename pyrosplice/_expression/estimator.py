"""The estimator that ``fit.model`` returns: input, training, and the fitted model with its lazy matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyrosplice._devices import as_device
from pyrosplice._expression.call_options import TRAINING_WITHOUT_EFFECT, block_sizes, is_default, known_options
from pyrosplice._expression.count_matrix import CountMatrix
from pyrosplice._expression.engine.cell_sandwich import RobustCovariance
from pyrosplice._expression.engine.gene_fits import GlmFit, Start, default_starter, fit_glm
from pyrosplice._expression.engine.joint_newton import NewtonOptions
from pyrosplice._expression.engine.row_source import RowSource
from pyrosplice._expression.noise_models import held_scale
from pyrosplice._expression.prepared_inputs import InputData
from pyrosplice._optimize.convergence import FitCode
from pyrosplice._representation import Described
from pyrosplice._tables.cells import as_numbers
from pyrosplice._tables.names import by_name, places_of
from pyrosplice.errors import (
    InvalidArgumentError,
    NotReadyError,
    check_integer,
    check_number,
    check_option,
    check_switches,
)
from pyrosplice.likelihoods._cell_counts import CellCounts
from pyrosplice.reasons import describe_reasons

Array = NDArray[np.float64]
STRATEGIES: dict[str, list[dict[str, Any]]] = {"AUTO": [{}], "DEFAULT": [{}], "QUICK": [{"tol": 1e-4}]}
INIT = {"auto": "closed_form", "closed_form": "closed_form", "standard": "standard", "all_zero": "all_zero"}
TRAIN_OPTIONS = ("train_loc", "train_scale", "max_iter", "tol")
TRAIN_ALIASES = {"maxiter": "max_iter", "max_steps": "max_iter", "train_mu": "train_loc", "train_r": "train_scale"}


class Estimator(Described):
    """Maximum likelihood of every gene, in as many calls of :meth:`train` as the strategy asks for.

    Attributes
    ----------
    model : FittedModel
        Coefficients and everything derived from them.
    a_var, b_var : (free, G)
        Free location and scale coefficients; for negative-binomial noise scale is −log dispersion, 28 where the
        dispersion is zero (Poisson boundary). NaN for genes without a count.
    log_likelihood : (G,)
    loss : float
        Minus the sum of ``log_likelihood`` over genes.
    jacobian : (G, D), hessian : (G, D, D)
        Derivatives of the log likelihood in the free coefficients, location first.
    fisher_inv : (G, D, D)
        Covariance of the free coefficients: inverse expected information of location, the scale's block of the
        inverse observed information (the expected cross information is zero).
    error_codes, niter : (G,)
        How each fit ended, a :class:`~pyrosplice.reasons.FitCode` up to ``FAILED``, and evaluations of the likelihood.
    reason : (G,)
        How the fit ended, as a :class:`~pyrosplice.reasons.Reason`, which says why a fit failed.
    lls : list of float
        ``loss`` after each call of :meth:`train`, negated.
    """

    def __init__(  # noqa: PLR0913 (a documented interface)
        self,
        input_data: InputData,
        *,
        init_a: Any = "AUTO",
        init_b: Any = "AUTO",
        quick_scale: bool = False,
        dtype: str = "float64",
        batch_size: int | tuple[int, int] | None = None,
        device: str = "cpu",
    ) -> None:
        check_option("dtype", dtype, ("float32", "float64"))
        check_option("quick_scale", quick_scale, (True, False, None))
        self.input_data, self.dtype, self.quick_scale = input_data, np.dtype(dtype), bool(quick_scale)
        input_data.counts.block_cells, genes = block_sizes(batch_size)
        self.source = RowSource(
            input_data.counts, input_data.design(), input_data.likelihood, device=as_device(device), block_size=genes
        )
        self.init_a, self.init_b = init_a, init_b
        self.lls: list[float] = []
        self._fit: GlmFit | None = None

    def _rows(self) -> dict[str, str]:
        inputs = self.input_data
        return {
            "data": f"{len(inputs.location.matrix)} cells, {self._n_genes} genes",
            "noise": repr(inputs.likelihood),
            "location": ", ".join(inputs.location.names),
            "scale": ", ".join(inputs.scale.names),
            "fit": "not trained; call train_sequence or train" if self._fit is None else describe_reasons(self.reason),
        }

    def initialize(self) -> None:
        """Check ``init_a`` and ``init_b``."""
        self._start()

    def _start(self) -> Start:
        """Where to start: where the last call of :meth:`train` ended, or as ``init_a`` and ``init_b`` say."""
        if self._fit is not None:
            last = np.where(np.isnan(self._fit.theta), 0.0, self._fit.theta)
            return lambda rows, which: torch.as_tensor(last[which], device=rows.x.device)
        p, r = self.source.design.x.shape[1], self.source.design.z.shape[1]
        how = {"init_a": self.init_a, "init_b": self.init_b}
        inputs = self.input_data
        if held_scale(inputs.likelihood) is not None and not is_default(self.init_b, "AUTO"):
            raise InvalidArgumentError(f"init_b: {inputs.likelihood!r} holds its scale; leave one of the two out.")
        free = inputs.constraints_loc.free_names, inputs.constraints_scale.free_names
        genes = inputs.counts.gene_names
        given = {k: _given_start(k, v, names, genes) for (k, v), names in zip(how.items(), free, strict=True)}
        words = {k: INIT["auto"] if given[k] is not None else _start_word(k, v) for k, v in how.items()}
        scale = "closed_form" if self.quick_scale else words["init_b"]
        inner = default_starter(self.source, location=words["init_a"], scale=scale)

        def start(rows: Any, which: NDArray[np.intp]) -> torch.Tensor:
            theta = inner(rows, which)
            for key, part in (("init_a", slice(0, p)), ("init_b", slice(p, p + r))):
                value = given[key]
                if value is not None:
                    theta[:, part] = torch.as_tensor(value[:, which].T.copy(), device=theta.device)
            return theta

        return start

    def train(
        self,
        *,
        train_loc: bool = True,
        train_scale: bool = True,
        max_iter: int = 100,
        tol: float = 1e-9,
        **others: Any,
    ) -> None:
        """Improve the estimates by Newton's method until ``tol`` (log-likelihood units left) or ``max_iter``.

        Arguments of the original's optimisers have no effect here, with a warning
        (:data:`pyrosplice._expression.call_options.TRAINING_WITHOUT_EFFECT`); others are refused.
        """
        extra = {TRAIN_ALIASES[k]: others.pop(k) for k in list(others) if k in TRAIN_ALIASES}
        if extra:
            given = {"train_loc": train_loc, "train_scale": train_scale, "max_iter": max_iter, "tol": tol}
            return self.train(**given | extra | others)
        check_switches(train_loc=train_loc, train_scale=train_scale)
        max_iter, tol = check_integer("max_iter", max_iter, least=0), check_number("tol", tol)
        known_options("training_strategy", others, (*TRAIN_OPTIONS, *TRAIN_ALIASES), TRAINING_WITHOUT_EFFECT)
        options = NewtonOptions(
            tol=tol, max_iter=max_iter, fit_location=train_loc, fit_scale=train_scale and not self.quick_scale
        )
        fit = fit_glm(self.source, start=self._start(), options=options)
        self._fit = fit
        self.lls.append(float(np.nansum(fit.log_likelihood)))
        return None

    def train_sequence(
        self, training_strategy: str | Sequence[Mapping[str, Any]] | Callable[[Estimator], Any], **train_args: Any
    ) -> None:
        """Train as the strategy says: a name, a list of arguments of :meth:`train`, or a function of the estimator.

        ``train_args`` go to every step, where the strategy is no function.
        """
        if callable(training_strategy):
            if train_args:
                raise InvalidArgumentError("train_args: a training_strategy that is a function has its own arguments.")
            training_strategy(self)
        elif isinstance(training_strategy, str):
            check_option("training_strategy", training_strategy.upper(), STRATEGIES)
            self.train_sequence(STRATEGIES[training_strategy.upper()], **train_args)
        elif not isinstance(training_strategy, (list, tuple)) or not training_strategy:
            raise InvalidArgumentError(
                f"training_strategy: expected one of {sorted(STRATEGIES)}, a list of dicts or a function, found "
                f"{training_strategy!r}."
            )
        else:
            for step in training_strategy:
                if not isinstance(step, Mapping):
                    raise InvalidArgumentError(f"training_strategy: expected dicts, found {type(step).__name__}.")
                self.train(**{**step, **train_args})

    def finalize(self) -> Estimator:
        """The estimator itself; raises :class:`NotReadyError` where a strategy never trained."""
        _ = self.fit
        return self

    @property
    def fit(self) -> GlmFit:
        """The engine's result."""
        if self._fit is None:
            raise NotReadyError("train() has not been called: the training strategy did nothing.")
        return self._fit

    def contrast_law(self, rows: Array) -> RobustCovariance | None:
        """Covariance and degrees of freedom of contrasts ``(k, F)`` of free coefficients; None: expected information.

        Of a fit with random effects they go by the units of the contrasts.
        """
        return None

    @property
    def _n_genes(self) -> int:
        return self.input_data.counts.shape[1]

    def _cast(self, array: Array) -> NDArray[Any]:
        return array.astype(self.dtype, copy=False)

    a_var = property(lambda self: self._cast(self.fit.theta[:, : self.fit.n_location].T))
    b_var = property(lambda self: self._cast(self.fit.theta[:, self.fit.n_location :].T))
    log_likelihood = property(lambda self: self._cast(self.fit.log_likelihood))
    loss = property(lambda self: -float(np.nansum(self.fit.log_likelihood)))
    jacobian = property(lambda self: self._cast(self.fit.gradient))
    hessian = property(lambda self: self._cast(-self.fit.information))
    expected_information = property(lambda self: self._cast(self.fit.fisher))
    error_codes = property(lambda self: np.minimum(self.fit.code, FitCode.FAILED))
    reason = property(lambda self: self.fit.reason)
    niter = property(lambda self: self.fit.n_iter)
    x = property(lambda self: self.input_data.counts.matrix)

    @cached_property
    def gene_means(self) -> Array:
        """Mean of the data of each gene ``(G,)``."""
        return gene_means(self.input_data.counts)

    @cached_property
    def fisher_inv(self) -> NDArray[Any]:
        """Covariance of the free coefficients ``(G, D, D)``."""
        return self._cast(self.fit.covariance)

    @cached_property
    def model(self) -> FittedModel:
        """The fitted model."""
        return FittedModel(self)


class FittedModel:
    """Full coefficients, predictors, moments and densities; cells × genes matrices are made when asked for.

    ``location_j(genes)`` and its siblings make them for some genes only: names, positions, a slice or a mask.
    """

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator
        self.input_data = estimator.input_data

    a_var = property(lambda self: self._estimator.a_var)
    b_var = property(lambda self: self._estimator.b_var)
    a = property(lambda self: self.input_data.constraints_loc.full(self.a_var))
    b = property(lambda self: self.input_data.constraints_scale.full(self.b_var))
    design_loc = property(lambda self: self.input_data.location.matrix)
    design_scale = property(lambda self: self.input_data.scale.matrix)
    design_loc_names = property(lambda self: list(self.input_data.location.names))
    design_scale_names = property(lambda self: list(self.input_data.scale.names))
    constraints_loc = property(lambda self: self.input_data.constraints_loc.matrix)
    constraints_scale = property(lambda self: self.input_data.constraints_scale.matrix)
    size_factors = property(lambda self: self.input_data.size_factors)
    features = property(lambda self: self.input_data.counts.gene_names)
    ll_byfeature = property(lambda self: self._estimator.log_likelihood)
    jac = property(lambda self: self._estimator.jacobian)
    fim = property(lambda self: self._estimator.expected_information)
    hessian = property(lambda self: self._estimator.hessian)

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Genes at a maximum, in the interior or at the Poisson boundary ``(G,)``."""
        return np.isin(self._estimator.error_codes, [FitCode.CONVERGED, FitCode.POISSON_BOUNDARY])

    def _places(self, genes: Any) -> NDArray[np.intp]:
        return places_of(genes, self.features, "genes")

    def eta_loc_j(self, genes: Any) -> Array:
        """Location predictor, size factors included, of some genes ``(N, g)``."""
        genes = self._places(genes)
        offset = self.input_data.offset
        return self.design_loc @ self.a[:, genes] + (offset[:, None] if offset.ndim == 1 else offset[:, genes])

    def eta_scale_j(self, genes: Any) -> Array:
        """Scale predictor of some genes ``(N, g)``."""
        return self.design_scale @ self.b[:, self._places(genes)]

    def location_j(self, genes: Any) -> Array:
        """Fitted means of some genes ``(N, g)``."""
        return self._counts_j(genes).mean.T.numpy()

    def scale_j(self, genes: Any) -> Array:
        """Exponential of the scale predictor: r = 1 / dispersion, or the standard deviation ``(N, g)``."""
        return np.exp(np.minimum(self.eta_scale_j(genes), 700.0))

    def ll_j(self, genes: Any) -> Array:
        """Log density of each count of some genes ``(N, g)``."""
        y = torch.from_numpy(self.input_data.counts.genes(self._places(genes)).copy())
        return self._counts_j(genes).log_prob(y).T.numpy()

    def sample_j(self, genes: Any, *, seed: int) -> Array:
        """Counts of some genes drawn from the fit ``(N, g)``; NaN without one."""
        counts = self._counts_j(genes)
        fitted = torch.isfinite(counts.eta) & torch.isfinite(counts.zeta)
        known = CellCounts(counts.likelihood, *(torch.where(fitted, v, 0.0) for v in (counts.eta, counts.zeta)))
        drawn = known.sample(generator=torch.Generator().manual_seed(seed))
        return torch.where(fitted, drawn, torch.nan).T.numpy()

    def _counts_j(self, genes: Any) -> CellCounts:
        """The distribution of the counts of some genes ``(g, N)`` at the fit."""
        which = self._places(genes)
        eta, zeta = (torch.from_numpy(m.T) for m in (self.eta_loc_j(which), self.eta_scale_j(which)))
        return CellCounts(self.input_data.likelihood, eta, zeta)

    eta_loc = property(lambda self: self.eta_loc_j(slice(None)))
    eta_scale = property(lambda self: self.eta_scale_j(slice(None)))
    location = property(lambda self: self.location_j(slice(None)))
    mu = location
    scale = property(lambda self: self.scale_j(slice(None)))
    r = scale
    ll = property(lambda self: self.ll_j(slice(None)))


def gene_means(counts: CountMatrix) -> Array:
    """Mean of the data of each gene ``(G,)``."""
    total = np.zeros(counts.shape[1])
    for _, block in counts.cell_blocks():
        total += np.asarray(block.sum(0, dtype=np.float64)).ravel()
    return total / counts.shape[0]


def _start_word(name: str, value: Any) -> str:
    word = str(value).lower()
    check_option(name, word, INIT)
    return INIT[word]


def _given_start(name: str, value: Any, coefficients: Sequence[str], genes: NDArray[np.object_]) -> Array | None:
    """Given starting values ``(free, G)``, a DataFrame's by name; None where a word says how to start."""
    if isinstance(value, str):
        return None
    if isinstance(value, pd.DataFrame):
        value = by_name(value, pd.Index(coefficients), name, what="coefficient")
        value = by_name(value.T, pd.Index(genes), name, what="gene").T
    start, shape = as_numbers(value, name), (len(coefficients), len(genes))
    if start.shape != shape or not np.isfinite(start).all():
        raise InvalidArgumentError(
            f"{name}: expected a string or finite values of shape {shape}, free coefficients × genes; found shape "
            f"{start.shape}."
        )
    return start
