import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pyrosplice.data.isoforms import read_isoforms
from pyrosplice.errors import InvalidArgumentError


def test_genes_in_order_of_appearance_isoforms_in_the_order_of_var(tissue):
    data = read_isoforms(tissue)
    assert data.gene_names == ("A", "B")
    assert list(data.adata.var_names) == ["iso0", "iso1", "iso2", "iso4", "iso5"]
    assert [list(columns) for columns in data.columns] == [[0, 2, 4], [1, 3]]
    assert data.n_isos == [3, 2]
    original = tissue.layers["counts"].toarray()
    for counts, columns in zip(data.counts(), ([0, 2, 5], [1, 4]), strict=True):
        np.testing.assert_array_equal(counts.numpy(), original[:, columns])


@pytest.mark.parametrize(
    "convert", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.coo_matrix, lambda m: m.astype(float)]
)
def test_every_storage_gives_the_same_counts(tissue, convert):
    expected = read_isoforms(tissue).counts()
    counts = tissue.layers["counts"].toarray()
    tissue.layers["other"] = sp.csr_matrix(convert(counts)) if convert is sp.coo_matrix else convert(counts)
    for a, b in zip(read_isoforms(tissue, layer="other").counts(), expected, strict=True):
        assert (a == b).all()


def test_filters_on_totals_and_on_the_fraction_of_spots(tissue):
    # iso4 is seen in 3 of 12 spots with a total of 12
    assert read_isoforms(tissue, min_counts=12).gene_names == ("A", "B")
    assert read_isoforms(tissue, min_counts=13).gene_names == ("A",)
    assert read_isoforms(tissue, min_bin_pct=0.25).gene_names == ("A", "B")
    assert read_isoforms(tissue, min_bin_pct=25).gene_names == ("A", "B")
    assert read_isoforms(tissue, min_bin_pct=26).gene_names == ("A",)


def test_spots_are_left_out_before_isoforms_are_filtered(tissue):
    spots = np.arange(12) >= 2  # leaves iso4 with 5 counts
    data = read_isoforms(tissue, spots=spots)
    assert data.gene_names == ("A",)
    assert data.adata.shape == (10, 3)


def test_the_input_is_not_changed(tissue):
    before = tissue.copy()
    read_isoforms(tissue).adata.layers["counts"].data[:] = 0
    assert (tissue.layers["counts"] != before.layers["counts"]).nnz == 0


def test_display_names_and_numeric_or_categorical_groups(tissue):
    assert read_isoforms(tissue, gene_names="label").gene_names == ("alpha", "beta")
    tissue.var["id"] = pd.factorize(tissue.var["gene_symbol"])[0]
    assert read_isoforms(tissue, group_iso_by="id").gene_names == ("0", "1")
    tissue.var["kind"] = tissue.var["gene_symbol"].astype("category")
    assert read_isoforms(tissue, group_iso_by="kind").gene_names == ("A", "B")


def test_isoforms_without_a_gene_are_left_out_with_a_warning(tissue):
    tissue.var.loc["iso5", "gene_symbol"] = None
    with pytest.warns(UserWarning, match="1 isoforms have no value"):
        assert read_isoforms(tissue).n_isos == [2, 2]


def spoil(tissue, value):
    counts = tissue.layers["counts"].toarray().astype(float)
    counts[7, 2] = value
    tissue.layers["counts"] = sp.csr_matrix(counts)


def never_seen(tissue):
    counts = tissue.layers["counts"].toarray()
    counts[:, 5] = 0
    tissue.layers["counts"] = sp.csr_matrix(counts)


def repeat(names):
    return [names[0], names[0], *names[2:]]


BAD = {
    "negative": (lambda a: spoil(a, -2.0), {}, "layer 'counts'.*negative .first: -2.0 at spot 'spot7', isoform 'iso2'"),
    "fraction": (lambda a: spoil(a, 1.5), {}, "non-integer .first: 1.5 at spot 'spot7', isoform 'iso2'"),
    "NaN": (lambda a: spoil(a, np.nan), {}, "NaN or infinite .*isoform 'iso2'"),
    "no layer": (None, {"layer": "raw"}, "layer: adata.layers has no 'raw'; it has .'counts'."),
    "no group": (None, {"group_iso_by": "gene"}, "group_iso_by: adata.var has no 'gene'"),
    "no names": (None, {"gene_names": "gene"}, "gene_names: adata.var has no 'gene'"),
    "spot names": (lambda a: setattr(a, "obs_names", repeat(a.obs_names)), {}, "obs_names: .*more than once.*spot0"),
    "isoform names": (lambda a: setattr(a, "var_names", repeat(a.var_names)), {}, "var_names: .*more than once"),
    "gene names": (lambda a: a.var.__setitem__("label", "same"), {"gene_names": "label"}, "gene_names: .*'same'"),
    "two names": (lambda a: a.var.__setitem__("n", a.var_names), {"gene_names": "n"}, "gene_names: .*found 3 for 'A'"),
    "min_counts": (None, {"min_counts": -1}, "min_counts: .*found -1"),
    "min_bin_pct": (None, {"min_bin_pct": 101}, "min_bin_pct: .*found 101"),
    "never seen": (never_seen, {"min_counts": 0}, "min_counts: .*never seen.*'iso5'"),
    "nothing left": (None, {"min_counts": 1e9}, "nothing is left of 7 isoforms.*min_counts"),
    "one isoform": (lambda a: a.var.__setitem__("own", a.var_names), {"group_iso_by": "own"}, "has 1 isoform"),
    "no spots": (None, {"spots": np.zeros(12, bool)}, "nothing is left"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore:Observation names:UserWarning", "ignore:Variable names:UserWarning")
def test_bad_input_is_named(tissue, case):
    prepare, arguments, message = BAD[case]
    if prepare is not None:
        prepare(tissue)
    with pytest.raises(InvalidArgumentError, match=message):
        read_isoforms(tissue, **arguments)


def test_dense_bad_counts_are_located_too(tissue):
    counts = tissue.layers["counts"].toarray().astype(float)
    counts[3, 1] = -1
    tissue.layers["counts"] = counts
    with pytest.raises(InvalidArgumentError, match="spot 'spot3', isoform 'iso1'"):
        read_isoforms(tissue)


def test_something_that_is_not_an_anndata():
    with pytest.raises(InvalidArgumentError, match="adata: expected an AnnData, found ndarray"):
        read_isoforms(np.ones((3, 3)))
