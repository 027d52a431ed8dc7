"""Every missing p-value, standard error and interval of isoform usage has a reason, whatever the gene and the test."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from pyrosplice import SplisosmGLMM
from pyrosplice.reasons import Reason
from tests.missing_results import check_reasons

QUIET = {"print_progress": False}
ON_TWO_SCALES = [f"{scale}{end}" for scale in ("log_odds", "usage_points") for end in ("", "_se", "_lower", "_upper")]
SIDE, N, K = 10, 100, 3
GENES = ("plain", "separated", "one_isoform", "pure_spots", "few_spots", "only_in_a")


def awkward_tissue(seed=0):
    """One gene of every kind that has no finite estimate, or none of some covariate, beside one that has all."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"region": np.repeat(["A", "B"], N // 2), "x": rng.normal(size=N)}, index=[*map(str, range(N))])
    obs["x_in_a"] = np.where(obs["region"] == "A", obs["x"], 0.0)
    in_b = (obs["region"] == "B").to_numpy()
    counts = {gene: rng.multinomial(8, [0.4, 0.35, 0.25], N) for gene in GENES}
    counts["separated"][in_b, 0] = 0
    counts["one_isoform"][:, 1:] = 0
    counts["one_isoform"][0, 1:] = 1
    counts["pure_spots"] = 8 * np.eye(K, dtype=int)[rng.integers(0, K, N)]
    counts["few_spots"][3:] = 0
    counts["few_spots"][:3] = 2
    counts["only_in_a"][in_b] = 0
    var = pd.DataFrame({"gene_symbol": np.repeat(GENES, K)}, index=[f"{g}_{k}" for g in GENES for k in range(K)])
    adata = ad.AnnData(np.concatenate([counts[gene] for gene in GENES], 1).astype(float), obs=obs, var=var)
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["spatial"] = np.stack(np.divmod(np.arange(N), SIDE), 1).astype(float)
    return adata


def fitted(model_type, *, with_design, **options):
    model = SplisosmGLMM(model_type, fitting_method="marginal_newton", var_fix_sigma=False, **options)
    model.setup_data(awkward_tissue(), design_mtx=["region", "x", "x_in_a"], min_counts=1)
    model.fit(with_design_mtx=with_design, from_null=model_type == "glmm-full", **QUIET)
    return model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("variance", ["robust", "model"])
@pytest.mark.parametrize("model_type", ["glm", "glmm-null", "glmm-full"])
def test_tables_of_differential_usage_and_effects(model_type, variance):
    for with_design, methods in ((False, ("score", "lrt")), (True, ("wald", "lrt"))):
        model = fitted(model_type, with_design=with_design)
        for method in methods:
            assert model.test_differential_usage(method, variance=variance, **QUIET) is None
            table = model.get_formatted_test_results("du")
            check_reasons(table, least=1)
            found = table.set_index(["gene", "covariate"])["reason"]
            assert found["only_in_a", "region_B"] == "not_identified" or method == "wald"
    effects = model.get_effects(variance=variance)
    check_reasons(effects, least=K)
    assert list(effects.columns) == ["gene", "covariate", "isoform", *ON_TWO_SCALES, "reason"]
    said = effects.groupby("gene", sort=False)["reason"].agg(set)
    assert "separated" in said["separated"] and "not_identified" in said["only_in_a"]
    training = model.get_training_summary()["reason"]
    assert set(training) <= {reason.value for reason in Reason} and training["separated"] == "separated"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("options", [{"method": "score"}, {"method": "llr"}, {"method": "llr", "null_law": "boundary"}])
def test_tables_of_spatial_variability(options):
    model = fitted("glmm-full", with_design=False)
    model.test_spatial_variability(**options, **QUIET)
    check_reasons(model.get_formatted_test_results("sv"))
