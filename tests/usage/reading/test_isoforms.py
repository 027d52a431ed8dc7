import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from pyrosplice._usage.reading.isoforms import read_isoforms
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


def doubled(counts):
    """A CSR matrix in which every count stands twice, as two parts of it, beside explicit zeros."""
    n, k = counts.shape
    half = counts // 2
    data = np.stack([half, counts - half, np.zeros_like(counts)], 2).reshape(-1)
    indices = np.repeat(np.tile(np.arange(k), n), 3)
    return sp.csr_matrix((data, indices, np.arange(n + 1) * 3 * k), shape=counts.shape)


CONTAINERS = {
    "array": np.asarray,
    "column-major": np.asfortranarray,
    "matrix": np.matrix,
    "floats": lambda m: m.astype(np.float32),
    "half floats": lambda m: m.astype(np.float16),
    "bytes": lambda m: m.astype(np.uint8),
    "objects": lambda m: m.astype(object),
    "mixed objects": lambda m: np.where(m > 3, m.astype(float).astype(object), m.astype(object)),
    "CSR": sp.csr_matrix,
    "CSC": sp.csc_matrix,
    "CSR array": sp.csr_array,
    "CSC array": sp.csc_array,
    "entries that stand twice": doubled,
    "frame": lambda m: pd.DataFrame(m, index=[f"spot{i}" for i in range(12)], columns=[f"iso{i}" for i in range(7)]),
    "Dask": lambda m: da.from_array(m, chunks=(5, 3)),
    "sparse Dask": lambda m: da.from_array(m, chunks=(5, -1)).map_blocks(sp.csr_matrix),
    "without a mask": np.ma.masked_array,
}


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("view", [False, True])
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning")
def test_every_container_gives_the_same_counts_to_the_bit(tissue, kind, view):
    expected = read_isoforms(tissue)
    tissue.layers["it"] = CONTAINERS[kind](tissue.layers["counts"].toarray())
    before = tissue.layers["it"].copy()
    adata = tissue[:, :] if view else tissue
    found = read_isoforms(adata, layer="it")
    for a, b in zip(found.counts(), expected.counts(), strict=True):
        assert torch.equal(a, b)
    layer = found.adata.layers["it"]
    assert isinstance(layer, (np.ndarray, sp.csr_matrix, sp.csc_matrix))
    assert np.array_equal(layer.toarray() if sp.issparse(layer) else layer, expected.adata.layers["counts"].toarray())
    if kind == "entries that stand twice" and not view:
        assert tissue.layers["it"].nnz == before.nnz


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda m: m.astype(str), "expected numbers"),
        (lambda m: m.astype(complex), "complex128"),
        (lambda m: sp.csr_matrix(m, dtype=complex), "complex128"),
        (lambda m: np.ma.masked_array(m, m == 3), "masked"),
        (lambda m: np.where(m == 3, None, m.astype(object)), "NaN"),
        (lambda m: np.where(m == 3, "3", m.astype(object)), "found '3'"),
        (lambda m: da.from_array(np.where(m == 3, -1, m), chunks=5), "negative"),
        (lambda m: da.from_array(m + 0j, chunks=5), "complex128"),
    ],
)
def test_what_is_no_count_is_refused(tissue, convert, message):
    tissue.layers["it"] = convert(tissue.layers["counts"].toarray())
    with pytest.raises(InvalidArgumentError, match=f"^layer 'it': .*{message}"):
        read_isoforms(tissue, layer="it")


@pytest.mark.parametrize("index", [7, 10**6, -1, -7])
@pytest.mark.parametrize("where", ["counts", "other", "X", "obsm", "obsp"])
def test_a_damaged_sparse_matrix_is_refused_wherever_it_is(tissue, index, where):
    bad = sp.csr_matrix(np.ones((12, 12 if where == "obsp" else 7)))
    bad.indices[3] = index + 5 if where == "obsp" and index == 7 else index
    if where == "X":
        tissue.X = bad
    else:
        part = {"counts": tissue.layers, "other": tissue.layers, "obsm": tissue.obsm, "obsp": tissue.obsp}[where]
        part[where] = bad
    with pytest.raises(InvalidArgumentError, match="damaged"):
        read_isoforms(tissue)


def test_counts_in_x(tissue):
    expected = read_isoforms(tissue).counts()
    found = read_isoforms(tissue, layer=None)
    assert all(torch.equal(a, b) for a, b in zip(found.counts(), expected, strict=True))
    assert found.adata.X.shape == (12, 5)
    tissue.X = None
    assert len(read_isoforms(tissue).counts()) == 2
    with pytest.raises(InvalidArgumentError, match=r"layer: None is for counts in adata\.X, which is None"):
        read_isoforms(tissue, layer=None)


