"""The calibration study in small: few samples, and donors."""

import pytest

from tests.studies.negative_binomial_calibration import run


@pytest.mark.slow
def test_few_samples_and_donors_keep_their_level():
    table = run(genes=400, seed=3, samples=(7,)).set_index(["tau", "mean", "dispersion", "method"])["at 5%"]
    few = table.loc[0.0]
    ql = few.xs("ql", level="method")
    assert (ql <= 0.1).all() and (ql.drop(index=0.5, level="mean") >= 0.025).all()
    assert few.loc[50.0, 1.0, "wald"] > 0.1
    donors = table.drop(index=0.0, level="tau").unstack("method")
    assert (donors["wald"] > 0.15).all()
    assert donors[["cluster", "glmm"]].stack().between(0.02, 0.085).all()
