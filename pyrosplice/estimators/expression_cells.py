"""What has an entry a cell: labels of groups and parts, and options, cut to some of the cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice.data.labels import Labels, read_labels
from pyrosplice.data.names import by_name
from pyrosplice.errors import InvalidArgumentError, check_option

PER_CELL = ("grouping", "size_factors", "weights", "offsets", "dmat_loc", "dmat_scale")


def group_labels(
    argument: str, given: Any, sample_description: pd.DataFrame | None, n_cells: int, names: pd.Index | None,
    missing: str,
) -> Labels:  # fmt: skip
    """One label a cell, from a column's name or from labels, which are paired by name.

    Raises
    ------
    InvalidArgumentError
        An unknown column, another number of labels, labels that are missing unless these are dropped.
    """
    check_option("missing", missing, ("raise", "drop"))
    if isinstance(given, str):
        columns = [] if sample_description is None else [str(c) for c in sample_description.columns]
        if sample_description is None or given not in columns:
            raise InvalidArgumentError(f"{argument}: no column {given!r} in sample_description, which has {columns}.")
        given = sample_description.iloc[:, columns.index(given)]
    labels = read_labels(by_name(given, names, argument), argument, keep_missing=missing == "drop")
    if len(labels.codes) != n_cells:
        raise InvalidArgumentError(f"{argument}: expected {n_cells} labels, one a cell, found {len(labels.codes)}.")
    return labels


def sorted_groups(labels: Labels) -> tuple[list[Any], NDArray[np.intp]]:
    """Groups in sorted order, and the group of each cell; −1 for none."""
    values = list(labels.values)
    try:
        order = sorted(range(len(values)), key=lambda i: values[i])
    except TypeError:
        order = sorted(range(len(values)), key=lambda i: labels.levels[i])
    place = np.append(np.argsort(order), -1).astype(np.intp)
    return [values[i] for i in order], place[labels.codes]


def cells_of(
    options: Mapping[str, Any], cells: NDArray[np.intp], n_cells: int, names: pd.Index | None
) -> dict[str, Any]:
    """Options with those that have an entry a cell cut to some cells, tables paired by name first.

    Raises
    ------
    InvalidArgumentError
        Where such an option does not have one entry a cell.
    """
    out = dict(options)
    for name in PER_CELL:
        value = out.get(name)
        if value is None or isinstance(value, str):
            continue
        value = by_name(value, names, name)
        if len(value) != n_cells:
            raise InvalidArgumentError(f"{name}: expected {n_cells} entries, one a cell, found {len(value)}.")
        out[name] = _rows(value, cells)
    return out


def _rows(value: Any, cells: NDArray[np.intp]) -> Any:
    if isinstance(value, (pd.Series, pd.DataFrame)):
        return value.iloc[cells]
    if isinstance(value, (list, tuple)):
        return [value[i] for i in cells]
    made_by = getattr(value, "design_info", None)  # patsy's matrices lose their names in a slice
    rows = value[cells]
    return rows if made_by is None else pd.DataFrame(np.asarray(rows), columns=made_by.column_names)
