"""The expression GLM as an estimator of its own: fit, test, contrast, shrink, summary, save and load."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pyrosplice.data.cells import as_numbers
from pyrosplice.data.constraints import Constraints
from pyrosplice.data.expression_design import DesignMatrix, from_formula
from pyrosplice.data.names import by_name, places_of
from pyrosplice.errors import InvalidArgumentError, ModelFileError, NotReadyError, check_option, listed
from pyrosplice.estimators import expression_fit
from pyrosplice.estimators.expression_donors import Donors
from pyrosplice.estimators.expression_estimator import Estimator
from pyrosplice.estimators.expression_options import known_options
from pyrosplice.estimators.expression_quasi import QuasiFit, quasi_fit, quasi_test
from pyrosplice.estimators.expression_results import ExpressionTest
from pyrosplice.estimators.expression_tests import (
    FIT_OPTIONS,
    contrast_test,
    ratio_test,
    tested_columns,
    unit_rows,
    with_statistic,
)
from pyrosplice.estimators.representation import Described, describe_codes
from pyrosplice.inference.nb_basis import Basis, identity
from pyrosplice.inference.nb_dispersion import cox_reid
from pyrosplice.inference.nb_fit import GlmFit
from pyrosplice.inference.nb_newton import FitCode
from pyrosplice.inference.nb_shrink import prior_scale, shrink_coefficient

if TYPE_CHECKING:
    from pyrosplice.models.named_priors import Priors
    from pyrosplice.posterior.nuts import NutsOptions

Array = NDArray[np.float64]
OF_THE_MODEL = ("as_numeric", "constraints_loc", "constraints_scale", "noise_model")
METHODS = ("wald", "lrt", "ql", "cluster", "glmm")
FORMAT = "pyrosplice-expression"
FORMAT_VERSION = 1


class ExpressionGLM(Described):
    """Negative-binomial (or Poisson, normal) regression of every gene on the cells' covariates.

    Parameters
    ----------
    formula_loc, formula_scale, as_numeric, constraints_loc, constraints_scale, noise_model
        As for :func:`pyrosplice.api.fit.model`.

    Attributes
    ----------
    estimator : Estimator
        The fitted estimator, with everything that ``fit.model`` documents; absent after :meth:`load`.
    coefficient_names, gene_names

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> counts = np.random.default_rng(0).poisson(3.0, (20, 4))
    >>> glm = ExpressionGLM("~1 + group").fit(counts, sample_description=pd.DataFrame({"group": ["a", "b"] * 10}))
    >>> glm.test(glm.cond(group="b") - glm.cond(group="a")).summary().shape[0]
    4
    """

    def __init__(
        self, formula_loc: str | None = None, formula_scale: str = "~1", *, as_numeric: Sequence[str] | str = (),
        constraints_loc: Any = None, constraints_scale: Any = None, noise_model: str = "nb",
    ) -> None:  # fmt: skip
        self.formula_loc, self.formula_scale = formula_loc, formula_scale
        self.as_numeric = [as_numeric] if isinstance(as_numeric, str) else list(as_numeric)
        self.constraints_loc, self.constraints_scale, self.noise_model = constraints_loc, constraints_scale, noise_model
        self.estimator: Estimator | None = None
        self._fit: GlmFit | None = None
        self._quasi: QuasiFit | None = None

    def _rows(self) -> dict[str, str]:
        rows = {"noise": self.noise_model, "location": str(self.formula_loc), "scale": self.formula_scale}
        if self._fit is None:
            return rows | {"fit": "not fitted; call fit"}
        cells = "" if self.estimator is None else f"{len(self._location.matrix)} cells, "
        loaded = "; loaded, without the counts" if self.estimator is None else ""
        return {
            "data": f"{cells}{len(self.gene_names)} genes",
            **rows,
            "coefficients": ", ".join(self.coefficient_names),
            "fit": describe_codes(self._fit.code) + loaded,
        }

    def fit(self, data: Any, **options: Any) -> ExpressionGLM:
        """Maximum likelihood of every gene; ``options`` are the other arguments of ``fit.model``."""
        options = known_options("ExpressionGLM.fit", options, FIT_OPTIONS - set(OF_THE_MODEL))
        self.estimator = expression_fit.model(
            data, self.formula_loc, self.formula_scale, as_numeric=self.as_numeric,
            constraints_loc=self.constraints_loc, constraints_scale=self.constraints_scale,
            noise_model=self.noise_model, **options,
        )  # fmt: skip
        inputs = self.estimator.input_data
        self._fit, self._quasi = self.estimator.fit, None
        self._location, self._constraints = inputs.location, inputs.constraints_loc
        self.gene_names, self.coefficient_names = inputs.counts.gene_names, list(inputs.location.names)
        self._mean = self.estimator.gene_means
        return self

    @property
    def results(self) -> GlmFit:
        """The engine's result."""
        if self._fit is None:
            raise NotReadyError("Call fit first.")
        return self._fit

    def _data(self) -> Estimator:
        if self.estimator is None:
            raise NotReadyError("This needs the data: call fit (a loaded model has none).")
        return self.estimator

    def cond(self, **levels: Any) -> Array:
        """Design row ``(P,)`` of a cell with these levels; factors not named are at their first level, numbers at 0.

        Differences of two are contrasts: ``glm.cond(drug="b") - glm.cond(drug="a")``.
        """
        design = self._design()
        unknown = sorted(set(levels) - set(design.levels) - set(design.numeric))
        if unknown:
            raise InvalidArgumentError(
                f"cond: {unknown} are not variables of the model; it has {listed([*design.levels, *design.numeric])}."
            )
        row = {name: levels.get(name, values[0]) for name, values in design.levels.items()}
        row |= {name: levels.get(name, 0.0) for name in design.numeric}
        return design.for_new(pd.DataFrame({k: [v] for k, v in row.items()}, index=[0]))[0]

    def _design(self) -> DesignMatrix:
        _ = self.results
        return self._location

    def test(
        self, contrast: Array | None = None, *, factor: str | Sequence[str] | None = None,
        coefficient: str | Sequence[str] | None = None, method: str = "wald", donors: Any = None,
    ) -> ExpressionTest:  # fmt: skip
        """Test contrasts of location coefficients, a factor, or coefficients.

        Parameters
        ----------
        contrast
            Rows ``(k, P)`` or ``(P,)``, as from :meth:`cond`.
        method
            ``"wald"``; ``"lrt"``; ``"ql"``: quasi-likelihood F with moderated dispersions (few samples);
            ``"cluster"``: bias-reduced sandwich over ``donors``; ``"glmm"``: a random intercept for each donor.
        donors
            Donor of each cell, or the column that holds it.
        """
        check_option("method", method, METHODS)
        rows = self._contrast_rows(contrast, factor, coefficient)
        needs_donors = method in ("cluster", "glmm")
        if needs_donors != (donors is not None):
            raise InvalidArgumentError(f"donors: method {method!r} {'needs' if needs_donors else 'does not use'} them.")
        if method == "wald" or (self.results.code == FitCode.ALL_ZERO).all():
            return self._wald(rows)
        if method == "lrt":
            return ratio_test(self._wald(rows), self._data(), rows)
        if np.abs(rows @ self._constraints.shift).any():
            raise InvalidArgumentError(f"contrast: method {method!r} takes no coefficient bound to a constant.")
        free = rows @ self._constraints.matrix
        if method == "ql":
            return with_statistic(self._wald(rows), *quasi_test(self._data(), self.quasi(), free)[:2])
        if len(rows) > 1:
            raise InvalidArgumentError(f"contrast: method {method!r} tests one contrast at a time, found {len(rows)}.")
        fitted = Donors(self._data(), donors)
        fit, covariance, df = fitted.cluster(free[0]) if method == "cluster" else fitted.mixed(free[0])
        return contrast_test(
            fit, self._constraints, rows, gene_ids=self.gene_names, mean=self._mean, covariance=covariance, df=df
        )

    contrast = test

    def _contrast_rows(self, contrast: Any, factor: Any, coefficient: Any) -> Array:
        if sum(v is not None for v in (contrast, factor, coefficient)) != 1:
            raise InvalidArgumentError("contrast: expected exactly one of contrast, factor and coefficient.")
        names = self._design().names
        if contrast is None:
            chosen = tested_columns(self._location, factor, coefficient, ("factor", "coefficient"))
            return unit_rows(chosen, names)
        if isinstance(contrast, (pd.Series, pd.DataFrame)):
            turned = by_name(contrast.T, pd.Index(names), "contrast", what="coefficient")
            contrast = turned.to_numpy().T
        try:
            rows = np.atleast_2d(as_numbers(contrast, "contrast"))
        except InvalidArgumentError as error:
            terms = listed(dict.fromkeys(t for t in self._location.terms if t != "1"))
            raise InvalidArgumentError(
                f"contrast: expected numbers, as from cond, found {contrast!r}; terms are tested with factor= (among "
                f"{terms}), coefficients with coefficient= (among {listed(names, near=str(contrast))})."
            ) from error
        if rows.shape[1] != len(names) or not np.isfinite(rows).all() or not np.abs(rows).max(1).all():
            raise InvalidArgumentError(
                f"contrast: expected finite rows, not all zero, over {listed(names)}, found shape {rows.shape}."
            )
        return rows

    def _wald(self, rows: Array) -> ExpressionTest:
        return contrast_test(self.results, self._constraints, rows, gene_ids=self.gene_names, mean=self._mean)

    def shrink(self, coefficient: str, *, scale: float | None = None) -> pd.DataFrame:
        """Fold changes of one coefficient shrunken by a Cauchy prior: gene, log2fc, its posterior SD, the prior scale.

        ``scale`` (natural log) is estimated from all genes where None.
        """
        names = self._constraints.free_names
        if coefficient not in names:
            raise InvalidArgumentError(
                f"coefficient: expected one of {listed(names, near=str(coefficient))}, found {coefficient!r}."
            )
        k = names.index(coefficient)
        fit = self.results
        se = np.sqrt(fit.covariance[:, k, k])
        scale = prior_scale(fit.theta[:, k], se) if scale is None else scale
        mode, sd = shrink_coefficient(self._data().source, fit, k, scale=scale)
        return pd.DataFrame(
            {"gene": self.gene_names, "log2fc": mode / np.log(2), "log2fc_sd": sd / np.log(2),
             "log2fc_mle": fit.theta[:, k] / np.log(2), "prior_scale": scale}
        )  # fmt: skip

    def adjusted_dispersion(self) -> Array:
        """Cox–Reid adjusted dispersion of each gene ``(G,)``, zero at the boundary; one common scale only."""
        estimator = self._data()
        if estimator.source.design.z.shape[1] != 1 or self.noise_model != "nb":
            raise InvalidArgumentError("formula_scale: the adjusted dispersion needs negative-binomial noise and '~1'.")
        theta, code = cox_reid(estimator.source, self.results)
        return np.where(code == FitCode.POISSON_BOUNDARY, 0.0, np.exp(-theta[:, -1]))

    def quasi(self) -> QuasiFit:
        """Trended and shrunken dispersions and moderated variances behind ``method="ql"``."""
        self._quasi = self._quasi or quasi_fit(self._data())
        return self._quasi

    def sample_counts(self, genes: Any, *, seed: int) -> Array:
        """Counts ``(N, g)`` of some genes drawn from the fitted model: a predictive check; NaN without a fit."""
        model, rng = self._data().model, np.random.default_rng(seed)
        genes = places_of(genes, self.gene_names, "genes")
        mean, scale = model.location_j(genes), model.scale_j(genes)
        if self.noise_model == "norm":
            return rng.normal(mean, scale)
        fitted = np.isfinite(mean)
        mean, scale = np.where(fitted, mean, 0.0), np.where(np.isfinite(scale), scale, 1.0)
        drawn = rng.poisson(mean if self.noise_model == "poisson" else rng.gamma(scale, mean / scale)).astype(float)
        return np.where(fitted, drawn, np.nan)

    def posterior(
        self, *, num_samples: int = 1000, method: str = "laplace", priors: Priors = None,
        genes: str | Sequence[str | int] | None = None, groups: Sequence[str] | None = None, seed: int = 0,
        nuts_options: NutsOptions | None = None,
    ) -> xr.DataTree:  # fmt: skip
        """Posterior draws as an ``xarray.DataTree`` with the groups that ArviZ reads, as of the isoform models.

        The mode is found again under the priors; the estimates of :meth:`fit` stay as they are. Variables of the
        posterior: ``location`` and ``scale``, all coefficients (natural log units); ``log2_effect``; ``dispersion``
        where there is one a gene. Dimensions: ``gene``, ``cell``, ``coefficient``, ``scale_coefficient``.

        Parameters
        ----------
        num_samples
            Draws a gene (and chain).
        method
            ``"laplace"``: a Gaussian of location and scale together at the mode. ``"importance"``: these draws,
            resampled by their Pareto-smoothed weights. ``"nuts"``: the same Pyro model, gene by gene.
        priors
            Pyro distributions of each free coefficient: ``location`` and ``scale``;
            :func:`pyrosplice.posterior.expression.weak_priors` for those not given, and for ``"weak"``.
        genes
            Names or positions of the genes to draw from; all by default.
        groups
            Optional groups to make (:mod:`pyrosplice.posterior.tree`); all by default. Those with an entry a cell are
            large: draws × genes × cells.
        seed
            Of all that is random.
        nuts_options
            Of ``method="nuts"``.

        Raises
        ------
        InvalidArgumentError
            Options that do not exist; observation weights; a gene whose posterior has no Gaussian curvature.
        NotReadyError
            Before ``fit``, or of a loaded model.
        """
        from pyrosplice.posterior.expression import expression_posterior  # which imports the estimators

        return expression_posterior(
            self, num_samples=num_samples, method=method, priors=priors, genes=genes, groups=groups, seed=seed,
            nuts_options=nuts_options,
        )  # fmt: skip

    def summary(self) -> pd.DataFrame:
        """One row a gene and location coefficient: estimate, standard error (natural log), dispersion and code."""
        fit, c = self.results, self._constraints
        p = fit.n_location
        full = c.full(fit.theta[:, :p].T).T
        covariance = c.matrix @ np.nan_to_num(fit.covariance[:, :p, :p], posinf=np.inf) @ c.matrix.T
        covariance[fit.code == FitCode.ALL_ZERO] = np.nan
        return pd.DataFrame(
            {
                "gene": np.repeat(self.gene_names, full.shape[1]),
                "coefficient": np.tile(self.coefficient_names, len(full)),
                "estimate": full.ravel(),
                "se": np.sqrt(covariance.diagonal(axis1=1, axis2=2)).ravel(),
                "code": np.repeat([FitCode(k).name.lower() for k in fit.code], full.shape[1]),
            }
        )

    def save(self, path: str | Path) -> None:
        """Write coefficients, information and design to one safetensors file; the counts are not saved."""
        fit = self.results
        arrays = {f.name: getattr(fit, f.name) for f in fields(GlmFit) if f.name != "basis"}
        arrays |= {"basis": fit.basis.matrix, "basis_inverse": fit.basis.inverse}
        arrays |= {"constraint": self._constraints.matrix, "shift": self._constraints.shift, "mean": self._mean}
        design = self._location
        about = {
            "formula_loc": self.formula_loc, "formula_scale": self.formula_scale, "noise_model": self.noise_model,
            "as_numeric": self.as_numeric, "genes": list(self.gene_names), "coefficients": self.coefficient_names,
            "free": self._constraints.free_names,
            "levels": {k: [str(v) for v in levels] for k, levels in design.levels.items()},
            "numeric": list(design.numeric),
        }  # fmt: skip
        meta = {"format": FORMAT, "version": str(FORMAT_VERSION), "about": json.dumps(about)}
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, Path(path), metadata=meta)

    @classmethod
    def load(cls, path: str | Path) -> ExpressionGLM:
        """Read a file of :meth:`save`: Wald tests, contrasts and the summary work; what needs counts does not.

        Raises
        ------
        ModelFileError
            For a file that is not one, or from a newer version.
        """
        try:
            with safe_open(Path(path), framework="numpy") as file:
                meta = file.metadata() or {}
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelFileError(f"path: {path} is not a model file ({error}).") from error
        if meta.get("format") != FORMAT or int(meta.get("version", 0)) > FORMAT_VERSION:
            raise ModelFileError(f"path: {path} has format {meta.get('format')!r}, version {meta.get('version')!r}.")
        about = json.loads(meta["about"])
        model = cls(about["formula_loc"], about["formula_scale"], as_numeric=about["as_numeric"],
                    noise_model=about["noise_model"])  # fmt: skip
        model._fit = _read_fit(arrays)
        model._constraints = Constraints(arrays["constraint"], arrays["shift"], about["free"])
        model.gene_names = np.asarray(about["genes"], dtype=object)
        model.coefficient_names, model._mean = about["coefficients"], arrays["mean"]
        model._location = _rebuild_design(about)
        return model


