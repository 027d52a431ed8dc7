"""What estimators and tests say about themselves, as text and as HTML."""

import nbformat
import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from nbclient import NotebookClient

import pyrosplice.api as de
from pyrosplice import GaussianMixture, MultinomGLM, MultinomGLMM, SplisosmGLMM
from pyrosplice._expression.expression_glm import ExpressionGLM
from pyrosplice._representation import as_html


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    group = np.repeat(["a", "b", "c"], 20)
    counts = rng.poisson(3.0 * np.where((group == "b")[:, None] & (np.arange(6) == 4), 6.0, 1.0))
    counts[:, 5] = 0
    return counts, pd.DataFrame({"group": group})


def test_expression_model_and_test_say_what_they_are_and_found(cells, tmp_path):
    counts, about = cells
    glm = ExpressionGLM("~1 + group")
    assert "not fitted; call fit" in repr(glm) and "~1 + group" in glm._repr_html_()
    glm.fit(counts, sample_description=about)
    text = repr(glm)
    assert "60 cells, 6 genes" in text and "group[T.c]" in text and "1 no_counts" in text.split("fit ")[1]
    test = glm.test(coefficient="group[T.b]")
    assert "5 of 6 genes" in repr(test) and "1 at FDR 5%" in repr(test)
    assert repr(test).split("smallest p")[1].split("(")[0].strip() == str(test.gene_ids[4])
    glm.save(tmp_path / "glm")
    assert "6 genes" in repr(ExpressionGLM.load(tmp_path / "glm")) and "loaded" in repr(
        ExpressionGLM.load(tmp_path / "glm")
    )


def test_several_tests_count_what_each_found(cells):
    counts, about = cells
    pairs = de.test.pairwise(counts[:, :5], grouping="group", sample_description=about, test="wald")
    assert "b vs a (1), c vs a (0), c vs b (1)" in repr(pairs)
    rest = de.test.versus_rest(counts[:, :5], grouping="group", sample_description=about, test="wald")
    assert "b (1)" in repr(rest) and "all comparisons at once" in rest._repr_html_()


def test_multinomial_models_have_html_with_their_priors_in_full():
    model = MultinomGLM(priors={"beta": dist.StudentT(3.0, 0.0, 1.0)})
    assert "no data" in model._repr_html_()
    model.setup_data(torch.randint(1, 9, (2, 20, 3), generator=torch.Generator().manual_seed(0)), torch.randn(20, 1))
    model.fit()
    html = model._repr_html_()
    assert "beta ~ StudentT(df=3, loc=0, scale=1)" in html and "2 converged" in html and "2 genes × 20 spots" in html


def test_a_prior_of_sigma_is_named_once():
    assert "variance prior gamma" in repr(SplisosmGLMM(var_prior_model="gamma"))
    given = repr(SplisosmGLMM(priors={"sigma": dist.Exponential(2.0)}))
    assert "sigma ~ Exponential(rate=2)" in given and "variance prior" not in given


def test_a_mixture_module_says_its_size():
    mixture = GaussianMixture(2, covariance_type="tied", random_state=0).fit(
        np.random.default_rng(0).normal(size=(50, 3))
    )
    assert repr(mixture.model_) == "GaussianMixtureModel(2 components, 3 features, tied covariances)"


def test_html_is_escaped():
    assert "<script>" not in as_html("<script>", {"<script>": "<script>"})


@pytest.mark.parametrize(
    ("make", "method", "shown"),
    [
        (MultinomGLM, "iwls", {"tol", "max_epochs"}),
        (MultinomGLM, "gd", {"lr", "optim", "tol", "tol_relative", "max_epochs", "patience"}),
        (MultinomGLMM, "marginal_newton", {"tol", "max_epochs"}),
        (MultinomGLMM, "joint_gd", {"lr", "optim", "tol", "tol_relative", "max_epochs", "patience"}),
    ],
)
def test_a_model_shows_the_options_that_its_method_uses(make, method, shown):
    text = repr(make(fitting_method=method))
    every = ("lr", "optim", "tol", "tol_relative", "max_epochs", "patience", "update_nu_every_k")
    assert {name for name in every if f" {name}=" in text} == shown


@pytest.mark.slow
def test_notebooks_without_ipywidgets_hear_nothing_of_it():
    """In a kernel, where importing tqdm's bars (as Pyro does) warns."""
    cell = nbformat.v4.new_code_cell("import pyrosplice")
    client = NotebookClient(nbformat.v4.new_notebook(cells=[cell]), timeout=120, kernel_name="python3")
    client.execute()
    assert not [output for output in cell.outputs if output.get("name") == "stderr"], cell.outputs
