"""What every table of results promises: a row that lacks something says why, and no other does."""

import numpy as np

from pyrosplice.reasons import Reason


def lacking(table):
    """Rows without a p-value, with an infinite effect, or without a finite standard error or interval, ``(R,)``."""
    lost = np.zeros(len(table), dtype=bool)
    if "effect" in table:
        lost |= np.isinf(table["effect"].to_numpy(dtype=float))
    for name in {"pvalue", "pvalue_adj"} & set(table):
        lost |= table[name].isna().to_numpy()
    for name in (column for column in table if column.split("_")[-1] in ("se", "lower", "upper")):
        lost |= ~np.isfinite(table[name].to_numpy(dtype=float))
    return lost


def check_reasons(table, *, least=0):
    """Raise unless exactly the rows that lack something, at ``least`` so many, have a reason of the vocabulary."""
    words = table["reason"].to_numpy(dtype=object)
    np.testing.assert_array_equal(words != "", lacking(table), err_msg=str(table))
    assert set(words) <= {"", *(reason.value for reason in Reason)}, set(words)
    assert (words != "").sum() >= least
