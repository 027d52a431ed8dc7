"""The contract of a random effect of groups that somebody writes, and what makes numbers for engines of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyrosplice._tables.labels import read_labels
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.effects._level_spaces import distinguishable, rows_of_levels, spanned
from pyrosplice.errors import InvalidArgumentError, NotStatedError, call_hint

Array = NDArray[np.float64]


class Effect:
    r"""A random effect: numbers that vary between groups of observations, with normal distribution.

    .. math::
        \eta_i \mathrel{+}= z_i' u_{l(i)}, \qquad u_l = L(\psi)\, v_l, \quad v_l \sim N(0, I_q),
        \qquad L(\psi) = \sum_j \psi_j E_j

    ============ ======== =======================================================================================
    to override  required for
    ============ ======== =======================================================================================
    ``levels``   yes      the group of each observation: N labels of any type
    ``columns``  no       z, ``(N, q)``: a DataFrame, or an array whose columns are then numbered; by default a 1
    ``basis``    no       E, ``(J, q, q)``: how the q effects of a group vary together; by default without restriction
    ``root``     no       R, ``(D, D)``, where groups are related and their covariance is R R'; by default they are not
    ``name``     no       what tables call it; by default the class's name
    ============ ======== =======================================================================================

    Methods are given a person's table, one row an observation; whatever else they need is the object's own. Predictions
    take ``columns`` of the new rows; where these depend on all rows (a coding), override :meth:`columns_again` too.
    :func:`pyrosplice.testing.check_effect` says in words what a new one gets wrong.

    Examples
    --------
    >>> import pandas as pd
    >>> from pyrosplice.effects import Effect
    >>> class Donor(Effect):
    ...     def levels(self, table):
    ...         return table["donor"]
    >>> cells = pd.DataFrame({"donor": list("uuvvww"), "age": [20.0, 30.0, 40.0, 50.0, 60.0, 70.0]})
    >>> effect = Donor().bind(cells)
    >>> effect.level_names, effect.parameters
    (('u', 'v', 'w'), ('sd(1)',))
    """

    @property
    def name(self) -> str:
        """What tables call the effect."""
        return type(self).__name__

    def levels(self, table: pd.DataFrame) -> object:
        """Group of each observation, N labels of any type, none missing.

        Examples
        --------
        >>> import pandas as pd
        >>> from pyrosplice.effects import Groups
        >>> cells = pd.DataFrame({"donor": list("uuvvww"), "age": [20.0, 30.0, 40.0, 50.0, 60.0, 70.0]})
        >>> list(Groups("donor").levels(cells))
        ['u', 'u', 'v', 'v', 'w', 'w']
        """
        raise NotStatedError(f"{type(self).__name__}: override levels(table), which gives the group of every row.")

    def columns(self, table: pd.DataFrame) -> pd.DataFrame | Array:
        """Covariates z ``(N, q)`` whose effects vary between groups; 1, unless overridden.

        Examples
        --------
        >>> import pandas as pd
        >>> from pyrosplice.effects import Groups
        >>> cells = pd.DataFrame({"donor": list("uuvvww"), "age": [20.0, 30.0, 40.0, 50.0, 60.0, 70.0]})
        >>> Groups("donor", slopes="~ 1 + age").columns(cells).columns.tolist()
        ['1', 'age']
        """
        return pd.DataFrame({"1": np.ones(len(table))})

    def columns_again(self, table: pd.DataFrame, fitted: pd.DataFrame | None, column_names: Sequence[str]) -> Array:
        """Covariates z ``(n, q)`` of other rows, for predictions: the same columns, ``column_names``, as those fitted.

        Raises
        ------
        InvalidArgumentError
            Other columns.

        Examples
        --------
        >>> import pandas as pd
        >>> from pyrosplice.effects import Groups
        >>> cells = pd.DataFrame({"donor": list("uuvvww"), "age": [20.0, 30.0, 40.0, 50.0, 60.0, 70.0]})
        >>> effect = Groups("donor", slopes="~ 1 + age")
        >>> new = pd.DataFrame({"donor": ["x"], "age": [35.0]})
        >>> effect.columns_again(new, cells, ["1", "age"])
        array([[ 1., 35.]])
        """
        values, names = self._read_columns(table, f"effect ({self.name})", zeros=True)
        if names != tuple(column_names):
            raise InvalidArgumentError(
                f"effect ({self.name}): expected columns {list(column_names)} as fitted, found {list(names)}."
            )
        return values

    def basis(self, column_names: Sequence[str]) -> Array:
        """Matrices E ``(J, q, q)``; unless overridden, each entry of a lower triangle, for any covariance.

        Examples
        --------
        >>> import pandas as pd
        >>> from pyrosplice.effects import Groups
        >>> cells = pd.DataFrame({"donor": list("uuvvww"), "age": [20.0, 30.0, 40.0, 50.0, 60.0, 70.0]})
        >>> Groups("donor", slopes="~ 1 + age").basis(["1", "age"]).shape  # two sds and one between
        (3, 2, 2)
        >>> Groups("donor", slopes="~ 1 + age", covariance="diagonal").basis(["1", "age"]).shape  # without correlation
        (2, 2, 2)
        """
        return np.stack(list(lower_triangle(column_names).values()))

    def root(self, level_names: Sequence[str]) -> Array | None:
        """Root R ``(D, D)`` of the covariance between groups; None, for groups that are not related.

        Examples
        --------
        >>> import numpy as np
        >>> import pandas as pd
        >>> from pyrosplice.effects import Effect
        >>> class Donor(Effect):
        ...     def levels(self, table):
        ...         return table["donor"]
        ...     def root(self, level_names):
        ...         kinship = np.full((len(level_names),) * 2, 0.5) + 0.5 * np.eye(len(level_names))  # siblings
        ...         return np.linalg.cholesky(kinship)
        >>> Donor().root(["u", "v", "w"]).shape
        (3, 3)
        """
        return None

    def bind(self, table: pd.DataFrame) -> GroupBlock:
        """The effect of the rows of ``table``, as engines take it.

        Raises
        ------
        InvalidArgumentError
            Missing labels; one group only; as many effects as observations; columns that are not finite; arrays of
            wrong shapes; variances that the data cannot tell apart, whatever the counts are.

        Examples
        --------
        >>> import pandas as pd
        >>> from pyrosplice.effects import Groups
        >>> cells = pd.DataFrame({"donor": list("uuvvww"), "age": [20.0, 30.0, 40.0, 50.0, 60.0, 70.0]})
        >>> effect = Groups("donor").bind(cells)
        >>> effect.level_names, effect.column_names
        (('u', 'v', 'w'), ('1',))
        """
        argument = f"effect ({self.name})"
        labels = read_labels(self.levels(table), argument)
        if len(labels.codes) != len(table):
            raise InvalidArgumentError(f"{argument}: expected {len(table)} labels, found {len(labels.codes)}.")
        if len(labels.levels) < 2:
            raise InvalidArgumentError(
                f"{argument}: expected two groups at least, found {list(labels.levels)}; leave the effect out."
            )
        values, names = self._read_columns(table, argument)
        n_effects = values.shape[1] * len(labels.levels)
        if n_effects >= len(table):
            each = "" if values.shape[1] == 1 else f" of {values.shape[1]} effects each"
            raise InvalidArgumentError(
                f"{argument}: expected fewer effects than observations, found {len(labels.levels)} groups{each} in "
                f"{len(table)} observations. An effect of every observation is Independent()."
            )
        basis, parameters = self._read_basis(names, argument)
        root = self._read_root(labels.levels, argument)
        block = GroupBlock(self.name, labels.codes, values, basis, parameters, labels.levels, names, root)
        check_distinguishable([block])
        return block

    def _read_columns(
        self, table: pd.DataFrame, argument: str, *, zeros: bool = False
    ) -> tuple[Array, tuple[str, ...]]:
        given = self.columns(table)
        values = np.ascontiguousarray(given, dtype=np.float64)
        if values.ndim != 2 or values.shape[0] != len(table) or values.shape[1] == 0:
            raise InvalidArgumentError(
                f"{argument}: expected columns of shape ({len(table)}, effects of a group), found {values.shape}."
            )
        if not np.isfinite(values).all():
            raise InvalidArgumentError(f"{argument}: columns have NaN or infinite entries.")
        names = given.columns if isinstance(given, pd.DataFrame) else range(1, values.shape[1] + 1)
        texts = tuple(str(name) for name in names)
        zero = [name for name, column in zip(texts, values.T, strict=True) if not column.any()]
        if zero and not zeros:
            raise InvalidArgumentError(f"{argument}: columns {zero} are zero everywhere; leave them out.")
        return values, texts

    def _read_basis(self, names: tuple[str, ...], argument: str) -> tuple[Array, tuple[str, ...]]:
        basis, q = np.asarray(self.basis(names), dtype=np.float64), len(names)
        if basis.ndim != 3 or basis.shape[1:] != (q, q) or len(basis) == 0 or not np.isfinite(basis).all():
            raise InvalidArgumentError(
                f"{argument}: expected a basis of finite matrices, shape (parameters, {q}, {q}), found {basis.shape}."
            )
        return basis, _parameter_names(basis, names)

    def _read_root(self, levels: tuple[str, ...], argument: str) -> Array | None:
        given = self.root(levels)
        if given is None:
            return None
        root, size = np.asarray(given, dtype=np.float64), len(levels)
        if root.shape != (size, size) or not np.isfinite(root).all():
            raise InvalidArgumentError(
                f"{argument}: expected a root of finite numbers, shape ({size}, {size}), found {root.shape}."
            )
        return root


def lower_triangle(names: Sequence[str]) -> dict[tuple[int, int], Array]:
    """Matrices with one entry each, row by row of a lower triangle: any covariance of q effects has such a root."""
    q = len(names)
    out = {}
    for row, column in zip(*np.tril_indices(q), strict=True):
        out[int(row), int(column)] = np.zeros((q, q))
        out[int(row), int(column)][row, column] = 1.0
    return out


def check_distinguishable(blocks: Sequence[GroupBlock]) -> None:
    """Raise where no counts could tell the variances of effects of the same groups apart.

    Raises
    ------
    InvalidArgumentError
        Names the effects, and the columns that do not vary within any group.
    """
    groups = rows_of_levels(blocks[0].levels)
    columns = np.hstack([block.columns for block in blocks])
    basis = np.zeros((sum(len(block.basis) for block in blocks), columns.shape[1], columns.shape[1]))
    parameter, place = 0, 0
    for block in blocks:
        count, q = block.basis.shape[:2]
        basis[parameter : parameter + count, place : place + q, place : place + q] = block.basis
        parameter, place = parameter + count, place + q
    if distinguishable(groups, columns, basis):
        return
    names = " and ".join(f"({block.name})" for block in blocks)
    if len(blocks) > 1:
        raise InvalidArgumentError(
            f"effects {names}: they have the same groups, and their variances cannot be told apart; leave one of them "
            "out."
        )
    still = [
        name
        for name, column in zip(blocks[0].column_names, blocks[0].columns.T, strict=True)
        if column.min() != column.max() and spanned(groups, np.ones((len(column), 1)), column)
    ]
    why = f": {still} do not vary within any group. Leave these out" if still else ". Write it with fewer columns"
    raise InvalidArgumentError(
        f"effect {names}: no counts can tell its {len(blocks[0].basis)} variances and covariances apart{why}."
    )


def bind(effects: Sequence[Effect], table: pd.DataFrame) -> tuple[GroupBlock, ...]:
    """Effects of groups of the rows of a table, as engines take them.

    Raises
    ------
    InvalidArgumentError
        What :meth:`Effect.bind` refuses, and effects of the same groups whose variances cannot be told apart: twice
        the same, or samples nested in donors that have one sample each.
    """
    for effect in effects:
        if not isinstance(effect, Effect):
            hint = call_hint(effect, Effect)
            raise InvalidArgumentError(
                f"effects: expected effects of groups, such as Groups('donor'), found {effect!r}{hint}."
            )
    blocks = tuple(effect.bind(table) for effect in effects)
    alike: dict[bytes, list[GroupBlock]] = {}
    for block in blocks:
        if block.root is None:  # related groups are told apart from independent ones by their relations
            alike.setdefault(_partition(block.levels), []).append(block)
    for same in alike.values():
        if len(same) > 1:
            check_distinguishable(same)
    return blocks


def _partition(levels: NDArray[np.intp]) -> bytes:
    """A key that grouping factors share which put together the same observations."""
    return pd.factorize(levels)[0].tobytes()


def _parameter_names(basis: Array, names: Sequence[str]) -> tuple[str, ...]:
    """Standard deviations by their column, other entries of L by row and column, other matrices by a number."""
    uncorrelated = not any((matrix - np.diag(np.diag(matrix))).any() for matrix in basis)
    out = []
    for place, matrix in enumerate(basis):
        rows, columns = np.nonzero(matrix)
        if len(rows) != 1:
            out.append(f"psi{place + 1}")
        elif rows[0] == columns[0] and (uncorrelated or rows[0] == 0):
            out.append(f"sd({names[rows[0]]})")
        else:
            out.append(f"root({names[rows[0]]}, {names[columns[0]]})")
    return tuple(out)
