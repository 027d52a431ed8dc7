"""Tables of effects of groups: variances of every gene, and which effect a person names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._hypothesis.test_table import TestTable, unless_ended
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.errors import InvalidArgumentError, listed
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.reasons import Reason


def table_of_variances(
    fit: EffectsFit, blocks: Sequence[GroupBlock], genes: Sequence[str] | NDArray[np.object_], noise: str
) -> pd.DataFrame:
    """One row a gene and standard deviation or correlation.

    Parameters
    ----------
    fit, blocks
        A fit and its effects of groups.
    genes
        Names of its genes.
    noise
        What the effect of single observations is called.

    Returns
    -------
    DataFrame
        ``gene``, ``effect``, ``parameter``, ``reason`` and ``estimate``.
    """
    rows: list[tuple[str, str, np.ndarray]] = []
    for e, block in enumerate(blocks):
        covariance = fit.effect_covariance(e).numpy()
        sd = np.sqrt(covariance.diagonal(axis1=1, axis2=2))
        rows += [(block.name, f"sd({name})", sd[:, k]) for k, name in enumerate(block.column_names)]
        if (block.basis.sum(0) != np.diag(np.diag(block.basis.sum(0)))).any():
            with np.errstate(invalid="ignore", divide="ignore"):
                correlation = covariance / (sd[:, :, None] * sd[:, None])
            for k, first in enumerate(block.column_names):
                for j, second in enumerate(block.column_names[:k]):
                    rows.append((block.name, f"correlation({second}, {first})", correlation[:, k, j]))
    named = {"space": "space", "noise": noise}
    rows += [(named[name], "sd", fit.sds[:, k].numpy()) for k, name in enumerate(fit.inner)]
    said = [np.full(len(genes), "", dtype=object) for _ in rows]
    for k, name in enumerate(fit.space_names):
        values = fit.space_values[:, k].numpy()
        rows.append(("space", name, values))
        words = np.where(np.isnan(values), unless_ended(fit.reason, Reason.NOT_IDENTIFIED.value), "")
        said.append(np.where(np.isin(values, fit.space_range), Reason.AT_RANGE_END.value, words))
    table = TestTable(
        labels={
            "gene": np.repeat(genes, len(rows)),
            "effect": np.tile([name for name, _, _ in rows], len(genes)),
            "parameter": np.tile([parameter for _, parameter, _ in rows], len(genes)),
        },
        why=np.repeat("", len(rows) * len(genes)),
        more={"estimate": np.stack([values for *_, values in rows], 1).ravel()},
    ).to_frame()
    why = np.repeat(unless_ended(fit.reason, Reason.BOUNDARY.value), len(rows))  # of an sd of zero: no correlation
    own = np.stack(said, 1).ravel()
    return table.assign(reason=np.where(own != "", own, np.where(table["estimate"].isna(), why, "")))


def block_named(blocks: Sequence[GroupBlock], effect: str | None) -> int:
    """Position of an effect that a person names: its term, or its grouping factor where that has one term.

    Raises
    ------
    InvalidArgumentError
        Another name, or none of several.
    """
    names = [block.name for block in blocks]
    terms = ["".join(name.split()) for name in names]
    asked = None if effect is None else "".join(effect.split())
    asked = asked[1:-1] if asked is not None and (asked[:1], asked[-1:]) == ("(", ")") else asked
    found = [k for k, term in enumerate(terms) if asked in (None, term, term.rpartition("|")[2])]
    if len(found) != 1:
        raise InvalidArgumentError(f"effect: expected one of {listed(names, near=str(effect))}, found {effect!r}.")
    return found[0]
