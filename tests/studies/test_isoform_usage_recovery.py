"""Reduced recovery study: 24 genes of known σ, θ and β."""

import pytest

from tests.studies.isoform_usage_recovery import SIGMA, estimates, summary

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def table():
    return estimates(n_genes=24, n_spots=400, depth=5.0, seed=0)


def test_parameters_are_recovered(table):
    rows = summary(table).set_index(["parameter", "theta"])
    assert abs(rows.loc[("sigma", "all"), "median bias"]) < 0.1 * SIGMA
    assert abs(rows.loc[("theta", "all"), "median bias"]) < 0.1
    for beta in ("beta1", "beta2"):
        mean, error = rows.loc[(beta, "all"), ["mean bias", "SE of the mean"]]
        assert abs(mean) < 3 * error
        assert rows.loc[(beta, "all"), "RMSE"] < 0.12


def test_estimated_theta_orders_the_genes_by_their_true_theta(table):
    medians = table[table["parameter"] == "theta"].groupby("theta")["estimate"].median()
    assert medians.is_monotonic_increasing
    assert medians[0.0] < 0.05 and medians[1.0] > 0.9
