"""The engine's value and gradient are those of dense Laplace, for lists of effects of every kind."""

import numpy as np
import pytest
import torch

from pyrosplice.glmm._arrow.arrow import Arrow
from pyrosplice.glmm._arrow.joint_mode import OuterPoint
from pyrosplice.glmm._arrow.laplace_value import laplace_at
from pyrosplice.glmm._arrow.layout import SupportLayout
from pyrosplice.glmm._arrow.problem_eliminator import eliminator_of
from tests.glmm.arrow.dense_laplace import dense_value, random_outer, random_problem

LAYOUTS = (
    "none",
    "intercept",
    "slopes",
    "uncorrelated",
    "nested",
    "nested slopes",
    "crossed",
    "crossed twice",
    "missing",
    "root",
    "root alone",
    "same factor",
)


def engine_at(problem, outer, *, restricted, tolerance=1e-20):
    layout = SupportLayout.of(problem)
    arrow, eliminator = Arrow(layout, problem.groups, restricted=restricted), eliminator_of(problem, layout)
    psi, log_hyper, beta = outer
    genes = torch.arange(len(psi))
    point = OuterPoint(genes, psi, torch.zeros(len(psi), 0), torch.as_tensor(log_hyper), beta)
    return laplace_at(arrow, eliminator, point, (arrow.zeros(len(psi)), eliminator.zeros(genes)), tolerance=tolerance)


def joined(outer):
    return np.concatenate(outer, 1)


def split_like(flat, outer):
    return np.split(flat, np.cumsum([part.shape[1] for part in outer])[:-1], axis=1)


CASES = [(layout, "nb", restricted) for layout in LAYOUTS for restricted in (True, False)]
CASES += [
    ("nested slopes", "poisson", True),
    ("crossed", "binomial", False),
    ("slopes", "multinomial", True),
    ("crossed", "multinomial", True),
    ("nested", "multinomial", False),
    ("root", "multinomial", True),
    ("slopes", "dirichlet", True),
    pytest.param("crossed", "dirichlet", False, marks=pytest.mark.slow),  # derivatives by autograd
    ("missing", "normal", True),
    ("crossed twice", "nb held", True),
]


@pytest.mark.parametrize(("layout", "family", "restricted"), CASES)
def test_value_is_that_of_dense_laplace(layout, family, restricted):
    problem = random_problem(layout, family, seed=1, n_genes=2)
    outer = random_outer(problem, 1, restricted=restricted)
    found = engine_at(problem, outer, restricted=restricted).value
    wanted = [dense_value(problem, g, [part[g] for part in outer], restricted=restricted) for g in range(len(found))]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("layout", "family", "restricted"), CASES)
def test_gradient_is_that_of_the_value(layout, family, restricted):
    problem = random_problem(layout, family, seed=2)
    outer = random_outer(problem, 2, restricted=restricted)
    found = engine_at(problem, outer, restricted=restricted).gradient
    at, step = joined(outer), 1e-4
    for j in range(at.shape[1]):
        change = np.zeros_like(at)
        change[:, j] = step
        values = [
            engine_at(problem, split_like(at + sign * change, outer), restricted=restricted).value
            for sign in (-2, -1, 1, 2)
        ]
        slope = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
        np.testing.assert_allclose(found[:, j], slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("layout", "family"), [("nested slopes", "nb"), ("root", "dirichlet"), ("crossed", "multinomial")]
)
def test_mode_moves_as_predicted(layout, family):
    problem = random_problem(layout, family, seed=3)
    outer = random_outer(problem, 3, restricted=False)
    found = engine_at(problem, outer, restricted=False)
    at, step, prediction = joined(outer), 1e-5, found.predict()
    for j, moved in enumerate(prediction.unknowns):
        change = np.zeros_like(at)
        change[:, j] = step
        up, down = (
            engine_at(problem, split_like(at + sign * change, outer), restricted=False).unknowns for sign in (1, -1)
        )
        np.testing.assert_allclose(moved.border, (up.border - down.border) / (2 * step), atol=1e-5)
        np.testing.assert_allclose(moved.private, (up.private - down.private) / (2 * step), atol=1e-5)


@pytest.mark.parametrize("start", [0.0, 3.0])
def test_mode_is_found_from_afar(start):
    problem = random_problem("crossed", "dirichlet", seed=4)  # not log-concave
    outer = random_outer(problem, 4, restricted=True)
    layout = SupportLayout.of(problem)
    arrow, eliminator = Arrow(layout, problem.groups, restricted=True), eliminator_of(problem, layout)
    genes, rng = torch.arange(3), np.random.default_rng(0)
    unknowns = arrow.zeros(3)
    unknowns.border[:] = start * rng.normal(size=unknowns.border.shape)
    unknowns.private[:] = start * rng.normal(size=unknowns.private.shape)
    point = OuterPoint(genes, outer[0], torch.zeros(3, 0), torch.as_tensor(outer[1]), outer[2])
    found = laplace_at(arrow, eliminator, point, (unknowns, eliminator.zeros(genes)), tolerance=1e-20)
    wanted = [dense_value(problem, g, [part[g] for part in outer], restricted=True) for g in range(3)]
    np.testing.assert_allclose(found.value, wanted, rtol=0, atol=1e-8)
