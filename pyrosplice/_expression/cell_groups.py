"""Cells in groups, read in blocks, as all tests between groups take them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from pyrosplice._expression.call_options import block_sizes
from pyrosplice._expression.cell_entries import group_codes, options_of
from pyrosplice._expression.count_matrix import CountMatrix
from pyrosplice._expression.size_factors import resolve_size_factors
from pyrosplice._expression.statistics import Moments, group_moments
from pyrosplice._tables.cells import Cells
from pyrosplice.errors import InvalidArgumentError, check_option, check_switches, listed

Array = NDArray[np.float64]
PLAIN_TESTS = ("t-test", "rank")


@dataclass(frozen=True)
class PlainOptions:
    """Options of the tests without a count model.

    Attributes
    ----------
    is_logged
        Whether the data is on the log scale; the fold change is then the difference, else the log ratio of means.
    is_sig_zerovar
        Whether a gene that is constant in both groups at different values has p-value 0.
    size_factors
        Positive, one a cell, or the column that holds them: every cell is divided by its own, so that fold changes and
        means are of the divided data.
    batch_size
        Cells read at a time, or (cells, genes).
    dtype
        Type of the results in the original; p-values are float64 here.
    """

    is_logged: bool = False
    is_sig_zerovar: bool = True
    size_factors: Any = None
    batch_size: int | tuple[int, int] | None = None
    dtype: str = "float64"

    def __post_init__(self) -> None:
        check_option("dtype", self.dtype, ("float32", "float64"))
        check_switches(is_logged=self.is_logged, is_sig_zerovar=self.is_sig_zerovar)
        block_sizes(self.batch_size)
        if self.is_logged and self.size_factors is not None:
            raise InvalidArgumentError(
                "size_factors: data on the log scale is normalised before its logarithm is taken."
            )

    @property
    def block(self) -> tuple[int | None, int | None]:
        """Cells and genes read at a time; None for a size of our choice."""
        return block_sizes(self.batch_size)


class GroupedCells:
    """Cells of a data set in groups: labels checked and paired by name, groups sorted, data read in blocks.

    Parameters
    ----------
    layer
        Layer of the AnnData to test.
    missing
        ``"raise"``: cells without a label are an error; ``"drop"``: they are in no group.
    """

    def __init__(
        self,
        data: Any,
        grouping: Any,
        gene_names: Sequence[str] | None,
        sample_description: pd.DataFrame | None,
        *,
        layer: str | None = None,
        missing: str = "raise",
    ) -> None:
        self.data, self.layer = data, layer
        self.counts = CountMatrix(data, gene_names=gene_names, layer=layer, counts=False)
        self.cells = Cells.of(data, sample_description, self.counts.shape[0])
        self.names, self.index = group_codes("grouping", grouping, self.cells, missing)
        if len(self.names) < 2:
            raise InvalidArgumentError(f"grouping: expected at least two groups, found {self.names}.")

    def blocks(self, factors: Array | None) -> Iterator[tuple[slice, Any]]:
        """Blocks of cells, each divided by its size factor."""
        for cells, block in self.counts.cell_blocks():
            if factors is None:
                yield cells, block
            elif sp.issparse(block):
                yield cells, sp.diags_array(1 / factors[cells]) @ block
            else:
                yield cells, block / factors[cells, None]

    def mean(self, test: str, options: Mapping[str, Any]) -> Array:
        """Mean of each gene over the cells in groups ``(G,)``, as the test reads them."""
        plain = PlainOptions(**options) if test in PLAIN_TESTS else PlainOptions()
        return moments_of_two(self, np.where(self.index >= 0, 0, -1), plain)[0].mean

    def fit_arguments(self, cells: NDArray[np.intp], options: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a fit on some cells: their data, table and options."""
        n, table = len(self.index), self.cells.table
        if table is None:
            table = pd.DataFrame(index=pd.RangeIndex(n) if self.cells.names is None else self.cells.names)
        source: dict[str, Any] = {"gene_names": list(self.counts.gene_names), "sample_description": table.iloc[cells]}
        if len(cells) == n and isinstance(self.data, ad.AnnData):
            source |= {"data": self.data, "layer": self.layer}
        else:
            source["data"] = self.counts.matrix if len(cells) == n else self.counts.matrix[cells]
        return {**options_of(options, cells, self.cells), **source}

    def pair(
        self, first: NDArray[np.bool_], second: NDArray[np.bool_], options: Mapping[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        """Name of a 0/1 column that tells two groups apart, and the arguments of a fit on their cells with it."""
        cells = np.flatnonzero(first | second)
        arguments = self.fit_arguments(cells, options)
        table, name = arguments["sample_description"], "group"
        while name in table.columns:
            name += "_"
        arguments["sample_description"] = table.assign(**{name: np.where(second[cells], "1", "0")})
        return name, arguments


def moments_of_two(groups: GroupedCells, index: NDArray[np.intp], options: PlainOptions) -> list[Moments]:
    """Size, mean and variance of every gene in the first and the second group, from one pass over the cells."""
    groups.counts.block_cells = options.block[0]
    factors = resolve_size_factors(options.size_factors, groups.cells)
    return group_moments(lambda: groups.blocks(factors), np.where(index >= 0, index, 2), 3)[:2]


def two_groups(groups: GroupedCells) -> GroupedCells:
    """Check that there are two groups, as a test of one against the other needs."""
    if len(groups.names) != 2:
        raise InvalidArgumentError(f"grouping: expected two groups, found {listed(groups.names)}.")
    return groups
