"""Fits of usage with random effects of groups: their model, what is kept of them, and what is refused."""

import math

import numpy as np
import pytest
import torch
from pyro.poutine import condition, trace

from pyrosplice import MultinomGLMM, SplisosmGLMM
from pyrosplice.effects import Groups
from pyrosplice.errors import InvalidArgumentError, NotReadyError, RefusedModelError
from pyrosplice.glmm import log_density
from pyrosplice.likelihoods import DirichletMultinomial
from pyrosplice.spatial._sections import section_graph
from pyrosplice.spatial.car import CarCovariance
from tests.usage.grouped.tissues import NEWTON, QUIET, fitted, sections

KINDS = (pytest.param("glmm-full", marks=pytest.mark.slow), "glmm-null", "glm")


def laplace_of(model):
    """Laplace's value of the Pyro model of one gene at its parameters, coefficients and latents integrated."""
    program, held = model.shipped_model(), {name: value.detach() for name, value in model.sites.items()}
    start = held.pop("beta")
    shapes = {name: shape for name, shape in program.latent_shapes().items() if name not in held}
    sizes = [math.prod(shape) for shape in shapes.values()]

    def density(flat):
        parts = flat.split(sizes)
        own = {name: x.reshape(shape) for (name, shape), x in zip(shapes.items(), parts, strict=True)}
        return log_density(program, {**held, **own}).sum()

    flat = torch.zeros(sum(sizes), dtype=torch.float64)
    place = list(shapes).index("beta")
    flat[sum(sizes[:place]) : sum(sizes[: place + 1])] = start.flatten()
    for _ in range(12):
        hessian = torch.autograd.functional.hessian(density, flat, vectorize=True)
        leaf = flat.clone().requires_grad_(True)
        flat = flat - torch.linalg.solve(hessian, torch.autograd.grad(density(leaf), leaf)[0])
    traced = trace(condition(program, data=held)).get_trace()
    assert set(traced.stochastic_nodes) >= {name for name in shapes if name != "beta"}
    return density(flat) + 0.5 * len(flat) * math.log(2 * math.pi) - 0.5 * torch.linalg.slogdet(-hessian)[1]


