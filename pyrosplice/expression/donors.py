"""Inference that allows for cells of a donor being alike, from a fitted estimator."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.expression.donor_variance import donor_variance_law
from pyrosplice.expression.engine.donor_glmm import GlmmFit, donor_design, fit_glmm, varies_within
from pyrosplice.expression.engine.donor_sandwich import ClusterTest, cluster_test
from pyrosplice.expression.engine.gene_fits import GlmFit
from pyrosplice.expression.engine.row_source import RowSource
from pyrosplice.expression.estimator import Estimator

Array = NDArray[np.float64]


class Donors:
    """The cells of an estimator with their donors.

    Parameters
    ----------
    estimator
        Fitted without donors.
    donors
        Which donor (patient, animal, sample: the unit that was sampled) each cell comes from: labels, or the column
        that holds them.

    Raises
    ------
    InvalidArgumentError
        For fewer than three donors.
    """

    def __init__(self, estimator: Estimator, donors: Any) -> None:
        inputs = estimator.input_data
        labels = inputs.cells.levels(donors, "donors")
        self.names, strata = list(labels.levels), labels.codes
        if len(self.names) < 3:
            raise InvalidArgumentError(f"donors: expected at least three, found {self.names}.")
        self.estimator = estimator
        self.design = replace(estimator.source.design, strata=strata.astype(np.intp))

    def _source(self, *, with_columns: bool) -> RowSource:
        design = donor_design(self.design) if with_columns else self.design
        old = self.estimator.source
        return RowSource(old.counts, design, old.likelihood, device=old.device, block_size=old.block_size)

    def cluster(self, contrast: Array) -> ClusterTest:
        """The sandwich covariance, and the p-value and degrees of freedom of a contrast ``(F,)``."""
        source = self._source(with_columns=False)
        return cluster_test(source, self.estimator.fit, contrast, within=bool(self._within(contrast).any()))

    def fit_mixed(self, contrast: Array | None = None) -> GlmmFit:
        """The mixed model of every gene, with what the law of a contrast ``(F,)`` needs."""
        return fit_glmm(self._source(with_columns=True), self.estimator.fit, contrast)

    def mixed(self, contrast: Array) -> tuple[GlmFit, Array, Array]:
        """Mixed-model estimates as a fit, their covariance, and degrees of freedom ``(G,)`` of a contrast ``(F,)``.

        The covariance is scaled so that the contrast's variance is the one that goes with its degrees of freedom. A
        contrast of columns that vary within donors is warned about.
        """
        self._warn_within(contrast)
        mixed = self.fit_mixed(contrast)
        assert mixed.profile is not None
        fit = self.estimator.fit
        theta = np.column_stack([mixed.location, mixed.scale])
        moved = replace(fit, theta=theta, code=mixed.code, log_likelihood=mixed.log_likelihood)
        variance, df = donor_variance_law(mixed.profile)
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = variance / np.einsum("p,gpq,q->g", contrast, mixed.covariance, contrast)
        return moved, mixed.covariance * factor[:, None, None], df

    def _within(self, contrast: Array) -> NDArray[np.bool_]:
        """Tested columns that vary within donors ``(F,)``."""
        return varies_within(self.design) & (np.abs(contrast) > 1e-10)

    def _warn_within(self, contrast: Array) -> None:
        """Warn where the tested column varies within donors, whose responses to it may differ.

        Of null genes at 5 %, with a standard deviation of 0.25 between a donor's samples: 37 % by the mixed model, 3 to
        5 % by the sandwich and by quasi-likelihood on sums (6 and 12 donors, 60 cells a sample).
        """
        within = self._within(contrast)
        if within.any():
            names = np.asarray(self.estimator.input_data.constraints_loc.free_names)[within].tolist()
            warnings.warn(
                f"donors: the tested {names} vary within donors, and a random intercept for each donor takes their "
                "response to be the same in all: p-values are far too small where it is not. Use method='cluster', or "
                "sum the counts of each donor and condition and test those with method='ql' and the donor in the "
                "formula.",
                UserWarning,
                stacklevel=4,
            )
