"""Draws and predictions beside lists of effects: those of the fit, of each other, and of what is not known."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyrosplice.effects import Field, Groups, Independent
from pyrosplice.errors import InvalidArgumentError, RefusedModelError
from pyrosplice.glmm import CountGLMM, log_density
from pyrosplice.posterior import NutsOptions, compare_posteriors
from pyrosplice.posterior._effects_draws import plugged_in
from tests.usage.grouped.test_listed_effects import Rows, listed, tissue

EFFECTS = [Field(k_neighbors=3, by="tumour"), Groups("section", slopes="~ 1 + age"), Rows()]
PRIORS = {"1 | section: sd(1)": dist.HalfNormal(1.0), "noise_sd": dist.HalfNormal(0.5)}


@pytest.mark.parametrize("effect", ["independent", "symmetric"])
def test_draws_have_the_moments_of_the_fit(effect):
    model = listed(tissue(3, depth=30.0, sd=0.8), EFFECTS, design="~ age", isoform_effect=effect)
    tree = model.posterior(num_samples=1000, groups=("log_likelihood", "posterior_predictive"), usage=True, seed=1)
    draws = tree["posterior"].dataset.sel(gene="g1")
    gene, over = model.get_gene_model("g1"), ("chain", "draw")
    errors = gene.standard_errors()
    for name in ("beta", "bias_eta"):
        own, se = getattr(gene, name)[0].numpy(), errors[name][0].numpy()
        assert np.abs((draws[name].mean(over) - own) / se).max() < 0.2
        np.testing.assert_allclose(draws[name].std(over), se, rtol=0.15)
    table = model.random_effects("1 + age | section").query("gene == 'g1'")
    levels = draws["1 + age | section"]
    assert np.abs((levels.mean(over).to_numpy().ravel() - table["effect"]) / table["se"]).max() < 0.2
    np.testing.assert_allclose(levels.std(over).to_numpy().ravel(), table["se"], rtol=0.15)
    np.testing.assert_allclose(draws.usage.mean(over), gene.get_isoform_ratio()[0], atol=0.03)
    assert tree["posterior_predictive"].counts.dims == ("chain", "draw", "gene", "spot", "isoform")
    assert tree["posterior"].isoform_name.sel(gene="g0").values.tolist() == ["g0_0", "g0_1", "g0_2"]
    assert (tree["sample_stats"].pareto_k < 0.7).all()


@pytest.mark.parametrize("effect", ["independent", "symmetric"])
def test_log_weights_are_those_of_the_pyro_model(effect):
    """At parameters that are held, joint density over the Gaussian's: what is left is the draw's own normals."""
    model = listed(tissue(4, n_genes=1, depth=200.0, sd=0.8), [Groups("section"), Rows()], "glm", isoform_effect=effect)
    analysis = model.analysis
    spec, genes = analysis.grouped_spec(with_design=False), analysis.fit.genes
    problem = spec.problem(analysis.counts([0]))
    drawn = plugged_in(problem, spec.restored(genes), 300, torch.Generator().manual_seed(1))
    program = CountGLMM(problem)
    density = torch.stack([log_density(program, {k: v[s] for k, v in drawn.values.items()}) for s in range(300)])
    square = 2 * (drawn.log_weights - density)[:, 0]
    n_unknowns = 2 * (1 + 4 + 3)
    assert abs(float(square.var()) / (2 * n_unknowns) - 1) < 0.5
    assert float(drawn.log_weights.std()) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("effect", ["independent", "symmetric"])
def test_integrated_draws_and_nuts_agree(effect):
    adata = tissue(5, n_genes=1, side=2, sd=0.8)
    model = listed(adata, [Groups("section"), Independent()], "glm", isoform_effect=effect)
    options = NutsOptions(warmup_steps=200)
    nuts = model.posterior(num_samples=500, method="nuts", priors=PRIORS, nuts_options=options, groups=())
    ours = model.posterior(
        num_samples=1000, method="importance", hyper="integrate", priors=PRIORS, groups=(), max_memory="inf"
    )
    table = compare_posteriors(ours, nuts, sites=("bias_eta", "1 | section", "1 | section: sd"))
    assert (table["shift"].abs() < 0.1 + 3.5 * table["shift_error"]).all(), table
    assert table["sd_ratio"].between(0.65, 1.5).all(), table


@pytest.mark.parametrize("effect", ["independent", "symmetric"])
def test_predictions_at_fitted_spots_are_the_fit(effect):
    adata = tissue(6, sd=0.8)
    model = listed(adata, EFFECTS, design="~ age", isoform_effect=effect)
    for given in (None, adata):
        table = model.predict(given, what="link", genes="g1")
        eta = model.get_gene_model("g1").linear_predictor()[0].detach().numpy()
        np.testing.assert_allclose(table["mean"], eta.ravel(), atol=2e-4)
        assert (table["sd"] > 0).all() and (table["reason"] == "").all()
    usage = model.predict(adata)
    sums = usage.groupby(["gene", "spot"])["mean"].sum()
    np.testing.assert_allclose(sums, 1.0, atol=1e-9)
    assert (usage["lower"] < usage["mean"]).all() and (usage["upper"] > usage["mean"]).all()


def test_predictions_of_known_and_unknown_groups_have_their_posteriors():
    adata = tissue(7, n_genes=1, sd=0.8, depth=20.0)
    model = listed(adata, [Groups("section"), Groups("donor", slopes="~ 0 + age")], "glm", design="~ age")
    new = adata[[0, 9, 18]].copy()
    new.obs_names = ["a", "b", "c"]
    new.obs["age"] = [-1.0, 0.0, 2.0]
    known = model.predict(new, what="link")
    draws = model.posterior(num_samples=3000, groups=(), seed=2)["posterior"].dataset.sel(gene="g0").isel(chain=0)
    age = new.obs["age"].to_numpy()
    levels = draws["1 | section"].sel({"1 | section: level": new.obs["section"].tolist(), "1 | section: column": "1"})
    slopes = draws["0 + age | donor"].sel({"0 + age | donor: level": new.obs["donor"].tolist()})[:, :, 0]
    eta = draws.bias_eta.values[:, None] + draws.beta.values[:, 0][:, None] * age[:, None] + levels.values
    eta = eta + slopes.values * age[:, None]
    np.testing.assert_allclose(known["sd"], eta.std(0).ravel(), rtol=0.08)
    np.testing.assert_allclose(known["mean"], eta.mean(0).ravel(), atol=0.03)
    new.obs["section"], new.obs["donor"] = "new", "unknown"
    unknown = model.predict(new, what="link")
    fixed = (draws.bias_eta.values[:, None] + draws.beta.values[:, 0][:, None] * age[:, None]).var(0)
    sds = model.variance_components().set_index("effect")["estimate"]
    added = sds["1 | section"] ** 2 + sds["0 + age | donor"] ** 2 * age**2
    np.testing.assert_allclose(unknown["sd"] ** 2, (fixed + added[:, None]).ravel(), rtol=0.15)
    with pytest.raises(InvalidArgumentError, match=r"^new_levels: .*never saw, \['new'\]"):
        model.predict(new, new_levels="raise")


def test_a_new_spot_has_less_certain_usage_than_its_fitted_neighbours():
    adata = tissue(8, n_genes=1, sd=0.5, depth=30.0)
    field = Field(k_neighbors=3, by="tumour")
    model = listed(adata, [field, Groups("section")])
    new = adata[:3].copy()
    new.obsm["spatial"] = new.obsm["spatial"] + 0.5
    new.obs["tumour"] = [0.0, 1.0, 10.0]
    table = model.predict(new, what="link")
    assert (table["sd"].to_numpy().reshape(3, 2) > model.predict(adata[:3].copy(), what="link")["sd"].min()).all()
    assert (table["reason"] == "").all()


def test_what_draws_and_predictions_do_not_know_is_refused():
    adata = tissue(9, n_genes=1)
    model = listed(adata, [Field(k_neighbors=3, by="tumour"), Groups("section")])
    for options, message in (
        ({"hyper": "integrate"}, r"proper priors of '1 \| section: sd\(1\)', 'space_sd', 'noise_sd'"),
        ({"hyper": "ccd"}, "^hyper: "),
        ({"priors": "weak"}, "^priors: expected a dictionary"),
        ({"priors": {"sigma": dist.HalfNormal(1.0)}}, "sigma"),
        ({"groups": ["left_out"]}, "^groups: "),
        ({"max_memory": 1000.0}, "max_memory"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            model.posterior(num_samples=5, **options)
    with pytest.raises(RefusedModelError, match=r"^draws: .*posterior\(\)"):
        model.predict(draws=3)
    with pytest.raises(InvalidArgumentError, match=r"^adata_new: expected an AnnData"):
        model.predict(adata.obsm["spatial"] + 0.5)
    moved = adata.copy()
    moved.obs["tumour"] = 1 - moved.obs["tumour"]
    with pytest.raises(InvalidArgumentError, match=r"^adata_new: spot 'spot0' is at a fitted one"):
        model.predict(moved)
    del moved.obs["tumour"]
    with pytest.raises(InvalidArgumentError, match="tumour"):
        model.predict(moved)
    estimated = listed(adata, Field(k_neighbors=3, rho="estimate"))
    away = adata.copy()
    away.obsm["spatial"] = away.obsm["spatial"] + 0.5
    with pytest.raises(InvalidArgumentError, match=r"^adata_new: .*rho of its own for each gene"):
        estimated.predict(away)
    assert estimated.predict()["mean"].notna().all()
    plain = listed(adata, ())
    with pytest.raises(InvalidArgumentError, match=r"^priors: they are those of the constructor"):
        plain.posterior(priors=PRIORS)
