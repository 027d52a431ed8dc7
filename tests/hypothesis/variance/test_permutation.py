import numpy as np
import pytest
import torch
from scipy.stats import binom

from pyrosplice._hypothesis.variance.permutation import PermutationNull, permutation_test
from pyrosplice.errors import InvalidArgumentError


def first_minus_second_half(values):
    def statistic(genes, order):
        moved = values[genes].gather(1, order)
        half = moved.shape[1] // 2
        return moved[:, :half].sum(1) - moved[:, half:].sum(1)

    return statistic


def test_orders_are_distinct_seeded_and_do_not_depend_on_the_batch():
    seen = []

    def record(genes, order):
        seen.append(order)
        return torch.zeros(len(genes))

    permutation_test(record, PermutationNull(3, seed=5), n_genes=2, n_spots=20)
    orders = torch.cat(seen[1:])
    assert len({tuple(row.tolist()) for row in orders}) == 6
    assert torch.equal(seen[0], torch.arange(20).expand(2, -1))
    again = []
    permutation_test(
        lambda genes, order: (again.append(order), torch.zeros(len(genes)))[1],
        PermutationNull(3, seed=5),
        n_genes=1,
        n_spots=20,
        gene_numbers=torch.tensor([1]),
    )
    assert torch.equal(torch.cat(again[1:]), orders[1::2])


def test_pvalue_counts_the_observed_one():
    values = torch.cat([torch.ones(1, 6), -torch.ones(1, 6)], 1)  # the most extreme order
    _, pvalue, used = permutation_test(first_minus_second_half(values), PermutationNull(99), n_genes=1, n_spots=12)
    assert float(pvalue) == pytest.approx(1 / 100, abs=0.011) and float(pvalue) >= 1 / 100
    assert int(used) == 99


@pytest.mark.slow
@pytest.mark.parametrize("early_stop", [None, 10])
def test_size_is_right(early_stop):
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((1000, 20)))
    null = PermutationNull(99, seed=1, early_stop=early_stop)
    _, pvalue, used = permutation_test(first_minus_second_half(values), null, n_genes=1000, n_spots=20)
    low, high = binom.ppf([0.0005, 0.9995], 1000, 0.1)
    assert low <= int((pvalue <= 0.1).sum()) <= high
    if early_stop:
        assert float(used.double().mean()) < 60


def test_nan_and_bad_options():
    values = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    values[1] = torch.nan
    _, pvalue, used = permutation_test(first_minus_second_half(values), PermutationNull(5), n_genes=2, n_spots=8)
    assert torch.isfinite(pvalue[0]) and torch.isnan(pvalue[1]) and int(used[1]) == 0
    for options in ({"n_permutations": 0}, {"early_stop": 0}):
        with pytest.raises(InvalidArgumentError, match=next(iter(options))):
            permutation_test(first_minus_second_half(values), PermutationNull(**options), n_genes=2, n_spots=8)
