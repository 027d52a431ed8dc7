"""The log density of counts around a Gaussian predictor, against fine quadrature, sums over counts, and draws."""

import math

import pytest
import torch

from pyrosplice.glmm._predictive_density import FINE, ROUGH, SpotGroups, log_predictive
from pyrosplice.likelihoods import BetaBinomial, Multinomial, NegativeBinomial


def simulated(n_isos, total, sd, *, seed=0, n_groups=60, size=1):
    """Counts of groups around Gaussian predictors of correlated logits."""
    generator = torch.Generator().manual_seed(seed)
    q = n_isos - 1

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mean = normal(1, n_groups, size, q)
    root = sd * (torch.eye(size * q).double() + 0.3 * normal(1, n_groups, size * q, size * q).tril(-1))
    eta = mean + (root @ normal(1, n_groups, size * q, 1)).reshape(mean.shape)
    totals = torch.full((1, n_groups * size), float(total), dtype=torch.float64)
    counts = Multinomial().sample(totals, eta.flatten(1, 2), generator=generator)
    return counts.unflatten(1, (n_groups, size)), mean, root


@pytest.mark.parametrize("total", [1, 3, 30, 200])
@pytest.mark.parametrize(
    ("n_isos", "sd", "fine", "rough"), [(2, 1, 1e-8, 2e-4), (2, 3, 1e-4, 5e-3), (3, 1, 5e-6, 3e-3)]
)
def test_few_nodes_are_as_many(n_isos, total, sd, fine, rough):
    counts, mean, root = simulated(n_isos, total, sd)
    spots = SpotGroups(Multinomial(), counts)
    expected = log_predictive(spots, mean, root, nodes={1: 61, 2: 41})
    torch.testing.assert_close(log_predictive(spots, mean, root, nodes=FINE), expected, atol=fine, rtol=0)
    torch.testing.assert_close(log_predictive(spots, mean, root, nodes=ROUGH), expected, atol=rough, rtol=0)


def test_chances_of_all_counts_sum_to_one():
    total, root = 6, torch.full((1, 7, 1, 1), 0.8).double()
    counts = torch.stack([torch.arange(7.0), total - torch.arange(7.0)], -1).double()[None, :, None]
    for likelihood in (Multinomial(), BetaBinomial(3.0)):  # the second is not log-concave
        chances = log_predictive(SpotGroups(likelihood, counts), torch.full((1, 7, 1, 1), 0.4).double(), root).exp()
        assert float(chances.sum()) == pytest.approx(1, abs=1e-6)


def test_a_group_without_correlation_is_the_product_of_its_spots():
    counts, mean, _ = simulated(2, 5, 1, size=4)
    root = 0.7 * torch.eye(4).double().expand(1, 60, 4, 4)
    alone = log_predictive(
        SpotGroups(Multinomial(), counts.flatten(1, 2).unsqueeze(2)),
        mean.flatten(1, 2).unsqueeze(2),
        torch.full((1, 240, 1, 1), 0.7).double(),
    )
    together = log_predictive(SpotGroups(Multinomial(), counts), mean, root)
    torch.testing.assert_close(together, alone.unflatten(1, (60, 4)).sum(-1), atol=0.05, rtol=0)


def test_of_a_group_agrees_with_plain_monte_carlo():
    counts, mean, root = simulated(3, 2, 0.8, size=3, n_groups=5)
    found = log_predictive(SpotGroups(Multinomial(), counts), mean, root)
    draws = torch.randn(100_000, 6, generator=torch.Generator().manual_seed(1)).double()
    for m in range(5):
        eta = mean[0, m].flatten() + draws @ root[0, m].T
        density = Multinomial().log_prob(counts[0, m], eta.reshape(-1, 3, 2)).sum(-1)
        expected = torch.logsumexp(density, 0) - math.log(len(draws))
        assert float(found[0, m]) == pytest.approx(float(expected), abs=0.05)


def test_without_spread_it_is_the_likelihood_and_one_gene_troubles_no_other():
    counts, mean, root = simulated(3, 4, 1)
    zero = log_predictive(SpotGroups(Multinomial(), counts), mean, torch.zeros_like(root))
    torch.testing.assert_close(zero[0], Multinomial().log_prob(counts[0, :, 0], mean[0, :, 0]))
    both = [torch.cat([x, x]) for x in (counts, mean, root)]
    both[1][1] = torch.nan
    found = log_predictive(SpotGroups(Multinomial(), both[0]), both[1], both[2])
    assert bool(found[0].isfinite().all()) and bool(found[1].isnan().all())


def test_counts_of_random_totals():
    root = torch.full((1, 400, 1, 1), 0.6).double()
    counts = torch.arange(400.0).double()[None, :, None, None]
    chances = log_predictive(SpotGroups(NegativeBinomial(0.3), counts), torch.ones(1, 400, 1, 1).double(), root).exp()
    assert float(chances.sum()) == pytest.approx(1, abs=1e-4)
