"""Parts of a fit's random effects that can be tested, and the models without them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.errors import InvalidArgumentError, listed
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._bound_effects import BoundEffects


@dataclass(frozen=True)
class Component:
    """A part of the random effects.

    Attributes
    ----------
    name
        As tables call it.
    n_parameters
        How many variances and covariances leave with it.
    effect
        Its number among the effects of groups, or the name of another, ``"space"`` or ``"noise"``.
    kept
        The columns of that effect that stay, by number.
    """

    name: str
    n_parameters: int
    effect: int | str
    kept: tuple[int, ...] = ()

    def without(self, problem: EffectsProblem) -> EffectsProblem:
        """The model that lacks it."""
        if isinstance(self.effect, str):
            gone = {"noise": False} if self.effect == "noise" else {"space": None, "space_by": None}
            return replace(problem, **gone)
        groups = list(problem.groups)
        whole = groups.pop(self.effect)
        groups[self.effect : self.effect] = [_with_columns(whole, self.kept)] if self.kept else []
        return replace(problem, groups=tuple(groups))


def component_of(effects: BoundEffects, asked: str, *, noise: str) -> Component:
    """The part that a person names: a term of the formula, columns of one as a term of their own, "space" or ``noise``.

    ``noise`` is what tables call the effect of every observation, ``"cell"``.

    Raises
    ------
    InvalidArgumentError
        Nothing of that name; an intercept while its slopes stay, which depends on where a covariate is zero.
    """
    names = [f"({block.name})" for block in effects.groups]
    inner = {"space": "space"} if effects.space is not None else {}
    inner |= {noise: "noise"} if effects.noise else {}
    names += inner
    text = " ".join(str(asked).split())
    if text in inner:
        return Component(text, 1, inner[text])
    term = text.removeprefix("(").removesuffix(")").strip()
    for e, block in enumerate(effects.groups):
        if _spelled(term) == _spelled(block.name):
            return Component(f"({block.name})", len(block.basis), e)
    left, _, factor = term.rpartition("|")
    for e, block in enumerate(effects.groups):
        gone = _columns_named(block, left) if _spelled(factor) == _spelled(block.name.rpartition("|")[2]) else ()
        if not gone:
            continue
        kept = tuple(k for k in range(len(block.column_names)) if k not in gone)
        if not kept or block.column_names[gone[0]] == "1":
            raise InvalidArgumentError(
                f"component: {asked!r} is a part of ({block.name}) that cannot leave alone, since what an intercept "
                f"is depends on where covariates are zero; test ({block.name}), or the slopes as '(0 + … |{factor})'."
            )
        return Component(f"({term})", len(block.basis) - len(_with_columns(block, kept).basis), e, kept)
    raise InvalidArgumentError(f"component: expected one of {listed(names, near=text)}, found {asked!r}.")


def _spelled(term: str) -> str:
    return "".join(term.split())


def _columns_named(block: GroupBlock, left: str) -> tuple[int, ...]:
    """Columns of the terms on the left side of a random term, levels of a factor by its name; none where one is not."""
    asked = [_spelled(name) for name in left.split("+")]
    plain = [re.sub(r"\[[^\]]*\]", "", name) for name in map(_spelled, block.column_names)]
    if set(asked) - {"0"} - set(plain):
        return ()
    return tuple(k for k, name in enumerate(plain) if name in asked)


def _with_columns(block: GroupBlock, kept: Sequence[int]) -> GroupBlock:
    """The effect with some of its columns; those of an unrestricted covariance keep one.

    Raises
    ------
    InvalidArgumentError
        A covariance that is neither unrestricted nor without correlations.
    """
    q, columns = len(block.column_names), list(kept)
    diagonal = all(np.count_nonzero(matrix) == 1 and np.trace(matrix) for matrix in block.basis)
    if not diagonal and len(block.basis) != q * (q + 1) // 2:
        raise InvalidArgumentError(f"component: parts of {block.name}, whose covariance is its own, are not known.")
    rows, others = np.tril_indices(len(columns))
    entries = [(i, j) for i, j in zip(rows.tolist(), others.tolist(), strict=True) if i == j or not diagonal]
    basis = np.zeros((len(entries), len(columns), len(columns)))
    for place, (i, j) in enumerate(entries):
        basis[place, i, j] = 1.0
    names = tuple(block.column_names[k] for k in columns)
    parameters = tuple(f"root({names[i]}, {names[j]})" for i, j in entries)
    return replace(block, columns=block.columns[:, columns], basis=basis, parameters=parameters, column_names=names)