def _read_fit(arrays: dict[str, Any]) -> GlmFit:
    """The engine's result; files of version 1 have it in the design's own coordinates."""
    size = arrays["theta"].shape[1]
    basis = Basis(arrays["basis"], arrays["basis_inverse"]) if "basis" in arrays else identity(size)
    old = {"inner_information": "information", "inner_fisher": "fisher"}
    names = [f.name for f in fields(GlmFit) if f.name != "basis"]
    return GlmFit(**{n: arrays[n] if n in arrays else arrays[old[n]] for n in names}, basis=basis)


def _rebuild_design(about: dict[str, Any]) -> DesignMatrix:
    """The design's recipe from its formula and levels; without one where a transform remembers its data."""
    names, levels, numeric = about["coefficients"], about["levels"], about["numeric"]
    bare = DesignMatrix(np.zeros((0, len(names))), names, None, levels, tuple(numeric))
    if about["formula_loc"] is None or "(" in about["formula_loc"]:
        return bare
    n = max([len(v) for v in levels.values()], default=1)
    table = pd.DataFrame(
        {k: pd.Categorical([v[i % len(v)] for i in range(n)], categories=v) for k, v in levels.items()}
        | {k: np.zeros(n) for k in numeric}, index=range(n),
    )  # fmt: skip
    design = from_formula(about["formula_loc"], table, as_numeric=numeric, n_cells=n)
    return design if design.names == names else bare
