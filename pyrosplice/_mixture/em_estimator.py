"""``GaussianMixture``: EM at the speed of matrix products, on arrays, tensors, sparse, Dask, AnnData and data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from numpy.typing import NDArray
from sklearn.base import DensityMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyrosplice._mixture.criteria import information_criterion
from pyrosplice._mixture.density_module import GaussianMixtureModel
from pyrosplice._mixture.em.loop import EMOptions, EMResult
from pyrosplice._mixture.em.one_fit import MixtureForm, Problem, Strategy, run_carefully, start_one
from pyrosplice._mixture.em.row_blocks import RowBlocks
from pyrosplice._mixture.em.starts import seed_of, uniforms
from pyrosplice._mixture.em.stepwise import StepwiseEM
from pyrosplice._mixture.estimator_options import REGULARIZATION, check_options
from pyrosplice._mixture.evaluation import drawn_cells, evaluate
from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._mixture.given_cells import (
    check_feature_names,
    check_model_fits,
    features_kept_on_failure,
    given_means,
    given_parameters,
    read_cells,
)
from pyrosplice._mixture.mixture_description import DescribedMixture
from pyrosplice._mixture.mixture_prior import CovarianceType, MixturePrior, MixturePriors, has_covariances
from pyrosplice._mixture.own_mixture import all_cells
from pyrosplice._mixture.parameter_draws import MixturePosterior
from pyrosplice._mixture.rows import as_given
from pyrosplice._mixture.stored_folder import MixtureStorage
from pyrosplice._mixture.trainer import TrainerOptions
from pyrosplice._mixture.written_states import mixture_frame, write_states
from pyrosplice.errors import InvalidArgumentError, RefusedModelError, check_integer, check_option, own_options_only
from pyrosplice.guides._own_model import Program, name_of

PerCell = Tensor | NDArray[Any]


class GaussianMixture(MixturePosterior, MixtureStorage, DensityMixin, DescribedMixture):
    r"""Mixture of M Gaussians, :math:`p(x) = \sum_m w_m N(x \mid \mu_m, \Sigma_m)`, fitted by exact EM.

    A pass over the cells is two matrix products a block on the cells' quadratic features, in centred and whitened
    units, with float64 sums; blocks add up the same statistics, so ``batch_size`` changes memory, never the result.
    Where a variance is too small for that (one number in all cells of a component, thousands elsewhere) the fit is
    made again with differences taken first.

    :meth:`score` is a **loss**, smaller is better, as documented for this interface; give scikit-learn's searches
    ``GridSearchCV(..., scoring=pyrosplice.log_likelihood_scorer)``, or compare :meth:`aic` or :meth:`bic`.

    Parameters
    ----------
    num_components
        M.
    covariance_type
        ``"full"``, ``"tied"``, ``"diag"`` (default) or ``"spherical"``.
    init_strategy
        ``"kmeans"`` (default), ``"kmeans++"`` (its seeds alone) or ``"random"`` (distinct cells).
    init_means
        ``(M, D)``: every cell to its nearest mean, one M-step; overrides ``init_strategy``. The columns of a table
        are put in the order of the features that the cells name.
    convergence_tolerance
        EM stops when the log likelihood (log joint, with a prior) per cell changes by less.
    covariance_regularization
        Added to the variances, squared units of the data.
    batch_size
        Rows read at a time, None lets the library choose. A scipy sparse matrix needs it: its rows are made dense
        in blocks of this size.
    trainer_params
        Mapping of the fields of :class:`~pyrosplice._mixture.trainer.TrainerOptions`; words of a Lightning
        trainer that mean nothing to EM (``logger``, …) are accepted. ``max_epochs=0`` keeps the starting values.
    init_weights, init_covariances
        Start together with ``init_means``: weights and covariances, ``(M,)`` and the shape of ``covariance_type``.
    prior
        :class:`~pyrosplice._mixture.mixture_prior.MixturePrior`: conjugate ``priors`` in numbers.
    missing
        ``"error"`` (default) or ``"marginalize"``: NaN is a value missing at random.
    n_init
        Starts, run as one batch; the best is kept.
    warm_start
        Start from the current ``model_`` if there is one; it must have the components, covariance type and features
        that are asked for.
    random_state
        Seed, of the starts and of :meth:`sample`.
    use_rep
        Key of ``obsm`` when an AnnData is given; None is ``X``.
    model
        A Pyro model of your own in the place of :func:`~pyrosplice._mixture.gaussian_mixture.gaussian_mixture`: a
        function of cells ``x`` ``(N, D)`` and those of ``n_components``, ``covariance_type``, ``prior`` and ``priors``
        that it names, or a class that is made with these and called with ``x``. It is fitted by
        :class:`~pyrosplice.guides.AutoNewtonMAP` from EM's fit of the shipped model, which is what the options of EM
        are of; ``sites`` has all of its estimates. Where its cells have the density of a Gaussian mixture of sites
        ``weights``, ``means`` and ``covariances`` there is a ``model_``, and all that rests on it.
    priors
        Pyro distributions of ``weights``, ``means`` and ``covariances`` (variances of ``"diag"`` and ``"spherical"``),
        ``"weak"`` (:func:`~pyrosplice._mixture.mixture_prior.weak_prior` of the cells), or None: flat (maximum
        likelihood), as in every family. Dirichlet, Normal, MultivariateNormal or
        :class:`~pyrosplice.priors.ScaledNormal`, :class:`~pyrosplice.priors.InverseWishart` or InverseGamma keep EM;
        any other is followed as ``model`` is, and ``engine`` says so. A prior of ``covariances`` takes the place of
        ``covariance_regularization``, which is flat covariances' floor and not added then. Draws need proper priors:
        :meth:`posterior` puts weak ones in the place of None. Those that differ by component number the components.

    Attributes
    ----------
    model_
        :class:`~pyrosplice._mixture.density_module.GaussianMixtureModel`, scriptable.
    converged_, num_iter_
        Whether the tolerance was met within ``max_epochs`` rounds of EM, and how many there were; the round that finds
        no change counts.
    reason_
        How the fit ended in a word, a :class:`~pyrosplice.reasons.Reason`: "converged", "max_epochs"; "running" after
        ``partial_fit``.
    nll_
        Mean negative log likelihood of the cells at ``model_``.
    n_features_in_, feature_names_in_
        Number of features; their names where a table or ``X`` of an AnnData was fitted. Cells with other names, or in
        another order, are refused.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice import GaussianMixture
    >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
    >>> np.bincount(GaussianMixture(2, random_state=0).fit(x).predict(x)).tolist()
    [100, 100]

    Means that a prior holds near zero, each feature with a standard deviation of one:

    >>> import pyro.distributions as dist
    >>> held = GaussianMixture(2, random_state=0, priors={"means": dist.Normal(0.0, 1.0)}).fit(x)
    >>> bool(held.model_.means.abs().max() < GaussianMixture(2, random_state=0).fit(x).model_.means.abs().max())
    True
    """

    model_: GaussianMixtureModel
    converged_: bool
    num_iter_: int
    nll_: float
    _stepwise: StepwiseEM | None
    _asked: tuple[float, MixturePrior | None, MixturePriors]
    named_by_anndata_ = False

    persistent_attributes = ("model_", "converged_", "num_iter_", "nll_")

    @own_options_only
    def __init__(  # noqa: PLR0913 (a documented interface)
        self,
        num_components: int = 1,
        *,
        covariance_type: CovarianceType = "diag",
        init_strategy: Strategy = "kmeans",
        init_means: Tensor | None = None,
        convergence_tolerance: float = 1e-3,
        covariance_regularization: float = REGULARIZATION,
        batch_size: int | None = None,
        trainer_params: Mapping[str, Any] | None = None,
        init_weights: Tensor | None = None,
        init_covariances: Tensor | None = None,
        prior: MixturePrior | None = None,
        missing: Literal["error", "marginalize"] = "error",
        n_init: int = 1,
        warm_start: bool = False,
        random_state: object = None,
        use_rep: str | None = None,
        model: Program | None = None,
        priors: MixturePriors = None,
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
        self.__dict__["model"] = model
        self.priors = priors

    def fit(self, X: object, y: None = None, sample_weight: object = None) -> Self:
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

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> mixture = GaussianMixture(2, random_state=0).fit(x)
        >>> mixture.reason_.value, mixture.model_.means.abs().round().sort(0).values.tolist()
        ('converged', [[0.0, 0.0], [8.0, 8.0]])
        """
        check_options(self)
        if self.warm_start and hasattr(self, "model_"):
            check_model_fits(self, "warm_start")
            check_feature_names(self, X)
        with features_kept_on_failure(self):
            rows = read_cells(self, X, reset=True, sample_weight=sample_weight)
            if not self._followed(rows, weighted=sample_weight is not None):
                self._keep(self._fit_rows(rows), rows)
        return self

    def _followed(self, rows: RowBlocks, *, weighted: bool) -> bool:
        """Fit a model of a person's own, or priors without a closed form, from EM's fit; False where EM is all."""
        given = {
            "batch_size": self.batch_size is not None,
            "missing": self.missing == "marginalize",
            "covariance_regularization": self.covariance_regularization not in (0.0, REGULARIZATION),
            "sample_weight": weighted,
        }
        own, generic = None, self._without_closed_form()
        if self._has_own():
            cells = all_cells(rows, "a model of your own", given)
            own = self._own_program(cells)
        if own is None and generic:
            cells = all_cells(rows, f"a mixture with priors that EM has no closed form for ({generic})", given)
            own = self.model, f"{name_of(self.model)} with {generic}"
        if own is None:
            return False
        self._fit_own(*own, cells, self._fit_rows(rows).parameters.select((torch.tensor(0), torch.tensor(0))))
        self._saved_own = self._saved_reason = self._stepwise = None
        return True

    def partial_fit(self, X: object, y: None = None, sample_weight: object = None) -> Self:
        """Improve the fit by more cells, a step of stepwise EM (Cappé & Moulines 2009); the first call is :meth:`fit`.

        The t-th block moves the statistics by a share (t + 1)^−0.6 of the way to its own.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> mixture = GaussianMixture(2, random_state=0)
        >>> for block in np.split(x, 4):
        ...     mixture = mixture.partial_fit(block)
        >>> mixture.model_.component_probs.round(decimals=1).tolist()
        [0.5, 0.5]
        """
        self._shipped_only("partial_fit")
        check_options(self)
        if generic := self._without_closed_form():
            raise RefusedModelError(f"partial_fit: stepwise EM has no closed form for {generic}.")
        stepwise: StepwiseEM | None = getattr(self, "_stepwise", None)
        if stepwise is None:
            self.fit(X, sample_weight=sample_weight)
            problem = self._problem(read_cells(self, X, reset=False, sample_weight=sample_weight))
            self._stepwise = StepwiseEM.of(problem, self.model_.parameters_of())
            self._asked = (self.covariance_regularization, self.prior, self.priors)
            return self
        check_model_fits(self, "partial_fit")
        floor, *given = self._asked
        if floor != self.covariance_regularization or given[0] is not self.prior or given[1] is not self.priors:
            raise InvalidArgumentError("partial_fit: covariance_regularization, prior, priors: as in the first call.")
        rows = read_cells(self, X, reset=False, sample_weight=sample_weight)
        parameters, log_likelihood = stepwise.step(rows, missing=self.missing == "marginalize")
        self.model_ = GaussianMixtureModel.from_parameters(parameters, self.model_.means.dtype)
        self.num_iter_ += 1
        self.nll_ = -log_likelihood
        self.converged_ = False
        return self

    def _fit_rows(self, rows: RowBlocks) -> EMResult:
        draws = uniforms(self.n_init, self.num_components, seed_of(self.random_state))
        result = run_carefully(
            lambda centered: self._problem(rows, centered=centered),
            lambda problem: self._start(problem, draws),
            self._em_options(),
        )
        if bool(result.singular.any()):
            raise InvalidArgumentError(
                "covariance_regularization: a covariance is singular, or too small against the spread of the data, at "
                f"{self.covariance_regularization}; give a larger value, fewer components or a prior."
            )
        return result

    def _problem(self, rows: RowBlocks, *, centered: bool = False) -> Problem:
        closed = self._closed_priors(rows.dim)
        floor = 0.0 if has_covariances(closed) else float(self.covariance_regularization)
        return Problem.of(
            rows,
            MixtureForm(self.covariance_type, closed, floor),
            n_components=self.num_components,
            missing=self.missing == "marginalize",
            centered=centered,
        )

    def _start(self, problem: Problem, draws: Tensor) -> MixtureParameters:
        dim = problem.rows.dim
        given = given_parameters(self, dim)
        if given is None:
            return start_one(problem, self.init_strategy, draws, given_means(self, dim))
        lead = given.to(problem.rows.device).select((None, None))  # type: ignore[arg-type]
        return problem.standardization.forward(lead)

    def _keep(self, result: EMResult, rows: RowBlocks) -> None:
        first = (torch.tensor(0), torch.tensor(0))
        self._own = self._saved_own = self._saved_reason = self._stepwise = None
        self.model_ = GaussianMixtureModel.from_parameters(result.parameters.select(first), rows.dtype)
        most = self.trainer().max_epochs
        self.num_iter_ = min(int(result.n_iter) + 1, most)
        self.converged_ = bool(result.converged) and int(result.n_iter) < most
        self.nll_ = -float(result.log_likelihood) / float(rows.total_weight())

    def predict(self, X: object) -> PerCell:
        """Most likely component of each cell: int64 ``(N,)``; an array for arrays and tables, a Tensor otherwise.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> mixture = GaussianMixture(2, random_state=0).fit(x)
        >>> np.bincount(mixture.predict(x)).tolist()
        [100, 100]
        """
        return as_given(X, torch.cat([log_resp.argmax(1) for log_resp, _ in self._evaluate(X)]))

    def fit_predict(self, X: object, y: None = None, sample_weight: object = None) -> PerCell:
        """Fit the mixture, then :meth:`predict` the same cells.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> np.bincount(GaussianMixture(2, random_state=0).fit_predict(x)).tolist()
        [100, 100]
        """
        return self.fit(X, y, sample_weight).predict(X)

    def predict_proba(self, X: object) -> PerCell:
        """Probability of each component given each cell: ``(N, M)``; array or Tensor as in :meth:`predict`.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> mixture = GaussianMixture(2, random_state=0).fit(x)
        >>> mixture.predict_proba(x[:3]).shape, mixture.predict_proba([[0.0, 0.0]]).round(3).max().tolist()
        ((3, 2), 1.0)
        """
        return as_given(X, torch.cat([log_resp for log_resp, _ in self._evaluate(X)]).exp())

    def score_samples(self, X: object) -> PerCell:
        """**Negative** log likelihood of each cell: ``(N,)``; array or Tensor as in :meth:`predict`.

        Differs from scikit-learn's, which has the other sign.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> mixture = GaussianMixture(2, random_state=0).fit(x)
        >>> nll = mixture.score_samples([[0.0, 0.0], [4.0, 4.0]])  # in the middle of a state, and between two
        >>> bool(nll[0] < nll[1])
        True
        """
        return as_given(X, -torch.cat([log_density for _, log_density in self._evaluate(X)]))

    def score(self, X: object, y: None = None) -> float:
        """Mean **negative** log likelihood of the cells: a loss, **smaller is better**.

        Differs from scikit-learn's, which has the other sign: ``GridSearchCV`` and ``cross_val_score`` keep the largest
        score, so without ``scoring=pyrosplice.log_likelihood_scorer`` they keep the worst model.
        """
        return -float(torch.cat([log_density for _, log_density in self._evaluate(X)]).to(torch.float64).mean())

    def aic(self, X: object) -> float:
        """Akaike's information criterion of the cells; smaller is better.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> aic = {k: GaussianMixture(k, random_state=0).fit(x).aic(x) for k in (1, 2)}
        >>> min(aic, key=aic.get)
        2
        """
        self._require_three_parts()
        return information_criterion(self.score_samples(X), self.model_, per_parameter=2.0)

    def bic(self, X: object) -> float:
        """Schwarz's (Bayesian) information criterion of the cells; smaller is better.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> bic = {k: GaussianMixture(k, random_state=0).fit(x).bic(x) for k in (1, 2, 3)}
        >>> min(bic, key=bic.get)
        2
        """
        self._require_three_parts()
        return information_criterion(self.score_samples(X), self.model_, per_parameter=None)

    to_frame, write = mixture_frame, write_states

    def sample(self, num_datapoints: int = 1) -> Tensor:
        """Draw cells ``(num_datapoints, D)`` from the mixture; the same ones each time for an integer seed.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> mixture = GaussianMixture(2, random_state=0).fit(x)
        >>> mixture.sample(5).shape
        torch.Size([5, 2])
        """
        self._require_gaussian()
        check_is_fitted(self, "model_")
        return drawn_cells(self.model_, check_integer("num_datapoints", num_datapoints), seed_of(self.random_state))

    def _evaluate(self, X: object) -> list[tuple[Tensor, Tensor]]:
        self._require_gaussian()
        check_is_fitted(self, "model_")
        rows = read_cells(self, X, reset=False)
        return evaluate(self.model_.to(rows.device), rows, marginalize=self.missing == "marginalize")

    def __sklearn_tags__(self) -> object:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.batch_size is not None
        tags.input_tags.allow_nan = self.missing == "marginalize"
        return tags

    def set_params(self, values: Mapping[str, Any] | None = None, **params: Any) -> Self:
        """Set parameters, from a mapping or by keyword.

        Raises
        ------
        InvalidArgumentError
            A name that is no parameter; none is set then.
        """
        if values is not None and not isinstance(values, Mapping):
            raise InvalidArgumentError(f"values: expected a mapping, found {type(values).__name__}.")
        given = {**(values or {}), **params}
        for name in given:
            check_option("set_params", name, self.get_params(deep=False))
        return super().set_params(**given)

    def clone(self) -> Self:
        """Copy the estimator without its fit, with the same parameters.

        Examples
        --------
        >>> import numpy as np
        >>> from pyrosplice import GaussianMixture
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
        >>> mixture = GaussianMixture(2, random_state=0).fit(x)
        >>> other = mixture.clone()
        >>> other.get_params() == mixture.get_params(), hasattr(other, "model_")
        (True, False)
        """
        return type(self)(**self.get_params(deep=False))

    def trainer(self, **overrides: Any) -> TrainerOptions:
        """The options with which EM is run, ``trainer_params`` applied.

        Examples
        --------
        >>> from pyrosplice import GaussianMixture
        >>> GaussianMixture(2).trainer().max_epochs
        100
        """
        if not overrides:
            return TrainerOptions.of(self.trainer_params)
        return TrainerOptions.of({**(self.trainer_params or {}), **overrides})

    def _em_options(self) -> EMOptions:
        trainer = self.trainer()
        return EMOptions(
            max_iter=trainer.max_epochs,
            tolerance=float(self.convergence_tolerance),
            progress=trainer.enable_progress_bar,
        )
