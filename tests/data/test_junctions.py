"""Counts of junctions and isoforms from tables and files: the same numbers from every form, or a refusal."""

import gzip

import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from pyrosplice import SplisosmGLMM
from pyrosplice.data import from_junctions, load_lung_junctions
from pyrosplice.data._splice_files import intron_clusters
from pyrosplice.errors import InvalidArgumentError

LONG = pd.DataFrame(
    {"cell": ["a", "a", "b"], "feature": ["T-1", "T-2", "T-1"], "count": [3, 1, 2], "gene": ["T", "T", "T"]}
)
WIDE = pd.DataFrame({"T-1": [3, 2], "T-2": [1, 0]}, index=["a", "b"])
GENES = {"T-1": "T", "T-2": "T"}


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 6), st.sampled_from(["int64", "Int64", "float64"]))
def test_long_and_wide_tables_of_the_same_counts_are_the_same(seed, n_cells, n_features, dtype):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.8, (n_cells, n_features))
    cells, features = [f"cell{k}" for k in range(n_cells)], [f"f{k}" for k in range(n_features)]
    wide = pd.DataFrame(counts, cells, features).astype(dtype)
    genes = {name: f"g{k // 2}" for k, name in enumerate(features)}
    long = wide.rename_axis("barcode").reset_index().melt("barcode", var_name="isoform", value_name="reads")
    long["gene"] = long["isoform"].map(genes)
    long = long.sample(frac=1, random_state=int(seed % 1000))
    names = {"cell": "barcode", "feature": "isoform", "count": "reads"}
    obs = pd.DataFrame({"depth": counts.sum(1)}, index=cells)
    a = from_junctions(wide, genes=genes, obs=obs)
    b = from_junctions(long, columns=names, obs=obs)[:, features]
    np.testing.assert_array_equal(a.layers["counts"].toarray(), counts)
    np.testing.assert_array_equal(b.layers["counts"].toarray(), counts)
    assert list(a.var["gene_symbol"]) == list(b.var["gene_symbol"]) == list(genes.values())
    assert list(a.obs["depth"]) == list(counts.sum(1)) and list(a.obs_names) == cells


def test_real_junctions_come_back_from_a_long_table():
    adata = load_lung_junctions()[:400].copy()
    entries = sp.coo_matrix(adata.layers["counts"])
    long = pd.DataFrame(
        {"cell": adata.obs_names[entries.row], "feature": adata.var_names[entries.col], "count": entries.data}
    )
    read = from_junctions(long, genes=adata.var["usage_group"], obs=adata.obs)
    assert read.obs["cell_type"].equals(adata.obs["cell_type"])
    found = read[:, [name for name in adata.var_names if name in read.var_names]]
    assert (found.layers["counts"] != adata[:, found.var_names].layers["counts"]).nnz == 0
    model = SplisosmGLMM("glm")
    model.setup_data(read, design_mtx="compartment", missing="drop")
    assert set(model.gene_names) <= set(adata.var["usage_group"])


STAR_ROWS = [  # two introns of one start, one of the other strand, one by itself
    ["chr1", 101, 200, 1, 1, 1, 5, 0, 30],
    ["chr1", 101, 300, 1, 1, 0, 2, 1, 30],
    ["chr1", 101, 200, 2, 1, 1, 1, 0, 30],
    ["chr2", 500, 900, 0, 0, 0, 4, 0, 12],
]
NAMES = ["chr1:101-200:+", "chr1:101-300:+", "chr1:101-200:-", "chr2:500-900:?"]


def star(path, rows):
    pd.DataFrame(rows).to_csv(path, sep="\t", header=False, index=False)
    return path


def regtools(path, rows):
    """BED12 as regtools writes it, with overhangs of 10 and 20."""
    beds = []
    for k, (chromosome, start, end, strand, *_, count, _, _) in enumerate(rows):
        first, last = start - 1 - 10, end + 20
        sizes, starts = "10,20", f"0,{end - first}"
        beds.append([chromosome, first, last, f"J{k}", count, "?+-"[strand], first, last, "255,0,0", 2, sizes, starts])
    pd.DataFrame(beds).to_csv(path, sep="\t", header=False, index=False)
    return path


