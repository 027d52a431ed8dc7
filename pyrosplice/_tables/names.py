"""Pairs tables with cells, spots, genes or patients by their names: the one rule for every entry point."""

from __future__ import annotations

from collections import Counter
from typing import Any, TypeVar

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice.errors import InvalidArgumentError, listed

Table = TypeVar("Table")


def names_of(data: Any) -> pd.Index | None:
    """Names of the rows of ``data``: of an AnnData, its ``raw``, a DataFrame or a Series; None for anything else."""
    if isinstance(data, (ad.AnnData, ad.Raw)):
        return pd.Index(data.obs_names)
    return data.index if isinstance(data, (pd.DataFrame, pd.Series)) else None


def by_name(given: Table, names: pd.Index | None, argument: str, *, what: str = "cell") -> Table:
    """Rows of ``given`` in the order of ``names``.

    The same names in another order are put in order; names that have nothing to do with each other leave the rows
    where they are, paired by position. Names are compared as text, so that an integer index meets the text that
    AnnData makes of it.

    Parameters
    ----------
    given
        DataFrame or Series, or anything without an index, which comes back as it is.
    names
        Names of the rows wanted; None where they have none.
    argument
        Name of the argument that errors begin with.
    what
        What a row is, in the words of the error.

    Raises
    ------
    InvalidArgumentError
        Where only a part of the names agree, a name occurs twice or is missing, or a table without names of its own
        (the index 0, 1, …) meets text that reads as the same numbers in another order.
    """
    if names is None or not isinstance(given, (pd.DataFrame, pd.Series)) or given.index.equals(names):
        return given
    theirs, ours = as_text(given.index), as_text(names)
    if len(theirs) == len(ours) and bool(np.all(theirs == ours)):
        return given
    shared = theirs.isin(ours) & theirs.notna()
    if not shared.any():
        _refuse_alike(given.index, ours, argument, what)
        return given
    _check_same(theirs, ours, shared, argument, what)
    numbers = isinstance(given.index, pd.RangeIndex) and given.index.start == 0 and given.index.step == 1
    if numbers and not pd.api.types.is_numeric_dtype(names.dtype):
        raise InvalidArgumentError(
            f"{argument}: it has no names of its own (its index is 0, 1, …), and the {what}s are called by the same "
            f"numbers in another order ({', '.join(map(repr, ours[:3]))}, …): expected names, or an array, which is "
            f"paired by position. Give it the {what}s' names as index."
        )
    return given.iloc[theirs.get_indexer(ours)]


def square_by_name(given: Table, names: pd.Index | None, argument: str, *, what: str = "cell") -> Table:
    """Rows and columns of a DataFrame ``(N, N)`` in the order of ``names``, of its own rows where those are None.

    Raises
    ------
    InvalidArgumentError
        As for :func:`by_name`.
    """
    if not isinstance(given, pd.DataFrame):
        return given
    columns_too = by_name(given.T, given.index, argument, what=what).T
    return by_name(by_name(columns_too, names, argument, what=what).T, names, argument, what=what).T


def places_of(wanted: Any, names: Any, argument: str, *, what: str = "gene") -> NDArray[np.intp]:
    """Positions of things given by their names or positions, as a slice or a mask ``(N,)``; None for all.

    Raises
    ------
    InvalidArgumentError
        For a name or position that there is not, or a name that stands twice among ``names``.
    """
    every = [str(name) for name in names]
    if wanted is None or isinstance(wanted, slice):
        return np.arange(len(every))[slice(None) if wanted is None else wanted]
    mask = np.asarray(wanted) if not isinstance(wanted, str) else None
    if mask is not None and mask.dtype == bool:
        if mask.shape != (len(every),):
            raise InvalidArgumentError(f"{argument}: expected a mask of {len(every)} {what}s, found {mask.shape}.")
        return np.flatnonzero(mask)
    given = [wanted] if isinstance(wanted, str) or (np.ndim(wanted) == 0 and not np.iterable(wanted)) else list(wanted)
    place = {name: i for i, name in enumerate(every)}
    twice = {name for name, count in Counter(every).items() if count > 1}
    out = []
    for one in given:
        if isinstance(one, str) and one in twice:
            raise InvalidArgumentError(f"{argument}: {what} {one!r} stands more than once; give its position.")
        number = isinstance(one, (int, np.integer)) and 0 <= one < len(every)
        where = int(one) if number else place.get(one) if isinstance(one, str) else None
        if where is None:
            raise InvalidArgumentError(
                f"{argument}: no {what} {one!r}; expected positions below {len(every)}, or names among "
                f"{listed(every, near=str(one))}."
            )
        out.append(where)
    return np.array(out, dtype=np.intp)


