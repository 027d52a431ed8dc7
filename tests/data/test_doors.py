"""Doors to what loaders of the field give: Visium folders and AnnData, SpatialData objects. Right, or refused."""

import gzip
import json
import sys
from types import SimpleNamespace

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
import xarray as xr

from pyrosplice import SplisosmGLMM, spatially_variable_genes
from pyrosplice.data import from_spatialdata, from_visium
from pyrosplice.errors import InvalidArgumentError

BARCODES = [f"AAAC{k:04d}-1" for k in range(12)]
GENES = [f"ENSG{k:02d}" for k in range(5)]
SYMBOLS = ["TPM1", "TPM1", "MYL6", "ACTB", "CD3"]
TYPES = ["Gene Expression"] * 4 + ["Antibody Capture"]


def table_of_counts(seed=0):
    return np.random.default_rng(seed).poisson(1.5, (len(BARCODES), len(GENES)))


def positions(barcodes=BARCODES, outside=()):
    """All spots of the array, in another order than the counts, with one that has no counts."""
    rows = [
        (b, int(b not in outside), k // 4, k % 4, 100 * (k // 4) + 7, 10 * (k % 4))
        for k, b in enumerate([*barcodes, "TTTT-1"])
    ]
    names = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
    return pd.DataFrame(rows, columns=names).iloc[::-1]


def write_h5(path, counts, *, old=False, barcodes=BARCODES):
    matrix = sp.csc_matrix(counts.T)
    with h5py.File(path, "w") as file:
        group = file.create_group("GRCh38" if old else "matrix")
        for part in ("data", "indices", "indptr"):
            group[part] = getattr(matrix, part)
        group["shape"], group["barcodes"] = matrix.shape, np.array(barcodes, dtype="S")
        if old:
            group["genes"], group["gene_names"] = np.array(GENES, dtype="S"), np.array(SYMBOLS, dtype="S")
        else:
            features = group.create_group("features")
            features["id"], features["name"] = np.array(GENES, dtype="S"), np.array(SYMBOLS, dtype="S")
            features["feature_type"] = np.array(TYPES, dtype="S")
            features["genome"] = np.array(["GRCh38"] * 5, dtype="S")


def write_mtx(folder, counts, *, zipped, old=False):
    folder.mkdir()
    end, opened = (".gz", gzip.open) if zipped else ("", open)
    with opened(folder / f"matrix.mtx{end}", "wb") as file:
        scipy.io.mmwrite(file, sp.coo_matrix(counts.T))
    rows = [GENES, SYMBOLS] if old else [GENES, SYMBOLS, TYPES]
    with opened(folder / f"{'genes' if old else 'features'}.tsv{end}", "wt") as file:
        file.write("\n".join("\t".join(row) for row in zip(*rows, strict=True)))
    with opened(folder / f"barcodes.tsv{end}", "wt") as file:
        file.write("\n".join(BARCODES))


def write_positions(folder, table=None, layout="new"):
    table = positions() if table is None else table
    (folder / "spatial").mkdir(exist_ok=True)
    if layout == "new":
        table.to_csv(folder / "spatial" / "tissue_positions.csv", index=False)
    elif layout == "old":
        table.to_csv(folder / "spatial" / "tissue_positions_list.csv", index=False, header=False)
    else:
        table.to_parquet(folder / "spatial" / "tissue_positions.parquet")
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps({"tissue_hires_scalef": 0.2}))


@pytest.fixture
def outs(tmp_path):
    folder = tmp_path / "outs"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("layout", ["new", "old", "parquet"])
