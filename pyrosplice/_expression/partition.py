"""Tests within parts of the cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pyrosplice._expression import groups as expression_groups
from pyrosplice._expression import tests as expression_tests
from pyrosplice._expression.comparisons import ExpressionTests
from pyrosplice._expression.fit import Partition
from pyrosplice._expression.mixed import nested_models
from pyrosplice._expression.results import ExpressionTest


class TestPartition(Partition):
    """Tests within each part of the cells; every method takes the arguments of the test of its name.

    Options with an entry a cell (``grouping``, ``size_factors``, ``weights``, …) are those of all cells.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.tile(["a", "b"], 50), "tissue": np.repeat(["liver", "lung"], 50)})
    >>> parts = de.test.partition(simulate_expression(cells, n_genes=2, mean=3.0, seed=0), "tissue")
    >>> parts.t_test(grouping="group").summary_group("lung").shape[0]
    2
    """

    __test__ = False  # not a test of pytest's

    def _each(self, test: Callable[..., ExpressionTest], options: dict[str, Any]) -> ExpressionTests:
        tests: dict[tuple[Any, ...], ExpressionTest] = {
            (part,): test(**arguments) for part, arguments in self.with_options(options)
        }
        cells = np.bincount(self.index[self.index >= 0])
        mean = np.average([result.mean for result in tests.values()], axis=0, weights=cells)
        return ExpressionTests(self.partitions, tests, (len(self.partitions),), mean)

    def wald(self, **options: Any) -> ExpressionTests:
        """Run :func:`pyrosplice._expression.tests.wald` in each part.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.tile(["a", "b"], 50), "tissue": np.repeat(["liver", "lung"], 50)})
        >>> parts = de.test.partition(simulate_expression(cells, n_genes=2, mean=3.0, seed=0), "tissue")
        >>> parts.wald(formula_loc="~ group", factor_loc_totest="group").pval.shape  # tissues × genes
        (2, 2)
        """
        return self._each(expression_tests.wald, options)

    def lrt(self, **options: Any) -> ExpressionTests:
        """Run :func:`pyrosplice._expression.tests.lrt` in each part.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.tile(["a", "b"], 50), "tissue": np.repeat(["liver", "lung"], 50)})
        >>> parts = de.test.partition(simulate_expression(cells, n_genes=2, mean=3.0, seed=0), "tissue")
        >>> parts.lrt(full_formula_loc="~ group", reduced_formula_loc="~ 1").pval.shape
        (2, 2)
        """
        return self._each(nested_models.nested_ratio, options)

    def t_test(self, **options: Any) -> ExpressionTests:
        """Run :func:`pyrosplice._expression.groups.t_test` in each part.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.tile(["a", "b"], 50), "tissue": np.repeat(["liver", "lung"], 50)})
        >>> parts = de.test.partition(simulate_expression(cells, n_genes=2, mean=3.0, seed=0), "tissue")
        >>> parts.t_test(grouping="group").pval_group("liver").shape
        (2,)
        """
        return self._each(expression_groups.t_test, options)

    def rank_test(self, **options: Any) -> ExpressionTests:
        """Run :func:`pyrosplice._expression.groups.rank_test` in each part.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.tile(["a", "b"], 50), "tissue": np.repeat(["liver", "lung"], 50)})
        >>> parts = de.test.partition(simulate_expression(cells, n_genes=2, mean=3.0, seed=0), "tissue")
        >>> parts.rank_test(grouping="group").pval_group("liver").shape
        (2,)
        """
        return self._each(expression_groups.rank_test, options)

    def two_sample(self, **options: Any) -> ExpressionTests:
        """Run :func:`pyrosplice._expression.groups.two_sample` in each part.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> import pyrosplice.api as de
        >>> from pyrosplice.data import simulate_expression
        >>> cells = pd.DataFrame({"group": np.tile(["a", "b"], 50), "tissue": np.repeat(["liver", "lung"], 50)})
        >>> parts = de.test.partition(simulate_expression(cells, n_genes=2, mean=3.0, seed=0), "tissue")
        >>> parts.two_sample(grouping="group", test="wald").pval_group("liver").shape
        (2,)
        """
        return self._each(expression_groups.two_sample, options)


def partition(
    data: Any,
    parts: Any,
    gene_names: Sequence[str] | None = None,
    sample_description: pd.DataFrame | None = None,
    *,
    missing: str = "raise",
) -> TestPartition:
    """Divide the cells by ``parts`` for tests within each.

    Parameters
    ----------
    parts
        Label of each cell, or the column that holds it.
    missing
        ``"drop"`` leaves out cells without a label, which are an error otherwise.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import pyrosplice.api as de
    >>> from pyrosplice.data import simulate_expression
    >>> cells = pd.DataFrame({"group": np.tile(["a", "b"], 50), "tissue": np.repeat(["liver", "lung"], 50)})
    >>> parts = de.test.partition(simulate_expression(cells, n_genes=2, mean=3.0, seed=0), "tissue")
    >>> tests = parts.wald(formula_loc="~ group", factor_loc_totest="group")
    >>> tests.groups, tests.pval.shape
    (['liver', 'lung'], (2, 2))
    """
    return TestPartition(data, parts, gene_names, sample_description, missing=missing)
