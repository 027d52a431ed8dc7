"""An analysis is its own: copies share no results, options are what they were, and what a subclass adds is told."""

from __future__ import annotations

from copy import copy

import numpy as np
import pyro.distributions as dist
import pytest

from pyrosplice import ExpressionGLM, SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError
from pyrosplice.likelihoods import DirichletMultinomial

SOON = {"print_progress": False}
ADATA = simulate_isoforms(n_spots=49, n_genes=3, covariates=("iid",), seed=0)


def _set_up(kind=SplisosmGLMM, **options):
    model = kind(**{"model_type": "glm"} | options)
    model.setup_data(ADATA, design_mtx="iid")
    return model


def test_a_copy_has_results_of_its_own():
    model = _set_up()
    model.fit(**SOON)
    model.test_differential_usage(**SOON)
    before = model.get_formatted_test_results("du")
    other = copy(model)
    other.fit(with_design_mtx=True, **SOON)
    other.test_differential_usage(method="wald", **SOON)
    assert not model.get_formatted_test_results("du").equals(other.get_formatted_test_results("du"))
    third = copy(model)
    third.test_differential_usage(method="lrt", **SOON)
    assert model.get_formatted_test_results("du").equals(before)
    assert model.analysis.results["du"]["method"] != third.analysis.results["du"]["method"]
    assert model.analysis.test_fits.keys() != third.analysis.test_fits.keys()


def test_options_of_a_copy_are_its_own():
    model = SplisosmGLMM(model_type="glm", fitting_configs={"max_epochs": 50}, priors={"beta": None})
    other = copy(model)
    other.fitting_configs["max_epochs"], other.priors["bias_eta"] = 5, None
    assert model.fitting_configs == {"max_epochs": 50} and model.priors == {"beta": None}


@pytest.mark.parametrize(
    ("option", "change"),
    [
        ("fitting_configs", lambda model: model.fitting_configs.update(tol=1e-3)),
        ("var_prior_model_params", lambda model: model.var_prior_model_params.update(alpha=9.0)),
        ("priors", lambda model: model.priors.pop("beta")),
        ("likelihood", lambda model: setattr(model.likelihood, "concentration", 3.0)),
    ],
    ids=["fitting_configs", "var_prior_model_params", "priors", "likelihood"],
)
def test_an_option_that_is_changed_in_place_after_setup_data_is_refused(option, change):
    model = _set_up(
        model_type="glmm-null",
        fitting_method="marginal_newton",
        fitting_configs={"max_epochs": 50},
        var_prior_model="gamma",
        var_prior_model_params={"alpha": 2.0, "beta": 0.3},
        priors={"beta": dist.Normal(0.0, 1.0)},
        likelihood=DirichletMultinomial(),
    )
    assert model.analysis.n_genes == 3
    change(model)
    with pytest.raises(InvalidArgumentError, match=rf"{option}: set to .* after setup_data"):
        model.fit(**SOON)
    model.setup_data(ADATA)
    assert model.analysis.n_genes == 3


@pytest.mark.parametrize("name", ["gene_names", "covariate_names", "n_genes", "design_mtx", "sp_kernel"])
def test_an_overridden_property_that_no_method_reads_is_refused(name):
    with pytest.raises(InvalidArgumentError, match=rf"Mine: it overrides {name}, and the methods of SplisosmGLMM"):
        type("Mine", (SplisosmGLMM,), {name: property(lambda self: ["other"])})
    middle = type("Middle", (SplisosmGLMM,), {"fit": lambda self, **options: None})  # methods may be
    with pytest.raises(InvalidArgumentError, match=name):
        type("Mine", (middle,), {name: ["other"]})


class Noted(SplisosmGLMM):
    """Keeps a note."""

    note = "of the class"


def test_an_attribute_that_a_file_does_not_hold_is_named(tmp_path):
    model = _set_up(Noted)
    model.save(tmp_path / "silent")
    model.note = "of this one"
    with pytest.warns(UserWarning, match="save: note of this Noted is not saved"):
        model.save(tmp_path / "model")
    assert Noted.load(tmp_path / "model").note == "of the class"


class NeedsTissue(SplisosmGLMM):
    """Its constructor needs what no file holds."""

    def __init__(self, tissue, **options):
        super().__init__(**options)


class ExpressionNeedsTissue(ExpressionGLM):
    """Its constructor needs what no file holds."""

    def __init__(self, tissue, **options):
        super().__init__(**options)


def test_a_constructor_that_needs_more_than_a_file_holds_is_named(tmp_path):
    model = NeedsTissue("brain", model_type="glm")
    model.setup_data(ADATA)
    with pytest.raises(InvalidArgumentError, match=r"NeedsTissue: its constructor differs.*\['tissue'\]"):
        model.save(tmp_path / "model")
    plain = type("NeedsTissue", (SplisosmGLMM,), {})(model_type="glm")
    plain.setup_data(ADATA)
    plain.save(tmp_path / "model")
    with pytest.raises(InvalidArgumentError, match=r"NeedsTissue: its constructor differs.*\['tissue'\]"):
        NeedsTissue.load(tmp_path / "model")
    named = type("ExpressionNeedsTissue", (ExpressionGLM,), {})
    counts = np.random.default_rng(0).poisson(3.0, (20, 2))
    named("~1").fit(counts).save(tmp_path / "glm")
    with pytest.raises(InvalidArgumentError, match=r"ExpressionNeedsTissue: its constructor differs.*\['tissue'\]"):
        ExpressionNeedsTissue.load(tmp_path / "glm")
