"""Tables of random effects: variances of every gene, effects of every level, and the units of coefficients."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._hypothesis.test_table import TestTable, unless_ended
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._units import Coefficients, describe_units
from pyrosplice.errors import InvalidArgumentError, NotReadyError, listed
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.reasons import Reason


class MixedFit(Protocol):
    """Effects of groups of a fit, and its estimates."""

    @property
    def groups(self) -> tuple[GroupBlock, ...]: ...

    @property
    def mixed(self) -> EffectsFit: ...

    @property
    def coefficients(self) -> Coefficients: ...


class WithEffects(Protocol):
    """A fitted model of expression."""

    gene_names: NDArray[np.object_]

    def _mixed_fit(self) -> MixedFit: ...


def variance_components(self: WithEffects) -> pd.DataFrame:
    """Tabulate how much random effects vary, a row a gene and standard deviation or correlation.

    Returns
    -------
    DataFrame
        ``gene``, ``effect`` (a term of the formula, ``"space"`` or ``"cell"``), ``parameter`` (``"sd(1)"``,
        ``"correlation(1, age)"``), ``estimate`` on the scale of the predictor (natural log) and ``reason``, "" or why
        there is none. Zero where the data show no variance. Of a field with ``rho="estimate"`` also ``"rho"``, whose
        ``reason`` is ``"at_range_end"`` where no end was in sight between 0 and 0.9991, and ``"not_identified"`` where
        nothing varies in space.

    Raises
    ------
    NotReadyError
        Before ``fit``, or without random effects.
    """
    mixed, genes = self._mixed_fit().mixed, self.gene_names
    rows: list[tuple[str, str, np.ndarray]] = []
    for e, block in enumerate(self._mixed_fit().groups):
        covariance = mixed.effect_covariance(e).numpy()
        sd = np.sqrt(covariance.diagonal(axis1=1, axis2=2))
        rows += [(block.name, f"sd({name})", sd[:, k]) for k, name in enumerate(block.column_names)]
        if (block.basis.sum(0) != np.diag(np.diag(block.basis.sum(0)))).any():
            with np.errstate(invalid="ignore", divide="ignore"):
                correlation = covariance / (sd[:, :, None] * sd[:, None])
            for k, first in enumerate(block.column_names):
                for j, second in enumerate(block.column_names[:k]):
                    rows.append((block.name, f"correlation({second}, {first})", correlation[:, k, j]))
    named = {"space": "space", "noise": "cell"}
    rows += [(named[name], "sd", mixed.sds[:, k].numpy()) for k, name in enumerate(mixed.inner)]
    said = [np.full(len(genes), "", dtype=object) for _ in rows]
    for k, name in enumerate(mixed.space_names):
        values = mixed.space_values[:, k].numpy()
        rows.append(("space", name, values))
        words = np.where(np.isnan(values), unless_ended(mixed.reason, Reason.NOT_IDENTIFIED.value), "")
        said.append(np.where(np.isin(values, mixed.space_range), Reason.AT_RANGE_END.value, words))
    table = TestTable(
        labels={
            "gene": np.repeat(genes, len(rows)),
            "effect": np.tile([name for name, _, _ in rows], len(genes)),
            "parameter": np.tile([parameter for _, parameter, _ in rows], len(genes)),
        },
        why=np.repeat("", len(rows) * len(genes)),
        more={"estimate": np.stack([values for *_, values in rows], 1).ravel()},
    ).to_frame()
    why = np.repeat(unless_ended(mixed.reason, Reason.BOUNDARY.value), len(rows))  # of an sd of zero: no correlation
    own = np.stack(said, 1).ravel()
    return table.assign(reason=np.where(own != "", own, np.where(table["estimate"].isna(), why, "")))


def level_effects(self: WithEffects, effect: str | None = None) -> pd.DataFrame:
    """Tabulate the effects of every level of a grouping factor, a row a gene, level and column.

    Parameters
    ----------
    effect
        A random term as the formula writes it, ``"1 | donor"``, or its grouping factor where that has one term; may be
        left out where there is one.

    Returns
    -------
    DataFrame
        ``gene``, ``level``, ``column``, ``effect`` (mode of the effect, natural log), ``se`` (its posterior standard
        deviation, given the variances) and ``reason``.

    Raises
    ------
    InvalidArgumentError
        Another name, or none of several.
    """
    blocks = self._mixed_fit().groups
    names = [block.name for block in blocks]
    asked = None if effect is None else effect.strip().removeprefix("(").removesuffix(")").strip()
    found = [k for k, name in enumerate(names) if asked in (None, name, name.rpartition("|")[2].strip())]
    if len(found) != 1:
        raise InvalidArgumentError(f"effect: expected one of {listed(names, near=str(effect))}, found {effect!r}.")
    block, mixed, genes = blocks[found[0]], self._mixed_fit().mixed, self.gene_names
    mode, sd = (values[found[0]][..., 0].numpy() for values in (mixed.group_modes, mixed.group_sds))
    d, q = mode.shape[1:]
    return TestTable(
        labels={
            "gene": np.repeat(genes, d * q),
            "level": np.tile(np.repeat(block.level_names, q), len(genes)),
            "column": np.tile(block.column_names, len(genes) * d),
        },
        effect=mode.ravel(),
        se=sd.ravel(),
        why=np.repeat(unless_ended(mixed.reason, Reason.NOT_IDENTIFIED.value), d * q),
    ).to_frame()


def units(self: WithEffects) -> pd.DataFrame:
    """Say what the units of each coefficient are: cells, or the groups that it is compared between.

    Returns
    -------
    DataFrame
        ``coefficient``, ``unit``, ``n_units`` and ``df``, between–within degrees of freedom.

    Raises
    ------
    NotReadyError
        Before ``fit``, or without random effects.
    """
    fit = self._mixed_fit()
    return describe_units(fit.coefficients, fit.groups)


def require_effects(estimator: object) -> MixedEstimator:
    """The estimator of a fit with random effects.

    Raises
    ------
    NotReadyError
        There is none, or it has none.
    """
    if not isinstance(estimator, MixedEstimator):
        raise NotReadyError(
            "This is of random effects and needs the data: call fit with a formula such as '~ condition + (1 | donor)'."
        )
    return estimator
