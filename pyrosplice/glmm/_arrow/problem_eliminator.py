"""Which eliminator a problem takes: the fastest that knows its likelihood and its inner effects."""

from __future__ import annotations

import torch

from pyrosplice.glmm._arrow.cell_passes import CellEliminator, is_counted
from pyrosplice.glmm._arrow.effects_problem import EffectsProblem
from pyrosplice.glmm._arrow.eliminator import Eliminator
from pyrosplice.glmm._arrow.layout import SupportLayout
from pyrosplice.glmm._arrow.spots import SpotEliminator


def eliminator_of(problem: EffectsProblem, layout: SupportLayout) -> Eliminator:
    """The eliminator of a problem."""
    if is_counted(problem):
        return CellEliminator(problem, layout)
    return SpotEliminator(problem, torch.from_numpy(layout.columns), torch.from_numpy(layout.support))
