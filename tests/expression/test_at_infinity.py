"""Genes without a finite estimate: what is identified is tested, the rest has no p-value and a reason."""

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gammaln, xlogy

import pyrosplice.api as de
from pyrosplice import ExpressionGLM
from pyrosplice._optimize.convergence import FitCode
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.likelihoods import CellCounts, Likelihood, NegativeBinomial

N = 120
RNG = np.random.default_rng(3)
TABLE = pd.DataFrame(
    {"g": np.tile(list("abcd"), 30), "t": RNG.random(N), "donor": np.repeat(np.arange(12), 10).astype(str)}
)
Y = RNG.negative_binomial(3, 0.4, (N, 3)).astype(float)


def emptied(groups):
    """The first gene without counts in some groups."""
    y = Y.copy()
    y[TABLE["g"].isin(list(groups)), 0] = 0
    return y


@settings(max_examples=15, deadline=None)
@given(empty=st.sets(st.sampled_from("abcd"), min_size=1, max_size=3), strategy=st.sampled_from(["AUTO", "QUICK"]))
def test_what_the_counts_identify_is_tested(empty, strategy):
    y, left = emptied(empty), ~TABLE["g"].isin(list(empty)).to_numpy()
    tested = de.test.wald(y, "g", formula_loc="~1+g", sample_description=TABLE, training_strategy=strategy)
    pairs = de.test.pairwise(y, TABLE["g"].to_numpy(), training_strategy=strategy)
    assert tested.fit_ended[0] == "separated"
    for i, first in enumerate("abcd"):
        for j, second in enumerate("abcd"):
            if i != j:
                assert np.isnan(pairs.pval[i, j, 0]) == bool({first, second} & empty)
    if len(empty) == 3:
        assert np.isnan(tested.pval[0])
        return
    alone = de.test.wald(y[left], "g", formula_loc="~1+g", sample_description=TABLE[left])
    np.testing.assert_allclose(tested.pval[0], alone.pval[0], rtol=1e-2)


def test_other_genes_and_contrasts_are_as_without_it():
    for coefficient in ("g[T.b]", "g[T.c]", "t"):
        found, all_there = (
            ExpressionGLM("~1+g+t", as_numeric="t").fit(y, sample_description=TABLE).test(coefficient=coefficient)
            for y in (emptied("d"), Y)
        )
        np.testing.assert_array_equal(found.pval[1:], all_there.pval[1:])
        assert np.isfinite(found.pval[0]) and np.isfinite(found.effect_se[0])


@pytest.mark.parametrize("method", ["wald", "cluster", "glmm"])
@pytest.mark.filterwarnings("ignore:donors")
def test_no_standard_error_of_an_estimate_at_infinity(method, tmp_path):
    y = np.column_stack([emptied("b"), np.where(np.arange(N) == 5, 1.0, 0.0)])
    glm = ExpressionGLM("~1+g").fit(y, sample_description=TABLE)
    donors = {} if method == "wald" else {"donors": "donor"}
    found = glm.test(coefficient="g[T.b]", method=method, **donors).summary()
    assert found["pval"].isna().tolist() == [True, False, False, True]
    assert found["fit_ended"].tolist()[::3] == found["reason"].tolist()[::3] == ["separated", "separated"]
    assert np.isinf(found["se"][[0, 3]]).all()
    other = glm.test(coefficient="g[T.c]", method=method, **donors)
    first = int(method == "glmm")  # which has no estimates at all of a gene that is separated
    assert np.isfinite(other.pval[first:3]).all()
    glm.save(tmp_path / "glm")
    loaded = ExpressionGLM.load(tmp_path / "glm")
    pd.testing.assert_frame_equal(loaded.summary(), glm.summary())
    se = glm.summary().set_index(["gene", "coefficient"])["se"]
    assert np.isinf(se["gene0", "g[T.b]"]) and np.isfinite(se["gene0", "g[T.c]"])
    np.testing.assert_array_equal(loaded.test(factor="g").pval, glm.test(factor="g").pval)


def test_ratio_and_score_test_separated_genes():
    y = emptied("bd")
    for found in (
        de.test.lrt(y, "~1+g", "~1", sample_description=TABLE),
        de.test.score(y, "g", formula_loc="~1+g", sample_description=TABLE),
    ):
        assert found.pval[0] < 1e-6 and np.isfinite(found.pval).all()


@pytest.mark.parametrize("tol", [1e-4, 1e-9, 1e-12])
@pytest.mark.parametrize("empty", ["b", "bd", "abc"])
def test_the_likelihood_ratio_at_infinity_is_the_supremum_wherever_the_search_stopped(tol, empty):
    y = emptied(empty)
    strategy = [{"tol": tol}]
    given = {"sample_description": TABLE, "noise_model": "poisson", "training_strategy": strategy}
    found = de.test.lrt(y, "~1+g", "~1", **given)
    means = pd.DataFrame(y).groupby(TABLE["g"].to_numpy()).transform("mean").to_numpy()
    exact = 2 * (xlogy(y, means) - xlogy(y, y.mean(0)) - means + y.mean(0)).sum(0)
    np.testing.assert_allclose(found.statistic[0], exact[0], rtol=0, atol=max(tol, 1e-9))
    assert found.fit_ended[0] == "separated"


