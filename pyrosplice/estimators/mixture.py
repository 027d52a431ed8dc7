"""``GaussianMixture``: EM at the speed of matrix products, on arrays, tensors, sparse, Dask, AnnData and data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from pyrosplice.data.rows import as_given, as_rows, is_array
from pyrosplice.errors import InvalidArgumentError, check_option
from pyrosplice.estimators.mixture_files import read_attributes, read_parameters, write_attributes, write_parameters
from pyrosplice.estimators.mixture_module import GaussianMixtureModel
from pyrosplice.estimators.mixture_trainer import TrainerOptions
from pyrosplice.inference.em import EMOptions, EMResult, block_size
from pyrosplice.inference.em_fit import STRATEGIES, Problem, Strategy, best_of, start_one
from pyrosplice.inference.em_missing import missing_log_joint
from pyrosplice.inference.em_starts import uniforms
from pyrosplice.inference.em_stepwise import StepwiseEM
from pyrosplice.inference.row_blocks import RowBlocks
from pyrosplice.models.gaussian_mixture import COVARIANCE_TYPES, CovarianceType, MixtureParameters, MixturePrior


class GaussianMixture(DensityMixin, BaseEstimator):
    r"""Mixture of M Gaussians, :math:`p(x) = \sum_m w_m N(x \mid \mu_m, \Sigma_m)`, fitted by exact EM.

    A pass over the cells is two matrix products a block on the cells' quadratic features, in centred and whitened
    units, with float64 sums; blocks add up the same statistics, so ``batch_size`` changes memory, never the result.

    Parameters
    ----------
    num_components
        M.
    covariance_type
        ``"full"``, ``"tied"``, ``"diag"`` (default) or ``"spherical"``.
    init_strategy
        ``"kmeans"`` (default), ``"kmeans++"`` (its seeds alone) or ``"random"`` (distinct cells).
    init_means
        ``(M, D)``: every cell to its nearest mean, one M-step; overrides ``init_strategy``.
    convergence_tolerance
        EM stops when the log likelihood (log joint, with a prior) per cell changes by less.
    covariance_regularization
        Added to the variances, squared units of the data.
    batch_size
        Rows read at a time, None lets the library choose. A scipy sparse matrix needs it: its rows are made dense
        in blocks of this size.
    trainer_params
        Mapping of the fields of :class:`~pyrosplice.estimators.mixture_trainer.TrainerOptions`.
    init_weights, init_covariances
        With ``init_means``: the whole of the starting parameters, ``(M,)`` and the shape of ``covariance_type``.
    prior
        :class:`~pyrosplice.models.gaussian_mixture.MixturePrior`; flat when None.
    missing
        ``"error"`` (default) or ``"marginalize"``: NaN is a value missing at random.
    n_init
        Starts, run as one batch; the best is kept.
    warm_start
        Start from the current ``model_`` if there is one.
    random_state
        Seed, of the starts and of :meth:`sample`.
    use_rep
        Key of ``obsm`` when an AnnData is given; None is ``X``.

    Attributes
    ----------
    model_
        :class:`~pyrosplice.estimators.mixture_module.GaussianMixtureModel`, scriptable.
    converged_, num_iter_
        Whether the tolerance was met, after how many EM iterations.
    nll_
        Mean negative log likelihood of the cells at ``model_``.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
    >>> GaussianMixture(2, random_state=0).fit(x).predict(x).bincount().tolist()
    [100, 100]
    """

    model_: GaussianMixtureModel
    converged_: bool
    num_iter_: int
    nll_: float
    _stepwise: StepwiseEM | None

    persistent_attributes = ("model_", "converged_", "num_iter_", "nll_")

    def __init__(
        self,
        num_components: int = 1,
        *,
        covariance_type: CovarianceType = "diag",
        init_strategy: Strategy = "kmeans",
        init_means: Tensor | None = None,
        convergence_tolerance: float = 1e-3,
        covariance_regularization: float = 1e-6,
        batch_size: int | None = None,
        trainer_params: Mapping[str, Any] | None = None,
        init_weights: Tensor | None = None,
        init_covariances: Tensor | None = None,
        prior: MixturePrior | None = None,
        missing: Literal["error", "marginalize"] = "error",
        n_init: int = 1,
        warm_start: bool = False,
        random_state: Any = None,
        use_rep: str | None = None,
    ) -> None:
        self.num_components = num_components
        self.covariance_type = covariance_type
        self.init_strategy = init_strategy
        self.init_means = init_means
        self.convergence_tolerance = convergence_tolerance
        self.covariance_regularization = covariance_regularization
        self.batch_size = batch_size
        self.trainer_params = trainer_params
        self.init_weights = init_weights
        self.init_covariances = init_covariances
        self.prior = prior
        self.missing = missing
        self.n_init = n_init
        self.warm_start = warm_start
        self.random_state = random_state
        self.use_rep = use_rep

    def fit(self, X: Any, y: None = None, sample_weight: Any = None) -> Self:
        """Fit the mixture to cells ``X`` ``(N, D)``.

        Parameters
        ----------
        X
            Array, Tensor, sparse or Dask matrix, AnnData, torch Dataset or DataLoader of rows.
        y
            Ignored.
        sample_weight
            ``(N,)``, non-negative: a cell of weight 2 counts as two.

        Raises
        ------
        InvalidArgumentError
            An option, a start or a value of ``X`` is not possible; a covariance became singular.
        """
        self._check_options()
        rows = self._rows(X, reset=True, sample_weight=sample_weight)
        result = self._fit_rows(rows)
        self._keep(result, rows)
        return self

    def partial_fit(self, X: Any, y: None = None, sample_weight: Any = None) -> Self:
        """One step of stepwise EM (Cappé & Moulines 2009) on some more cells; the first call is :meth:`fit`.

        The t-th block moves the statistics by a share (t + 1)^−0.6 of the way to its own.
        """
        stepwise: StepwiseEM | None = getattr(self, "_stepwise", None)
        if stepwise is None:
            self.fit(X, sample_weight=sample_weight)
            problem = self._problem(self._rows(X, reset=False, sample_weight=sample_weight))
            self._stepwise = StepwiseEM.of(problem, self.model_.parameters_of())
            return self
        rows = self._rows(X, reset=False, sample_weight=sample_weight)
        parameters, log_likelihood = stepwise.step(rows, missing=self.missing == "marginalize")
        self.model_ = GaussianMixtureModel.from_parameters(parameters, self.model_.means.dtype)
        self.num_iter_ += 1
        self.nll_ = -log_likelihood
        self.converged_ = False
        return self

    def _fit_rows(self, rows: RowBlocks) -> EMResult:
        problem = self._problem(rows)
        options = self._em_options()
        result = best_of(problem.run(self._start(problem), options))
        if bool(result.singular.any()):
            raise InvalidArgumentError(
                "covariance_regularization: a covariance is singular, or too small against the spread of the data, at "
                f"{self.covariance_regularization}; give a larger value, fewer components or a prior."
            )
        return result

    def _problem(self, rows: RowBlocks) -> Problem:
        return Problem.of(
            rows,
            self.covariance_type,
            prior=self.prior,
            regularization=self.covariance_regularization,
            missing=self.missing == "marginalize",
        )

    def _start(self, problem: Problem) -> MixtureParameters:
        given = self._given_parameters(problem.rows.dim)
        if given is not None:
            given = given.to(problem.rows.device)
            lead = given.select((None, None))  # type: ignore[arg-type]
            return problem.standardization.forward(lead)
        means = None
        if self.init_means is not None:
            means = torch.as_tensor(self.init_means, dtype=torch.float64)
            _check_shape("init_means", means, (self.num_components, problem.rows.dim))
        draws = uniforms(self.n_init, self.num_components, _seed(self.random_state))
        return start_one(problem, self.init_strategy, draws, means)

    def _given_parameters(self, dim: int) -> MixtureParameters | None:
        if self.warm_start and hasattr(self, "model_"):
            return self.model_.parameters_of()
        if self.init_weights is None and self.init_covariances is None:
            return None
        if self.init_means is None or self.init_weights is None or self.init_covariances is None:
            raise InvalidArgumentError("init_weights, init_covariances: give both, together with init_means.")
        m = self.num_components
        shapes = {"full": (m, dim, dim), "tied": (dim, dim), "diag": (m, dim), "spherical": (m,)}
        names = {"init_weights": (m,), "init_means": (m, dim), "init_covariances": shapes[self.covariance_type]}
        tensors: list[Tensor] = []
        for name, shape in names.items():
            value = torch.as_tensor(getattr(self, name), dtype=torch.float64)
            _check_shape(name, value, shape)
            tensors.append(value)
        weights, means, covariances = tensors
        if bool((weights < 0).any()) or float(weights.sum()) <= 0:
            raise InvalidArgumentError(f"init_weights: expected numbers of at least 0, found {weights.tolist()}.")
        return MixtureParameters(weights / weights.sum(), means, covariances, self.covariance_type)

    def _keep(self, result: EMResult, rows: RowBlocks) -> None:
        first = (torch.tensor(0), torch.tensor(0))
        self._stepwise = None
        self.model_ = GaussianMixtureModel.from_parameters(result.parameters.select(first), rows.dtype)
        self.converged_ = bool(result.converged)
        self.num_iter_ = int(result.n_iter)
        self.nll_ = -float(result.log_likelihood) / float(rows.total_weight())

    def predict(self, X: Any) -> Any:
        """Most likely component of each cell: int64 ``(N,)``; an array for arrays and tables, a Tensor otherwise."""
        return as_given(X, torch.cat([log_resp.argmax(1) for log_resp, _ in self._evaluate(X)]))

    def fit_predict(self, X: Any, y: None = None, sample_weight: Any = None) -> Any:
        """:meth:`fit`, then :meth:`predict` of the same cells."""
        return self.fit(X, y, sample_weight).predict(X)

    def predict_proba(self, X: Any) -> Any:
        """Probability of each component given each cell: ``(N, M)``; array or Tensor as in :meth:`predict`."""
        return as_given(X, torch.cat([log_resp for log_resp, _ in self._evaluate(X)]).exp())

    def score_samples(self, X: Any) -> Any:
        """**Negative** log likelihood of each cell: ``(N,)``; array or Tensor as in :meth:`predict`."""
        return as_given(X, -torch.cat([log_density for _, log_density in self._evaluate(X)]))

    def score(self, X: Any, y: None = None) -> float:
        """Mean **negative** log likelihood of the cells."""
        return -float(torch.cat([log_density for _, log_density in self._evaluate(X)]).to(torch.float64).mean())

    def sample(self, num_datapoints: int = 1) -> Tensor:
        """Cells ``(num_datapoints, D)`` drawn from the mixture; the same ones each time for an integer seed."""
        check_is_fitted(self, "model_")
        generator = torch.Generator()
        seed = _seed(self.random_state)
        _ = generator.seed() if seed is None else generator.manual_seed(seed)
        model = self.model_
        labels = torch.multinomial(model.component_probs.cpu(), num_datapoints, replacement=True, generator=generator)
        shape = (num_datapoints, model.means.shape[1])
        noise = torch.randn(shape, dtype=model.means.dtype, generator=generator)
        return model.place(labels.to(model.means.device), noise.to(model.means.device))

    def _evaluate(self, X: Any) -> list[tuple[Tensor, Tensor]]:
        check_is_fitted(self, "model_")
        rows = self._rows(X, reset=False)
        model = self.model_.to(rows.device)
        if self.missing != "marginalize":
            return [model(rows.block(a, b)[0].to(model.means.dtype)) for a, b in rows.spans()]
        out = []
        for a, b in rows.spans():
            joint = missing_log_joint(model.parameters_of(), rows.block(a, b)[0])
            total = joint.logsumexp(1)
            out.append((joint - total[:, None], total))
        return out

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.batch_size is not None
        tags.input_tags.allow_nan = self.missing == "marginalize"
        return tags

    def set_params(self, values: Mapping[str, Any] | None = None, **params: Any) -> Self:
        """Set parameters, from a mapping or by keyword."""
        return super().set_params(**{**(values or {}), **params})

    def clone(self) -> Self:
        """An unfitted estimator with the same parameters."""
        return type(self)(**self.get_params(deep=False))

    def trainer(self, **overrides: Any) -> TrainerOptions:
        """The options with which EM is run, ``trainer_params`` applied."""
        return TrainerOptions.of({**(self.trainer_params or {}), **overrides})

    def save(self, path: str | Path) -> None:
        """Save the parameters and, if there is one, the fit to a directory: JSON and safetensors, no pickle."""
        self.save_parameters(path)
        if hasattr(self, "model_"):
            self.save_attributes(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The estimator that :meth:`save` wrote, with its fit if it has one."""
        estimator = cls.load_parameters(path)
        if (Path(path) / "attributes.json").exists():
            estimator.load_attributes(path)
        return estimator

    def save_parameters(self, path: str | Path) -> None:
        """Save what the constructor was given: ``params.json``."""
        write_parameters(Path(path), self.get_params(deep=False))

    @classmethod
    def load_parameters(cls, path: str | Path) -> Self:
        """An unfitted estimator with saved parameters."""
        return cls(**read_parameters(Path(path)))

    def save_attributes(self, path: str | Path) -> None:
        """Save the fit: ``attributes.json`` and ``model/``."""
        check_is_fitted(self, "model_")
        write_attributes(Path(path), self)

    def load_attributes(self, path: str | Path) -> None:
        """Take over a saved fit."""
        read_attributes(Path(path), self)

    def _em_options(self) -> EMOptions:
        trainer = self.trainer()
        return EMOptions(
            max_iter=trainer.max_epochs,
            tolerance=self.convergence_tolerance,
            progress=trainer.enable_progress_bar,
        )

    def _check_options(self) -> None:
        check_option("covariance_type", self.covariance_type, COVARIANCE_TYPES)
        check_option("init_strategy", self.init_strategy, STRATEGIES)
        check_option("missing", self.missing, ("error", "marginalize"))
        for name in ("num_components", "n_init", "batch_size"):
            value = getattr(self, name)
            if not (name == "batch_size" and value is None) and (not isinstance(value, (int, np.integer)) or value < 1):
                raise InvalidArgumentError(f"{name}: expected a positive integer, found {value!r}.")
        for name in ("convergence_tolerance", "covariance_regularization"):
            if not getattr(self, name) >= 0:
                raise InvalidArgumentError(f"{name}: expected a number of at least 0, found {getattr(self, name)!r}.")

    def _rows(self, X: Any, *, reset: bool, sample_weight: Any = None) -> RowBlocks:
        if is_array(X):
            X = validate_data(
                self,
                X,
                reset=reset,
                dtype=[np.float64, np.float32],
                accept_sparse="csr" if self.batch_size is not None else False,
                ensure_min_samples=2 if reset else 1,
                ensure_all_finite="allow-nan" if self.missing == "marginalize" else True,
            )
        options = self.trainer()
        rows = as_rows(X, size=self.batch_size or 1, use_rep=self.use_rep, dtype=options.dtype, device=options.device)
        if self.batch_size is None:
            rows.size = min(rows.n_rows, block_size(rows.dim, self.covariance_type))
        if reset:
            self.n_features_in_ = rows.dim
        elif rows.dim != self.n_features_in_:
            raise InvalidArgumentError(
                f"X has {rows.dim} features, but GaussianMixture is expecting {self.n_features_in_} features as input."
            )
        if reset and rows.n_rows < self.num_components:
            raise InvalidArgumentError(
                f"num_components: found {self.num_components}, but X has n_samples={rows.n_rows} rows."
            )
        rows.weights = _weights(sample_weight, rows)
        return rows


def _weights(sample_weight: Any, rows: RowBlocks) -> Tensor | None:
    if sample_weight is None:
        return None
    weights = torch.as_tensor(np.asarray(sample_weight, dtype=np.float64), device=rows.device)
    if weights.dim() == 0:
        weights = weights.expand(rows.n_rows)
    if weights.shape != (rows.n_rows,):
        raise InvalidArgumentError(f"sample_weight.shape == {tuple(weights.shape)}, expected {(rows.n_rows,)}!")
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise InvalidArgumentError("sample_weight: expected finite numbers of at least 0.")
    if not bool((weights > 0).any()):
        raise InvalidArgumentError("sample_weight: all weights are zero; give at least one cell a positive weight.")
    return weights[None]


def _seed(random_state: Any) -> int | None:
    return None if random_state is None else int(check_random_state(random_state).randint(2**31 - 1))


def _check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape or not bool(value.isfinite().all()):
        raise InvalidArgumentError(f"{name}: expected finite values of shape {shape}, found {tuple(value.shape)}.")
