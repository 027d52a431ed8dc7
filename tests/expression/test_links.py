"""A fold change is told where means are exponentials of the predictor, and nowhere else."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch

import pyrosplice.api as de
from pyrosplice import ExpressionGLM
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.likelihoods import Likelihood, Normal

GROUPS = pd.DataFrame({"group": ["a", "b"] * 30, "time": np.linspace(0, 1, 60)})


class SoftplusPoisson(Likelihood):
    """Counts whose mean is log(1 + exp(eta))."""

    predictors, n_categories, conditional = ("location",), (1, 1), False

    def distribution(self, eta):
        return dist.Poisson(torch.nn.functional.softplus(eta))


class SoftplusUnsaid(SoftplusPoisson):
    """The same by its log density alone, which says no mean."""

    distribution = Likelihood.distribution

    def log_prob(self, counts, eta):
        mean = torch.nn.functional.softplus(eta)
        return (counts * mean.log() - mean - torch.lgamma(counts + 1)).sum(-1)


UNLINKED = ["norm", Normal(), SoftplusPoisson(), SoftplusUnsaid()]
NAMES = ["norm", "Normal()", "softplus", "softplus without a mean"]


def _counts(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(5.0, (60, 4)).astype(float)


@pytest.mark.parametrize("noise_model", UNLINKED, ids=NAMES)
def test_a_coefficient_of_another_link_is_no_fold_change(noise_model) -> None:
    found = de.test.wald(_counts(), "group", None, "~1 + group", sample_description=GROUPS, noise_model=noise_model)
    assert np.isnan(found.logfc).all() and np.isnan(found.log2_fold_change()).all()
    table = found.summary()
    assert table["log2fc"].isna().all() and np.isfinite(table["pval"]).all()
    np.testing.assert_array_equal(table["effect"], found.extra["coef_mle"])
    np.testing.assert_array_equal(table["se"], found.extra["coef_sd"])
    assert ((table["lower"] < table["effect"]) & (table["effect"] < table["upper"])).all()
    glm = ExpressionGLM("~1 + group", noise_model=noise_model).fit(_counts(), sample_description=GROUPS)
    pd.testing.assert_frame_equal(glm.test(factor="group").summary(), table, check_exact=False)
    if noise_model == "norm":
        np.testing.assert_allclose(table["effect"], np.diff([_counts()[i::2].mean(0) for i in (0, 1)], axis=0)[0])
        assert (glm.shrink("group[T.b]")["effect_mle"] == table["effect"]).all()


@pytest.mark.parametrize("threshold", ["fc_upper_thres", "fc_lower_thres"])
def test_thresholds_of_fold_changes_are_refused_there(threshold) -> None:
    given = {"sample_description": GROUPS, "noise_model": "norm"}
    one = de.test.wald(_counts(), "group", None, "~1 + group", **given)
    pairs = de.test.pairwise(_counts(), "group", test="lrt", **given)
    smooth = de.test.continuous_1d(_counts(), "time", df=4, **given)
    for found in (one, pairs, smooth):
        with pytest.raises(InvalidArgumentError, match=f"{threshold}: a fold change exists where means"):
            found.summary(**{threshold: 1.5})
        assert np.isnan(found.log2_fold_change()).all()
        assert found.summary()["log2fc"].isna().all() and np.isfinite(found.summary()["effect"]).all()
    with pytest.raises(InvalidArgumentError, match="min_fc: a fold change"):
        one.plot_volcano(min_fc=2.0)


def test_with_the_log_link_the_effect_is_the_log2_fold_change() -> None:
    found = de.test.wald(_counts(), "group", None, "~1 + group", sample_description=GROUPS)
    table = found.summary()
    np.testing.assert_allclose(table["effect"], table["log2fc"])
    np.testing.assert_allclose(table["log2fc"] * np.log(2), found.logfc)
