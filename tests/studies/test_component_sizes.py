"""A short version of the study of variance components: genes without the effect are rejected at the nominal rate."""

import numpy as np
import pytest
from scipy import stats

from tests.studies import variance_components as study
from tests.studies.variance_components import Cell


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "least"),
    [
        (Cell("(1 | donor)", 6, 2.0), 0.02),
        (Cell("(0 + x | donor) apart", 12, 2.0), 0.02),
        (Cell("space", 0, 5.0), 0.015),
        (Cell("(0 + x | donor)", 12, 2.0), 0.0),
    ],
)
def test_rejections_are_nominal_or_fewer(cell, least):
    table = study.tested(cell, study.sample(cell, 400, np.random.default_rng(0)))
    rejected = (table["pvalue"] <= 0.05).sum()
    assert stats.binom.ppf(0.0005, 400, least) <= rejected <= stats.binom.ppf(0.9995, 400, 0.06)
