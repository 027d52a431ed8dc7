"""Information criteria count what is estimated, and tables of every family say what the fits say."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import pyrosplice.api as de
from pyrosplice import (
    ExpressionGLM,
    GaussianMixture,
    MultinomGLM,
    MultinomGLMM,
    SplisosmGLMM,
    TripletDataset,
    fit_gmm,
    mixture_table,
)
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError, NotReadyError
from pyrosplice.spatial import IdentityCovariance
from tests.results.test_written import cells, tissue


def test_poisson_criteria_are_those_of_the_closed_form():
    adata = cells()
    glm = ExpressionGLM("~ g", noise_model="poisson").fit(adata)
    mean = pd.DataFrame(adata.X).groupby(adata.obs["g"].to_numpy()).transform("mean").to_numpy()
    ll = stats.poisson.logpmf(adata.X, np.maximum(mean, 1e-300)).sum(0)
    kept = [0, 1, 3, 4]
    np.testing.assert_allclose(glm.aic()[kept], (6 - 2 * ll)[kept])
    np.testing.assert_allclose(glm.bic()[kept], (3 * np.log(48) - 2 * ll)[kept])


def test_parameters_that_are_estimated_are_counted():
    adata = cells()
    for formula, scale, noise, k in (("~ 1", "~1", "nb", 2), ("~ g", "~1", "nb", 4), ("~ g", "~ g", "nb", 6)):
        glm = ExpressionGLM(formula, scale, noise_model=noise).fit(adata)
        np.testing.assert_allclose(glm.aic()[0], 2 * k - 2 * glm.estimator.log_likelihood[0])
    mixed = ExpressionGLM("~ g + (1 | donor)").fit(adata)
    best = mixed.estimator.maximum.log_likelihood.numpy()
    np.testing.assert_allclose(mixed.aic()[[0, 1]], (2 * 5 - 2 * best)[[0, 1]])
    assert (
        np.isnan(mixed.aic()[2]) and (mixed.aic()[[0, 1]] >= ExpressionGLM("~ g").fit(adata).aic()[[0, 1]] - 1e-6).any()
    )
    with pytest.raises(NotReadyError):
        ExpressionGLM("~ 1").aic()


def test_criteria_of_usage_are_of_marginal_likelihoods():
    adata = simulate_isoforms(n_spots=49, n_genes=2, covariates=("iid",), seed=1)

    def fitted(kind, **options):
        model = SplisosmGLMM(kind, **options)
        model.setup_data(adata, design_mtx="iid")
        model.fit(with_design_mtx=True, print_progress=False)
        return model

    glm = fitted("glm")
    best = -glm.get_training_summary()["best_loss"].to_numpy()
    np.testing.assert_allclose(glm.aic(), 2 * 4 - 2 * best)
    full = fitted("glmm-full", fitting_method="marginal_newton", var_fix_sigma=False)
    best = -full.get_training_summary()["best_loss"].to_numpy()
    np.testing.assert_allclose(full.aic(), 2 * 6 - 2 * best)
    seen = [int((np.asarray(adata.layers["counts"][:, k : k + 3].sum(1)) > 0).sum()) for k in (0, 3)]
    np.testing.assert_allclose(full.bic(), 6 * np.log(seen) - 2 * best)
    with pytest.raises(InvalidArgumentError, match="joint density"):
        fitted("glmm-full").aic()
    with pytest.raises(InvalidArgumentError, match="priors"):
        fitted("glm", priors="weak").bic()


def test_criteria_beside_groups_are_at_the_maximum_of_the_likelihood():
    adata = simulate_isoforms(n_spots=64, n_genes=2, covariates=("iid",), seed=1)
    adata.obs["section"] = np.repeat(list("abcdefgh"), 8)
    model = SplisosmGLMM("glm")
    model.setup_data(adata, design_mtx="~ iid + (1 | section)")
    model.fit(with_design_mtx=True, print_progress=False)
    plain = SplisosmGLMM("glm")
    plain.setup_data(adata, design_mtx="iid")
    plain.fit(with_design_mtx=True, print_progress=False)
    more = (plain.aic() - model.aic()) / 2 + 1  # the log likelihood that one variance adds
    assert (more > -1e-6).all()


def test_one_table_of_space_usage_and_effects():
    model = tissue()
    table, du = model.results_table(), model.get_formatted_test_results("du")
    assert table["gene"].tolist() == model.gene_names and "space_pvalue" not in table
    np.testing.assert_allclose(table["usage_pvalue[iid]"], du["pvalue"])
    effects = model.get_effects()
    for _, row in table.iterrows():
        own = effects[effects["gene"] == row["gene"]].set_index("isoform")["usage_points"]
        assert row["isoform[iid]"] == own.abs().idxmax() and row["usage_points[iid]"] == own[row["isoform[iid]"]]
    assert "theta" not in table and (table["sigma"] >= 0).all()
    assert model.results_table(gene_symbols=dict.fromkeys(model.gene_names, "S"))["symbol"].eq("S").all()
    with pytest.raises(NotReadyError):
        SplisosmGLMM("glm").results_table()


def test_top_rows_of_usage_in_one_call():
    model = tissue()
    top = model.top_table(2)
    assert len(top) == 2 and top["pvalue"].is_monotonic_increasing and "count_avg" in top
    with pytest.raises(InvalidArgumentError, match="covariate"):
        model.top_table(covariate="other")
    with pytest.raises(InvalidArgumentError, match="test_type='sv': there are no results"):
        model.top_table(test="sv")
    blank = SplisosmGLMM("glm")
    blank.setup_data(tissue().adata)
    with pytest.raises(NotReadyError, match="no results yet"):
        blank.top_table()


def test_coefficients_of_usage_are_the_fits():
    model = tissue()
    table = model.to_frame()
    gene = model.get_gene_model(model.gene_names[0])
    own = table[table["gene"] == model.gene_names[0]]
    np.testing.assert_allclose(own["effect"], [*gene.bias_eta[0].tolist(), *gene.beta[0].ravel().tolist()])
    assert own["coefficient"].tolist() == ["intercept"] * 2 + ["iid"] * 2 and own["against"].nunique() == 1


def test_top_of_expression_is_test_and_table_in_one():
    glm = ExpressionGLM("~ g").fit(cells())
    top = glm.top_table(3, coefficient="g[T.b]", method="lrt", gene_symbols=cells().var["symbol"])
    whole = glm.test(coefficient="g[T.b]", method="lrt").to_frame()
    assert top["pvalue"].tolist() == whole["pvalue"].sort_values().head(3).tolist() and "symbol" in top
    assert glm.to_frame(gene_symbols=cells().var["symbol"])["symbol"].iloc[0] == "A"
    assert set(whole["contrast"]) == {"g[T.b]"}


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_mixtures_are_tabulated_by_component_and_feature(kind):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(np.concatenate([rng.normal(0, 1, (60, 2)), rng.normal(6, 2, (60, 2))]), columns=["u", "v"])
    mixture = GaussianMixture(2, covariance_type=kind, random_state=0).fit(frame)
    table = mixture.to_frame()
    assert table["feature"].tolist() == ["u", "v"] * 2
    np.testing.assert_allclose(table["mean"], mixture.model_.means.numpy().ravel(), rtol=1e-6)
    matrices = mixture.model_.parameters_of().covariance_matrices().numpy()
    np.testing.assert_allclose(
        table["sd"] ** 2, np.broadcast_to(matrices, (2, 2, 2)).diagonal(axis1=1, axis2=2).ravel()
    )


def test_patients_are_tabulated_with_their_own_components_or_shared_ones():
    rng = np.random.default_rng(0)
    points = [rng.normal(size=(40, 2)), rng.normal(size=(50, 2)) + 3 * (np.arange(50)[:, None] % 2)]
    for sharing in ("sample_specific", "global"):
        fitted = fit_gmm(TripletDataset(points, [0, 1]), k_comps=2, component_sharing=sharing, verbose=False)
        table = mixture_table(fitted.gmm)
        np.testing.assert_allclose(table.groupby("patient", sort=False)["weight"].sum(), 2.0)
        means = table.groupby("patient", sort=False)["mean"].apply(list)
        assert (means.iloc[0] == means.iloc[1]) == (sharing == "global")
    with pytest.raises(InvalidArgumentError, match="gmm: expected"):
        mixture_table({})


NAMED = {
    "factor": (lambda a: de.test.wald(a, "g", formula_loc="~ g"), "g", "wald"),
    "factors": (lambda a: de.test.wald(a, ["g", "lane"], formula_loc="~ g + lane"), "g + lane", "wald"),
    "coefficient": (lambda a: de.test.wald(a, coef_to_test="g[T.b]", formula_loc="~ g"), "g[T.b]", "wald"),
    "again": (
        lambda a: de.test.wald_repeated(de.test.wald(a, "g", formula_loc="~ g + lane"), "lane"),
        "lane",
        "wald",
    ),
    "lrt": (lambda a: de.test.lrt(a, "~ g + lane", "~ lane"), "g", "lrt"),
    "lrt of two": (lambda a: de.test.lrt(a, "~ g + lane", "~ 1"), "g + lane", "lrt"),
    "lrt of scales": (lambda a: de.test.lrt(a, "~ g", "~ g", "~ g", "~ 1"), "scale", "lrt"),
    "lrt beside donors": (lambda a: de.test.lrt(a, "~ half + (1 | donor)", "~ (1 | donor)"), "half", "lrt"),
    "score": (lambda a: de.test.score(a, "g", formula_loc="~ g"), "g", "score"),
    "score beside donors": (lambda a: de.test.score(a, "half", formula_loc="~ half + (1 | donor)"), "half", "score"),
    "t": (lambda a: de.test.t_test(a, "half"), "y vs x", "t-test"),
    "rank": (lambda a: de.test.rank_test(a, "half"), "y vs x", "rank"),
    "two": (lambda a: de.test.two_sample(a, "half", test="lrt"), "y vs x", "lrt"),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_was_tested_is_named_in_tables_and_files(name):
    call, contrast, method = NAMED[name]
    adata = cells()
    adata.obs["lane"], adata.obs["half"] = np.tile(["p", "q"], 24), np.repeat(["x", "y"], 24)
    found = call(adata)
    assert set(found.to_frame()["contrast"]) == {contrast} and found.method == method
    found.write(adata)
    assert adata.uns["rank_genes_groups"]["names"].dtype.names == (contrast,)
    assert adata.uns["rank_genes_groups"]["params"]["method"] == method
    if contrast == "y vs x":
        assert (
            adata.uns["rank_genes_groups"]["params"] | {"groupby": "half", "reference": "x"}
            == (adata.uns["rank_genes_groups"]["params"])
        )


def test_every_group_against_a_reference_is_the_test_of_the_two():
    adata = cells()
    tested = de.test.versus_rest(adata, "g", test="wald", reference="b")
    assert tested.to_frame()["contrast"].unique().tolist() == ["a", "c"] and (tested.pval[0, 1, :2] == 1).all()
    two = adata[adata.obs["g"].isin(["a", "b"])].copy()
    pair = de.test.two_sample(two, "g", test="wald")
    np.testing.assert_allclose(tested.pval[0, 0], pair.pval)
    np.testing.assert_allclose(tested.log2_fold_change()[0, 0], -pair.log2_fold_change(), atol=1e-9)
    every, some = de.test.pairwise(adata, "g"), de.test.pairwise(adata, "g", reference="b")
    np.testing.assert_allclose(some.pval[1], every.pval[1])
    assert np.isnan(some.pval[0, 2]).all() and np.isnan(some.log_fold_change()[2, 0]).all()
    np.testing.assert_allclose(some.log_fold_change()[1, 0], every.log_fold_change()[1, 0])
    for call in (de.test.versus_rest, de.test.pairwise):
        with pytest.raises(InvalidArgumentError, match="reference: expected one of the groups"):
            call(adata, "g", reference="d")


@pytest.mark.parametrize("kind", [MultinomGLM, MultinomGLMM])
def test_batches_of_models_are_tabulated_by_names_or_numbers(kind):
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((2, 30, 3), 4.0), generator=generator)
    counts[1, :, 0] = 0
    design = torch.randn(30, 1, dtype=torch.float64, generator=generator)
    model = (
        kind(fitting_method="iwls")
        if kind is MultinomGLM
        else kind(fitting_method="marginal_newton", var_fix_sigma=False)
    )
    space = {} if kind is MultinomGLM else {"corr_sp": IdentityCovariance(30)}
    model.setup_data(counts, design_mtx=design, **space)
    with pytest.raises(NotReadyError):
        model.to_frame()
    model.fit(quiet=True)
    table = model.to_frame(names={"gene": ["A", "B"], "covariate": ["age"], "isoform": ["i", "j", "k"]})
    own = table[table["gene"] == "A"]
    assert own["coefficient"].tolist() == ["intercept"] * 2 + ["age"] * 2 and own["isoform"].tolist() == ["i", "j"] * 2
    np.testing.assert_allclose(own["effect"][2:], model.beta[0, 0].detach().numpy())
    np.testing.assert_allclose(own["se"][2:], model.standard_errors()["beta"][0, 0].detach().numpy())
    assert (own["reason"] == "").all() and set(table.loc[table["gene"] == "B", "fit_ended"]) == {"separated"}
    assert model.to_frame()["isoform"].tolist() == [0, 1] * 4
    for wrong in ({"gene": ["A"]}, {"genes": ["A", "B"]}):
        with pytest.raises(InvalidArgumentError, match="names"):
            model.to_frame(names=wrong)


def test_figures_name_genes_by_their_symbols():
    plt = pytest.importorskip("matplotlib.pyplot")
    test = ExpressionGLM("~ g").fit(cells()).test(coefficient="g[T.b]")
    for draw in (test.plot_volcano, test.plot_ma):
        axes = draw(highlight_ids=["G/1"], gene_symbols=cells().var["symbol"], alpha=0.99)
        assert [text.get_text() for text in axes.texts if text.get_text() in ("A", "B", "G/1")] == ["B"]
        plt.close("all")