@pytest.mark.parametrize("kind", ["h5", "old h5", "mtx", "zipped mtx", "old mtx"])
def test_every_layout_of_a_folder_gives_the_same_spots(outs, layout, kind):
    if layout == "parquet":
        pytest.importorskip("pyarrow")
    counts = table_of_counts()
    if kind.endswith("h5"):
        write_h5(outs / "filtered_feature_bc_matrix.h5", counts, old=kind.startswith("old"))
    else:
        inside = outs / "filtered_feature_bc_matrix"
        write_mtx(inside, counts, zipped=kind == "zipped mtx", old=kind.startswith("old"))
    write_positions(outs, layout=layout)
    adata = from_visium(outs, feature_type=None if not kind.startswith("old") else "Gene Expression")
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), counts)
    assert np.issubdtype(adata.layers["counts"].dtype, np.integer)
    assert list(adata.obs_names) == BARCODES and list(adata.var_names) == GENES
    assert list(adata.var["gene_symbol"]) == SYMBOLS
    expected = positions().set_index("barcode").loc[BARCODES]
    np.testing.assert_array_equal(adata.obsm["spatial"][:, 0], expected["pxl_col_in_fullres"])
    np.testing.assert_array_equal(adata.obsm["spatial"][:, 1], expected["pxl_row_in_fullres"])
    assert adata.obs["in_tissue"].dtype == bool and list(adata.obs["array_row"]) == list(expected["array_row"])
    assert adata.uns["spatial"]["outs"]["scalefactors"] == {"tissue_hires_scalef": 0.2}


def test_other_kinds_of_features_are_left_out_aloud(outs):
    write_h5(outs / "filtered_feature_bc_matrix.h5", table_of_counts())
    write_positions(outs)
    with pytest.warns(UserWarning, match="only 'Gene Expression' is kept; left out: 1 'Antibody Capture'"):
        adata = from_visium(outs, library_id="brain")
    assert adata.n_vars == 4 and list(adata.uns["spatial"]) == ["brain"]
    assert from_visium(outs, feature_type=None).n_vars == 5
    with pytest.raises(InvalidArgumentError, match="feature_type: expected one of 'Antibody Capture', 'Gene Expr"):
        from_visium(outs, feature_type="Peaks")


def test_spots_outside_of_the_tissue_are_left_out_aloud(outs):
    write_h5(outs / "raw_feature_bc_matrix.h5", table_of_counts())
    write_positions(outs, positions(outside=BARCODES[:3]))
    with pytest.warns(UserWarning, match="in_tissue: 3 of 12 spots are not under tissue and are left out"):
        adata = from_visium(outs, counts="raw", feature_type=None)
    assert list(adata.obs_names) == BARCODES[3:]
    assert from_visium(outs, counts="raw", in_tissue=False, feature_type=None).n_obs == 12
    with pytest.raises(InvalidArgumentError, match=r"expected filtered_feature_bc_matrix.h5 or a folder"):
        from_visium(outs)


def test_images_are_read_where_they_are(outs):
    plt = pytest.importorskip("matplotlib.pyplot")
    write_h5(outs / "filtered_feature_bc_matrix.h5", table_of_counts())
    write_positions(outs)
    plt.imsave(outs / "spatial" / "tissue_lowres_image.png", np.zeros((6, 8, 3)))
    library = from_visium(outs, feature_type=None).uns["spatial"]["outs"]
    assert list(library["images"]) == ["lowres"] and library["images"]["lowres"].shape[:2] == (6, 8)
    assert from_visium(outs, feature_type=None, images=False).uns["spatial"]["outs"]["images"] == {}


