"""Tables as scanpy, pertpy and decoupler read them."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import pyrosplice.api as de
from pyrosplice._results.layouts import top_rows, with_symbols
from pyrosplice._results.rank_genes import rank_genes_groups
from pyrosplice.errors import InvalidArgumentError
from tests.results.test_written import G, cells


@pytest.fixture(scope="module")
def tested():
    return de.test.versus_rest(cells(), "g", test="wald")


def test_scanpy_reads_groups_scores_and_p_values(tested):
    sc = pytest.importorskip("scanpy")
    plt = pytest.importorskip("matplotlib.pyplot")
    adata = cells()
    adata.obs["g"] = adata.obs["g"].astype("category")
    tested.write(adata)
    for group in "abc":
        found = sc.get.rank_genes_groups_df(adata, group).set_index("names")
        ours = tested.summary_group(group).set_index("gene").loc[found.index]
        np.testing.assert_allclose(found["pvals"], ours["pvalue"].fillna(1), rtol=1e-12)
        np.testing.assert_allclose(found["pvals_adj"], ours["pvalue_adj"].fillna(1), rtol=1e-12)
        np.testing.assert_allclose(found["logfoldchanges"], ours["log2fc"], rtol=1e-5)
        assert (np.diff(found["scores"]) <= 0).all()
        known = found["pvals"] < 1
        np.testing.assert_allclose(2 * stats.norm.sf(found["scores"].abs()[known]), found["pvals"][known], rtol=1e-4)
    sc.pl.rank_genes_groups(adata, show=False)
    sc.pl.rank_genes_groups_dotplot(adata, show=False)
    plt.close("all")


def test_the_structure_is_that_of_scanpys_own_tests():
    sc = pytest.importorskip("scanpy")
    adata = cells()
    adata.obs["g"] = adata.obs["g"].astype("category")
    sc.pp.log1p(adata)
    sc.tl.rank_genes_groups(adata, "g", method="t-test", key_added="theirs")
    frame = pd.DataFrame({"gene": ["x", "y"], "score": [1.0, np.nan], "pvalue": [0.3, np.nan]})
    ours = rank_genes_groups({"a": frame.assign(pvalue_adj=0.5, log2fc=1.0)})
    for name, value in ours.items():
        theirs = adata.uns["theirs"][name]
        assert isinstance(value, np.recarray) and value.dtype["a"] == theirs.dtype["a"], name
    assert ours["pvals"]["a"].tolist() == [0.3, 1.0] and ours["scores"]["a"].tolist() == [1.0, 0.0]


def test_pertpys_columns_hold_the_same_numbers(tested):
    theirs, ours = tested.to_frame(layout="pertpy"), tested.to_frame()
    assert {"variable", "log_fc", "p_value", "adj_p_value", "contrast"} <= set(theirs.columns)
    assert not {"pvalue", "gene", "log2fc"} & set(theirs.columns) and len(theirs) == 3 * G
    for theirs_name, name in (("variable", "gene"), ("log_fc", "log2fc"), ("adj_p_value", "pvalue_adj")):
        pd.testing.assert_series_equal(theirs[theirs_name], ours[name], check_names=False)
    with pytest.raises(InvalidArgumentError, match="layout"):
        tested.to_frame(layout="scanpy")


def test_decouplers_matrix_is_contrasts_by_genes(tested):
    wide = tested.to_matrix("log2fc")
    assert wide.index.tolist() == ["a", "b", "c"] and wide.columns.tolist() == list(cells().var_names)
    table = tested.to_frame().set_index(["contrast", "gene"])["log2fc"]
    assert all(wide.loc[c, g] == (table[c, g] if np.isfinite(table[c, g]) else 0) for c, g in table.index)
    assert tested.to_matrix().notna().all(None)
    with pytest.raises(InvalidArgumentError, match="value"):
        tested.to_matrix("pvalue")


def test_symbols_stand_beside_identifiers_which_stay(tested):
    table = tested.to_frame(gene_symbols=cells().var["symbol"])
    assert table.columns[:2].tolist() == ["gene", "symbol"]
    assert table["symbol"][:G].tolist() == ["A", "B", "G/2", "G/3", "E"]
    assert table["gene"].equals(tested.to_frame()["gene"])
    for wrong in (["A"] * G, "symbol", np.array(["A"] * G), {"G/0": "A"}, pd.Series(["A", "B"], ["G/0", "G/0"])):
        with pytest.raises(InvalidArgumentError, match="gene_symbols: "):
            tested.to_frame(gene_symbols=wrong)
    frame = pd.DataFrame({"gene": ["1", "2"]})
    assert with_symbols(frame, {1: "x", 2: "y"})["symbol"].tolist() == ["x", "y"]


def test_the_top_is_the_smallest_p_or_the_largest_effect(tested):
    table, top = tested.to_frame(), tested.top_table(4)
    assert top["pvalue"].tolist() == table["pvalue"].sort_values().head(4).tolist()
    largest = tested.top_table(None, sort_by="log2fc", contrast="b")
    assert (largest["contrast"] == "b").all() and (np.diff(largest["log2fc"].abs().dropna()) <= 0).all()
    assert len(largest) == G and np.isnan(tested.top_table(None)["pvalue"].iloc[-1])
    found = tested.top_table(None, alpha=0.9)
    assert (found["pvalue_adj"] <= 0.9).all() and len(found) == (table["pvalue_adj"] <= 0.9).sum()
    for wrong in ({"n": 0}, {"n": 1.5}, {"sort_by": "gene"}, {"alpha": 2}, {"contrast": "d"}):
        with pytest.raises(InvalidArgumentError):
            tested.top_table(**wrong)
    assert len(top_rows(table.iloc[:0], n=3, sort_by="pvalue", alpha=0.1)) == 0
