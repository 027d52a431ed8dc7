"""The namespace that a diffxpy script imports: ``import pyrosplice.api as de``.

``de.fit`` fits, ``de.test`` tests, ``de.stats`` has the statistics alone, ``de.utils`` designs and constraints.
"""

from types import SimpleNamespace

from pyrosplice._expression import array_tests as _arrays
from pyrosplice._expression import continuous as _continuous
from pyrosplice._expression import fit as _fit
from pyrosplice._expression import groups as _groups
from pyrosplice._expression import partition as _partition
from pyrosplice._expression import tests as _tests
from pyrosplice._expression import utils as _utils
from pyrosplice._expression.mixed import nested_models as _nested

fit = SimpleNamespace(model=_fit.model, residuals=_fit.residuals, partition=_fit.partition)
test = SimpleNamespace(
    wald=_tests.wald,
    wald_repeated=_tests.wald_repeated,
    lrt=_nested.nested_ratio,
    score=_nested.effects_score,
    continuous_1d=_continuous.continuous_1d,
    t_test=_groups.t_test,
    rank_test=_groups.rank_test,
    two_sample=_groups.two_sample,
    pairwise=_groups.pairwise,
    versus_rest=_groups.versus_rest,
    partition=_partition.partition,
)
stats = SimpleNamespace(**{name: getattr(_arrays, name) for name in _arrays.__all__})
utils = SimpleNamespace(**{name: getattr(_utils, name) for name in _utils.__all__})

__all__ = ["fit", "stats", "test", "utils"]
