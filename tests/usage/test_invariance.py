"""What must not matter to a p-value: unit, origin and coding of covariates; order of spots, genes and isoforms."""

import numpy as np
import pytest

from pyrosplice import SplisosmGLMM
from tests.usage.conftest import tissue_of

QUIET = {"print_progress": False}
COVARIATES = ["smooth", "kind"]
CLOSE = 1e-8


def tissue():
    """Genes of three and of two isoforms; a number and a factor of three levels."""
    adata = tissue_of(seed=3, covariates=("smooth",), sigma=1.5, theta=0.95)[:, :5].copy()
    adata.obs["kind"] = np.array(["a", "b", "c"])[np.arange(36) % 3]
    return adata


def in_other_units(adata):
    """Also a factor whose levels have other names, in another order."""
    adata.obs["smooth"] = 3e3 - 2 * adata.obs["smooth"]
    adata.obs["kind"] = adata.obs["kind"].map({"a": "z", "b": "y", "c": "x"})
    return adata


def in_another_order(adata, *, isoforms):
    """Spots shuffled, genes reversed, and the isoforms of a gene rearranged."""
    names = adata.var["gene_symbol"].astype(str).to_numpy()
    own = [np.flatnonzero(names == name) for name in dict.fromkeys(names)]
    columns = np.concatenate([isoforms(some) for some in reversed(own)])
    return adata[np.random.default_rng(0).permutation(36)][:, columns].copy()


def pvalues(adata, model_type):
    """By test and gene."""
    options = {"fitting_method": "marginal_newton", "var_fix_sigma": False}
    model = SplisosmGLMM(model_type, **({} if model_type == "glm" else options), fitting_configs={"tol": 1e-11})
    model.setup_data(adata, design_mtx=COVARIATES, adj_key=None if model_type == "glm" else "connectivities")
    model.fit(batch_size=32, from_null=model_type == "glmm-full", **QUIET)
    ask = {"return_results": True, **QUIET}
    found = {test: model.test_differential_usage(test, by="factor", **ask) for test in ("score", "lrt")}
    if model_type == "glmm-full":
        found |= {f"space {test}": model.test_spatial_variability(test, **ask) for test in ("score", "llr")}
    model.fit(batch_size=32, with_design_mtx=True, **QUIET)
    found["wald"] = model.test_differential_usage("wald", by="factor", **ask)
    if model_type == "glmm-full":
        found["space score beside covariates"] = model.test_spatial_variability("score", **ask)
    return {test: dict(zip(one["gene"], one["pvalue"], strict=True)) for test, one in found.items()}


def moved(found, reference):
    return {
        test: max(float(np.max(np.abs(one[gene] - reference[test][gene]))) for gene in one)
        for test, one in found.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["glm", "glmm-full"])
def test_no_p_value_moves(model_type):
    """A GLMM's reference isoform stays the last (its random effect is about it); a GLM's is another one."""
    reference = pvalues(tissue(), model_type)
    rearranged = {"glm": lambda own: np.roll(own, 1), "glmm-full": lambda own: np.r_[own[:-1][::-1], own[-1:]]}
    changed = [in_other_units(tissue()), in_another_order(tissue(), isoforms=rearranged[model_type])]
    for adata in changed:
        for test, distance in moved(pvalues(adata, model_type), reference).items():
            assert distance < CLOSE, test
    assert all(0 < min(np.min(pvalue) for pvalue in one.values()) < 0.9 for one in reference.values())


def test_the_score_test_of_space_has_no_reference_isoform():
    found = []
    for adata in (tissue(), in_another_order(tissue(), isoforms=lambda own: np.roll(own, 1))):
        model = SplisosmGLMM()
        model.setup_data(adata, adj_key="connectivities")
        result = model.test_spatial_variability("score", return_results=True, **QUIET)
        found.append({"space": dict(zip(result["gene"], result["pvalue"], strict=True))})
    assert moved(found[1], found[0])["space"] < CLOSE