def test_files_of_star_and_regtools_give_the_same_introns(tmp_path):
    rows, fewer = STAR_ROWS, STAR_ROWS[1:3]
    by_star = {"s1": star(tmp_path / "1.tab", rows), "s2": star(tmp_path / "2.tab", fewer)}
    by_regtools = {"s1": regtools(tmp_path / "1.bed", rows), "s2": str(regtools(tmp_path / "2.bed", fewer))}
    expected = [[5, 2, 1, 4], [0, 2, 1, 0]]
    for files in (by_star, by_regtools):
        adata = from_junctions(files)
        assert list(adata.obs_names) == ["s1", "s2"] and list(adata.var_names) == NAMES
        np.testing.assert_array_equal(adata.layers["counts"].toarray(), expected)
        assert list(adata.var["start"]) == [101, 101, 101, 500] and list(adata.var["strand"]) == ["+", "+", "-", "?"]
        assert adata.var["gene_symbol"].equals(adata.var["cluster"])
        assert list(adata.var["cluster"]) == ["chr1:101-300:+", "chr1:101-300:+", "chr1:101-200:-", "chr2:500-900:?"]
    named = from_junctions(by_star, genes=dict.fromkeys(NAMES[:3], "G") | {NAMES[3]: ""})
    assert list(named.var["gene_symbol"]) == ["G", "G", "G", ""]
    assert list(named.var["cluster"]) == list(adata.var["cluster"])


def test_a_sample_without_junctions_has_zeros(tmp_path):
    (tmp_path / "none.tab").touch()
    adata = from_junctions({"s1": star(tmp_path / "1.tab", STAR_ROWS), "s2": tmp_path / "none.tab"})
    np.testing.assert_array_equal(adata.layers["counts"].toarray()[1], 0)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("level", ["", "raw", "SJ/raw", "Solo.out/SJ/raw"])
def test_folders_of_starsolo(tmp_path, level, zipped):
    folder = tmp_path / level
    folder.mkdir(parents=True, exist_ok=True)
    counts = np.array([[1, 0, 2, 0], [0, 3, 0, 0], [0, 0, 0, 0]])
    end, opened = (".gz", gzip.open) if zipped else ("", open)
    with opened(folder / f"matrix.mtx{end}", "wb") as file:
        scipy.io.mmwrite(file, sp.coo_matrix(counts.T))
    with opened(folder / f"barcodes.tsv{end}", "wt") as file:
        file.write("AA\nAC\nAG\n")
    with opened(folder / f"features.tsv{end}", "wt") as file:
        file.write("\n".join("\t".join(map(str, row)) for row in STAR_ROWS))
    adata = from_junctions(tmp_path)
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), counts)
    assert list(adata.obs_names) == ["AA", "AC", "AG"] and list(adata.var_names) == NAMES
    assert list(adata.var["annotated"]) == [1, 0, 1, 0]
    with pytest.raises(InvalidArgumentError, match="obs: expected a row for every cell with counts"):
        from_junctions(tmp_path, obs=pd.DataFrame(index=["AA", "AC"]))


