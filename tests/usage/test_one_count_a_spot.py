"""A tissue whose genes have one count a spot, under likelihoods of counts: expression, in the class of usage."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from pyrosplice import SplisosmGLMM
from pyrosplice.errors import InvalidArgumentError, NoResultsError
from pyrosplice.likelihoods import NegativeBinomial, Normal, Poisson
from pyrosplice.usage.analysis.options import check_of_isoforms

COORDS = torch.cartesian_prod(torch.arange(7.0), torch.arange(7.0))


def tissue(*genes):
    """A gene with a wave in space, and one without."""
    wave = torch.outer(torch.tensor([1.2, 0.0]), torch.sin(COORDS[:, 0]))
    counts = torch.poisson(4 * wave.double().exp(), generator=torch.Generator().manual_seed(2)).numpy()
    var = pd.DataFrame({"gene_symbol": list(genes)}, index=["one", "two"])
    cells = pd.DataFrame({"x": np.arange(49) % 2.0}, index=[f"s{i}" for i in range(49)])
    adata = ad.AnnData(counts.T.copy(), obs=cells, var=var)
    adata.obsm["spatial"] = COORDS.numpy()
    adata.layers["counts"] = adata.X
    return adata


def of(likelihood, adata, model_type, **options):
    model = SplisosmGLMM(likelihood=likelihood, model_type=model_type)
    model.setup_data(adata, group_iso_by="gene_symbol", design_mtx=["x"])
    model.fit(print_progress=False, **options)
    return model


@pytest.mark.parametrize("likelihood", [NegativeBinomial(), Normal(), Poisson()], ids=repr)
def test_covariates_are_tested(likelihood):
    for method in ("wald", "score"):
        model = of(likelihood, tissue("a", "b"), "glm", with_design_mtx=method == "wald")
        found = model.test_differential_usage(method, return_results=True, print_progress=False)
        assert np.isfinite(found["pvalue"]).all() and (np.asarray(found["pvalue"]) > 1e-3).all()
    with pytest.raises(NoResultsError, match="get_effects is of shares"):
        model.get_effects()


def test_space_is_tested_by_the_likelihood_ratio():
    model = of(Poisson(), tissue("a", "b"), "glmm-full", from_null=True)
    found = model.test_spatial_variability(
        "llr", null_law="boundary", adjust_for_design=False, return_results=True, print_progress=False
    )
    assert np.ravel(found["pvalue"])[0] < 1e-3 < np.ravel(found["pvalue"])[1]
    with pytest.raises(NoResultsError, match=r"of one count a spot, and method='score' .*use method='llr'"):
        model.test_spatial_variability("score", print_progress=False)


def test_genes_of_more_isoforms_are_left_out():
    model = SplisosmGLMM(likelihood=NegativeBinomial(), model_type="glm")
    with pytest.raises(InvalidArgumentError, match="expected a gene with one isoform"):
        model.setup_data(tissue("a", "a"), group_iso_by="gene_symbol")
    model.setup_data(tissue("a", "b"), group_iso_by="gene_symbol")
    assert model.n_genes == 2
    with pytest.raises(InvalidArgumentError, match="expected a gene with two or more isoforms"):
        SplisosmGLMM().setup_data(tissue("a", "b"), group_iso_by="gene_symbol")
    check_of_isoforms(SplisosmGLMM().likelihood, "this is allowed")
