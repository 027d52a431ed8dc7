"""Effects of every level of a grouping factor on every isoform, as a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from pyrosplice._hypothesis.group_tables import block_named
from pyrosplice._hypothesis.test_table import TestTable, unless_ended
from pyrosplice.effects._group_block import GroupBlock
from pyrosplice.glmm._arrow.effects_fit import EffectsFit
from pyrosplice.reasons import Reason


def table_of_levels(
    fit: EffectsFit,
    blocks: Sequence[GroupBlock],
    effect: str | None,
    genes: Sequence[str],
    isoforms: Sequence[Sequence[str]],
) -> pd.DataFrame:
    """One row a gene, level, column of the effect and isoform but the last, against which its log odds are.

    Parameters
    ----------
    fit, blocks
        A fit of genes with one number of isoforms, and its effects of groups.
    effect
        Which of these, see :func:`~pyrosplice._hypothesis.group_tables.block_named`.
    genes, isoforms
        Names of the genes, and of the isoforms of each.
    """
    place = block_named(blocks, effect)
    block, mode = blocks[place], fit.group_modes[place].numpy()
    n_genes, n_levels, n_columns, n_logits = mode.shape
    each = [np.array(names[:n_logits], dtype=object) for names in isoforms]
    last = [names[n_logits] if len(names) > n_logits else "" for names in isoforms]  # "": predictors are no logits
    per_gene = n_levels * n_columns * n_logits
    why = unless_ended(fit.reason, Reason.NOT_IDENTIFIED.value)
    return TestTable(
        labels={
            "gene": np.repeat(np.asarray(genes, dtype=object), per_gene),
            "level": np.tile(np.repeat(block.level_names, n_columns * n_logits), n_genes),
            "column": np.tile(np.repeat(block.column_names, n_logits), n_genes * n_levels),
            "isoform": np.concatenate([np.tile(own, n_levels * n_columns) for own in each]),
            "against": np.repeat(np.array(last, dtype=object), per_gene),
        },
        effect=mode.ravel(),
        se=fit.group_sds[place].numpy().ravel(),
        why=np.repeat(why, per_gene),
    ).to_frame()
