"""Tables of results as others read them: symbols beside identifiers, the top rows, columns of pertpy and decoupler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from pyrosplice.errors import InvalidArgumentError, check_integer, check_option, check_share, listed

PERTPY = {
    "gene": "variable",
    "contrast": "contrast",
    "log2fc": "log_fc",
    "pvalue": "p_value",
    "pvalue_adj": "adj_p_value",
    "statistic": "statistic",
}
GeneSymbols: TypeAlias = pd.Series | Mapping[str, str] | None
LAYOUTS = ("pyrosplice", "pertpy")
BY_SIZE = ("effect", "log2fc", "statistic", "score")  # sorted by absolute value, largest first
DOWNWARDS = ("mean", "coverage")


def with_symbols(table: pd.DataFrame, gene_symbols: GeneSymbols) -> pd.DataFrame:
    """Copy with the column ``symbol`` after ``gene``: names for people beside identifiers.

    Parameters
    ----------
    gene_symbols
        Symbols by gene: a Series such as ``adata.var["symbol"]``, or a mapping. A gene whose symbol is missing or blank
        keeps its identifier; None leaves the table as it is.

    Raises
    ------
    InvalidArgumentError
        Something without names; genes that it does not know.
    """
    if gene_symbols is None:
        return table
    place = list(table.columns).index("gene") + 1
    out = table.copy()
    out.insert(place, "symbol", symbols_of(table["gene"], gene_symbols))
    return out


def symbols_of(genes: Sequence[Any] | pd.Series, gene_symbols: GeneSymbols) -> list[str]:
    """The symbol of each gene, its own name where that is missing or blank."""
    if not isinstance(gene_symbols, (pd.Series, Mapping)):
        raise InvalidArgumentError(
            f"gene_symbols: expected a Series or mapping of symbols by gene, such as adata.var['symbol'], found "
            f"{type(gene_symbols).__name__}."
        )
    if isinstance(gene_symbols, pd.Series) and not gene_symbols.index.is_unique:
        twice = gene_symbols.index[gene_symbols.index.duplicated()][0]
        raise InvalidArgumentError(f"gene_symbols: gene {twice!r} stands more than once in its index.")
    known = {str(gene): symbol for gene, symbol in gene_symbols.items()}
    unknown = [gene for gene in map(str, genes) if gene not in known]
    if unknown:
        raise InvalidArgumentError(
            f"gene_symbols: no symbol of {len(unknown)} genes (first: {unknown[0]!r}; it has "
            f"{listed(known, near=unknown[0], most=6)}); index it by the genes' names."
        )
    return [
        gene if pd.isna(known[gene]) or not str(known[gene]).strip() else str(known[gene]) for gene in map(str, genes)
    ]


def in_layout(table: pd.DataFrame, layout: str) -> pd.DataFrame:
    """A tidy table with the columns of another library.

    ``"pertpy"``: those of its methods' ``compare_groups``, and genes as ``variable``; other columns follow.
    """
    check_option("layout", layout, LAYOUTS)
    if layout == "pyrosplice":
        return table
    here = [name for name in PERTPY if name in table.columns]
    taken = set(PERTPY.values()) - {"contrast", "statistic"}
    rest = [name for name in table.columns if name not in here and name not in taken]
    return table[[*here, *rest]].rename(columns=PERTPY)


def wide_statistics(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Statistics as a matrix, contrasts × genes, which decoupler's methods take as ``data``; NaN as 0, no evidence.

    Raises
    ------
    InvalidArgumentError
        Another column; a gene that stands twice in a contrast.
    """
    check_option("value", value, [name for name in ("score", "statistic", "log2fc", "effect") if name in table])
    if table.duplicated(["contrast", "gene"]).any():
        raise InvalidArgumentError("value: a gene stands more than once in a contrast; make the genes' names unique.")
    genes, contrasts = (pd.unique(table[name]) for name in ("gene", "contrast"))
    wide = table.pivot(index="contrast", columns="gene", values=value).loc[contrasts, genes]
    return wide.fillna(0.0).rename_axis(index=None, columns=None)


def top_rows(table: pd.DataFrame, *, n: int | None, sort_by: str, alpha: float | None) -> pd.DataFrame:
    """The first rows by a column: p-values upwards, effects and statistics by size downwards, missing ones last.

    Parameters
    ----------
    n
        How many; None for all.
    sort_by
        A column of numbers.
    alpha
        Keep rows whose ``pvalue_adj`` is at most this; None keeps all.

    Raises
    ------
    InvalidArgumentError
        A column that is not there, or has no numbers; ``alpha`` outside (0, 1).
    """
    numeric = [name for name in table.columns if pd.api.types.is_numeric_dtype(table[name])]
    check_option("sort_by", sort_by, numeric)
    kept = table
    if alpha is not None:
        kept = kept[kept["pvalue_adj"] <= check_share("alpha", alpha)]
    values = kept[sort_by].to_numpy(dtype=np.float64)
    key = -np.abs(values) if sort_by in BY_SIZE else -values if sort_by in DOWNWARDS else values
    order = np.argsort(key, kind="stable")[: None if n is None else check_integer("n", n)]
    return kept.iloc[order].reset_index(drop=True)
