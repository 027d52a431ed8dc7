"""Inference that allows for cells of a donor being alike, from a fitted estimator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.estimators.expression_estimator import Estimator
from pyrosplice.inference.nb_cluster import cluster_covariance
from pyrosplice.inference.nb_fit import GlmFit
from pyrosplice.inference.nb_glmm import GlmmFit, donor_design, fit_glmm
from pyrosplice.inference.nb_source import RowSource

Array = NDArray[np.float64]


class Donors:
    """The cells of an estimator with their donors.

    Parameters
    ----------
    estimator
        Fitted without donors.
    donors
        Donor of each cell, or the column that holds it.

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
        return RowSource(old.counts, design, old.noise, device=old.device, block_size=old.block_size)

    def cluster(self, contrast: Array) -> tuple[GlmFit, Array, Array]:
        """The fit, the sandwich covariance ``(G, F, F)`` and degrees of freedom ``(G,)`` of a contrast ``(F,)``."""
        found = cluster_covariance(self._source(with_columns=False), self.estimator.fit, contrast)
        return self.estimator.fit, found.covariance, found.df

    def fit_mixed(self) -> GlmmFit:
        """The mixed model of every gene."""
        return fit_glmm(self._source(with_columns=True), self.estimator.fit)

    def mixed(self, contrast: Array) -> tuple[GlmFit, Array, Array]:
        """Mixed-model estimates as a fit, their covariance, and degrees of freedom ``(G,)`` of a contrast ``(F,)``."""
        mixed = self.fit_mixed()
        fit = self.estimator.fit
        theta = np.column_stack([mixed.location, mixed.scale])
        moved = replace(fit, theta=theta, code=mixed.code, log_likelihood=mixed.log_likelihood)
        return moved, mixed.covariance, mixed.df(contrast)
