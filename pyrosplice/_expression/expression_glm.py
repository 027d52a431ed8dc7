"""The expression GLM as an estimator of its own: fit, test, contrast, shrink, summary, save and load."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._expression import fit as expression_fit
from pyrosplice._expression import shrunken_effects, stored_fit, views
from pyrosplice._expression.asked_posterior import draw_from_posterior
from pyrosplice._expression.call_options import known_options
from pyrosplice._expression.conditions import condition_row
from pyrosplice._expression.engine.gene_fits import GlmFit
from pyrosplice._expression.estimator import Estimator, gene_means
from pyrosplice._expression.fit_rows import coefficient_rows
from pyrosplice._expression.formula_design import DesignMatrix
from pyrosplice._expression.methods import BY_THE_NOISE, METHODS, apply_method, noise_ratio, warn_of_noise
from pyrosplice._expression.mixed import component_tests, effect_tables, field_map, spatial_null
from pyrosplice._expression.mixed.cell_effects import EffectsRequest
from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._expression.mixed.mixed_record import MixedRecord
from pyrosplice._expression.mixed.unit_tests import MixedResults
from pyrosplice._expression.noise_models import one_choice
from pyrosplice._expression.outlier_counts import outlier_counts
from pyrosplice._expression.own_expression import FollowedExpression, glm_fit_of
from pyrosplice._expression.positions import SPATIAL_KEY, Spots
from pyrosplice._expression.predicted_cells import predict_cells
from pyrosplice._expression.quasi_test import QuasiFit, quasi_fit
from pyrosplice._expression.results import ExpressionTest
from pyrosplice._expression.tests import FIT_OPTIONS, contrast_rows, contrast_test
from pyrosplice._expression.thresholds import check_threshold
from pyrosplice._io.archive import Archive, check_arguments, damage_named
from pyrosplice._io.older import expression_2
from pyrosplice._modes import works_in_any_mode
from pyrosplice._representation import Described
from pyrosplice._tables.coordinates import spatial_key_of
from pyrosplice._tables.names import text_names
from pyrosplice.effects._effect_list import GivenEffect, saved_effects
from pyrosplice.effects._field import Field
from pyrosplice.effects._reference_df import DfRule
from pyrosplice.errors import InvalidArgumentError, NotReadyError, RefusedModelError, check_option
from pyrosplice.guides._own_model import Program, check_model
from pyrosplice.likelihoods._contract import Likelihood
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
    effects, space, spatial_key, section_key
        Random effects beside the random terms of the formula, as for :func:`pyrosplice.api.fit.model`.
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
    >>> from pyrosplice import ExpressionGLM
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
        effects: Sequence[GivenEffect] = (),
        space: Field | None = None,
        spatial_key: str | Sequence[str] = SPATIAL_KEY,
        section_key: str | None = None,
    ) -> None:
        check_model(model)
        EffectsRequest.of(effects, space, spatial_key, section_key)
        self.effects, self.space = effects, space
        self.spatial_key, self.section_key = spatial_key_of(spatial_key), section_key
        self._given = model
        self.formula_loc, self.formula_scale = formula_loc, formula_scale
        self.as_numeric = text_names(as_numeric, "as_numeric")
        self.constraints_loc, self.constraints_scale = constraints_loc, constraints_scale
        self.noise_model = one_choice(noise_model, likelihood)
        self.estimator: Estimator | None = None
        self._fit: GlmFit | None = None
        self._quasi: QuasiFit | None = None
        self._noise_checked, self._spots = False, Spots.of(None)
        self._record: MixedRecord | None = None

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

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> from pyrosplice import ExpressionGLM
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 50)})
        >>> glm = ExpressionGLM("~ group").fit(simulate_expression(cells, n_genes=3, mean=3.0, seed=0))
        >>> glm.coefficient_names, glm.summary()["fit_ended"].unique().tolist()
        (['Intercept', 'group[T.b]'], ['converged'])
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
        self._saved_own, self._quasi, self._noise_checked, self._spots = None, None, False, Spots.of(data)
        self._record = None
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
        if self.estimator.input_data.effects is not None:
            raise RefusedModelError(
                "This is worked out for models without random effects, and the fit has "
                f"{self.estimator.input_data.effects}. It has tests, summary(), variance_components(), units(), "
                "random_effects(), posterior() and predict()."
            )
        return self.estimator

    def _has_effects(self) -> bool:
        """Whether the fit has random effects."""
        estimator = self.estimator
        return self._record is not None if estimator is None else estimator.input_data.effects is not None

    def _mixed_estimator(self) -> MixedEstimator:
        return effect_tables.require_effects(self.estimator)

    def _mixed_fit(self) -> effect_tables.MixedFit:
        return self._mixed_estimator() if self._record is None else self._record

    def _mixed_record(self) -> MixedRecord:
        return self._mixed_estimator().record if self._record is None else self._record

    def cond(self, **levels: Any) -> Array:
        """Design row ``(P,)`` of a cell with these levels: other factors at their first level, other numbers at 0.

        Differences of two are contrasts: ``glm.cond(drug="b") - glm.cond(drug="a")``. A number for which the formula
        has no value at 0 (``log(t)``, ``1 / t``, a spline) is at its median over the cells; a contrast in which it does
        not cancel is refused by :meth:`test`, and has to name it. Names with dots: ``cond(**{"percent.mt": 5})``.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> from pyrosplice import ExpressionGLM
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"drug": np.tile(["none", "a", "b"], 30)})
        >>> glm = ExpressionGLM("~ drug").fit(simulate_expression(cells, n_genes=3, mean=3.0, seed=0))
        >>> glm.coefficient_names
        ['Intercept', 'drug[T.b]', 'drug[T.none]']
        >>> contrast = glm.cond(drug="none") - glm.cond(drug="b")
        >>> contrast.tolist(), glm.test(contrast).pval.shape
        ([0.0, -1.0, 1.0], (3,))
        """
        return condition_row(self._design(), levels)

    def _design(self) -> DesignMatrix:
        if self._fit is None and self._own is None:
            _ = self.results
        return self._location

    def test(  # noqa: PLR0913 (what is tested, and how, by keyword)
        self,
        contrast: Array | None = None,
        *,
        factor: str | Sequence[str] | None = None,
        coefficient: str | Sequence[str] | None = None,
        method: str = "wald",
        donors: Any = None,
        df: DfRule | float | None = None,
        lfc_threshold: float = 0.0,
        alternative: str = "two-sided",
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
        df
            Beside random effects: the rule of their degrees of freedom (:mod:`pyrosplice.effects._reference_df`), or a
            number. With 360 of 371 cells in one of 12 donors ``"lrt"`` found 5.3 and 5.7 % of 1,500 null genes at 5 %
            and 1.4 and 1.7 % at 1 % (donors' sd .4, .8), ``"wald"`` 5.6, 5.7, 1.6, 1.9, ``"score"`` 7.0, 7.0, 2.9, 2.7.
        lfc_threshold
            Test against ``|log2fc| <= lfc_threshold`` (:meth:`ExpressionTest.against_threshold`): one coefficient, by
            ``"wald"``, ``"robust"``, ``"glmm"`` or beside random effects by ``"wald"``.
        alternative
            ``"two-sided"``, or ``"greater"`` or ``"less"`` (:meth:`ExpressionTest.one_sided`), of the same tests.

        Sizes and power of each: :mod:`pyrosplice._expression.methods`.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> from pyrosplice import ExpressionGLM
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 50)})
        >>> mean = np.where((cells["group"] == "b").to_numpy()[:, None] & (np.arange(3) == 0), 12.0, 3.0)
        >>> glm = ExpressionGLM("~ group").fit(simulate_expression(cells, n_genes=3, mean=mean, seed=0))
        >>> table = glm.test(factor="group", method="lrt").summary()
        >>> (table["qval"] < 0.05).tolist(), float(table["log2fc"].iloc[0].round())  # four times as much
        ([True, False, False], 2.0)
        """
        check_option("method", method, METHODS)
        rows = contrast_rows(self._design(), contrast, factor, coefficient)
        check_threshold(lfc_threshold, alternative, method, rows, self._link)
        found = self._tested(rows, method, donors, df)
        name = " + ".join(text_names(factor if coefficient is None else coefficient, "factor")) or "contrast"
        found = replace(found, name=name, groupby=name, method=method)
        if alternative != "two-sided":
            return found.one_sided(alternative, lfc_threshold=lfc_threshold)
        return found.against_threshold(lfc_threshold) if lfc_threshold else found

    def _tested(self, rows: Array, method: str, donors: Any, df: DfRule | float | None) -> ExpressionTest:
        if self._has_effects():
            if donors is not None:
                raise InvalidArgumentError("donors: they are in the formula of this fit, as random effects; leave out.")
            given = None if self.estimator is None else self._mixed_estimator()
            record = self._mixed_record()
            mixed = MixedResults(self.results, self._constraints, record, self.gene_names, self._mean, given)
            found = mixed.test(rows, method, "clip" if df is None else df)
            found.link = self._link
            return found
        if df is not None:
            raise InvalidArgumentError(f"df: the fit has no random effects, whose levels could be units, found {df!r}.")
        needs_donors = method in ("cluster", "glmm")
        if needs_donors != (donors is not None):
            raise InvalidArgumentError(f"donors: method {method!r} {'needs' if needs_donors else 'does not use'} them.")
        wald = contrast_test(self.results, self._constraints, rows, gene_ids=self.gene_names, mean=self._mean)
        wald.link = self._link
        if method in BY_THE_NOISE and not self._noise_checked:
            self._noise_checked = True
            warn_of_noise(self.estimator, stacklevel=5)
        if method == "wald" or (self.results.reason == Reason.NO_COUNTS.value).all():
            return wald
        return apply_method(method, self._data(), wald, rows, donors=donors, quasi=self.quasi)

    contrast = test

    test_spatial_variability = spatial_null.test_in_space

    def variance_ratio(self) -> Array:
        """Compare the spread of each gene's counts with what the fitted noise expects: ``(G,)``, NaN without a fit.

        Squared residuals over variance: 1 where negative-binomial noise is right; 0.25 to 0.6 with half or more of
        zeros beyond it (means of 5 and 20 elsewhere): :meth:`test` says which tests are then of little power.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> from pyrosplice import ExpressionGLM
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 100)})
        >>> glm = ExpressionGLM("~ group").fit(simulate_expression(cells, n_genes=3, mean=3.0, seed=0))
        >>> bool((abs(glm.variance_ratio() - 1) < 0.3).all())  # negative-binomial counts are
        True
        """
        return noise_ratio(self._data())

    shrink = shrunken_effects.shrink
    adjusted_dispersion = shrunken_effects.adjusted_dispersion

    def quasi(self) -> QuasiFit:
        """Estimate trended and shrunken dispersions and moderated variances, which are behind ``method="ql"``.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> from pyrosplice import ExpressionGLM
        >>> from pyrosplice.data import simulate_expression
        >>> samples = pd.DataFrame({"group": np.repeat(["a", "b"], 4)})
        >>> adata = simulate_expression(samples, n_genes=50, mean=20.0, dispersion=0.2, seed=0)
        >>> glm = ExpressionGLM("~ group").fit(adata)
        >>> quasi = glm.quasi()
        >>> quasi.dispersions.trend.shape, quasi.df[:3].tolist()
        ((50,), [6.0, 6.0, 6.0])
        """
        self._quasi = self._quasi or quasi_fit(self._data())
        return self._quasi

    def sample_counts(self, genes: Any, *, seed: int) -> Array:
        """Draw counts ``(N, g)`` of some genes from the fit, random effects at their modes; NaN without a fit.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> from pyrosplice import ExpressionGLM
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 50)})
        >>> glm = ExpressionGLM("~ group").fit(simulate_expression(cells, n_genes=3, mean=3.0, seed=0))
        >>> glm.sample_counts(["gene_1", "gene_3"], seed=0).shape
        (100, 2)
        """
        estimator = self._mixed_estimator() if self._has_effects() else self._data()
        return estimator.model.sample_j(genes, seed=seed)

    posterior = draw_from_posterior
    predict = predict_cells
    to_frame, top_table, write = views.to_frame, views.top_genes, views.write_fit
    aic, bic = views.aic, views.bic
    outlier_counts = outlier_counts
    variance_components = effect_tables.variance_components
    random_effects = effect_tables.level_effects
    test_component = component_tests.test_component
    fitted_field = field_map.fitted_field
    units = effect_tables.units

    def summary(self) -> pd.DataFrame:
        """Tabulate estimates (``effect``, natural log), standard errors and why not: one row a gene and coefficient.

        Both are NaN for a gene without counts; the standard error is infinite where nothing identifies a coefficient
        or its estimate is at infinity. ``reason`` says so, and is "" elsewhere; ``fit_ended``: how the fit ended.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> from pyrosplice import ExpressionGLM
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 50)})
        >>> glm = ExpressionGLM("~ group").fit(simulate_expression(cells, n_genes=2, mean=3.0, seed=0))
        >>> glm.summary()[["gene", "coefficient", "fit_ended"]]
             gene coefficient  fit_ended
        0  gene_1   Intercept  converged
        1  gene_1  group[T.b]  converged
        2  gene_2   Intercept  converged
        3  gene_2  group[T.b]  converged
        """
        robust = effect_tables.coefficients_known(self) if self._has_effects() else None
        return coefficient_rows(self.results, self._constraints, self.gene_names, self.coefficient_names, robust)

    def save(self, path: str | Path) -> None:
        """Write coefficients, information and design to one safetensors file; the counts are not saved.

        A formula that is more than names, numbers, operators and known functions is left out: the loaded model cannot
        make designs of new cells, and says so.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np, pandas as pd
        >>> from pyrosplice import ExpressionGLM
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 50)})
        >>> glm = ExpressionGLM("~ group").fit(simulate_expression(cells, n_genes=2, mean=3.0, seed=0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     glm.save(f"{folder}/fit.safetensors")
        ...     print(ExpressionGLM.load(f"{folder}/fit.safetensors").coefficient_names)
        ['Intercept', 'group[T.b]']
        """
        settings = {name: getattr(self, name) for name in stored_fit.SETTINGS}
        settings["noise_model"] = stored_fit.saved_noise(self.noise_model)
        settings |= saved_effects(self.effects, self.space)
        check_arguments(type(self), stored_fit.file_arguments(type(self)))
        design, settings = stored_fit.saved_design(self._location, settings)
        mixed = self._mixed_record() if self._has_effects() else None
        parts = self.results, self._constraints, design, list(self.gene_names), self._mean, self._saved_sites(), mixed
        Archive.of(type(self).__name__, stored_fit.SavedExpression(settings, *parts), part="about").save(path)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        model: Program | None = None,
        likelihood: Likelihood | None = None,
        effects: Sequence[GivenEffect] = (),
    ) -> Self:
        """Read a file of :meth:`save`: Wald tests, contrasts and the summary work; what needs counts does not.

        ``model``, ``likelihood`` and ``effects`` are those of your own, if it was saved with them. Nothing in the file
        is evaluated but a formula of names, numbers, operators and known functions.

        Raises
        ------
        NoModelFileError
            No such file.
        ModelFileError
            For a file that is not one, from a newer version, or with a formula that holds code; for another ``model``
            or ``likelihood``.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np, pandas as pd
        >>> from pyrosplice import ExpressionGLM
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.repeat(["a", "b"], 50)})
        >>> glm = ExpressionGLM("~ group").fit(simulate_expression(cells, n_genes=2, mean=3.0, seed=0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     glm.save(f"{folder}/fit.safetensors")
        ...     again = ExpressionGLM.load(f"{folder}/fit.safetensors")
        >>> bool((again.test(factor="group").pval == glm.test(factor="group").pval).all())
        True
        """
        archive = Archive.load(path, cls.__name__, {2: expression_2})
        check_arguments(cls, stored_fit.file_arguments(cls))
        with damage_named(repr(os.fspath(path))):
            saved, name = archive.to(stored_fit.SavedExpression), repr(os.fspath(path))
            settings = stored_fit.settings_again(saved, cls, (likelihood, effects), name)
            settings |= {} if model is None else {"model": model}
            glm, design = cls(**settings), stored_fit.saved_design_of(saved)
            glm._take_saved(saved.own, name)
        glm._fit, glm._constraints, glm._location, glm._record = saved.fit, saved.constraints, design, saved.mixed
        glm.gene_names = np.asarray(saved.genes, dtype=object)
        glm.coefficient_names, glm._mean = list(design.names), saved.mean
        return glm
