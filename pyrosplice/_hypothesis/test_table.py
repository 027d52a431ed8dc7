"""Results of tests and effects as one tidy table, with the same columns in every family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice.reasons import OPTIMA

COLUMNS = ("effect", "se", "lower", "upper", "statistic", "pvalue", "pvalue_adj", "reason")


@dataclass(frozen=True, kw_only=True)
class TestTable:
    """What was found of each gene and covariate, and why, where nothing was.

    Attributes
    ----------
    labels
        What each of the R rows is about, by the name of the column: ``gene``, ``covariate``, …
    effect, se, lower, upper
        Estimate ``(R,)``, its standard error and the ends of its interval; None where there is none to show.
    statistic, pvalue, pvalue_adj
        Test statistic ``(R,)``, p-value, and p-value adjusted for the number of tests.
    why
        The :class:`~pyrosplice.reasons.Reason` of each row ``(R,)``, should its p-value or standard error be missing,
        or its effect infinite.
    more
        Further columns, which follow the others.
    """

    __test__ = False  # not a test of pytest's

    labels: Mapping[str, Any]
    effect: Any = None
    se: Any = None
    lower: Any = None
    upper: Any = None
    statistic: Any = None
    pvalue: Any = None
    pvalue_adj: Any = None
    why: Any
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reason(self) -> NDArray[np.object_]:
        """Why a row has no p-value, an infinite effect, or no finite standard error or interval; "" for all others."""
        lost = np.zeros(len(self.why), dtype=bool)
        if self.effect is not None:
            lost |= np.isinf(np.ravel(self.effect))
        if self.pvalue is not None:
            lost |= np.isnan(np.ravel(self.pvalue))
        for values in (self.se, self.lower, self.upper):
            if values is not None:
                lost |= ~np.isfinite(np.ravel(values))
        return np.where(lost, np.asarray(self.why, dtype=object), "")

    def to_frame(self) -> pd.DataFrame:
        """Write the results as a DataFrame, columns in the order of :data:`COLUMNS` after the labels."""
        found = {name: getattr(self, name) for name in COLUMNS}
        known = {name: np.asarray(values).ravel() for name, values in found.items() if values is not None}
        return pd.DataFrame({**self.labels, **known, **self.more})


def unless_ended(ended: object, otherwise: object) -> NDArray[np.object_]:
    """Why a result may be missing: how the fit behind it ended, or, of a fit at an optimum, ``otherwise``."""
    words = np.asarray(ended, dtype=object)
    return np.where(np.isin(words, [reason.value for reason in OPTIMA]), np.asarray(otherwise, dtype=object), words)
