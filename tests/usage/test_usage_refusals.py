"""Nothing that a person gives to the usage family is ignored, and nothing ends in an error of another library."""

import copy
import pickle

import anndata as ad
import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import scipy.sparse as sp
import torch

from pyrosplice import MultinomGLM, MultinomGLMM, SplisosmGLMM
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError, ModelFileError
from pyrosplice.likelihoods import DirichletMultinomial, Multinomial

QUIET = {"print_progress": False}


@pytest.fixture(scope="module")
def adata():
    return simulate_isoforms(n_spots=49, n_genes=3, covariates=("iid",), seed=0)


@pytest.fixture(scope="module")
def fitted(adata):
    model = SplisosmGLMM(fitting_method="marginal_newton", var_fix_sigma=False)
    model.setup_data(adata, design_mtx="iid")
    model.fit(batch_size=3, from_null=True, **QUIET)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"n_draws": 100},
        {"early_stop": 3},
        {"method": "score", "null_law": "boundary"},
        {"use_perm_null": True, "null_law": "boundary"},
        {"n_bootstrap": 2, "null_law": "boundary"},
        {"random_seed": -1},
        {"random_seed": "one"},
        {"n_bootstrap": 2.5},
        {"importance": True, "n_draws": 0},
        {"importance": "yes"},
        {"use_perm_null": "yes"},
        {"use_perm_null": True, "n_perms_per_gene": 2.5},
        {"use_perm_null": True, "n_perms_per_gene": True},
        {"use_perm_null": np.array([True, False])},
        {"adjust_for_design": None},
        {"adjust_for_design": np.array([True, False])},
    ],
)
def test_options_of_the_test_of_space_have_an_effect_or_are_refused(fitted, options):
    with pytest.raises(InvalidArgumentError):
        fitted.test_spatial_variability(**options, **QUIET)


def test_a_number_of_permutations_without_them_is_warned_about(fitted):
    with pytest.warns(UserWarning, match="nothing is permuted"):
        fitted.test_spatial_variability("score", n_perms_per_gene=5, **QUIET)


@pytest.mark.parametrize(
    "options",
    [
        {"seed": None},
        {"seed": -1},
        {"seed": "a"},
        {"genes": 3},
        {"genes": slice(2)},
        {"usage": "yes"},
        {"groups": "log_likelihood"},
        {"nuts_options": {"warmup_steps": 3}},
    ],
)
def test_options_of_a_posterior(fitted, options):
    with pytest.raises(InvalidArgumentError):
        fitted.posterior(num_samples=2, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"fitting_method": "newtonn"},
        {"share_variance": "no"},
        {"var_prior_model": "beta"},
        {"init_ratio": "x"},
    ],
)
def test_every_model_type_checks_every_option(options):
    for model_type in ("glm", "glmm-full", "glmm-null"):
        with pytest.raises(InvalidArgumentError):
            SplisosmGLMM(model_type, **options)


@pytest.mark.parametrize("priors", ["weak", {"sigma": dist.Gamma(1.0, 1.0)}])
def test_two_priors_of_the_same_are_refused(priors):
    for kind in (MultinomGLMM, SplisosmGLMM):
        with pytest.raises(InvalidArgumentError, match="var_prior_model"):
            kind(var_prior_model="gamma", priors=priors)


@pytest.mark.parametrize("value", [-1, 0, float("nan"), float("inf"), "a", True, torch.ones(2), torch.zeros(3, 1)])
def test_held_hyperparameters_are_positive_numbers(value):
    for kind in (MultinomGLM, MultinomGLMM, SplisosmGLMM):
        with pytest.raises(InvalidArgumentError, match="concentration"):
            kind(likelihood=DirichletMultinomial(value))


def test_a_density_that_is_not_of_each_spot_is_named():
    class Summed(Multinomial):
        def log_prob(self, counts, eta):
            return super().log_prob(counts, eta).sum(-1)

    model = MultinomGLM(likelihood=Summed())
    model.setup_data(torch.ones(2, 9, 3))
    with pytest.raises(InvalidArgumentError, match="sum over spots"):
        model.fit()


