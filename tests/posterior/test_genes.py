"""Posteriors of many genes of an AnnData, with different numbers of isoforms, in one tree."""

import numpy as np
import pytest

from pyrosplice import SplisosmGLMM, plotting
from pyrosplice.errors import InvalidArgumentError, NotReadyError
from pyrosplice.posterior import (
    NutsOptions,
    compare_posteriors,
    laplace_check,
    leave_one_out,
    one_gene,
    predictive_check,
    prior_sensitivity,
)
from pyrosplice.priors import weak_priors
from tests.usage.conftest import tissue_of

N_ISOFORMS = (3, 2, 3, 2)


def fitted(adata, *, model_type="glmm-full", design=("smooth", "half"), with_design=True, **options):
    settings = {"fitting_method": "marginal_newton", "var_fix_sigma": False, "priors": weak_priors()} | options
    model = SplisosmGLMM(model_type, **settings)
    model.setup_data(adata, design_mtx=list(design))
    model.fit(print_progress=False, with_design_mtx=with_design)
    return model


@pytest.fixture(scope="module")
def model():
    return fitted(tissue_of(N_ISOFORMS, seed=1, covariates=("smooth", "iid")))


@pytest.fixture(scope="module")
def tree(model):
    return model.posterior(num_samples=60, hyper="integrate", usage=True)


@pytest.mark.slow
def test_every_gene_is_there_by_name(model, tree):
    posterior = tree["posterior"]
    assert posterior.theta.dims == ("chain", "draw", "gene", "component")
    assert posterior.gene.values.tolist() == model.gene_names
    assert posterior.spot.values.tolist() == list(model.filtered_adata.obs_names)
    assert posterior.covariate.values.tolist() == ["smooth", "half_upper"]  # against the first level
    assert tree["constant_data"].design.dims == ("spot", "covariate")
    assert tree.attrs["method"] == "laplace"
    named = tree["observed_data"].isoform_name
    assert named.dims == ("gene", "isoform") and named.shape == (4, 3)
    for gene, n_isoforms in zip(model.gene_names, N_ISOFORMS, strict=True):
        here = named.sel(gene=gene).values
        assert [name != "" for name in here] == [k < n_isoforms for k in range(3)]
        assert set(here[here != ""]) == set(
            model.filtered_adata.var_names[model.filtered_adata.var["gene_symbol"] == gene]
        )


def test_what_genes_do_not_have_is_missing_and_nothing_else(tree):
    for group, variables in (("posterior", ("beta", "usage", "nu")), ("posterior_predictive", ("counts",))):
        for name in variables:
            array = tree[group][name]
            last = array.dims[-1]
            sizes = array.notnull().all([dim for dim in array.dims if dim not in ("gene", last)]).sum(last)
            expected = np.array(N_ISOFORMS) - (last == "logit")
            np.testing.assert_array_equal(sizes, expected)
    assert np.isfinite(tree["log_likelihood"].counts).all() and np.isfinite(tree["posterior"].theta).all()


@pytest.mark.slow
def test_one_gene_is_the_gene_as_it_was(model, tree):
    data = model.filtered_adata
    for gene, n_isoforms in zip(model.gene_names, N_ISOFORMS, strict=True):
        one = one_gene(tree, gene)
        counts = one["observed_data"].counts
        assert counts.dtype.kind == "i" and one["posterior_predictive"].counts.dtype.kind == "i"
        assert one["posterior"].sizes["logit"] == n_isoforms - 1
        np.testing.assert_array_equal(counts, data[:, counts.isoform.values].layers["counts"].toarray())
        assert one.attrs == tree.attrs
        single = one_gene(tree, gene, isoform=counts.isoform.values[1])
        assert single["observed_data"].counts.dims == ("spot",)
        np.testing.assert_array_equal(single["observed_data"].counts, counts[:, 1])
    with pytest.raises(InvalidArgumentError, match="gene: 'x' is not one of the 4 genes"):
        one_gene(tree, "x")
    with pytest.raises(InvalidArgumentError, match="isoform: 'x' is not one of those of 'gene_1': "):
        one_gene(tree, "gene_1", isoform="x")


