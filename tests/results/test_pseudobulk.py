"""Sums of cells by labels: every count once, names and constants kept, what is no count refused."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pyrosplice import ExpressionGLM
from pyrosplice.data import pseudobulk
from pyrosplice.errors import InvalidArgumentError

N, G = 60, 4


def cells(seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    donor = rng.choice(["d1", "d2", "d3"], N)
    obs = pd.DataFrame({"donor": donor, "kind": rng.choice(["B", "T cell"], N), "depth": rng.random(N)})
    obs["sex"], obs["age"] = (obs["donor"] == "d1").map({True: "f", False: "m"}), obs["donor"].str[1].astype(int)
    obs["lot"] = np.nan
    obs.index = [f"c{i}" for i in range(N)]
    return ad.AnnData(rng.poisson(2.0, (N, G)).astype(float), obs, pd.DataFrame(index=[f"g{i}" for i in range(G)]))


def expected(adata: ad.AnnData) -> pd.DataFrame:
    frame = pd.DataFrame(np.asarray(adata.X), columns=adata.var_names)
    return frame.groupby((adata.obs["donor"].astype(str) + "_" + adata.obs["kind"].astype(str)).to_numpy()).sum()


def containers(adata: ad.AnnData, path) -> dict[str, ad.AnnData]:
    out = {"dense": adata}
    for name, make in {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "csr_array": sp.csr_array}.items():
        out[name] = adata.copy()
        out[name].X = make(adata.X)
    out["integers"] = adata.copy()
    out["integers"].X = sp.csr_matrix(adata.X.astype(np.uint8) * 1)
    out["csr"].write_h5ad(path / "a.h5ad")
    out["backed"] = ad.read_h5ad(path / "a.h5ad", backed="r")
    out["view"] = ad.concat([adata, cells(1)], index_unique="-", merge="same")[:N]
    return out


def test_sums_are_those_of_pandas_from_every_container(tmp_path):
    adata = cells()
    want = expected(adata)
    for name, given in containers(adata, tmp_path).items():
        sums = pseudobulk(given, ["donor", "kind"])
        assert sp.issparse(sums.X), name
        frame = pd.DataFrame(sums.X.toarray(), sums.obs_names, sums.var_names)
        pd.testing.assert_frame_equal(frame.loc[want.index], want, check_names=False, obj=name)
        assert sums.obs["n_cells"].sum() == N and sums.obs["total_counts"].sum() == adata.X.sum()


def test_order_of_cells_makes_no_difference_and_a_layer_is_read():
    adata = cells()
    adata.layers["raw"], adata.X = adata.X.copy(), np.log1p(adata.X)
    one = pseudobulk(adata, ["donor", "kind"], layer="raw")
    other = pseudobulk(adata[np.random.default_rng(3).permutation(N)], ["donor", "kind"], layer="raw")
    assert one.obs.equals(other.obs) and (one.X != other.X).nnz == 0
    with pytest.raises(InvalidArgumentError, match="expected raw counts, found"):
        pseudobulk(adata, "donor")


def test_constants_are_carried_and_nothing_else(tmp_path):
    sums = pseudobulk(cells(), ["donor", "kind"])
    assert {"sex", "age"} <= set(sums.obs) and not {"depth", "lot"} & set(sums.obs)
    assert sums.obs["age"].tolist() == [int(name[1]) for name in sums.obs_names]
    assert sums.obs["sex"].tolist() == ["f" if name.startswith("d1") else "m" for name in sums.obs_names]
    sums.write_h5ad(tmp_path / "sums.h5ad")
    again = ad.read_h5ad(tmp_path / "sums.h5ad")
    assert again.uns["pseudobulk"]["by"].tolist() == ["donor", "kind"]
    by_kind = pseudobulk(cells(), "kind")
    assert "sex" not in by_kind.obs and by_kind.obs_names.tolist() == ["B", "T cell"]


def test_small_combinations_are_left_out_by_name_and_labels_missing_are_counted():
    adata = cells()
    adata.obs.loc["c0", "donor"] = None
    with pytest.raises(InvalidArgumentError, match="by: column 'donor'"):
        pseudobulk(adata, ["donor", "kind"])
    whole = pseudobulk(adata, ["donor", "kind"], missing="drop")
    assert whole.uns["pseudobulk"]["dropped"] == 1 and whole.obs["n_cells"].sum() == N - 1
    least = int(whole.obs["n_cells"].median()) + 1
    kept = pseudobulk(adata, ["donor", "kind"], missing="drop", min_cells=least)
    small = whole.obs_names[whole.obs["n_cells"] < least]
    assert set(kept.uns["pseudobulk"]["left_out"]) == set(small) and (kept.obs["n_cells"] >= least).all()
    assert (kept.X != whole[kept.obs_names].X).nnz == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"by": "patient"}, "by: no column 'patient'"),
        ({"by": []}, "by: expected columns"),
        ({"by": 3}, "by: expected a name"),
        ({"by": "n_cells"}, "by: expected columns"),
        ({"by": "donor", "min_cells": 1000}, "min_cells: no combination"),
        ({"by": "donor", "min_cells": 0}, "min_cells"),
        ({"by": "donor", "missing": "keep"}, "missing"),
        ({"by": "donor", "layer": "raw"}, "layer"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(InvalidArgumentError, match=words):
        pseudobulk(cells(), **options)


@pytest.mark.parametrize("value", [0.5, -1.0, np.nan, np.inf])
def test_entries_that_are_no_counts_are_refused(value):
    for make in (np.asarray, sp.csr_matrix):
        adata = cells()
        adata.X[7, 1] = value
        adata.X = make(adata.X)
        with pytest.raises(InvalidArgumentError):
            pseudobulk(adata, "donor")


DTYPES = {
    "Int64": [1, 2, None],
    "boolean": [True, False, None],
    "string": ["a", None, "c"],
    "category": ["v", "u", None],
    "float32": [1.5, np.nan, 2.0],
    "int8": [1, 2, 3],
    "bool": [True, False, True],
    "datetime64[ns]": ["2020-01-01", "2021-01-01", None],
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_of_one_value_a_sum_keep_their_type_and_what_is_missing(dtype):
    adata, of = cells(), pd.Series(DTYPES[dtype], index=["d1", "d2", "d3"], dtype=dtype)
    adata.obs["own"] = of.loc[adata.obs["donor"]].set_axis(adata.obs_names)
    found = pseudobulk(adata, "donor").obs["own"]
    pd.testing.assert_series_equal(found, of, check_names=False, check_index_type=False)


def test_names_that_read_the_same_are_refused():
    adata = cells()[:4].copy()
    adata.obs["p"], adata.obs["q"] = ["a", "a_b", "a", "a_b"], ["b_c", "c", "b_c", "c"]
    with pytest.raises(InvalidArgumentError, match="two combinations of labels read the same, 'a_b_c'"):
        pseudobulk(adata, ["p", "q"])


def test_sums_are_fitted_as_counts_are():
    rng = np.random.default_rng(5)
    adata = ad.AnnData(rng.poisson(3.0, (240, 6)).astype(float))
    adata.obs["donor"] = np.repeat([f"d{i}" for i in range(8)], 30)
    adata.obs["drug"] = np.where(adata.obs["donor"].str[1].astype(int) < 4, "no", "yes")
    sums = pseudobulk(adata, "donor")
    test = ExpressionGLM("~ drug").fit(sums, size_factors="total_counts").test(factor="drug", method="ql")
    assert np.isfinite(test.pval).all() and sums.n_obs == 8
