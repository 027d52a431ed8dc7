"""Reduced study of the size of the test of a condition across donors and sections."""

import numpy as np
import pytest
from scipy.stats import binom

from tests.studies.effects_size import DONORS, LAWS, SECTIONS, study
from tests.studies.isoform_sections import Isoforms

pytestmark = pytest.mark.slow

N_GENES, LEVEL = 100, 0.1  # a level at which few genes tell much


@pytest.mark.parametrize(
    ("setting", "right", "wrong"),
    [
        (DONORS["6 v 6"], "(1 | donor)", "none"),
        (DONORS["paired 12"], "(1 | donor/sample)", "(1 | donor)"),
        (SECTIONS["expression"], "(1 | section) + field", "field"),
    ],
    ids=["donors between", "donors within", "sections"],
)
def test_null_genes_are_rejected_as_often_as_the_level_says(setting, right, wrong):
    """With the units in the model, by the default law; without them far too often, so that this study would show it."""
    found = study(setting, N_GENES, seed=3)
    rejected = {key: int((of_key["pvalue"] < LEVEL).sum()) for key, of_key in found.items()}
    for (fit, _), of_key in found.items():
        assert fit == "pseudo-bulk" or np.isfinite(of_key["pvalue"]).mean() > 0.97
    assert binom.ppf(0.0005, N_GENES, 0.7 * LEVEL) <= rejected[right, "clip"] <= binom.ppf(0.9995, N_GENES, 1.3 * LEVEL)
    assert rejected[wrong, "normal"] > binom.ppf(0.9995, N_GENES, LEVEL)
    assert rejected[right, "normal"] >= max(rejected[right, law] for law in LAWS)


def test_isoforms_that_vary_unequally_are_rejected_as_often_as_the_level_says():
    """The last of five isoforms varies; a law of one variance rejects more, spots as units far more."""
    setting = Isoforms("last", 0.6, n_isoforms=5, side=6)
    found = study(setting, N_GENES, seed=5)
    rejected = {key: int((of_key["pvalue"] < LEVEL).sum()) for key, of_key in found.items()}
    fit = "(1 | section) + field"
    assert all(np.isfinite(of_key["pvalue"]).mean() > 0.97 for of_key in found.values())
    assert rejected[fit, "clip"] <= binom.ppf(0.9995, N_GENES, 1.3 * LEVEL)
    assert rejected[fit, "clip"] < rejected[fit, "one variance"] < rejected["field", "normal"]
    assert rejected["field", "normal"] > binom.ppf(0.9995, N_GENES, LEVEL)