@pytest.mark.slow
def test_the_draws_are_those_of_the_genes_own_posterior(model, tree):
    """The same distribution as of the gene by itself: means within the noise of 400 draws."""
    many = model.posterior(num_samples=400, groups=())["posterior"]
    for gene in ("gene_2", "gene_3"):
        alone = model.posterior(gene, num_samples=400, groups=(), seed=5)["posterior"]
        assert alone.gene.values.tolist() == [gene]
        both = [part.sel(gene=gene).beta.dropna("logit").stack(every=("chain", "draw")) for part in (many, alone)]
        shift = (both[0].mean("every") - both[1].mean("every")) / both[1].std("every")
        assert float(abs(shift).max()) < 4 * (2 / 400) ** 0.5
    estimates = model.get_gene_model("gene_2")
    eta = (tree["constant_data"].design @ many.beta.sel(gene="gene_2")).mean(("chain", "draw"))
    eta = eta + many.bias_eta.sel(gene="gene_2").mean(("chain", "draw"))
    expected = (estimates.design_mtx @ estimates.beta + estimates.bias_eta.unsqueeze(1))[0]
    np.testing.assert_allclose(eta.isel(logit=[0]).transpose("spot", "logit"), expected, atol=0.35)


def test_genes_are_chosen_and_ordered_by_name(model):
    some = model.posterior(["gene_4", "gene_1"], num_samples=10, groups=())
    assert some["posterior"].gene.values.tolist() == ["gene_4", "gene_1"]
    equal = model.posterior(["gene_3", "gene_1"], num_samples=10, groups=("posterior_predictive",))
    assert np.isfinite(equal["posterior"].nu).all() and equal["posterior_predictive"].counts.dtype.kind == "i"
    with pytest.raises(KeyError, match="'Gapdh' is not one of the 4 genes"):
        model.posterior(["gene_1", "Gapdh"])
    with pytest.raises(InvalidArgumentError, match="genes: expected one name or more"):
        model.posterior([])
    with pytest.raises(NotReadyError):
        SplisosmGLMM().posterior()


@pytest.mark.slow
def test_tables_know_of_the_padding(tree):
    predictive = predictive_check(tree)
    alone = predictive_check(one_gene(tree, "gene_2"))
    assert len(predictive) == 3 * 4
    np.testing.assert_allclose(
        predictive.query("gene == 'gene_2'").drop(columns=["gene", "statistic"]),
        alone.drop(columns=["gene", "statistic"]),
    )
    entries = sum(2 * (k - 1) for k in N_ISOFORMS)
    for table in (
        prior_sensitivity(tree, sites=("beta",)),
        compare_posteriors(tree, tree, sites=("beta",)),
        plotting.effect_table(tree),
    ):
        assert len(table) == entries
        assert table.drop(columns="pareto_k", errors="ignore").notna().all(axis=None)
    labels = plotting.effect_table(tree).query("gene == 'gene_2'")["label"]
    assert all(name in labels.iloc[0] for name in one_gene(tree, "gene_2")["observed_data"].isoform.values)
    assert len(laplace_check(tree)) == len(leave_one_out(tree)) == 4


@pytest.mark.parametrize(
    ("model_type", "options"),
    [("glm", {"fitting_method": "iwls", "priors": None}), ("glmm-full", {"share_variance": False})],
)
def test_other_models(model_type, options):
    adata = tissue_of((3, 2), seed=1, covariates=("smooth", "iid"))
    drawn = fitted(adata, model_type=model_type, **options).posterior(num_samples=20)["posterior"]
    assert np.isfinite(drawn.beta.sel(gene="gene_1")).all()
    if model_type != "glm":
        assert np.isfinite(drawn.sigma).sum("component").isel(chain=0, draw=0).values.tolist() == [2, 1]


@pytest.mark.slow
def test_without_covariates_and_by_nuts():
    adata = tissue_of((3, 2), seed=1, covariates=("smooth", "iid"))
    model = fitted(adata, with_design=False)
    short = NutsOptions(warmup_steps=20, max_tree_depth=4)
    tree = model.posterior("gene_2", num_samples=10, method="nuts", nuts_options=short)
    assert tree["posterior"].beta.shape == (4, 10, 1, 0, 1) and "diverging" in tree["sample_stats"]
