"""Degrees of freedom of a test of coefficients: what the curvature says, kept to what the design allows."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyrosplice.errors import InvalidArgumentError, check_option, is_number

DfRule = Literal["clip", "satterthwaite", "between-within", "normal"]
MOST_TIMES = 2.0  # t of at most twice between–within was nominal in every right model of 3,000 genes without effect a
# design, 5 to 12 donors, between and within them: .043 to .054 at 5 %, .002 to .014 at 1 %, but for .065 with five
# donors and (1 | donor/sample); Satterthwaite alone came to .034 at 1 % there, the normal law to .31 at 5 %
LEAST = 1.0  # not between–within, which knows nothing of donors of few cells: 5 v 2 donors of 5 to 200 cells had .117
# at 5 % and .058 at 1 % (400 genes, mean 2.2) and have .050 and .015; 3 v 3 of 5 to 200 .098, .022 and .040, .007


def degrees_of_freedom(
    satterthwaite: ArrayLike, between_within: ArrayLike, df: DfRule | float = "clip"
) -> NDArray[np.float64]:
    """Degrees of freedom of t, one a gene and contrast.

    Parameters
    ----------
    satterthwaite
        ``2 V² / Var(V)`` of each estimate's variance V, ``(G,)`` or ``(G, C)``; NaN where the curvature gives none.
    between_within
        Of the design, of each contrast (:class:`~pyrosplice.effects._units.DesignUnits`), broadcast to the former.
    df
        ``"clip"``: Satterthwaite's, kept within 1 and twice between–within; where it is NaN, between–within.
        ``"satterthwaite"`` or ``"between-within"``: that alone. ``"normal"``: infinite. A positive number: that.

    Raises
    ------
    InvalidArgumentError
        Another ``df``; between–within degrees of freedom below 1 where they are used; shapes that do not broadcast.
    """
    if not is_number(df):
        check_option("df", df, get_args(DfRule))
    elif not df > 0:
        raise InvalidArgumentError(f"df: expected a positive number, or one of {get_args(DfRule)}, found {df!r}.")
    curvature, design = np.asarray(satterthwaite, dtype=np.float64), np.asarray(between_within, dtype=np.float64)
    try:
        curvature, design = np.broadcast_arrays(curvature, design)
    except ValueError as error:
        raise InvalidArgumentError(
            f"between_within: expected one of each contrast, of {curvature.shape}, found shape {design.shape}."
        ) from error
    if df in ("clip", "between-within") and not (design >= 1).all():
        raise InvalidArgumentError(
            f"between_within: expected one degree of freedom at least, found {design.min():g}: there are not more "
            "units than coefficients."
        )
    if df == "clip":
        return np.where(np.isnan(curvature), design, np.clip(curvature, LEAST, MOST_TIMES * design))
    fixed = {"satterthwaite": curvature, "between-within": design, "normal": np.full(curvature.shape, np.inf)}
    return np.array(fixed[df] if isinstance(df, str) else np.full(curvature.shape, float(df)))