def test_without_pyarrow_its_file_says_so(outs, monkeypatch):
    write_h5(outs / "filtered_feature_bc_matrix.h5", table_of_counts())
    (outs / "spatial").mkdir()
    (outs / "spatial" / "tissue_positions.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidArgumentError, match="reading it needs pyarrow"):
        from_visium(outs)


def spoiled_positions(name):
    table = positions().reset_index(drop=True)
    if name == "missing barcode":
        return table[table["barcode"] != BARCODES[4]], "found none for 1 of 12 .*AAAC0004-1"
    if name == "twice":
        return pd.concat([table, table.iloc[:1]]), "barcode 'TTTT-1' stands more than once"
    if name == "no column":
        return table.drop(columns="array_row"), r"found no \['array_row'\]"
    if name == "no number":
        return table.astype({"pxl_row_in_fullres": object}).replace(
            {"pxl_row_in_fullres": {7: "?"}}
        ), "numbers for every"
    return table.assign(in_tissue=[2, *[1] * 12][::-1]), "in_tissue: expected 0 or 1 for every spot, found 1 of 12"


@pytest.mark.parametrize("name", ["missing barcode", "twice", "no column", "no number", "in tissue"])
def test_positions_that_do_not_fit_are_refused(outs, name):
    table, message = spoiled_positions(name)
    if name == "in tissue":
        table.loc[table["barcode"] == BARCODES[0], "in_tissue"] = 2
        table.loc[table["barcode"] == "TTTT-1", "in_tissue"] = 1
    write_h5(outs / "filtered_feature_bc_matrix.h5", table_of_counts())
    write_positions(outs, table)
    with pytest.raises(InvalidArgumentError, match=message):
        from_visium(outs)


def test_folders_that_are_none_are_refused(outs, tmp_path):
    cases = [
        (tmp_path / "none", {}, "expected a folder of Space Ranger, found none"),
        (outs, {"layer": "counts"}, "layer: it says nothing of a folder"),
        (3, {}, "expected a folder or an AnnData, found int"),
        (outs, {"library_id": ""}, "library_id: expected a word without '/'"),
        (outs, {"library_id": "a/b"}, "library_id: expected a word without '/'"),
        (outs, {"counts": "all"}, "counts: expected one of 'filtered', 'raw'"),
    ]
    for source, options, message in cases:
        with pytest.raises(InvalidArgumentError, match=message):
            from_visium(source, **options)
    (outs / "binned_outputs" / "square_008um").mkdir(parents=True)
    with pytest.raises(InvalidArgumentError, match=r"bins of Visium HD: give the folder of one, .*square_008um"):
        from_visium(outs)
    (outs / "filtered_feature_bc_matrix.h5").write_text("no")
    with pytest.raises(InvalidArgumentError, match="expected an HDF5 file"):
        from_visium(outs)


def scanpys(n_libraries=1):
    adata = anndata.AnnData(sp.csr_matrix(table_of_counts(), dtype=np.float32))
    adata.obs_names, adata.var_names = BARCODES, SYMBOLS
    adata.var["gene_ids"] = GENES
    adata.obs["in_tissue"] = 1
    adata.obs["library"] = pd.Categorical([f"lib{k % n_libraries}" for k in range(12)])
    adata.obsm["spatial"] = positions().set_index("barcode").loc[BARCODES].iloc[:, [-1, -2]].to_numpy()
    adata.uns["spatial"] = {f"lib{k}": {"images": {}, "scalefactors": {}} for k in range(n_libraries)}
    return adata


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_the_anndata_of_scanpy_has_ids_as_names_and_is_not_changed():
    given = scanpys()
    read = from_visium(given)
    assert list(read.var_names) == GENES and list(read.var["gene_symbol"]) == SYMBOLS
    np.testing.assert_array_equal(read.layers["counts"].toarray(), table_of_counts())
    assert list(given.var_names) == SYMBOLS and "counts" not in given.layers and "gene_symbol" not in given.var
    assert spatially_variable_genes(read, layer="counts", size_factors=None, k_neighbors=3).shape[0] == 5


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda a: a.obs.__setitem__("in_tissue", [1.0] * 11 + [np.nan]), {}, "found 1 of 12 with another value"),
        (lambda a: a.obsm.pop("spatial"), {}, r"obsm has no 'spatial'.*spatial_key=\('x', 'y'\)"),
        (lambda a: a.var.pop("gene_ids"), {}, r"adata.var_names: expected unique names"),
        (lambda a: a.X.data.__setitem__(0, 0.5), {}, "found 1 non-integer"),
        (lambda a: a.obsm.__setitem__("spatial", np.full((12, 2), np.nan)), {}, "expected finite coordinates"),
        (lambda a: None, {"library_key": "slide"}, "library_key: no column 'slide'"),
        (lambda a: a.obs.__setitem__("library", "other"), {"library_key": "library"}, r"has \['other'\], not in"),
        (lambda a: a.uns["spatial"].update(lib1={}), {}, "has 2 libraries.*name the column of obs"),
        (lambda a: None, {"counts": "raw"}, "counts: it says nothing of an AnnData"),
        (lambda a: None, {"layer": "raw"}, "layer: adata.layers has no 'raw'"),
        (lambda a: None, {"feature_type": "Peaks"}, "kinds of features are not known"),
        (
            lambda a: a.var.__setitem__("gene_ids", [*GENES[:-1], None]),
            {},
            "'gene_ids'.: expected it of every",
        ),
        (lambda a: a.var.__setitem__("gene_ids", [*GENES[:-1], " "]), {}, "found none of 1 of 5"),
        (lambda a: a.var.__setitem__("feature_types", [None, *["x"] * 4]), {}, "'feature_types'.*type=None"),
        (lambda a: a.obs.__setitem__("in_tissue", 0), {}, "none of 12 spots is under tissue"),
    ],
)
def test_an_anndata_that_does_not_fit_is_refused(spoil, options, message):
    adata = scanpys()
    spoil(adata)
    with pytest.raises(InvalidArgumentError, match=message):
        from_visium(adata, **options)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_libraries_are_sections():
    read = from_visium(scanpys(3), library_key="library")
    assert list(read.obs["library"].cat.categories) == ["lib0", "lib1", "lib2"]