@pytest.mark.parametrize("effect", ["independent", "symmetric"])
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) for kind in ("glmm-full", "glmm-null")] + ["glm"]
)
def test_the_objective_is_laplaces_value_of_the_pyro_model(kind, effect):
    adata = sections(3, n_sections=3, side=3, n_genes=1, sd=0.8)
    model = fitted(adata, "~ age + (1 + age | section)", kind=kind, isoform_effect=effect).get_gene_model("g0")
    torch.testing.assert_close(model()[0], laplace_of(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_records_models_tables_and_files_say_the_same(kind, tmp_path):
    adata = sections(1, n_genes=2, side=3)
    model = fitted(adata, "~ condition + (1 | donor/section)", kind=kind)
    model.save(tmp_path / "model")
    again = SplisosmGLMM.load(tmp_path / "model")
    assert repr(again) == repr(model) and "effects  (1 | donor), (1 | donor:section)" in repr(model)
    for which in (model, again):
        table = which.random_effects("donor:section")
        assert list(table.columns) == ["gene", "level", "column", "isoform", "against", "effect", "se", "reason"]
        own = which.get_gene_model("g1")
        mine = table[table["gene"] == "g1"]
        np.testing.assert_allclose(mine["effect"], own.effects.group_modes[1].flatten(), atol=1e-12)
        np.testing.assert_allclose(mine["se"], own.effects.group_sds[1].flatten(), atol=1e-12)
        assert set(mine["against"]) == {"g1_2"} and list(mine["isoform"][:2]) == ["g1_0", "g1_1"]
        sds = which.variance_components().set_index(["gene", "effect"])["estimate"]
        assert which.get_training_summary().loc["g1", "1 | donor: sd(1)"] == sds["g1", "1 | donor"]
        assert {"glm": 2, "glmm-null": 3, "glmm-full": 4}[kind] == len(sds) / 2
        ratios = which.get_fitted_ratios_anndata().layers["fitted_ratios"][:, 3:]
        np.testing.assert_allclose(ratios, own.get_isoform_ratio()[0].detach(), atol=1e-12)
        np.testing.assert_allclose(ratios.sum(1), 1.0)
        assert bool((own.effects.coefficients[:, 1:] == own.beta).all()) and own.vcov().shape == (1, 4, 4)


@pytest.mark.parametrize("likelihood", [None, pytest.param(DirichletMultinomial(), marks=pytest.mark.slow)])
def test_a_model_of_ones_own_counts_is_that_of_the_analysis(likelihood):
    adata = sections(2, n_genes=1, side=3)
    analysis = fitted(adata, "~ age + (1 | section)", kind="glmm-full", likelihood=likelihood).get_gene_model("g0")
    model = MultinomGLMM(likelihood=likelihood, **NEWTON)
    with pytest.raises(InvalidArgumentError, match="groups: expected"):
        model.setup_data(adata.layers["counts"], groups=())
    assert "no data" in repr(model)
    space = CarCovariance(section_graph(adata.obsm["spatial"], adata.obs["section"], k_neighbors=4, graph="mutual"))
    model.setup_data(
        adata.layers["counts"], space, adata.obs[["age"]].to_numpy(), groups=Groups("section"), table=adata.obs
    )
    with pytest.raises(NotReadyError, match="call fit"):
        model.linear_predictor()
    model.fit(quiet=True)
    torch.testing.assert_close(model(), analysis())
    torch.testing.assert_close(model.linear_predictor(), analysis.linear_predictor())
    assert model.variance_components()["estimate"].notna().all() and len(model.random_effects()) == 16


@pytest.mark.slow
def test_groups_do_not_depend_on_the_order_of_spots_isoforms_or_genes():
    adata, rng = sections(4, n_genes=2, side=3), np.random.default_rng(0)
    options = {"kind": "glmm-null", "isoform_effect": "symmetric"}
    one = fitted(adata, **options)
    spots = adata[rng.permutation(adata.n_obs)].copy()
    genes = adata[:, [3, 4, 5, 0, 1, 2]].copy()
    isoforms = adata[:, [2, 0, 1, 5, 3, 4]].copy()
    for other in (spots, genes, isoforms):
        two = fitted(other, **options)
        for name in ("best_loss", "1 | section: sd(1)", "spot: sd"):
            first, second = (model.get_training_summary()[name] for model in (one, two))
            np.testing.assert_allclose(second.loc[first.index], first, rtol=1e-3, atol=2e-4)
        first, second = (m.get_effects().set_index(["gene", "isoform"])["log_odds"] for m in (one, two))
        np.testing.assert_allclose(second.loc[first.index], first, atol=1e-3)
        tests = [m.test_differential_usage("wald", return_results=True, **QUIET) for m in (one, two)]
        pvalues = [dict(zip(test["gene"], test["pvalue"][:, 0], strict=True)) for test in tests]
        np.testing.assert_allclose(list(pvalues[0].values()), [pvalues[1][g] for g in pvalues[0]], atol=2e-3)


def test_one_gene_never_changes_another():
    adata = sections(5, n_genes=3)
    adata.layers["counts"][:, 6] *= adata.obs["condition"].to_numpy() == "control"
    whole, alone = fitted(adata), fitted(adata[:, :3].copy())
    assert list(whole.get_training_summary()["reason"]) == ["converged", "converged", "separated"]
    torch.testing.assert_close(whole.get_gene_model("g0").beta, alone.get_gene_model("g0").beta, rtol=0, atol=1e-9)


REFUSED = {
    "fitting_method": {"fitting_method": "joint_newton"},
    "var_fix_sigma": {"var_fix_sigma": True},
    "share_variance": {"share_variance": False},
    "var_prior_model": {"var_prior_model": "gamma"},
    "priors": {"priors": "weak"},
    "fitting_configs": {"fitting_configs": {"tol": 1e-9}},
    "approx_rank": {"approx_rank": 5},
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_are_not_honoured_are_refused_before_anything_is_lost(name):
    adata = sections(6, n_genes=1)
    model = SplisosmGLMM(**{**NEWTON, **REFUSED[name]})
    model.setup_data(adata, section_key="section", min_counts=0)
    with pytest.raises(
        InvalidArgumentError, match=rf"^{name}: with random effects of groups .*expected .*Options that"
    ):
        model.setup_data(adata, design_mtx="~ condition + (1 | section)", section_key="section", min_counts=0)
    assert model.n_spots == adata.n_obs and model.n_factors == 0


def test_what_rests_on_other_fits_is_refused_by_name():
    adata = sections(7, n_genes=1)
    model = fitted(adata, kind="glmm-full")
    for what, call in {
        "covariate_modes": model.covariate_modes,
        "method='llr'": lambda: model.test_spatial_variability("llr"),
        "from_null": lambda: model.fit(from_null=True),
    }.items():
        with pytest.raises(RefusedModelError, match=f"^{what}: .*without random effects of groups.*1 . section"):
            call()
    own = model.get_gene_model("g0")
    for what in ("posterior", "importance", "refine", "posterior_mode", "random_effect_posterior", "guide"):
        with pytest.raises(RefusedModelError, match=f"^{what}: "):
            found = getattr(own, what)
            found()
    for options, message in (
        ({"variance": "robust"}, "^variance: with random effects"),
        ({"law": "averaged"}, "^law: with random effects"),
        ({"df": "many"}, "^df: "),
        ({"df": 0}, "^df: expected a positive number"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            model.test_differential_usage("wald", **QUIET, **options)
        with pytest.raises(InvalidArgumentError, match=message):
            model.get_effects(**options)
    plain = SplisosmGLMM("glm")
    plain.setup_data(adata, design_mtx="~ condition", min_counts=0)
    plain.fit(with_design_mtx=True, **QUIET)
    for call in (plain.test_differential_usage, plain.get_effects):
        with pytest.raises(InvalidArgumentError, match=r"^df: .*design_mtx='~ condition \+ \(1"):
            call(**({"method": "wald"} if call == plain.test_differential_usage else {}), df="clip")
    for call in (plain.units, plain.variance_components, plain.random_effects):
        with pytest.raises(NotReadyError, match=r"\(1 \| section\)"):
            call()


def test_spots_without_a_group_are_dropped_or_refused():
    adata = sections(9, n_genes=1)
    adata.obs.loc[adata.obs_names[:5], "section"] = None
    model = SplisosmGLMM("glm")
    with pytest.raises(InvalidArgumentError, match="section"):
        model.setup_data(adata, design_mtx="~ condition + (1 | section)", min_counts=0)
    with pytest.warns(UserWarning, match="missing='drop': 5 of 128 spots"):
        model.setup_data(adata, design_mtx="~ condition + (1 | section)", min_counts=0, missing="drop")
    model.fit(**QUIET)
    other = fitted(adata[5:].copy(), with_design=False)
    torch.testing.assert_close(model.get_gene_model("g0")(), other.get_gene_model("g0")())


@pytest.mark.parametrize("formula", ["~ (1 | section)", "~ 1 + (1 | section)"])
def test_random_terms_alone_leave_no_covariates(formula):
    model = fitted(sections(10, n_genes=1), formula, with_design=False)
    assert (model.n_factors, model.design_mtx) == (0, None)
    assert len(model.random_effects()) == 16
    other = SplisosmGLMM("glm")
    with pytest.raises(InvalidArgumentError, match="covariate_names: "):
        other.setup_data(sections(10, n_genes=1), design_mtx=formula, covariate_names=["a"], min_counts=0)
    with pytest.raises(InvalidArgumentError, match=r"^design_mtx: "):
        other.setup_data(sections(10, n_genes=1), design_mtx="~ 0 + (1 | section)", min_counts=0)
