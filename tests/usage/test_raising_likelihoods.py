"""A likelihood that raises for one gene: that gene has a reason, all others their results."""

import numpy as np
import pytest
import torch

from pyrosplice import MultinomGLM, MultinomGLMM, SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.likelihoods import DirichletMultinomial, Multinomial
from pyrosplice.spatial.car import get_cov_sp

TOO_MANY = 900
pytestmark = pytest.mark.filterwarnings("ignore:likelihood. .* raised")


def touchy(kind, error=ValueError):
    class Touchy(kind):
        def log_prob(self, counts, eta):
            if bool((counts > TOO_MANY).any()):
                raise error("a count that I do not take")
            return super().log_prob(counts, eta)

    return Touchy


def counts_of_four():
    counts = torch.poisson(torch.full((4, 25, 3), 4.0, dtype=torch.float64), generator=torch.Generator().manual_seed(0))
    counts[1, 3, 0] = TOO_MANY + 1
    return counts


SPACE = get_cov_sp(torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)))
MODELS = {
    "glm": (MultinomGLM, {}),
    "gd": (MultinomGLM, {"fitting_method": "gd", "fitting_configs": {"optim": "lbfgs"}}),
    "joint": (MultinomGLMM, {"fitting_method": "joint_newton"}),
    "marginal": (MultinomGLMM, {"fitting_method": "marginal_newton", "var_fix_sigma": False}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Multinomial, DirichletMultinomial])
@pytest.mark.parametrize("error", [ValueError, FloatingPointError])
@pytest.mark.parametrize("which", MODELS)
def test_the_other_genes_are_fitted(kind, error, which):
    estimator, options = MODELS[which]
    counts, others = counts_of_four(), [0, 2, 3]
    found, alone = (estimator(likelihood=touchy(kind, error)(), **options) for _ in range(2))
    for model, table in ((found, counts), (alone, counts[others])):
        model.setup_data(table, *([SPACE] if estimator is MultinomGLMM else []))
        model.fit(quiet=True)
    assert found.logger.reason[1] == "raised" and not found.logger.converged[1]
    assert [found.logger.reason[gene] for gene in others] == alone.logger.reason
    for name, value in alone.named_parameters():
        torch.testing.assert_close(getattr(found, name)[others], value, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.vcov()[others], alone.vcov(), rtol=1e-6, atol=1e-9)
    assert torch.isnan(found()[1]) and torch.isnan(found.vcov()[1]).any()


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("model_type", ["glm", "glmm-full"])
def test_in_an_analysis(batch_size, model_type):
    adata = simulate_isoforms(n_spots=36, n_genes=3, seed=0, covariates=("iid",))
    table = adata.layers["counts"].toarray()
    table[3, 3] = TOO_MANY + 1
    adata.layers["counts"] = table
    model = SplisosmGLMM(model_type, likelihood=touchy(Multinomial)())
    model.setup_data(adata, design_mtx="iid")
    model.fit(batch_size=batch_size, with_design_mtx=True, print_progress=False)
    assert model.get_training_summary()["reason"].tolist()[1] == "raised"
    model.test_differential_usage("wald", print_progress=False)
    wald = model.get_formatted_test_results("du")
    model.fit(print_progress=False)
    model.test_differential_usage("score", print_progress=False)
    for tests in (wald, model.get_formatted_test_results("du")):
        assert np.isnan(tests["pvalue"][1]) and tests["pvalue"][[0, 2]].notna().all() and tests["reason"][1]


def test_it_is_said_once():
    model = MultinomGLM(likelihood=touchy(Multinomial)())
    model.setup_data(counts_of_four())
    with pytest.warns(UserWarning, match=r"Touchy\.log_prob raised ValueError\('a count") as caught:
        model.fit(quiet=True)
    assert len(caught) == 1


@pytest.mark.parametrize("error", [TypeError, NameError, NotImplementedError])
def test_mistakes_in_the_code_are_shown(error):
    model = MultinomGLM(likelihood=touchy(Multinomial, error)())
    model.setup_data(counts_of_four())
    with pytest.raises(error, match="a count that I do not take"):
        model.fit(quiet=True)
