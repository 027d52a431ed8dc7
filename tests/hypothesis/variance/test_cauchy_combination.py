import numpy as np
import pytest
import torch
from scipy.stats import norm

from pyrosplice._hypothesis.variance.cauchy_combination import cauchy_combination
from pyrosplice.errors import InvalidArgumentError


def test_one_or_equal_pvalues_stay_what_they_are():
    p = torch.tensor([1.0, 0.7, 0.05, 1e-9, 1e-200, 1e-300], dtype=torch.float64)
    for repeats in (1, 4):
        out = cauchy_combination(p.unsqueeze(-1).expand(-1, repeats))
        np.testing.assert_allclose(out.numpy(), p.numpy(), rtol=1e-9)


def test_small_pvalues_average_harmonically():
    out = cauchy_combination(torch.tensor([1e-12, 0.4], dtype=torch.float64))
    assert float(out) == pytest.approx(2e-12, rel=1e-6)
    weighted = cauchy_combination(torch.tensor([1e-12, 0.4], dtype=torch.float64), torch.tensor([3.0, 1.0]))
    assert float(weighted) == pytest.approx(4e-12 / 3, rel=1e-6)


def test_size_under_dependence():
    rng = np.random.default_rng(0)
    for correlation in (0.0, 0.5, 0.95):
        common = rng.standard_normal((100_000, 1))
        z = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * rng.standard_normal((100_000, 5))
        p = cauchy_combination(torch.from_numpy(norm.sf(z))).numpy()
        assert abs((p < 0.01).mean() - 0.01) < 0.0016
        assert (p < 0.05).mean() < 0.063  # the price at large p, see the module


def test_untested_and_wrong():
    out = cauchy_combination(torch.tensor([[0.01, torch.nan], [torch.nan, torch.nan]], dtype=torch.float64))
    assert float(out[0]) == pytest.approx(0.01) and torch.isnan(out[1])
    for bad in ([1.2, 0.1], [-0.1, 0.1]):
        with pytest.raises(InvalidArgumentError, match="between 0 and 1"):
            cauchy_combination(torch.tensor(bad))
