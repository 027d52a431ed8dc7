"""Held-out diagnostics are what the selection stored."""

import anndata
import numpy as np
import pandas as pd
import pytest

from pyrosplice import AnnData_TripletDataset, evaluate_holdout_nll, summarize_holdout_nll, validate_gmm
from pyrosplice._mixture.patients.selection import selection_table
from pyrosplice.errors import InvalidArgumentError
from tests.mixture.helpers import clouds


def _adata():
    obs = {"sample": np.repeat(["a/b", "b", "c"], 30), "patient_group": np.repeat(["u", "v", "u"], 30)}
    x = np.round(clouds(90, 3, 2, spread=6)[0])
    return anndata.AnnData(x, obs=pd.DataFrame(obs, index=[f"c{i}" for i in range(90)]))


def _patients(adata):
    return AnnData_TripletDataset(adata, n_cells=10)


@pytest.mark.parametrize("sharing", ["sample_specific", "global"])
def test_held_out_diagnostics_are_those_of_the_selection(sharing, tmp_path):
    adata = _adata()
    data = _patients(adata)
    data.fit_gmm(k_comps=[1, 2], k_selection_metric="heldout_nll", component_sharing=sharing, verbose=False)
    adata.write_h5ad(tmp_path / "a.h5ad")
    columns = {"gmm_key": "gmm_X", "patient_col": "sample", "label_col": "patient_group"}
    results = evaluate_holdout_nll(anndata.read_h5ad(tmp_path / "a.h5ad"), **columns)
    own, summary = validate_gmm(data)
    pd.testing.assert_frame_equal(results, own, check_dtype=False)
    chosen = selection_table(data.gmm).query("chosen")
    np.testing.assert_allclose(results["validation_nll"], chosen["heldout_nll"])
    np.testing.assert_array_equal(results["n_components"], chosen["n_components"])
    assert summary["count"].tolist() == [len(results)]
    assert summary["mean_nll_gap"].item() == pytest.approx((results["validation_nll"] - results["train_nll"]).mean())
    if sharing == "sample_specific":
        assert results["distribution_id"].tolist() == ["a/b", "b", "c"] and results["label"].tolist() == ["u", "v", "u"]
        assert summarize_holdout_nll(results, groupby_cols=["label"])["count"].to_dict() == {"u": 2, "v": 1}
    with pytest.raises(InvalidArgumentError, match="groupby_cols"):
        validate_gmm(data, groupby_cols=["who"])
    with pytest.raises(InvalidArgumentError, match="held-out"):
        validate_gmm(_patients(adata).fit_gmm(k_comps=2, verbose=False))