@pytest.fixture(params=["h5ad", "zarr"])
def path(tissue, tmp_path, request):
    tissue.obs["region"] = tissue.obs["region"].astype(str).astype("category")
    tissue.raw = tissue.copy()
    target = tmp_path / f"tissue.{request.param}"
    (tissue.write_h5ad if request.param == "h5ad" else tissue.write_zarr)(target)
    return target


@pytest.mark.parametrize("layer", ["counts", None])
@pytest.mark.parametrize("how", ["backed", "view of backed", "lazy", "view of lazy"])
@pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning", "ignore:.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_what_lies_on_disk_is_read_to_the_bit(tissue, path, how, layer):
    if "backed" in how and path.suffix == ".zarr":
        pytest.skip("AnnData backs h5ad only")
    lazy = pytest.importorskip("anndata.experimental")
    adata = ad.read_h5ad(path, backed="r") if "backed" in how else lazy.read_lazy(path)
    rows = np.arange(1, 12) if "view" in how else np.arange(12)
    adata = adata[rows] if "view" in how else adata
    found, expected = read_isoforms(adata, layer=layer), read_isoforms(tissue[rows].copy(), layer=layer)
    for a, b in zip(found.counts(), expected.counts(), strict=True):
        assert torch.equal(a, b)
    assert not found.adata.isbacked
    np.testing.assert_array_equal(found.adata.X, expected.adata.X)
    pd.testing.assert_frame_equal(found.adata.obs, expected.adata.obs, check_categorical=False)
    np.testing.assert_array_equal(found.adata.obsm["spatial"], expected.adata.obsm["spatial"])
    pd.testing.assert_frame_equal(found.adata.var, expected.adata.var, check_dtype=False, check_categorical=False)


def test_counts_in_memory_do_without_the_file_of_x(tissue, tmp_path):
    expected = read_isoforms(tissue).counts()
    tissue.write_h5ad(tmp_path / "tissue.h5ad")
    backed = ad.read_h5ad(tmp_path / "tissue.h5ad", backed="r")
    backed.file.close()
    (tmp_path / "tissue.h5ad").unlink()
    with pytest.warns(UserWarning, match=r"adata\.X: its file cannot be read"):
        found = read_isoforms(backed)
    assert all(torch.equal(a, b) for a, b in zip(found.counts(), expected, strict=True))
    assert found.adata.X is None


def test_a_column_that_stands_twice_is_refused(tissue):
    tissue.obs.columns = ["region", "age", "age"]
    with pytest.raises(InvalidArgumentError, match=r"adata\.obs\.columns: expected unique names"):
        read_isoforms(tissue)


GROUPS = {
    "categorical": pd.Categorical,
    "unused levels": lambda g: pd.Categorical(g, categories=["Z", *sorted(set(g))]),
    "text": lambda g: pd.array(g, dtype="string"),
    "bytes": lambda g: np.array([name.encode() for name in g], dtype=object),
    "numbers": lambda g: [ord(name) for name in g],
    "nullable numbers": lambda g: pd.array([ord(name) for name in g], dtype="Int64"),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_genes_by_names_of_any_type(tissue, kind):
    tissue.var["gene"] = GROUPS[kind](list(tissue.var["gene_symbol"]))
    data = read_isoforms(tissue, group_iso_by="gene")
    assert data.gene_names == (("65", "66") if "numbers" in kind else ("A", "B"))
    assert data.n_isos == [3, 2]


@pytest.mark.parametrize("blank", ["", " ", "\t", None, np.nan, pd.NA])
@pytest.mark.parametrize("dtype", [object, "string", "category"])
def test_isoforms_of_a_blank_gene_are_left_out_with_a_warning(tissue, blank, dtype):
    names = tissue.var["gene_symbol"].astype(object)
    names.iloc[[1, 3, 4]] = blank
    tissue.var["gene"] = names.astype(dtype)
    with pytest.warns(UserWarning, match="3 isoforms have no value"):
        assert read_isoforms(tissue, group_iso_by="gene").gene_names == ("A",)
    tissue.var["label"] = tissue.var["gene"]
    with pytest.raises(InvalidArgumentError, match=r"gene_names: expected one name a gene .*found 0 for 'B'"):
        read_isoforms(tissue, gene_names="label")