class Scaled:
    """A transformation as spatialdata has them."""

    def to_affine_matrix(self, given, wanted):
        assert given == wanted == ("x", "y")
        return np.array([[2.0, 0, 1], [0, 3.0, 0], [0, 0, 1]])


class Points:
    """Geometries as geopandas has them, points in the plane."""

    def __init__(self, x, y):
        self.x, self.y, self.has_z = np.asarray(x, float), np.asarray(y, float), np.zeros(len(x), bool)

    @property
    def centroid(self):
        return self


def circles(ids, x, y):
    return SimpleNamespace(geometry=Points(x, y), index=pd.Index(ids), attrs={"transform": {"global": Scaled()}})


def stand_in(ids=(1, 2, 3, 4), regions=("a", "a", "b", "b")):
    adata = anndata.AnnData(np.arange(12.0).reshape(4, 3))
    adata.obs_names, adata.var_names = list("wxyz"), ["g1", "g2", "g3"]
    adata.obs["where"], adata.obs["id"] = pd.Categorical(regions), list(ids)
    adata.uns["spatialdata_attrs"] = {"region": ["a", "b"], "region_key": "where", "instance_key": "id"}
    image = np.zeros((4, 5), int)
    image[0, :2], image[2:, 3] = 3, 4
    labels = xr.DataArray(image, dims=("y", "x"), coords={"y": np.arange(4) + 0.5, "x": np.arange(5) + 0.5})
    labels.attrs["transform"] = {"global": Scaled()}
    return SimpleNamespace(
        tables={"table": adata}, shapes={"a": circles([2, 1, 9], [5, 6, 7], [8, 9, 0])}, labels={"b": labels}, points={}
    )


def test_positions_are_centers_of_shapes_and_labels_by_instance():
    adata = from_spatialdata(stand_in())
    np.testing.assert_allclose(adata.obsm["spatial"], [[6, 9], [5, 8], [1, 0.5], [3.5, 3]])
    assert adata.layers["counts"].dtype == np.int32 and list(adata.obs["where"].cat.categories) == ["a", "b"]
    moved = from_spatialdata(stand_in(), coordinate_system="global")
    np.testing.assert_allclose(moved.obsm["spatial"], adata.obsm["spatial"] * [2, 3] + [1, 0])
    one = from_spatialdata(stand_in(), region="b", spatial_key="centers")
    np.testing.assert_allclose(one.obsm["centers"], [[1, 0.5], [3.5, 3]])
    assert list(one.obs_names) == ["y", "z"] and "spatial" not in one.obsm
    twice = from_spatialdata(stand_in(), region=["b", "a", "b"])
    assert list(twice.obs["where"].cat.categories) == ["b", "a"] and list(twice.obs_names) == list("wxyz")


def test_labels_of_several_scales_are_read_at_the_first():
    sdata = stand_in()
    labels = sdata.labels["b"]
    scales = {"scale0": xr.Dataset({"image": labels}), "scale1": xr.Dataset({"image": labels[::2, ::2]})}
    sdata.labels["b"] = xr.DataTree.from_dict(scales)
    np.testing.assert_allclose(from_spatialdata(sdata).obsm["spatial"], from_spatialdata(stand_in()).obsm["spatial"])


