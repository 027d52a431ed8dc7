"""Design rows of cells that a person describes, whose differences are contrasts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._expression.formula_design import DesignMatrix
from pyrosplice.errors import InvalidArgumentError

Array = NDArray[np.float64]
CANCELED = 1e-10


class Condition(np.ndarray):
    """A design row, or a contrast of some, that remembers which variables were not given and could not be zero."""

    assumed: frozenset[str]

    def __array_finalize__(self, other: Any) -> None:
        self.assumed = getattr(other, "assumed", frozenset())

    def __reduce__(self) -> tuple[Any, ...]:
        return _assuming, (np.array(self), self.assumed)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if "out" in options:
            options["out"] = tuple(np.asarray(o) for o in options["out"])
        plain = [np.asarray(part) if isinstance(part, Condition) else part for part in inputs]
        result = getattr(ufunc, method)(*plain, **options)
        if not isinstance(result, np.ndarray) or result.dtype.kind != "f":
            return result
        return _assuming(result, frozenset().union(*(getattr(part, "assumed", ()) for part in inputs)))


def condition_row(design: DesignMatrix, given: Mapping[str, Any]) -> Condition:
    """Design row ``(P,)`` of a cell with these values.

    Factors not given are at their first level, numbers at zero, or at their median over the cells of the fit where the
    formula has no value at zero (``log(t)``, ``1 / t``, a spline beyond its range).

    Raises
    ------
    InvalidArgumentError
        Variables that the model does not have, levels that it never saw, values at which the formula has none.
    """
    if design.recipe is None:
        design.for_new(pd.DataFrame(index=[0]))  # says why there is none
    unknown = sorted(set(given) - set(design.levels) - set(design.numeric))
    if unknown:
        known = [f"{name} ({', '.join(levels)})" for name, levels in design.levels.items()]
        raise InvalidArgumentError(
            f"cond: {', '.join(unknown)} is no variable of the model, which has {'; '.join([*known, *design.numeric])}."
        )
    base = {name: given.get(name, levels[0]) for name, levels in design.levels.items()}
    base |= {name: given.get(name, 0.0) for name in design.numeric}
    free = [name for name in design.numeric if name not in given]
    middle = {name: design.reference.get(name, 0.0) for name in free}
    assumed: frozenset[str] = frozenset()
    row = _row(design, base)
    if row is None:
        assumed = frozenset(name for name in free if _row(design, base | middle | {name: 0.0}) is None)
        row = _row(design, base | {name: middle[name] for name in assumed})
    if row is None:
        assumed, row = frozenset(free), _row(design, base | middle)
    if row is None:
        values = design.for_new(pd.DataFrame({k: [v] for k, v in (base | middle).items()}), "cond")
        raise InvalidArgumentError(f"cond: the formula gives {values[0]} for {dict(given)}; expected finite numbers.")
    return _assuming(row, assumed)


def check_canceled(contrast: Any, rows: Array, design: DesignMatrix) -> None:
    """Raise where a contrast depends on a variable that nobody gave and that could not be zero."""
    parts = contrast if isinstance(contrast, (list, tuple)) else [contrast]
    assumed = sorted(frozenset().union(*(getattr(part, "assumed", ()) for part in parts)))
    for name in assumed:
        columns = [i for i, used in enumerate(design.variables) if name in used]
        if (np.abs(rows[:, columns]) > CANCELED * np.abs(rows).max()).any():
            raise InvalidArgumentError(
                f"contrast: it depends on {name!r}, which has no value at zero in the formula and was not given; name "
                f"it in every cond: cond({name}={design.reference.get(name, 1.0):.4g}, …) is its median."
            )


def _row(design: DesignMatrix, values: Mapping[str, Any]) -> Array | None:
    """Design row of a condition, or None where the formula has no finite value; a level never seen is an error."""
    table = pd.DataFrame({name: [value] for name, value in values.items()}, index=[0])
    try:
        row = design.for_new(table, "cond")[0]
    except InvalidArgumentError:
        if design.recipe is None or not design.numeric:
            raise
        return None
    return row if np.isfinite(row).all() else None


def _assuming(row: Array, assumed: frozenset[str]) -> Condition:
    out = row.view(Condition)
    out.assumed = assumed
    return out
