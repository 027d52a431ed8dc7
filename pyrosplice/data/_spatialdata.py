"""The door for SpatialData objects: a table, with the centers of the shapes or labels that it annotates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from pyrosplice._tables.columns import one_column
from pyrosplice._tables.containers import as_dense
from pyrosplice._tables.labels import read_labels
from pyrosplice._tables.names import as_text, check_word, text_names
from pyrosplice.data._counts_layer import counted
from pyrosplice.errors import InvalidArgumentError, check_known, listed

ATTRS, PLANE = "spatialdata_attrs", ("x", "y")
SAME = 1e-6  # relative difference below which coordinates of a table and centers of its shapes are the same


class SpatialDataLike(Protocol):
    """What is read of a ``spatialdata.SpatialData``."""

    tables: Mapping[str, AnnData]
    shapes: Mapping[str, Any]
    labels: Mapping[str, Any]
    points: Mapping[str, Any]


def from_spatialdata(
    sdata: SpatialDataLike,
    *,
    table: str | None = None,
    region: str | Sequence[str] | None = None,
    coordinate_system: str | None = None,
    layer: str | None = None,
    spatial_key: str = "spatial",
) -> AnnData:
    """Read a table of a SpatialData object, with the position of each of its spots or cells.

    Positions are the centers of what the table annotates: shapes (circles, polygons: centroids), labels (the mean of an
    instance's pixels) or points. The package ``spatialdata`` itself is not needed.

    Parameters
    ----------
    sdata
        ``spatialdata.SpatialData``, read with ``spatialdata.read_zarr`` or a reader of spatialdata-io.
    table
        Name of the table; needed where there are several.
    region
        Elements whose spots are kept; by default all that the table annotates. Each is in coordinates of its own: give
        models the table's region column (``adata.uns["spatialdata_attrs"]["region_key"]``) as ``section_key``.
    coordinate_system
        Coordinate system that positions are transformed to, such as ``"global"``; by default the elements' own.
    layer
        Layer of the raw counts; by default ``layers["counts"]`` where there is one, else ``X``.
    spatial_key
        Where positions are written in ``obsm``. Other ones that the table has there already are not replaced.

    Returns
    -------
    AnnData
        The table, ``layers["counts"]`` whole numbers, ``obsm[spatial_key]`` x and y, the region a category of ``obs``.
        A copy in memory; what is not annotated by the table is left out.

    Raises
    ------
    InvalidArgumentError
        No such table, region or coordinate system; a table that annotates nothing; instances that the element lacks,
        that stand twice in a region or have no center; shapes or labels in three dimensions; entries that are no
        counts.

    Examples
    --------
    >>> import anndata, numpy as np, pandas as pd
    >>> from types import SimpleNamespace
    >>> from pyrosplice.data import from_spatialdata
    >>> obs = pd.DataFrame({"region": "spots", "spot_id": [7, 3]}, index=["a", "b"])
    >>> adata = anndata.AnnData(np.array([[1.0, 0], [2, 5]]), obs)
    >>> adata.uns["spatialdata_attrs"] = {"region": "spots", "region_key": "region", "instance_key": "spot_id"}
    >>> centers = pd.DataFrame({"x": [0.0, 4], "y": [1.0, 2]}, index=[3, 7])  # a SpatialData has circles, say
    >>> sdata = SimpleNamespace(tables={"table": adata}, shapes={}, labels={}, points={"spots": centers})
    >>> from_spatialdata(sdata).obsm["spatial"].tolist()
    [[4.0, 2.0], [0.0, 1.0]]
    """
    check_word("spatial_key", spatial_key)
    name, given = _table(sdata, table)
    attrs = given.uns.get(ATTRS)
    keys = ("region", "region_key", "instance_key")
    if not isinstance(attrs, Mapping) or any(attrs.get(key) is None for key in keys):
        raise InvalidArgumentError(
            f"table: {name!r} annotates no element (uns[{ATTRS!r}]), so that positions are not known; take "
            f"sdata.tables[{name!r}] itself, or link it (spatialdata.SpatialData.set_table_annotates_spatialelement)."
        )
    rows = one_column(given.obs, str(attrs["region_key"]), f"table {name!r}")
    labels = read_labels(rows, f"table {name!r}: obs[{attrs['region_key']!r}]")
    wanted = list(labels.levels) if region is None else list(dict.fromkeys(text_names(region, "region")))
    if not wanted:
        raise InvalidArgumentError(f"region: expected some of {list(labels.levels)}, found none.")
    for one in wanted:
        check_known("region", one, labels.levels, f"regions of table {name!r}, some of")
    kept = np.isin(labels.names, wanted)
    adata = counted(given if kept.all() else given[kept], layer)
    regions = labels.names[kept]
    adata.obs[str(attrs["region_key"])] = pd.Categorical(regions, wanted)
    instances = as_text(pd.Index(one_column(adata.obs, str(attrs["instance_key"]), f"table {name!r}")))
    places = np.empty((adata.n_obs, 2))
    for one in wanted:
        own = regions == one
        places[own] = _places(sdata, one, instances[own], coordinate_system)
    _write(adata, spatial_key, places)
    return adata


def _table(sdata: SpatialDataLike, name: str | None) -> tuple[str, AnnData]:
    tables = getattr(sdata, "tables", None)
    if not isinstance(tables, Mapping) or not hasattr(sdata, "shapes"):
        hint = "; spatialdata.read_zarr reads a file" if isinstance(sdata, str) else ""
        raise InvalidArgumentError(f"sdata: expected a SpatialData, found {type(sdata).__name__}{hint}.")
    if not tables:
        raise InvalidArgumentError("sdata: expected a table, found none; counts are in tables.")
    if name is None and len(tables) > 1:
        raise InvalidArgumentError(f"table: sdata has several, {sorted(tables)}; name one.")
    name = next(iter(tables)) if name is None else name
    check_known("table", name, list(tables), "one of the tables")
    return name, tables[name]


def _places(sdata: SpatialDataLike, region: str, instances: pd.Index, system: str | None) -> NDArray[np.float64]:
    """Centers ``(n, 2)`` of some instances of an element."""
    centers, transforms = _centers(sdata, region)
    if not centers.index.is_unique:
        raise InvalidArgumentError(
            f"region {region!r}: instance {centers.index[centers.index.duplicated()][0]!r} stands more than once in it."
        )
    if not instances.is_unique:
        twice = instances[instances.duplicated()][0]
        raise InvalidArgumentError(f"table: instance {twice!r} of region {region!r} stands in more than one row.")
    absent = instances[~instances.isin(centers.index)]
    if len(absent):
        raise InvalidArgumentError(
            f"region {region!r}: {len(absent)} of {len(instances)} instances of the table are not in it (first: "
            f"{absent[0]!r}); it has {listed(centers.index, near=str(absent[0]))}."
        )
    points = centers.loc[instances].to_numpy(dtype=np.float64)
    unknown = np.flatnonzero(~np.isfinite(points).all(1))
    if len(unknown):
        raise InvalidArgumentError(
            f"region {region!r}: expected finite centers, found {len(unknown)} of {len(points)} without (first: "
            f"instance {instances[unknown[0]]!r}); is its geometry empty?"
        )
    if system is None:
        return points
    check_known("coordinate_system", system, list(transforms), f"one of region {region!r}:")
    affine = np.asarray(transforms[system].to_affine_matrix(PLANE, PLANE), dtype=np.float64)
    return points @ affine[:2, :2].T + affine[:2, 2]


def _centers(sdata: SpatialDataLike, region: str) -> tuple[pd.DataFrame, Mapping[str, Any]]:
    """Columns x and y by instance, and the transformations of the element to coordinate systems."""
    if region in sdata.shapes:
        element = sdata.shapes[region]
        if bool(np.any(element.geometry.has_z)):
            raise InvalidArgumentError(f"region {region!r}: expected shapes in the plane, found some with z.")
        centroid = element.geometry.centroid
        table = pd.DataFrame({"x": np.asarray(centroid.x), "y": np.asarray(centroid.y)}, index=element.index)
    elif region in sdata.labels:
        element = sdata.labels[region]
        element = element["scale0"]["image"] if hasattr(element, "children") else element  # several scales, one a child
        table = _pixel_means(element, region)
    elif region in sdata.points:
        element = sdata.points[region]
        if "z" in element.columns or not set(PLANE) <= set(element.columns):
            raise InvalidArgumentError(
                f"region {region!r}: expected points in the plane, x and y, found {list(element.columns)}."
            )
        table = element[list(PLANE)]
        table = table.compute() if hasattr(table, "compute") else table
    else:
        there = sorted([*sdata.shapes, *sdata.labels, *sdata.points])
        raise InvalidArgumentError(
            f"region: the table annotates {region!r}, which sdata lacks; it has {listed(there)}."
        )
    return table.set_axis(as_text(table.index), axis=0), getattr(element, "attrs", {}).get("transform", {})


def _pixel_means(labels: Any, region: str) -> pd.DataFrame:
    """Mean position of the pixels of every label but 0, the background."""
    if set(labels.dims) != set(PLANE):
        raise InvalidArgumentError(f"region {region!r}: expected labels in the plane, found dims {tuple(labels.dims)}.")
    image = np.asarray(labels.transpose("y", "x"))
    names, codes = np.unique(image, return_inverse=True)
    codes, size = codes.ravel(), np.bincount(codes.ravel())
    axes = (
        np.asarray(labels[axis]) if axis in labels.coords else np.arange(n) + 0.5 for axis, n in labels.sizes.items()
    )
    grid = dict(zip(labels.sizes, axes, strict=True))
    x, y = np.meshgrid(grid["x"], grid["y"])
    table = pd.DataFrame({k: np.bincount(codes, v.ravel()) / size for k, v in (("x", x), ("y", y))}, index=names)
    return table[names != 0]


def _write(adata: AnnData, key: str, places: NDArray[np.float64]) -> None:
    if key in adata.obsm:
        own = as_dense(adata.obsm[key], f"obsm[{key!r}]")
        if own.shape != places.shape or not np.allclose(own, places, rtol=SAME, atol=SAME * np.abs(places).max()):
            raise InvalidArgumentError(
                f"spatial_key: the table has other coordinates in obsm[{key!r}] than the centers of its elements; give "
                f"another key, or take those of sdata.tables."
            )
    adata.obsm[key] = places
