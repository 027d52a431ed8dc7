"""A small edition of ``tests.studies.posterior_calibration``: ranks of true values among draws are uniform."""

import numpy as np
import pandas as pd
import pytest

from tests.studies.posterior_calibration import FAMILIES, N_DRAWS, expression_ranks, mixture_ranks, ranks, uniformity


def calibrated(table, bins=5):
    """No entry's ranks are so far from uniform that it happens once in a thousand."""
    return (uniformity(table, bins=bins) > 1e-3).all()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["glm-multinomial", "glm-negative-binomial", "poisson"])
def test_isoform_models(family):
    table = ranks(FAMILIES[family], 50 if FAMILIES[family].mixed else 100, method="laplace", seed=3)
    assert calibrated(table), uniformity(table, bins=5)


@pytest.mark.slow
def test_three_hyperparameters_of_which_two_describe_the_same_variation():
    """σ and the concentration; sixteen spots, so that many simulations take little time."""
    table = ranks(FAMILIES["dirichlet-multinomial"], 100, method="laplace", seed=3, side=4)
    assert calibrated(table), uniformity(table, bins=5)


def test_expression():
    table = expression_ranks(200, method="importance", seed=3)
    assert calibrated(table), uniformity(table, bins=5)


@pytest.mark.slow
def test_mixtures():
    table = mixture_ranks(25, seed=3)
    assert calibrated(table), uniformity(table, bins=5)


def test_the_check_sees_draws_that_are_too_narrow_or_shifted():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=100)
    for center, width in ((0.0, 0.5), (0.5, 1.0)):
        draws = rng.normal(center, width, (N_DRAWS, 100))
        assert not calibrated(pd.DataFrame({"x": (draws < truth).sum(0)}))