def test_what_a_file_was_saved_without_cannot_be_given(fitted, tmp_path):
    fitted.save(tmp_path / "m")
    with pytest.raises(ModelFileError, match="priors"):
        SplisosmGLMM.load(tmp_path / "m", priors={"beta": dist.Normal(0.0, 1.0)})
    glm = SplisosmGLMM("glm")
    glm.setup_data(fitted.adata)
    glm.save(tmp_path / "g")
    with pytest.raises(ModelFileError, match="covariance"):
        SplisosmGLMM.load(tmp_path / "g", covariance=object())


def test_what_no_file_holds_is_refused_before_the_fit(adata):
    other = adata.copy()
    other.uns["kept"] = sp.coo_matrix(np.eye(2))
    with pytest.raises(InvalidArgumentError, match=r"adata.uns\['kept'\]"):
        SplisosmGLMM().setup_data(other)


def test_space_that_is_not_there(adata):
    with pytest.raises(InvalidArgumentError, match="spatial_key"):
        SplisosmGLMM().setup_data(adata, spatial_key=None)
    with pytest.raises(InvalidArgumentError, match="min_component_size: no component"):
        SplisosmGLMM().setup_data(adata, min_component_size=1000)


@pytest.mark.parametrize("change", [str.upper, lambda name: f" {name}", lambda name: ("section", name)])
def test_names_in_other_letters_or_one_level_of_several(adata, change):
    names = [change(name) for name in adata.obs_names[::-1]]
    index = pd.MultiIndex.from_tuples(names) if isinstance(names[0], tuple) else names
    table = pd.DataFrame({"x": np.arange(49.0)}, index=index)
    with pytest.raises(InvalidArgumentError, match="design_mtx: its index has"):
        SplisosmGLMM("glm").setup_data(adata, design_mtx=table)


def test_missing_labels_name_the_option_that_drops_them(adata):
    other = ad.AnnData(adata.layers["counts"], obs=adata.obs.copy(), var=adata.var)
    other.obs["g"] = ["a", None, *["b"] * 47]
    other.obs["t"] = [np.nan, *np.arange(48.0)]
    for design in ("g", "~ g", "t", "~ t"):
        with pytest.raises(InvalidArgumentError, match="missing='drop'"):
            SplisosmGLMM("glm").setup_data(other, layer=None, design_mtx=design)


def test_tensors_without_numbers():
    with pytest.raises(InvalidArgumentError, match="counts"):
        MultinomGLM().setup_data(torch.empty(9, 3, device="meta"))


def test_another_default_device_changes_nothing(adata):
    def fit():
        model = MultinomGLM()
        model.setup_data(adata.layers["counts"][:, :3].toarray(), design_mtx=adata.obs[["iid"]].to_numpy())
        model.fit()
        return model.beta.detach()

    expected = fit()
    torch.set_default_device("meta")
    try:
        found = fit()
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rho", 0.1),
        ("k_neighbors", 6),
        ("graph", "union"),
        ("fitting_configs", {"max_epochs": 3}),
        ("model_type", "bad"),
        ("fitting_method", "marginal_gd"),
        ("isoform_effect", "symmetric"),
        ("priors", {"sigma": dist.Gamma(2.0, 1.0)}),
        ("likelihood", Multinomial()),
        ("share_variance", False),
        ("var_fix_sigma", True),
        ("init_ratio", "observed"),
    ],
)
def test_options_that_change_after_the_data_are_refused(name, value):
    adata = simulate_isoforms(n_spots=36, n_genes=2, covariates=("iid",), seed=0)
    model = SplisosmGLMM("glmm-full", fitting_method="marginal_newton", var_fix_sigma=False)
    model.setup_data(adata, design_mtx="iid", min_counts=1)
    model.fit(print_progress=False)
    before = getattr(model, name)
    setattr(model, name, value)
    for ask in (model.fit, model.test_differential_usage, model.test_spatial_variability, model.get_training_summary):
        with pytest.raises(InvalidArgumentError, match=rf"{name}: set to .* after setup_data"):
            ask()
    setattr(model, name, before)
    assert copy.deepcopy(model).get_training_summary()["converged"].all()
    assert pickle.loads(pickle.dumps(model)).get_training_summary()["converged"].all()


def test_options_are_checked_again_where_data_are_read():
    model = SplisosmGLMM()
    model.rho = 5.0
    with pytest.raises(InvalidArgumentError, match="rho"):
        model.setup_data(simulate_isoforms(n_spots=36, n_genes=2, seed=0))
