import pytest
import torch

from pyrosplice.errors import InvalidArgumentError
from pyrosplice.usage.effect_sizes import average_usage_effects, centered_log_odds, changes_of

FACTORS = ("x", "kind", "kind", "kind", "flag")


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    level = torch.eye(3, dtype=torch.float64)[torch.randint(0, 3, (40,), generator=generator)]
    flag = torch.randint(0, 2, (40, 1), generator=generator).double()
    design = torch.cat([normal(40, 1), level, flag], 1)
    beta, bias, nu, root = normal(2, 5, 2), normal(2, 2), normal(2, 40, 2), 0.1 * normal(2, 12, 12)
    return design, beta, bias, nu, root @ root.mT


def usage_of(design, beta, bias, nu):
    eta = design @ beta + bias.unsqueeze(1) + nu
    return torch.softmax(torch.nn.functional.pad(eta, (0, 1)), -1).mean(1)


def effects_by_definition(design, beta, bias, nu):
    """(B, P, K), from shifted and replaced covariates."""

    def at(columns, values):
        moved = design.clone()
        moved[:, columns] = torch.tensor(values, dtype=torch.float64)
        return usage_of(moved, beta, bias, nu)

    unit, step = torch.zeros_like(design), 1e-5
    unit[:, 0] = step
    slope = (usage_of(design + unit, beta, bias, nu) - usage_of(design - unit, beta, bias, nu)) / (2 * step)
    levels = torch.stack([at([1, 2, 3], row) for row in ([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0])], 1)
    flag = at([4], [1.0]) - at([4], [0.0])
    return torch.cat([slope[:, None], levels - levels.mean(1, keepdim=True), flag[:, None]], 1)


def found_in(problem):
    design, beta, bias, nu, covariance = problem
    eta = design @ beta + bias.unsqueeze(1) + nu
    return average_usage_effects(eta, beta, covariance, design, changes_of(design, FACTORS))


def test_average_effects_are_their_definition(problem):
    effects = found_in(problem)
    torch.testing.assert_close(effects.estimate, effects_by_definition(*problem[:4]), atol=1e-9, rtol=1e-6)
    assert effects.estimate.sum(-1).abs().max() < 1e-14


def test_standard_errors_are_the_delta_method(problem):
    design, beta, bias, nu, covariance = problem

    def of(weights, gene):
        weights = weights.reshape(6, 2)
        return effects_by_definition(design, weights[None, :-1], weights[None, -1], nu[gene : gene + 1])[0]

    found = found_in(problem).standard_error
    for gene in range(2):
        weights = torch.cat([beta[gene], bias[gene : gene + 1]]).flatten()
        jacobian = torch.autograd.functional.jacobian(lambda w, gene=gene: of(w, gene), weights)
        variance = torch.einsum("pkd,de,pke->pk", jacobian, covariance[gene], jacobian)
        torch.testing.assert_close(found[gene], variance.sqrt(), rtol=1e-5, atol=1e-9)


def test_centered_log_odds_do_not_depend_on_the_reference(problem):
    beta, covariance = problem[1], problem[4]
    effects = centered_log_odds(beta, covariance)
    assert effects.estimate.sum(-1).abs().max() < 1e-14
    torch.testing.assert_close(effects.estimate[..., 0] - effects.estimate[..., 2], beta[..., 0])
    # isoforms in the order 2, 0, 1: logits against the one that was second
    recode = torch.tensor([[0.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    every = torch.kron(torch.eye(6, dtype=torch.float64), recode)
    other = centered_log_odds(beta @ recode.T, every @ covariance @ every.T)
    torch.testing.assert_close(other.estimate, effects.estimate[..., [2, 0, 1]])
    torch.testing.assert_close(other.standard_error, effects.standard_error[..., [2, 0, 1]])


def test_numbers_of_zeros_and_ones_are_compared_at_both():
    design = torch.tensor([[0.0, 0.5], [1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    flag, number = changes_of(design, ("a", "b"))
    assert flag.weights.tolist() == [[-1.0, 1.0]]
    assert number.levels is None


def test_a_formula_s_levels_are_compared_with_the_one_it_left_out():
    design = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    (change,) = changes_of(design, ("kind", "kind"))
    assert change.levels.tolist() == [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    assert change.weights.tolist() == [[-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]


def test_intervals_are_normal(problem):
    effects = found_in(problem)
    lower, upper = effects.interval(0.95)
    torch.testing.assert_close(upper - lower, 2 * 1.959963984540054 * effects.standard_error)
    with pytest.raises(InvalidArgumentError, match="level"):
        effects.interval(1.5)