class ReciprocalTail(Likelihood):
    """Counts whose mean nears zero as 1 / (1 − eta): no search comes near the supremum."""

    predictors, n_categories, conditional = ("location",), (1, 1), False

    def distribution(self, eta):
        return dist.Poisson(torch.where(eta > 0, 1 + eta, 1 / (1 - eta.clamp_max(0.0))))


def test_where_the_supremum_is_not_known_there_is_no_likelihood_ratio_but_a_reason():
    given = {"sample_description": TABLE, "noise_model": ReciprocalTail()}
    found = de.test.lrt(emptied("b"), "~1+g", "~1", **given)
    assert np.isnan(found.pval[0]) and np.isfinite(found.pval[1:]).all()
    assert found.summary()["reason"].tolist() == [found.fit_ended[0], "", ""] != ["converged", "", ""]


@pytest.mark.parametrize("test", ["wald", "lrt"])
def test_a_curve_that_runs_to_infinity_has_an_infinite_fold_change_and_a_reason(test):
    y = Y.copy()
    y[TABLE["t"] < 0.5, 0] = 0.0
    y[TABLE["g"] == "b", 1] = 0.0  # separated, but not along the curve
    found = de.test.continuous_1d(y, "t", "t", "~1+g+t", df=4, sample_description=TABLE, test=test)
    for table in (found.summary(), found.summary(non_numeric=True)):
        assert table["fit_ended"].tolist() == ["separated", "separated", "converged"]
        assert table["reason"].tolist() == ["separated", "", ""]
        assert np.isinf(table["log2fc"]).tolist() == [True, False, False]
    assert np.isfinite(found.pval[1:]).all()
    np.testing.assert_array_equal(found.log2_fold_change(["gene0", "gene2"]), found.summary()["log2fc"][[0, 2]])


def test_a_gene_constant_over_its_cells_tells_nothing_of_donors():
    y = np.column_stack([np.full(N, 4.0), Y])
    table = TABLE.assign(half=np.where(TABLE["donor"].astype(int) % 2, "x", "y"))
    found = (
        ExpressionGLM("~1+half").fit(y, sample_description=table).test(factor="half", method="cluster", donors="donor")
    )
    assert np.isnan(found.pval[0]) and np.isfinite(found.pval[1:]).all()


def test_donors_reject_no_more_null_genes_where_counts_are_few():
    """Genes of 1 to 12 counts in 12 donors: most are separated, and a sandwich of nothing is no standard error."""
    rng = np.random.default_rng(0)
    donor = np.repeat(np.arange(12), 50)
    y = rng.poisson(0.01, (600, 300)).astype(float)
    table = pd.DataFrame({"g": np.where(donor % 2, "a", "b"), "donor": donor.astype(str)})
    glm = ExpressionGLM("~1+g").fit(y, sample_description=table)
    for method in ("cluster", "glmm"):
        assert np.nanmean(glm.test(factor="g", method=method, donors="donor").pval < 0.05) < 0.05


@pytest.mark.parametrize("test", ["wald", "lrt", "score"])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_genes_whose_fit_failed_have_no_p_value(test):
    weights, offsets = np.ones(Y.shape), np.zeros(Y.shape)
    weights[TABLE["g"] == "a", 0], offsets[:, 1] = 0, 800.0
    run = {
        "wald": lambda **o: de.test.wald(Y, "g", formula_loc="~1+g", sample_description=TABLE, **o),
        "lrt": lambda **o: de.test.lrt(Y, "~1+g", "~1", sample_description=TABLE, **o),
        "score": lambda **o: de.test.score(Y, "g", formula_loc="~1+g", sample_description=TABLE, **o),
    }[test]
    found, plain = run(weights=weights, offsets=offsets), run()
    assert np.isnan(found.pval[:2]).all() and found.summary()["reason"][1] == "not_finite"
    np.testing.assert_allclose(found.pval[2], plain.pval[2], rtol=1e-5)
    with pytest.raises(InvalidArgumentError, match=r"weights.*g\[T.b\]"):
        run(weights=(TABLE["g"] != "b").to_numpy() * 1.0)


@settings(max_examples=20, deadline=None)
@given(zeta=st.floats(-3, 60), eta=st.floats(-3, 6), y=st.integers(0, 500))
def test_densities_are_right_up_to_the_poisson_boundary(zeta, eta, y):
    pair = (torch.full((1,), v, dtype=torch.float64) for v in (eta, zeta))
    found = CellCounts(NegativeBinomial(), *pair).log_prob(torch.tensor([float(y)])).item()
    r, mean = np.exp(zeta), np.exp(eta)
    rising = np.log1p(np.arange(y) / r).sum()  # log Γ(r + y) − log Γ(r) − y log r, without cancellation
    expected = rising - gammaln(y + 1) + y * (eta - np.log1p(mean / r)) - r * np.log1p(mean / r)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_densities_of_cells_add_up_to_the_likelihood_of_the_gene():
    y = RNG.poisson(5.0, (60, 20)).astype(float)
    fitted = de.fit.model(y, "~1")
    assert {FitCode.POISSON_BOUNDARY, FitCode.CONVERGED} <= set(fitted.error_codes)
    np.testing.assert_allclose(fitted.model.ll.sum(0), fitted.log_likelihood, rtol=1e-10)
