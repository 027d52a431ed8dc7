"""Small sets of real counts: what they hold, that nobody can spoil them, and that they travel with their licenses."""

import tomllib
import zipfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from pyrosplice import data
from pyrosplice.data._packed import ABOUT, counts_of, packed_counts, set_names
from pyrosplice.errors import InvalidArgumentError
from tests.paths import shared

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "pyrosplice" / "data" / "sets"
LOADERS = {
    "allele_counts": (data.load_allele_counts, (952, 800), "vireo_allele_counts"),
    "breast_sections": (data.load_breast_sections, (1031, 1521), "paste_breast_4sections"),
    "bulb_families": (data.load_bulb_families, (260, 110), "mob_rep11_families"),
    "glioblastoma": (data.load_glioblastoma, (5000, 300), "glioblastoma_5patients"),
    "lung_junctions": (data.load_lung_junctions, (25054, 35), "lung_junctions_spliz"),
}
MOST_BYTES = 2_000_000


def raw_counts(adata):
    return sp.csr_matrix(adata.layers.get("counts", adata.X))


@pytest.mark.parametrize("name", LOADERS)
def test_counts_names_and_source_are_there(name):
    load, shape, _ = LOADERS[name]
    adata = load()
    counts = adata.layers["counts"]
    assert adata.shape == shape and sp.isspmatrix_csr(counts) and counts.dtype == np.int32
    assert counts.has_canonical_format and counts.data.min() > 0
    assert adata.X.dtype == np.float32 and (counts != adata.X).nnz == 0
    assert adata.obs_names.is_unique and adata.var_names.is_unique
    assert adata.var["gene_symbol"].ne("").all()
    assert all(isinstance(adata.uns[key], str) and adata.uns[key] for key in (*ABOUT, "license_text"))
    assert adata.uns["license"] in ("MIT", "BSD-3-Clause", "Apache-2.0")
    assert adata.uns["commit"] in load.__doc__ and adata.uns["repository"] in load.__doc__
    assert all(
        isinstance(adata.obs[column].dtype, pd.CategoricalDtype) or np.issubdtype(adata.obs[column].dtype, np.integer)
        for column in adata.obs
    )


@pytest.mark.parametrize("name", LOADERS)
def test_sets_are_as_in_the_files_that_they_were_made_of(name):
    load, _, file = LOADERS[name]
    adata, source = load(), anndata.read_h5ad(shared("data", f"{file}.h5ad"))
    assert (adata.layers["counts"] != raw_counts(source)).nnz == 0
    assert list(adata.obs_names) == list(source.obs_names) and list(adata.var_names) == list(source.var_names)
    renamed = {"section": "slice", "total_counts": "total"} if name == "breast_sections" else {}
    for axis in ("obs", "var"):
        own, theirs = getattr(adata, axis), getattr(source, axis)
        for column in own.columns.difference(["gene_symbol"] if name == "breast_sections" else []):
            expected = theirs[renamed.get(column, column)]
            assert own[column].astype(str).tolist() == expected.astype(str).tolist(), column
    assert set(adata.obsm) == set(source.obsm)
    for key in adata.obsm:
        np.testing.assert_array_equal(adata.obsm[key], source.obsm[key])


@pytest.mark.parametrize("name", LOADERS)
def test_what_is_done_to_one_copy_is_not_seen_in_the_next(name):
    load = LOADERS[name][0]
    first, expected = load(), load()
    first.X.data[:] = -1
    first.layers["counts"].data[:] = 0
    first.layers["counts"].indices[:] = 0
    first.obs["new"], first.uns["title"] = 1, "mine"
    for column in first.obs.select_dtypes("number"):
        first.obs[column] = 0
        first.obs.loc[first.obs_names[0], column] = 7
    for key in first.obsm:
        first.obsm[key][:] = 0
    again = load()
    assert (again.layers["counts"] != expected.layers["counts"]).nnz == 0 and (again.X != expected.X).nnz == 0
    pd.testing.assert_frame_equal(again.obs, expected.obs)
    assert again.uns["title"] == expected.uns["title"]
    for key in again.obsm:
        np.testing.assert_array_equal(again.obsm[key], expected.obsm[key])


def test_every_set_has_a_loader_a_source_and_a_license_and_all_are_small():
    assert set_names() == sorted(LOADERS)
    table = data.available_sets()
    assert list(table.index) == set_names() and all(hasattr(data, f"load_{name}") for name in table.index)
    for name in set_names():
        said = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
        assert set(said) == set(ABOUT)
        text = (FOLDER / f"{name}.LICENSE").read_text(encoding="utf-8")
        assert "Copyright" in text and text == table.loc[name, "license_text"]
        words = {"MIT": "free of charge", "BSD-3-Clause": "Redistribution and use", "Apache-2.0": "Apache License"}
        assert words[table.loc[name, "license"]] in text
    files = [path for path in FOLDER.iterdir() if path.name != "__pycache__"]
    assert {path.suffix for path in files} == {".npz", ".toml", ".LICENSE"} and len(files) == 3 * len(LOADERS)
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


def test_families_of_the_breast_are_whole_and_named_as_genes():
    everything, families = data.load_breast_sections(), data.load_breast_sections(families=True)
    members = everything.var["family"] != ""
    assert families.shape == (1031, int(members.sum())) == (1031, 112)
    assert (families.layers["counts"] != everything.layers["counts"][:, members.to_numpy()]).nnz == 0
    assert families.var["gene_symbol"].equals(families.var["family"]) and families.var["family"].nunique() == 33
    assert list(everything.var["gene_symbol"]) == list(everything.var_names)
    with pytest.raises(InvalidArgumentError, match="families: expected one of False, True, found 'yes'"):
        data.load_breast_sections(families="yes")


@given(st.integers(0, 2**32 - 1), st.integers(0, 7), st.integers(0, 300), st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_counts_come_back_as_they_were_packed(seed, n_rows, n_columns, density):
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 2**16, (n_rows, n_columns)) * (rng.random((n_rows, n_columns)) < density)
    stored = packed_counts(sp.csr_matrix(dense))
    np.testing.assert_array_equal(counts_of(stored).toarray(), dense)


@pytest.mark.parametrize("value", [2**16, -1, 1.5])
def test_numbers_that_do_not_fit_are_not_packed(value):
    with pytest.raises(OverflowError, match="whole numbers from 0 to 65,535"):
        packed_counts(sp.csr_matrix(np.array([[1.0, value]])))


def test_the_wheel_has_the_sets_with_their_licenses(tmp_path):
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="builds the wheel")
    path = next(wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    with zipfile.ZipFile(path) as archive:
        inside = set(archive.namelist())
        metadata = next(name for name in inside if name.endswith(".dist-info/METADATA"))
        said = archive.read(metadata).decode()
    assert {f"pyrosplice/data/sets/{file.name}" for file in FOLDER.iterdir()} <= inside
    assert "License-Expression: BSD-3-Clause AND MIT AND Apache-2.0" in said
    for name in LOADERS:
        assert any(entry.endswith(f"licenses/pyrosplice/data/sets/{name}.LICENSE") for entry in inside)
    assert Path(path).stat().st_size < 2 * MOST_BYTES
