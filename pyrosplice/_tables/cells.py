"""What stands beside the counts, one entry a cell: tables, labels and numbers, paired with the cells by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from pyrosplice._tables.containers import well_formed
from pyrosplice._tables.labels import Labels, read_labels
from pyrosplice._tables.names import by_name, names_of
from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Cells:
    """The cells of a data set: how many there are, what they are called, and the table of what is known of them.

    Attributes
    ----------
    n
        Number of cells in the data.
    names
        Their names; None where nothing carries any.
    table
        The sample table in the order of the cells, those in use only; None where there is none.
    used
        Which cells are in use, ``(n,)``; None for all.
    """

    n: int
    names: pd.Index | None
    table: pd.DataFrame | None
    used: NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, data: Any, sample_description: Any, n_cells: int) -> Cells:
        """Cells of ``data`` with ``sample_description``, or its own ``obs``.

        Raises
        ------
        InvalidArgumentError
            Where the table is none, has another number of rows, or its names agree in part.
        """
        names = names_of(data)
        if sample_description is None:
            table = obs_of(data) if isinstance(data, ad.AnnData) else None
            return cls(n_cells, names, table)
        if not isinstance(sample_description, pd.DataFrame):
            kind = type(sample_description).__name__
            raise InvalidArgumentError(f"sample_description: expected a DataFrame, one row a cell, found {kind}.")
        table = by_name(sample_description, names, "sample_description")
        if len(table) != n_cells:
            raise InvalidArgumentError(f"sample_description: expected {n_cells} rows, one a cell, found {len(table)}.")
        return cls(n_cells, table.index if names is None else names, table)

    def keep(self, used: NDArray[np.bool_]) -> Cells:
        """Some of the cells only, ``used`` being ``(n,)``."""
        return replace(self, used=used, table=None if self.table is None else self.table[used])

    @property
    def n_used(self) -> int:
        """Number of cells in use."""
        return self.n if self.used is None else int(self.used.sum())

    @property
    def index(self) -> pd.Index | None:
        """Names of the cells in use."""
        return self.names if self.used is None or self.names is None else self.names[self.used]

    @property
    def fitted(self) -> str | NDArray[np.bool_]:
        """The argument ``missing`` of a fit to the same cells."""
        return "raise" if self.used is None else self.used

    def column(self, name: str, argument: str) -> pd.Series:
        """A column of the sample table, whatever it is called."""
        found = [] if self.table is None else [str(c) for c in self.table.columns]
        if found.count(name) != 1:
            what = "no column" if name not in found else f"{found.count(name)} columns"
            raise InvalidArgumentError(f"{argument}: {what} {name!r} in sample_description, which has {found}.")
        assert self.table is not None
        return self.table.iloc[:, found.index(name)]

    def rows(self, given: Any, argument: str) -> Any:
        """Put ``given`` (a table or array with a row a cell) in the order of the cells, those in use only.

        It may have a row for every cell of the data, or for every cell in use.
        """
        length = np.shape(given)[0] if np.ndim(given) else 0
        if self.used is None or (length == self.n_used and length != self.n):
            return by_name(given, self.index, argument)
        ordered = by_name(given, self.names, argument)
        if length != self.n:
            return ordered
        used = np.flatnonzero(self.used)
        if isinstance(ordered, (list, tuple, range)):
            return [ordered[i] for i in used]
        ordered = ordered.tocsr() if sp.issparse(ordered) else ordered
        return ordered.iloc[used] if hasattr(ordered, "iloc") else ordered[used]

    def levels(self, given: Any, argument: str, *, keep_missing: bool = False) -> Labels:
        """Read one label a cell, as codes and levels: from a column's name, or labels of any type.

        Missing ones are an error unless ``keep_missing``.

        Raises
        ------
        InvalidArgumentError
            For an unknown column, a wrong number of labels, or labels that are missing.
        """
        named = isinstance(given, str)
        values = self.column(given, argument) if named else self.rows(given, argument)
        labels = read_labels(values, f"{argument}: column {given!r}" if named else argument, keep_missing=keep_missing)
        if len(labels.codes) != self.n_used:
            found = len(labels.codes)
            raise InvalidArgumentError(f"{argument}: expected {self.n_used} labels, one a cell, found {found}.")
        return labels

    def labels(self, given: Any, argument: str) -> NDArray[np.object_]:
        """Read one label a cell ``(N,)``, as :meth:`levels` does; they keep their type."""
        labels = self.levels(given, argument)
        values = np.empty(len(labels.values), dtype=object)
        values[:] = labels.values
        return values[labels.codes]

    def numbers(self, given: Any, argument: str) -> Array:
        """Numbers with a row a cell: from a column's name, a Series, a table or anything like an array."""
        return as_numbers(
            self.column(given, argument) if isinstance(given, str) else self.rows(given, argument), argument
        )


def obs_of(data: ad.AnnData) -> pd.DataFrame:
    """The table of cells of an AnnData; of one that is read lazily, brought into memory."""
    obs = data.obs
    return obs if isinstance(obs, pd.DataFrame) else obs.to_memory()


def as_numbers(given: Any, argument: str) -> Array:
    """A dense float64 array of anything that holds numbers; missing ones are NaN.

    Raises
    ------
    InvalidArgumentError
        For text, dates, complex numbers.
    """
    if isinstance(given, pd.Series):
        return as_numbers(given.to_frame(), argument)[:, 0]
    array = well_formed(given.compute() if hasattr(given, "compute") else given, argument)
    return np.asarray(array.toarray() if hasattr(array, "toarray") else array, dtype=np.float64)
