"""The expression GLM as an estimator of its own: fit, test, contrast, shrink, summary, save and load."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pyrosplice._expression import fit as expression_fit
from pyrosplice._expression import stored_fit
from pyrosplice._expression.call_options import known_options
from pyrosplice._expression.conditions import condition_row
from pyrosplice._expression.engine.dispersion import cox_reid
from pyrosplice._expression.engine.gene_fits import GlmFit
from pyrosplice._expression.engine.shrink import prior_scale, shrink_coefficient
from pyrosplice._expression.estimator import Estimator, gene_means
from pyrosplice._expression.fit_rows import coefficient_rows
from pyrosplice._expression.formula_design import DesignMatrix
from pyrosplice._expression.methods import BY_THE_NOISE, METHODS, apply_method, noise_ratio, warn_of_noise
from pyrosplice._expression.noise_models import estimates_dispersion, one_choice
from pyrosplice._expression.own_expression import FollowedExpression, glm_fit_of
from pyrosplice._expression.posterior import ExpressionDrawOptions, expression_posterior
from pyrosplice._expression.quasi_test import QuasiFit, fit_at, quasi_fit
from pyrosplice._expression.results import ExpressionTest
from pyrosplice._expression.tests import FIT_OPTIONS, contrast_rows, contrast_test
from pyrosplice._expression.thresholds import unit_of
from pyrosplice._hypothesis.test_table import TestTable, unless_ended
from pyrosplice._io.archive import Archive, check_arguments, damage_named
from pyrosplice._io.codec import check_keys
from pyrosplice._io.older import expression_2
from pyrosplice._modes import works_in_any_mode
from pyrosplice._optimize.convergence import FitCode
from pyrosplice._representation import Described
from pyrosplice._tables.names import text_names
from pyrosplice.errors import InvalidArgumentError, NotReadyError, RefusedModelError, check_option, listed
from pyrosplice.guides._own_model import Program, check_model
from pyrosplice.likelihoods._contract import Likelihood
from pyrosplice.posterior._nuts import NutsOptions
from pyrosplice.priors._named import Priors
from pyrosplice.reasons import Reason, describe_reasons

Array = NDArray[np.float64]


@works_in_any_mode
class ExpressionGLM(FollowedExpression, Described):
    """Negative-binomial (or Poisson, normal) regression of every gene on the cells' covariates.

    Parameters
    ----------
    formula_loc, formula_scale, as_numeric, constraints_loc, constraints_scale, noise_model
        As for :func:`pyrosplice.api.fit.model`.
    likelihood
        Another name of ``noise_model``, as in the estimators of usage; ``"nb"`` where neither is given.
    model
        A Pyro model of your own in the place of :class:`~pyrosplice._expression.expression_model.ExpressionModel`: a
        class with its constructor, or a function of ``counts`` ``(G, N)`` and those of ``location``, ``scale``,
        ``likelihood``, ``offset``, ``zeta_offset`` that it names. It is fitted by
        :class:`~pyrosplice.guides.AutoNewtonMAP`; ``sites`` has all of its estimates. A site ``location`` ``(G, 1, P)``
        of the free coefficients has ``summary``, ``cond`` and Wald tests, from the observed information; what the
        engine works out for the shipped model is refused.

    Attributes
    ----------
    estimator : Estimator
        The fitted estimator, with everything that ``fit.model`` documents; absent after :meth:`load` and where a
        model of your own was fitted.
    coefficient_names, gene_names

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> counts = np.random.default_rng(0).poisson(3.0, (20, 4))
    >>> glm = ExpressionGLM("~1 + group").fit(counts, sample_description=pd.DataFrame({"group": ["a", "b"] * 10}))
    >>> glm.test(glm.cond(group="b") - glm.cond(group="a")).summary().shape[0]
    4
    """

    def __init__(  # noqa: PLR0913 (a documented interface)
        self,
        formula_loc: str | None = None,
        formula_scale: str = "~1",
        *,
        as_numeric: Sequence[str] | str = (),
        constraints_loc: Any = None,
        constraints_scale: Any = None,
        noise_model: str | Likelihood | None = None,
        likelihood: str | Likelihood | None = None,
        model: Program | None = None,
    ) -> None:
        check_model(model)
        self._given = model
        self.formula_loc, self.formula_scale = formula_loc, formula_scale
        self.as_numeric = text_names(as_numeric, "as_numeric")
        self.constraints_loc, self.constraints_scale = constraints_loc, constraints_scale
        self.noise_model = one_choice(noise_model, likelihood)
        self.estimator: Estimator | None = None
        self._fit: GlmFit | None = None
        self._quasi: QuasiFit | None = None
        self._noise_checked = False

    def _rows(self) -> dict[str, str]:
        rows = {"noise": str(self.noise_model), "location": str(self.formula_loc), "scale": self.formula_scale}
        own = self._saved_own if self._own is None else self._own
        if own is not None:
            rows |= {"model": own.name, "engine": own.engine}
        if self._own is not None:
            ended = describe_reasons(self._own.guide.optimum.reason)
            return {"data": f"{len(self._location.matrix)} cells, {len(self.gene_names)} genes", **rows, "fit": ended}
        if self._fit is None:
            return rows | {"fit": "not fitted; call fit"}
        cells = "" if self.estimator is None else f"{len(self._location.matrix)} cells, "
        ended = describe_reasons(self._fit.reason) + ("; loaded, without the counts" if self.estimator is None else "")
        rows |= {"coefficients": ", ".join(self.coefficient_names), "fit": ended}
        return {"data": f"{cells}{len(self.gene_names)} genes", **rows}

    def fit(self, data: Any, **options: Any) -> ExpressionGLM:
        """Fit every gene by maximum likelihood; ``options`` are the other arguments of ``fit.model``.

        With ``missing="drop"``, ``estimator.input_data.cells.used`` says which cells were fitted.
        """
        options = known_options("ExpressionGLM.fit", options, FIT_OPTIONS - set(stored_fit.SETTINGS))
        settings = {name: getattr(self, name) for name in stored_fit.SETTINGS}
        followed = self._follow({"data": data, **settings}, options) if self._has_own() else None
        if followed is not None:
            self._own, self._inputs = followed
            self.estimator, self._fit = None, None
            self._mean = gene_means(self._inputs.counts)
        else:
            self.estimator = expression_fit.model(data, **settings, **options)
            self._own, self._inputs, self._fit = None, None, self.estimator.fit
            self._mean = self.estimator.gene_means
        inputs = self._input_data()
        self._saved_own, self._quasi, self._noise_checked = None, None, False
        self._location, self._constraints = inputs.location, inputs.constraints_loc
        self.gene_names, self.coefficient_names = inputs.counts.gene_names, list(inputs.location.names)
        return self

    @property
    def results(self) -> GlmFit:
        """The engine's result; of a model of your own, its coefficients with their observed information."""
        if self._fit is None and self._own is not None:
            self._fit = glm_fit_of(self._own, self._input_data())
        if self._fit is None:
            raise NotReadyError("Call fit first.")
        return self._fit

    def _data(self) -> Estimator:
        own = self._saved_own if self._own is None else self._own
        if own is not None:
            raise RefusedModelError(
                f"This is worked out for the shipped model, and this fit is of {own.name}. It has Wald tests, "
                "summary(), sites, and a guide to draw from (guide.sample_posterior)."
            )
        if self.estimator is None:
            raise NotReadyError("This needs the data: call fit (a loaded model has none).")
        return self.estimator

    def cond(self, **levels: Any) -> Array:
        """Design row ``(P,)`` of a cell with these levels: other factors at their first level, other numbers at 0.

        Differences of two are contrasts: ``glm.cond(drug="b") - glm.cond(drug="a")``. A number for which the formula
        has no value at 0 (``log(t)``, ``1 / t``, a spline) is at its median over the cells; a contrast in which it does
        not cancel is refused by :meth:`test`, and has to name it. Names with dots: ``cond(**{"percent.mt": 5})``.
        """
        return condition_row(self._design(), levels)

    def _design(self) -> DesignMatrix:
        if self._fit is None and self._own is None:
            _ = self.results
        return self._location

    def test(
        self,
        contrast: Array | None = None,
        *,
        factor: str | Sequence[str] | None = None,
        coefficient: str | Sequence[str] | None = None,
        method: str = "wald",
        donors: Any = None,
    ) -> ExpressionTest:
        """Test contrasts of location coefficients, a factor, or coefficients; the notes say by which method.

        Parameters
        ----------
        contrast
            Rows ``(k, P)`` or ``(P,)``, as from :meth:`cond`.
        method
            =============  ============================================================================
            ``"wald"``     estimate over its standard error: many cells, counts that are not few
            ``"lrt"``      likelihood ratio: as ``"wald"``, and better where counts are few
            ``"score"``    the score by its saddlepoint law, one contrast: many cells, few counts, one group
                           far smaller than the other
            ``"robust"``   sandwich over cells, one contrast: many cells whose noise is not negative
                           binomial (zeros beyond it); separated genes have no p-value
            ``"ql"``       quasi-likelihood F with moderated dispersions: few samples
            ``"cluster"``  sandwich over ``donors`` with its exact law: cells of a few donors
            ``"glmm"``     a random intercept for each of ``donors``: the same, more power, conservative
                           where the donors do not differ
            =============  ============================================================================
        donors
            For ``"cluster"`` and ``"glmm"``: the donor (patient, animal, sample: the unit that was sampled, whose cells
            are alike) of each cell: labels (a Series is paired by name) or the column that holds them. At least three.
            ``"glmm"`` gives donors levels of their own but one response: too little where the tested column varies
            within donors, and a warning says what to do; ``"cluster"`` allows for responses that differ.

        Notes
        -----
        Null genes rejected at 5 / 1 / .1 %, and power at 5 % of a log fold change of 0.5 (2,000 to 4,000 genes a cell):

        ==============================================  ================  ================  ================  ======
        layout                                          wald              lrt               score             robust
        ==============================================  ================  ================  ================  ======
        500 against 20 cells, mean 0.2, dispersion 0.5  3.0 / 0.8 / .18   5.0 / 2.1 / .07   4.5 / 0.7 / .07   -
        the same, other genes                           3.8 / 1.1 / .26   6.0 / 2.8 / .05   5.8 / 1.0 / .00   3.6
        the same, dispersion 2                          2.2 / 0.8 / .05   4.7 / 1.7 / .05   4.7 / 0.7 / .05   2.6
        200 and 200, mean 5, half of the cells zero     1.1, power .84    1.1, power .83    1.0, power .83    4.5, .96
        200 and 200, mean 20, 70 % zero                 0.1, power .18    0.1, power .17    0.1, power .12    5.5, .79
        60 and 60, mean 20, 70 % zero                   0.1, power .02    0.1, power .01    0.0, power .00    4.7, .34
        200 and 200, mean 5, dispersion 0.5, no zeros   -                 -                 -                 5.1
        ==============================================  ================  ================  ================  ======

        A rank test of the last layout with zeros, :func:`pyrosplice.api.test.rank_test`: 4.6, power .09. The
        likelihood ratio rejects at 1 % every gene of which the 20 cells have no count at all, which is 2 % of them.
        """
        check_option("method", method, METHODS)
        rows = contrast_rows(self._design(), contrast, factor, coefficient)
        needs_donors = method in ("cluster", "glmm")
        if needs_donors != (donors is not None):
            raise InvalidArgumentError(f"donors: method {method!r} {'needs' if needs_donors else 'does not use'} them.")
        wald = contrast_test(self.results, self._constraints, rows, gene_ids=self.gene_names, mean=self._mean)
        wald.link = self._link
        if method in BY_THE_NOISE and not self._noise_checked:
            self._noise_checked = True
            warn_of_noise(self.estimator, stacklevel=4)
        if method == "wald" or (self.results.reason == Reason.NO_COUNTS.value).all():
            return wald
        return apply_method(method, self._data(), wald, rows, donors=donors, quasi=self.quasi)

    contrast = test

    def variance_ratio(self) -> Array:
        """Compare the spread of each gene's counts with what the fitted noise expects: ``(G,)``, NaN without a fit.

        Squared residuals over variance: 1 where negative-binomial noise is right; 0.25 to 0.6 with half or more of
        zeros beyond it (means of 5 and 20 elsewhere): :meth:`test` says which tests are then of little power.
        """
        return noise_ratio(self._data())

    def shrink(self, coefficient: str, *, scale: float | None = None, dispersions: str = "fitted") -> pd.DataFrame:
        """Shrink a coefficient by a Cauchy prior: ``effect`` and ``se``, posterior mode and SD (log₂ of a fold change).

        ``scale`` (natural log) is estimated from all genes where None. ``dispersions="shrunken"`` holds each gene's at
        the one that :meth:`quasi` shrinks to the trend, which pays with few samples. Root mean squared errors of log2
        fold changes (1,500 genes, a fifth with normal effects, 6 and 20 samples; ``tests/benchmarks/shrinkage.py``):
        maximum likelihood 0.86 and 0.49, ``"fitted"`` 0.49 and 0.26, ``"shrunken"`` 0.38 and 0.28, DESeq2 1.38 with its
        normal prior 0.42 and 0.30, apeglm's method (pydeseq2 0.5) 0.37 and 0.28.
        """
        check_option("dispersions", dispersions, ("fitted", "shrunken"))
        names = self._constraints.free_names
        if coefficient not in names:
            known = listed(names, near=str(coefficient))
            raise InvalidArgumentError(f"coefficient: expected one of {known}, found {coefficient!r}.")
        k, fit = names.index(coefficient), self.results
        if dispersions == "shrunken":
            fit = fit_at(self._data().source, fit, self.quasi().dispersions.shrunk)
        se = np.sqrt(fit.covariance[:, k, k])
        scale = prior_scale(fit.theta[:, k], se) if scale is None else scale
        mode, sd = shrink_coefficient(self._data().source, fit, k, scale=scale)
        unit, why = unit_of(self._link), unless_ended(fit.reason, Reason.NOT_FINITE.value)
        labels, more = {"gene": self.gene_names}, {"effect_mle": self.results.theta[:, k] / unit, "prior_scale": scale}
        return TestTable(labels=labels, effect=mode / unit, se=sd / unit, why=why, more=more).to_frame()

    def adjusted_dispersion(self) -> Array:
        """Estimate each gene's dispersion ``(G,)`` by Cox and Reid's adjustment; 0 at the boundary, one scale only."""
        estimator = self._data()
        if estimator.source.design.z.shape[1] != 1 or not estimates_dispersion(estimator.source.likelihood):
            raise InvalidArgumentError(
                "formula_scale: the adjusted dispersion needs negative-binomial noise, estimated, and '~1'."
            )
        theta, code = cox_reid(estimator.source, self.results)
        return np.where(code == FitCode.POISSON_BOUNDARY, 0.0, np.exp(-theta[:, -1]))

    def quasi(self) -> QuasiFit:
        """Estimate trended and shrunken dispersions and moderated variances, which are behind ``method="ql"``."""
        self._quasi = self._quasi or quasi_fit(self._data())
        return self._quasi

    def sample_counts(self, genes: Any, *, seed: int) -> Array:
        """Draw counts ``(N, g)`` of some genes from the fitted model, to check it; NaN without a fit."""
        return self._data().model.sample_j(genes, seed=seed)

    def posterior(  # noqa: PLR0913 (a documented interface)
        self,
        *,
        num_samples: int = 1000,
        method: str = "laplace",
        priors: Priors = None,
        genes: str | Sequence[str | int] | None = None,
        groups: Sequence[str] | None = None,
        seed: int = 0,
        nuts_options: NutsOptions | None = None,
        max_memory: str | float | None = None,
    ) -> xr.DataTree:
        """Draw from the posterior: an ``xarray.DataTree`` with the groups that ArviZ reads, as of the isoform models.

        The mode is found again under the priors; the estimates of :meth:`fit` stay as they are. Variables of the
        posterior: ``location`` and ``scale``, all coefficients (natural log units); ``log2_effect``; ``dispersion``,
        the gene's hyper-parameter, if any. Dimensions: ``gene``, ``cell``, ``coefficient``, ``scale_coefficient``.

        Parameters
        ----------
        num_samples
            Draws a gene (and chain); NUTS makes four at least.
        method
            ``"laplace"``: a Gaussian of location and scale together at the mode. ``"importance"``: these draws,
            resampled by their Pareto-smoothed weights. ``"nuts"``: the same Pyro model, gene by gene.
        priors
            Pyro distributions of each free coefficient: ``location`` and ``scale``;
            :func:`pyrosplice._expression.posterior.weak_priors` for those not given, and for ``"weak"``.
        genes
            Names or positions of the genes to draw from; all by default.
        groups
            Optional groups to make (:mod:`pyrosplice.posterior._tree`); all by default. Those with an entry a cell are
            large: draws × genes × cells.
        seed, nuts_options
            The seed of all that is random; options of ``method="nuts"``.
        max_memory
            What the draws may take, as ``"4 GB"`` or bytes (half of the machine's memory by default); logged before.

        Raises
        ------
        InvalidArgumentError
            More memory needed than allowed; options that do not exist; observation weights; a gene whose posterior has
            no Gaussian curvature.
        NotReadyError
            Before ``fit``, or of a loaded model.
        """
        draws: dict[str, Any] = {"num_samples": num_samples, "method": method, "priors": priors, "seed": seed}
        kept: dict[str, Any] = {"genes": genes, "groups": groups}
        asked = ExpressionDrawOptions(**draws, **kept, nuts_options=nuts_options, max_memory=max_memory)
        return expression_posterior(self._data(), asked)

    def summary(self) -> pd.DataFrame:
        """Tabulate estimates (``effect``, natural log), standard errors and why not: one row a gene and coefficient.

        Both are NaN for a gene without counts; the standard error is infinite where nothing identifies a coefficient
        or its estimate is at infinity. ``reason`` says so, and is "" elsewhere; ``fit_ended``: how the fit ended.
        """
        return coefficient_rows(self.results, self._constraints, self.gene_names, self.coefficient_names)

    def save(self, path: str | Path) -> None:
        """Write coefficients, information and design to one safetensors file; the counts are not saved.

        A formula that is more than names, numbers, operators and known functions is left out: the loaded model cannot
        make designs of new cells, and says so.
        """
        settings = {name: getattr(self, name) for name in stored_fit.SETTINGS}
        settings["noise_model"] = stored_fit.saved_noise(self.noise_model)
        check_arguments(type(self), stored_fit.file_arguments(type(self)))
        design, settings = stored_fit.saved_design(self._location, settings)
        parts = self.results, self._constraints, design, list(self.gene_names), self._mean, self._saved_sites()
        Archive.of(type(self).__name__, stored_fit.SavedExpression(settings, *parts), part="about").save(path)

    @classmethod
    def load(cls, path: str | Path, *, model: Program | None = None, likelihood: Likelihood | None = None) -> Self:
        """Read a file of :meth:`save`: Wald tests, contrasts and the summary work; what needs counts does not.

        ``model`` and ``likelihood`` are those of your own, if it was saved with them. Nothing in the file is evaluated
        but a formula of names, numbers, operators and known functions.

        Raises
        ------
        NoModelFileError
            No such file.
        ModelFileError
            For a file that is not one, from a newer version, or with a formula that holds code; for another ``model``
            or ``likelihood``.
        """
        archive = Archive.load(path, cls.__name__, {2: expression_2})
        check_arguments(cls, stored_fit.file_arguments(cls))
        with damage_named(repr(os.fspath(path))):
            saved = archive.to(stored_fit.SavedExpression)
            check_keys(saved.settings, stored_fit.SETTINGS, "settings")
            noise = stored_fit.noise_again(saved.settings["noise_model"], likelihood, repr(os.fspath(path)))
            settings = saved.settings | {"noise_model": noise} | ({} if model is None else {"model": model})
            glm, design = cls(**settings), stored_fit.saved_design_of(saved)
            glm._take_saved(saved.own, repr(os.fspath(path)))
        glm._fit, glm._constraints, glm._location = saved.fit, saved.constraints, design
        glm.gene_names = np.asarray(saved.genes, dtype=object)
        glm.coefficient_names, glm._mean = list(design.names), saved.mean
        return glm
