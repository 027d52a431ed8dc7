"""Labels of cells, spots, patients or isoforms, of whatever type, as codes and the names of their levels."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyrosplice.errors import InvalidArgumentError


@dataclass(frozen=True)
class Labels:
    """Labels as integers.

    Attributes
    ----------
    codes
        ``(N,)``: which level each has; −1 where there is no label.
    levels
        Names of the levels, unique: a categorical's order, else sorted.
    values
        The levels as they were given.
    """

    codes: NDArray[np.intp]
    levels: tuple[str, ...]
    values: tuple[Any, ...]

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Which have no label, ``(N,)``."""
        return self.codes < 0

    @property
    def names(self) -> NDArray[np.object_]:
        """Name of the level of each, ``(N,)``; None without label."""
        return np.array([*self.levels, None], dtype=object)[self.codes]

    @property
    def categorical(self) -> pd.Categorical:
        """The names as pandas' categorical, every level used."""
        return pd.Categorical.from_codes(self.codes, categories=list(self.levels))


def read_labels(values: Any, argument: str, *, keep_missing: bool = False) -> Labels:
    """Labels of any type: text of every kind, numbers, booleans, dates, categoricals (unused levels are left out).

    None, NaN, NaT, pandas' NA and blank text are no label.

    Parameters
    ----------
    values
        Series, Index, array, list, Tensor or categorical of N labels.
    argument
        Name of the argument (and column) that errors begin with.
    keep_missing
        Whether missing labels are coded −1; they are an error otherwise.

    Raises
    ------
    InvalidArgumentError
        Missing labels; two different labels that read the same (1 and "1"); values that are no labels (lists).
    """
    series = _series(values, argument)
    codes, distinct = _factorize(series, argument)
    names = [label_name(value) for value in distinct]
    blank = np.array([not name.strip() for name in names], dtype=bool)
    kept = np.flatnonzero(~blank)
    place = np.append(np.where(blank, -1, np.cumsum(~blank) - 1), -1)
    codes = place[codes].astype(np.intp)
    levels = [names[i] for i in kept]
    if len(set(levels)) < len(levels):
        twice = next(name for name in levels if levels.count(name) > 1)
        found = [distinct[i] for i in kept if names[i] == twice]
        raise InvalidArgumentError(f"{argument}: different labels read the same, {found[0]!r} and {found[1]!r}.")
    labels = Labels(codes, tuple(levels), tuple(distinct[i] for i in kept))
    if not keep_missing and labels.missing.any():
        first = int(np.flatnonzero(labels.missing)[0])
        raise InvalidArgumentError(
            f"{argument}: expected a label everywhere, found {int(labels.missing.sum())} of {len(codes)} missing or "
            f"blank (first: {series.index[first]!r}); label them or leave them out "
            "(missing='drop', where the call takes it)."
        )
    return labels


def label_name(value: Any) -> str:
    """A label as text: dates at midnight without the time, bytes decoded."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    date = isinstance(value, datetime.datetime) and value.tzinfo is None and not getattr(value, "nanosecond", 0)
    if date and value == value.replace(hour=0, minute=0, second=0, microsecond=0):
        return str(value.date())
    return str(value)


def comparison_name(group: Any, base: Any) -> str:
    """Name of a comparison, the group over the base: ``"T vs B"``, and another for every two groups.

    A label that has " vs " in it, or ends or begins with it, stands in quotes, as one does that begins with a quote:
    ``"c vs a" vs b`` is not ``c vs "a vs b"``.
    """
    return " vs ".join(map(_unmistakable, (group, base)))


def _unmistakable(label: Any) -> str:
    text = label_name(label)
    return repr(text) if " vs " in f" {text} " or text[:1] in ("'", '"') else text


def _series(values: Any, argument: str) -> pd.Series:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    if isinstance(values, pd.DataFrame) and values.shape[1] == 1:
        values = values.iloc[:, 0]
    if isinstance(values, pd.Series):
        return values
    if isinstance(values, np.ndarray) and values.ndim == 2 and 1 in values.shape:
        values = values.ravel()
    if isinstance(values, (str, bytes)) or getattr(values, "ndim", 1) != 1 or not np.iterable(values):
        raise InvalidArgumentError(f"{argument}: expected labels, one each, found {type(values).__name__}.")
    if isinstance(values, (list, tuple)):
        values = pd.array(values, dtype=object) if _mixed(values) else values
    if isinstance(values, (set, frozenset, dict)):
        raise InvalidArgumentError(f"{argument}: expected labels in order, one each, found {type(values).__name__}.")
    return pd.Series(values)


def _mixed(values: Any) -> bool:
    """Whether NumPy would turn some of the labels into others of another type (numbers beside text into text)."""
    return len({type(value) for value in values}) > 1


def _factorize(series: pd.Series, argument: str) -> tuple[NDArray[np.intp], list[Any]]:
    """Codes and distinct values, in a categorical's order or sorted; −1 for what pandas calls missing."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        used = series.cat.remove_unused_categories()
        categories = used.cat.categories
        floats = pd.api.types.is_float_dtype(categories.dtype)  # as NumPy scalars, which read as they were written
        return used.cat.codes.to_numpy().astype(np.intp), list(categories.to_numpy() if floats else categories)
    if series.dtype == object and _mixed(series.dropna()) and any(isinstance(v, (bool, np.bool_)) for v in series):
        numbers = [v for v in series.dropna() if isinstance(v, (int, float, np.number)) and not isinstance(v, bool)]
        if numbers:
            raise InvalidArgumentError(f"{argument}: expected labels of one kind, found booleans beside numbers.")
    try:
        codes, distinct = pd.factorize(series)
    except TypeError as error:
        raise InvalidArgumentError(f"{argument}: expected labels, found values that are none ({error}).") from error
    found = list(distinct.to_numpy() if isinstance(distinct, pd.Index) and distinct.dtype.kind == "f" else distinct)
    try:
        order = sorted(range(len(found)), key=lambda i: found[i])
    except TypeError:
        order = sorted(range(len(found)), key=lambda i: str(found[i]))
    rank = np.append(np.argsort(order), -1) if found else np.array([-1])
    return rank[codes].astype(np.intp), [found[i] for i in order]