@given(st.integers(0, 2**32 - 1), st.integers(0, 12))
def test_clusters_are_introns_tied_by_sites(seed, n_introns):
    """Against a search that joins whatever shares a site until nothing changes."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "chromosome": rng.choice(["1", "2"], n_introns),
            "start": rng.integers(1, 5, n_introns),
            "end": rng.integers(6, 10, n_introns),
            "strand": rng.choice(["+", "-"], n_introns),
        }
    )
    table = table.drop_duplicates(ignore_index=True)
    labels = list(range(len(table)))
    for _ in labels:
        for i, one in table.iterrows():
            for j, other in table.iterrows():
                alike = one["chromosome"] == other["chromosome"] and one["strand"] == other["strand"]
                if alike and (one["start"] == other["start"] or one["end"] == other["end"]):
                    labels[i] = labels[j] = min(labels[i], labels[j])
    found = intron_clusters(table)
    assert len(set(found)) == len(set(labels)) == len(set(zip(found, labels, strict=True)))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (LONG.drop(columns="gene"), {}, "genes: expected them, or a column 'gene' of the table, found neither"),
        (LONG, {"genes": GENES}, "found both"),
        (LONG.assign(count=[1, 2.5, 3]), {}, r"found 1 others \(first: 2.5, cell 'a', feature 'T-2'\)"),
        (LONG.assign(count=[1, -2, 3]), {}, "first: -2"),
        (LONG.assign(count=[1, np.nan, 3]), {}, "first: nan"),
        (LONG.assign(count=["1", "2", "x"]), {}, "source: column 'count': expected numbers"),
        (LONG.assign(cell=["a", None, "b"]), {}, "source, cell: column 'cell': expected a label everywhere"),
        (LONG.assign(gene=["T", "T", "U"]), {}, r"one gene a feature, found \['T', 'U'\] of 'T-1'"),
        (pd.concat([LONG, LONG.iloc[:1]]), {}, r"one row a cell and feature, found several of \('a', 'T-1'\)"),
        (LONG, {"columns": {"barcode": "cell"}}, "columns: expected roles among"),
        (LONG, {"columns": {"cell": "spot"}}, "columns: expected a long table with"),
        (LONG, {"columns": "cell"}, "columns: expected names by role"),
        (LONG, {"obs": pd.DataFrame(index=["a"])}, "found none for 1 of 2 .first: 'b'"),
        (LONG, {"obs": pd.DataFrame(index=["a", "a", "b"])}, "obs: expected unique names"),
        (LONG, {"obs": ["a", "b"]}, "obs: expected a DataFrame by cell"),
        (LONG, {"spatial": ("x", "y")}, "spatial: expected obs beside it"),
        (LONG, {"obs": pd.DataFrame({"x": [1, 2]}, ["a", "b"]), "spatial": ("x", "y")}, r"obs has no \['y'\]"),
        (LONG, {"obs": pd.DataFrame({"x": [1, 2]}, ["a", "b"]), "spatial": "x"}, "spatial: expected columns of obs"),
        (WIDE, {}, "genes: expected the gene of each feature of a wide table"),
        (WIDE, {"genes": {"T-1": "T"}}, "found none for 1 .first: 'T-2'"),
        (WIDE, {"genes": ["T", "T"]}, "genes: expected a dict or Series by feature, found list"),
        (WIDE, {"genes": pd.Series(["T"] * 3, ["T-1", "T-2", "T-1"])}, "genes: expected unique names"),
        (WIDE.set_axis(["T-1", "T-1"], axis=1), {"genes": GENES}, "source.columns: expected unique names"),
        (WIDE.set_axis(["a", "a"]), {"genes": GENES}, "source, cells: expected unique names"),
        (WIDE.astype(float).replace(3.0, np.nan), {"genes": GENES}, "found 1 NaN or infinite"),
        (3, {}, "source: expected a DataFrame, a folder or files by sample, found int"),
        ({}, {}, "expected a file for each sample, found none"),
        ({"s": "nowhere.tab"}, {}, "expected a file of junctions, found none"),
    ],
)
def test_what_does_not_fit_is_refused(source, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        from_junctions(source, **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chr1\t5\t9\n", "expected the 9 columns of STAR's SJ.out.tab or 12 of regtools' BED, found 3"),
        ("chr1\t5\t9\t7\t0\t0\t1\t0\t3\n", "expected strands 0, 1 or 2, found '7'"),
        ("chr1\t5\tx\t1\t0\t0\t1\t0\t3\n", "x.tab: expected whole numbers"),
        ("chr1\t5\t9\t1\t0\t0\t1\t0\t3\n" * 2, "junction 'chr1:5-9:[+]' stands more than once"),
        ("chr1\t5\t90\tJ\t3\t+\t5\t90\t0\t3\t1,2,3\t0,9,20\n", "expected two blocks a junction"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, text, message):
    (tmp_path / "x.tab").write_text(text)
    with pytest.raises(InvalidArgumentError, match=message):
        from_junctions({"s": tmp_path / "x.tab"})
    with pytest.raises(InvalidArgumentError, match="expected SJ/raw of STARsolo"):
        from_junctions(tmp_path)


@pytest.mark.parametrize("obs", [None, pd.DataFrame(index=["a", "b"])])
@pytest.mark.parametrize("empty", [LONG[:0], WIDE[:0], WIDE.iloc[:, :0], "sample"])
def test_what_has_no_cell_or_no_feature_is_refused(empty, obs, tmp_path):
    genes = GENES if empty is not LONG[:0] and isinstance(empty, pd.DataFrame) and "gene" not in empty else None
    if isinstance(empty, str):
        (tmp_path / "a.SJ.out.tab").write_text("")
        empty = {"a": tmp_path / "a.SJ.out.tab"}
    with pytest.raises(InvalidArgumentError, match=r"at least one cell and one feature, found|a\.SJ\.out\.tab"):
        from_junctions(empty, genes=genes, obs=obs)
