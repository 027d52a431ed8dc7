"""Tests of how columns of a design are laid out by support."""

from dataclasses import replace

import numpy as np
import pytest

from pyrosplice.glmm._arrow.layout import SupportLayout
from tests.glmm.arrow.random_problems import random_problem


@pytest.mark.parametrize("seed", range(12))
def test_supports_hold_the_design_and_the_columns_of_effects(seed):
    problem = random_problem(seed)
    layout, q = SupportLayout.of(problem), problem.likelihood.n_predictors(problem.counts.shape[-1])
    columns = np.stack([np.kron(row, np.eye(q)) for row in layout.columns])  # (N, Q, w Q)
    design = np.stack([np.kron(row, np.eye(q)) for row in problem.design])
    np.testing.assert_array_equal(columns @ layout.fixed[layout.support], design)
    for block, entry in zip(problem.groups, layout.incidences, strict=True):
        for level in range(len(block.level_names)):
            select = np.zeros((layout.n_supports, *entry.select.shape[1:]))
            select[entry.support[entry.level == level]] = entry.select[entry.level == level]
            own = np.stack([np.kron(row, np.eye(q)) for row in block.columns * (block.levels == level)[:, None]])
            np.testing.assert_array_equal(columns @ select[layout.support], own)


@pytest.mark.parametrize("seed", range(12))
def test_what_is_constant_in_a_support_has_no_column_of_its_own(seed):
    problem = random_problem(seed)
    levels = np.column_stack([np.zeros(len(problem.design)), *(block.levels for block in problem.groups)])
    combination = np.unique(levels, axis=0, return_inverse=True)[1].ravel()
    sizes = np.random.default_rng(seed).uniform(0.5, 2, combination.max() + 1)
    widened = np.column_stack([problem.design, sizes[combination], -2 * problem.design[:, 1]])
    before = SupportLayout.of(problem)
    after = SupportLayout.of(replace(problem, design=widened))
    np.testing.assert_array_equal(after.columns, before.columns)
