"""What has an entry a cell: labels of groups and parts, and options, cut to some of the cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from pyrosplice._tables.cells import Cells
from pyrosplice.errors import InvalidArgumentError, check_option

PER_CELL = ("grouping", "size_factors", "weights", "offsets", "dmat_loc", "dmat_scale")


def group_codes(argument: str, given: Any, cells: Cells, missing: str) -> tuple[list[Any], NDArray[np.intp]]:
    """Groups in sorted order, and the group of each cell ``(N,)``.

    Parameters
    ----------
    given
        One label a cell, or the column that holds them.
    missing
        ``"raise"``: cells without a label are an error; ``"drop"``: they are in no group, −1.
    """
    check_option("missing", missing, ("raise", "drop"))
    labels = cells.levels(given, argument, keep_missing=missing == "drop")
    values = list(labels.values)
    try:
        order = sorted(range(len(values)), key=lambda i: values[i])
    except TypeError:  # labels of different types
        order = sorted(range(len(values)), key=lambda i: labels.levels[i])
    place = np.append(np.argsort(order), -1).astype(np.intp)
    return [values[i] for i in order], place[labels.codes]


def options_of(options: Mapping[str, Any], which: NDArray[np.intp], cells: Cells) -> dict[str, Any]:
    """Options with those that have an entry a cell, paired with the cells by name, cut to some of them.

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
        found = np.shape(value)[0] if np.ndim(value) else 1
        if found != cells.n:
            raise InvalidArgumentError(f"{name}: expected {cells.n} entries, one a cell, found {found}.")
        out[name] = _rows(cells.rows(value, name), which)
    return out


def _rows(value: Any, cells: NDArray[np.intp]) -> Any:
    if isinstance(value, (pd.Series, pd.DataFrame)):
        return value.iloc[cells]
    if isinstance(value, (list, tuple, range)):
        return [value[i] for i in cells]
    value = value.tocsr() if sp.issparse(value) else value
    made_by = getattr(value, "design_info", None)  # patsy's matrices lose their names in a slice
    rows = value[cells]
    return rows if made_by is None else pd.DataFrame(np.asarray(rows), columns=made_by.column_names)
