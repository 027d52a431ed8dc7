import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import chi2, f, norm

from tests.studies.chi2_mixture import chi2_mixture_log_sf, chi2_mixture_sf

pytestmark = pytest.mark.slow

torch64 = {"dtype": torch.float64}


@pytest.mark.parametrize("dof", [1, 2, 3, 5, 10, 50, 500])
def test_equal_weights_are_a_gamma(dof):
    x = chi2.isf(np.concatenate([[0.999999, 0.99, 0.7, 0.5, 0.3], 10.0 ** -np.arange(1, 301, 13)]), dof)
    expected = chi2.logsf(x, dof)
    weights = torch.full((len(x), dof), 0.3, **torch64)
    q = torch.from_numpy(0.3 * x)
    assert np.abs(chi2_mixture_log_sf(q, weights).numpy() - expected).max() < 1e-8
    one = chi2_mixture_log_sf(q, weights[:, :1], torch.tensor([float(dof)], **torch64))
    assert np.abs(one.numpy() - expected).max() < 1e-8


def test_real_degrees_of_freedom():
    x = chi2.isf([0.9, 0.1, 1e-5, 1e-50], 3.7)
    out = chi2_mixture_sf(torch.from_numpy(x), torch.ones(1, **torch64), torch.tensor([3.7], **torch64))
    assert out.numpy() == pytest.approx(chi2.sf(x, 3.7), rel=1e-8)


def test_even_multiplicities_are_hypoexponential():
    """Pairs of equal weights are exponentials; the sum of distinct ones has a closed form."""
    rates = [mpmath.mpf(1) / (2 * w) for w in (1.0, 0.7, 0.3, 0.05)]
    weights = torch.tensor([1.0, 0.7, 0.3, 0.05], **torch64)
    for x in (0.01, 0.5, 3.0, 10.0, 60.0, 300.0, 1200.0):
        exact = mpmath.fsum(mpmath.exp(-r * x) * mpmath.fprod(s / (s - r) for s in rates if s != r) for r in rates)
        log_sf = chi2_mixture_log_sf(torch.tensor(x, **torch64), weights, torch.full_like(weights, 2.0))
        assert float(log_sf) == pytest.approx(float(mpmath.log(exact)), abs=1e-8)


def test_difference_of_exponentials_is_laplace():
    weights, dof = torch.tensor([1.0, -1.0], **torch64), torch.tensor([2.0, 2.0], **torch64)
    assert float(chi2_mixture_sf(torch.zeros((), **torch64), weights, dof)) == pytest.approx(0.5, rel=1e-5)
    for x in (0.1, 1.0, 20.0, 500.0):
        assert float(chi2_mixture_sf(torch.tensor(x, **torch64), weights, dof)) == pytest.approx(
            0.5 * np.exp(-x / 2), rel=1e-7
        )
        below = float(chi2_mixture_sf(torch.tensor(-x, **torch64), weights, dof))
        assert below == pytest.approx(1 - 0.5 * np.exp(-x / 2), rel=1e-7)


def test_ratio_of_quadratic_forms_is_f():
    for m, n, q in ((3, 10, 2.0), (5, 200, 12.0), (20, 40, 0.8)):
        weights, dof = torch.tensor([1 / m, -q / n], **torch64), torch.tensor([m, n], **torch64)
        assert float(chi2_mixture_sf(torch.zeros((), **torch64), weights, dof)) == pytest.approx(
            f.sf(q, m, n), rel=1e-8
        )


def test_long_spectrum_against_numerical_inversion_in_high_precision():
    weights = 1 / np.arange(1, 41) ** 1.3
    q = 14.0
    with mpmath.workdps(30):
        upper = mpmath.mpf(1) / (2 * weights[0])
        start = 0.8 * upper

        def integrand(t):
            s = start + mpmath.mpc(0, t)
            size = mpmath.exp(-s * q) / s
            for w in weights:
                size /= mpmath.sqrt(1 - 2 * w * s)
            return mpmath.re(size)

        exact = mpmath.quad(integrand, [0, 0.5, 1, 2, 4, 8, 16, 40]) / mpmath.pi
    ours = chi2_mixture_sf(torch.tensor(q, **torch64), torch.from_numpy(weights))
    assert float(ours) == pytest.approx(float(exact), rel=1e-8)


def test_simulation_of_mixed_signs():
    rng = np.random.default_rng(3)
    weights = np.array([3.0, 1.0, 0.5, -0.2, -2.0])
    draws = (rng.standard_normal((400_000, 5)) ** 2) @ weights
    q = np.quantile(draws, [0.05, 0.5, 0.9, 0.99])
    ours = chi2_mixture_sf(torch.from_numpy(q), torch.from_numpy(weights)).numpy()
    observed = (draws > q[:, None]).mean(1)
    assert np.abs((ours - observed) / np.sqrt(observed * (1 - observed) / len(draws))).max() < 4


def test_many_terms_are_normal_in_the_middle_and_never_zero_in_the_tail():
    weights = torch.ones(200_000, **torch64)
    center = torch.tensor(200_000 + 0.5 * np.sqrt(400_000.0), **torch64)
    assert float(chi2_mixture_sf(center, weights)) == pytest.approx(norm.sf(0.5), abs=1e-3)
    far = torch.tensor([1e6, 1e12], **torch64)
    assert (chi2_mixture_sf(far, weights[:3]) > 0).all()
    assert (chi2_mixture_log_sf(far, weights[:3]) < -4e5).all()


def test_edges_are_answered_without_disturbing_the_rest():
    q = torch.tensor([2.0, float("nan"), 2.0, 2.0, float("inf"), 1.0, -1.0], **torch64)
    weights = torch.ones(7, 3, **torch64)
    weights[2] = 0.0
    weights[3, 0] = float("nan")
    weights[5] = -1.0
    out = chi2_mixture_sf(q, weights)
    assert float(out[0]) == pytest.approx(chi2.sf(2.0, 3), rel=1e-9)
    assert torch.isnan(out[1:4]).all()
    assert 0 < float(out[4]) < 1e-300 and 0 < float(out[5]) < 1e-300  # impossible, but finite on a log axis
    assert float(out[6]) == 1.0
    assert torch.equal(chi2_mixture_sf(q[:1], weights[:1]), out[:1])


def test_shapes_broadcast():
    q = torch.rand(4, 1, 3, **torch64)
    assert chi2_mixture_sf(q, torch.rand(2, 1, 7, **torch64)).shape == (4, 2, 3)
