"""The GLM objective: closed forms equal autograd of the Pyro model, whatever the covariates' units."""

import pyro.distributions as dist
import pytest
import torch

from pyrosplice.glmm.glm_objective import GLMObjective, StandardCoordinates
from pyrosplice.glmm.multinomial import MultinomialGLM, log_density
from pyrosplice.likelihoods.contract import Likelihood, Multinomial
from pyrosplice.priors.sites import log_prior

G, N, P, K = 3, 40, 2, 4


class Plain(Likelihood):
    """Only what a user must write: no closed-form derivatives, no kernel, not additive."""

    def log_prob(self, counts, eta):
        return Multinomial().log_prob(counts, eta)

    def mean(self, eta):
        return Multinomial().mean(eta)


@pytest.fixture(params=["continuous", "binary"])
def data(request):
    rng = torch.Generator().manual_seed(2)
    counts = torch.randint(0, 4, (G, N, K), generator=rng).double()
    counts[:, ::5] = 0
    design = torch.randn(N, P, generator=rng, dtype=torch.float64) * torch.tensor([3.0, 0.1]) + 7
    return counts, (design > 7).double() if request.param == "binary" else design


@pytest.mark.parametrize("likelihood", [Multinomial(), Plain()])
@pytest.mark.parametrize("with_prior", [False, True])
def test_loss_gradient_and_hessian_are_those_of_the_pyro_model(data, likelihood, with_prior):
    counts, design = data
    given = {"beta": dist.StudentT(4.0, 0.0, 1.0), "bias_eta": dist.Normal(0.0, 2.0)} if with_prior else None
    model = MultinomialGLM(counts, design, likelihood=likelihood, priors=given)

    def prior(values, genes):
        return log_prior(model.priors, values, genes=genes)

    objective = GLMObjective.of(counts, design, likelihood, prior if with_prior else None)
    point = 0.3 * torch.randn(objective.start().shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(x):
        beta, bias_eta = objective.coefficients(x)
        return -log_density(model, {"beta": beta, "bias_eta": bias_eta})

    value, gradient = objective.value_and_gradient(point)
    torch.testing.assert_close(value, loss(point), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(objective.loss(point), value)
    free = point.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(loss(free).sum(), free, create_graph=True)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)
    rows = [torch.autograd.grad(e.sum(), free, retain_graph=True)[0] for e in expected.unbind(-1)]
    same, hessian = objective.derivatives(point)
    torch.testing.assert_close(same, gradient)
    torch.testing.assert_close(hessian, torch.stack(rows, -1), rtol=1e-6, atol=1e-6)
    if not with_prior:
        torch.testing.assert_close(torch.diagonal(hessian, dim1=1, dim2=2), objective.curvature(point))


def test_selected_genes_keep_their_own_prior(data):
    counts, design = data
    scale = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)

    def prior(values, genes):
        return -(values["bias_eta"].square().sum(1) / scale[genes] + values["beta"].square().sum((1, 2)))

    objective = GLMObjective.of(counts, design, Multinomial(), prior)
    point, rows = objective.start() + 0.2, torch.tensor([2, 0])
    torch.testing.assert_close(objective.select(rows).loss(point[rows]), objective.loss(point)[rows])
    for whole, part in zip(objective.derivatives(point), objective.select(rows).derivatives(point[rows]), strict=True):
        torch.testing.assert_close(part, whole[rows])


def test_standardization_is_undone():
    design = torch.tensor([[1e6, 5.0], [1e6 + 1, 5.0], [1e6 + 5, 5.0]], dtype=torch.float64)
    scaling = StandardCoordinates.of(design)
    assert torch.equal(scaling.design[:, 1], torch.zeros(3, dtype=torch.float64))  # constant
    weights = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights[1] = 0
    given = scaling.matrix @ weights
    predicted = torch.cat([design, torch.ones(3, 1)], 1).double() @ given
    torch.testing.assert_close(predicted, scaling.design @ weights, rtol=0, atol=1e-8)