def text_names(given: Any, argument: str) -> list[str]:
    """Read one name, or several in any container, as a list of text; none for None.

    Raises
    ------
    InvalidArgumentError
        For anything that is no text.
    """
    if given is None or isinstance(given, str):
        return [] if given is None else [str(given)]
    several = np.iterable(given) and not isinstance(given, bytes)
    for name in given if several else [given]:
        if not isinstance(name, str):
            raise InvalidArgumentError(f"{argument}: expected a name or names, as text, found {name!r}.")
    return [str(name) for name in given]


def check_word(argument: str, given: object) -> None:
    """Raise unless ``given`` can be the name of something in a file: text that is not blank, without "/"."""
    if not isinstance(given, str) or not given.strip() or "/" in given:
        raise InvalidArgumentError(
            f"{argument}: expected a word without '/', which no h5ad file takes, found {given!r}."
        )


def as_text(index: pd.Index) -> pd.Index:
    """Names as text, missing ones as None; whole numbers of any type are written alike."""
    if isinstance(index, pd.MultiIndex):
        return pd.Index([str(name) for name in index], dtype=object)
    if pd.api.types.is_float_dtype(index.dtype):
        return pd.Index([_number(name) for name in index], dtype=object)
    return pd.Index([_name(name) for name in index], dtype=object)


def _name(name: Any) -> str | None:
    if isinstance(name, str):
        return str(name)
    if isinstance(name, bytes):
        return name.decode(errors="replace")
    if isinstance(name, float):
        return _number(name)
    return None if name is None or name is pd.NA or name is pd.NaT else str(name)


def _number(name: Any) -> str | None:
    if pd.isna(name):
        return None
    return str(int(name)) if float(name).is_integer() else str(name)


def _refuse_alike(given: pd.Index, ours: pd.Index, argument: str, what: str) -> None:
    """Raise where names differ from ours in case or blanks only, or stand in one level of several."""
    levels = [as_text(given.get_level_values(i)) for i in range(given.nlevels)]
    theirs = {str(name).strip().casefold() for level in levels for name in level}
    alike = next((name for name in ours if isinstance(name, str) and name.strip().casefold() in theirs), None)
    if alike is not None:
        raise InvalidArgumentError(
            f"{argument}: its index has {alike!r} of the {what}s in other letters, with blanks, or in one level of "
            f"several. Index it by the {what}s' names, or give an array, which is paired by position."
        )


def _check_same(theirs: pd.Index, ours: pd.Index, shared: Any, argument: str, what: str) -> None:
    for whose, index in (("its index", theirs), (f"the names of the {what}s", ours)):
        twice = index[index.duplicated()]
        if len(twice):
            raise InvalidArgumentError(
                f"{argument}: expected every name once, found {twice[0]!r} more than once in {whose}; make the names "
                f"unique, or give an array, which is paired by position."
            )
    unknown, absent = theirs[~shared], ours[~ours.isin(theirs)]
    if len(unknown) or len(absent):
        beside = f"; {unknown[0]!r} is none of them" if len(unknown) else ""
        lacks = f"; {absent[0]!r} is not in it" if len(absent) else ""
        raise InvalidArgumentError(
            f"{argument}: expected all {len(ours)} names of the {what}s, or none of them, found {int(shared.sum())} "
            f"among {len(theirs)} rows{beside}{lacks}. Index it by the {what}s' names, or give an array, which is "
            "paired by position."
        )
