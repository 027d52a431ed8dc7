"""Which eliminator a problem takes: the fastest that knows its likelihood and its inner effects."""

from __future__ import annotations

from pyrosplice.glmm._arrow.cell_passes import CellEliminator, is_counted
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.eliminator import Eliminator
from pyrosplice.glmm._arrow.layout import SupportLayout
from pyrosplice.glmm._arrow.observations import ObservationEliminator


def eliminator_of(problem: EffectsProblem, layout: SupportLayout) -> Eliminator:
    """The eliminator of a problem."""
    if problem.space is None and not problem.noise:
        return CellEliminator(problem, layout) if is_counted(problem) else ObservationEliminator(problem, layout)
    raise NotImplementedError