def test_coordinates_of_the_table_are_kept_where_they_are_the_same():
    sdata = stand_in()
    centers = from_spatialdata(sdata).obsm["spatial"]
    sdata.tables["table"].obsm["spatial"] = centers * (1 + 1e-9)
    np.testing.assert_array_equal(from_spatialdata(sdata).obsm["spatial"], centers)
    sdata.tables["table"].obsm["spatial"] = centers + 1
    with pytest.raises(InvalidArgumentError, match="other coordinates in obsm"):
        from_spatialdata(sdata)
    assert set(from_spatialdata(sdata, spatial_key="centers").obsm) == {"spatial", "centers"}


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda s: None, {"table": "cells"}, r"table: expected one of the tables \['table'\], found 'cells'"),
        (lambda s: s.tables.update(other=s.tables["table"]), {}, r"table: sdata has several, \['other', 'table'\]"),
        (lambda s: s.tables.clear(), {}, "expected a table, found none"),
        (lambda s: s.tables["table"].uns.clear(), {}, "annotates no element"),
        (lambda s: None, {"region": "c"}, "region: expected regions of table 'table', some of .*found 'c'"),
        (lambda s: None, {"region": []}, r"region: expected some of \['a', 'b'\], found none"),
        *[(lambda s: None, {"spatial_key": key}, "spatial_key: expected a word") for key in (3, "", "a/b", ("x", "y"))],
        (
            lambda s: s.shapes.update(a=circles([1, 2], [0, np.nan], [0, 1])),
            {},
            "'a': expected finite centers, found 1 of 2 without .first: instance '2'",
        ),
        (lambda s: s.points.update(a=pd.DataFrame({"u": [1.0]})) or s.shapes.clear(), {}, r"x and y, found \['u'\]"),
        (lambda s: s.shapes.clear(), {}, "annotates 'a', which sdata lacks; it has"),
        (lambda s: None, {"coordinate_system": "mm"}, r"one of region 'a': \['global'\], found 'mm'"),
        (lambda s: s.tables["table"].obs.__setitem__("id", [1, 8, 3, 4]), {}, "1 of 2 instances .* not in it .*'8'"),
        (
            lambda s: s.tables["table"].obs.__setitem__("id", [1, 1, 3, 4]),
            {},
            "instance '1' of region 'a'",
        ),
        (
            lambda s: s.shapes.update(a=circles([1, 1, 2], [0, 1, 2], [0, 1, 2])),
            {},
            "'1' stands more than once",
        ),
        (lambda s: setattr(s.shapes["a"].geometry, "has_z", np.ones(3, bool)), {}, "in the plane, found some with z"),
        (lambda s: s.labels.update(b=s.labels["b"].expand_dims("z")), {}, "labels in the plane, found dims"),
        (lambda s: s.tables["table"].X.__setitem__((0, 0), 0.5), {}, "non-integer"),
    ],
)
def test_objects_that_do_not_fit_are_refused(spoil, options, message):
    sdata = stand_in()
    spoil(sdata)
    with pytest.raises(InvalidArgumentError, match=message):
        from_spatialdata(sdata, **options)


@pytest.mark.parametrize("given", ["file.zarr", None, anndata.AnnData(np.ones((2, 2)))])
def test_what_is_no_spatialdata_is_refused(given):
    with pytest.raises(InvalidArgumentError, match="sdata: expected a SpatialData, found"):
        from_spatialdata(given)


def test_the_package_itself_agrees_on_centers():
    spatialdata = pytest.importorskip("spatialdata", reason="compares with spatialdata.get_centroids")
    sdata = spatialdata.datasets.blobs()
    table = sdata.tables["table"]
    table.layers["counts"] = np.ones(table.shape)
    name = table.uns["spatialdata_attrs"]["region"]
    expected = spatialdata.get_centroids(sdata[name]).compute().loc[table.obs["instance_id"], ["x", "y"]]
    np.testing.assert_allclose(from_spatialdata(sdata).obsm["spatial"], expected)


def test_what_a_door_gives_goes_into_a_model():
    adata = scanpys()
    adata.var_names = GENES
    adata.var["gene_symbol"] = SYMBOLS
    read = from_visium(adata)
    model = SplisosmGLMM(k_neighbors=3, graph="connected")
    model.setup_data(read, min_counts=1)
    assert model.gene_names == ["TPM1"] and model.n_spots == 12
