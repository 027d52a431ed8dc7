"""The field of a fit as a map: what every gene deviates by, spot by spot."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pyrosplice._expression.mixed.mixed_estimator import MixedEstimator
from pyrosplice._tables.names import places_of
from pyrosplice.errors import NotReadyError


class WithField(Protocol):
    """A fitted model of expression."""

    gene_names: NDArray[np.object_]

    def _mixed_estimator(self) -> MixedEstimator: ...


def fitted_field(self: WithField, genes: Any = None) -> pd.DataFrame:
    r"""Map the field of each gene: how far the spots deviate from what all else in the model says.

    It is the mode of the field :math:`s` given the counts and the estimated variances, on the scale of the predictor
    (natural log of the mean): a spot at 0.7 has twice what its covariates, groups and size factor say. The map is
    drawn towards zero where counts say little. Of ``Field(by=...)`` it is the coefficient that varies in space, not
    multiplied.

    Parameters
    ----------
    genes
        Names, positions, a slice or a mask; all by default.

    Returns
    -------
    DataFrame
        ``(N, g)``: fitted spots by their names × genes. Zero for a gene whose field has no variance, NaN for a gene
        without a fit.

    Raises
    ------
    NotReadyError
        Before ``fit``, after ``load`` (a file has no places), or without a field.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from pyrosplice import ExpressionGLM
    >>> from pyrosplice.data import simulate_expression
    >>> from pyrosplice.effects import Field
    >>> spots = np.stack(np.divmod(np.arange(100), 10), 1)
    >>> mean = 3.0 + np.repeat(spots[:, :1], 2, 1)  # rises along the rows
    >>> adata = simulate_expression(pd.DataFrame(index=range(100)), n_genes=2, mean=mean, seed=0)
    >>> adata.obsm["spatial"] = spots
    >>> field = ExpressionGLM("~ 1", space=Field(k_neighbors=4)).fit(adata).fitted_field()
    >>> field.shape, bool((field[90:].mean() > field[:10].mean()).all())
    ((100, 2), True)
    """
    estimator = self._mixed_estimator()
    mixed, cells = estimator.mixed, estimator.input_data.cells
    if estimator.effects.space is None:
        raise NotReadyError("The fit has no field: give space=pyrosplice.effects.Field() and call fit.")
    which = places_of(genes, self.gene_names, "genes")
    sd = mixed.sds[:, mixed.inner.index("space")]
    out = np.full((cells.n_used, len(self.gene_names)), np.nan)
    for block in estimator.blocks():
        wanted = block[np.isin(block, which)]
        space = estimator.problem(wanted).space if len(wanted) else None
        if space is not None:
            rows = torch.from_numpy(wanted)
            out[:, wanted] = (sd[rows, None] * space.spread(mixed.latents.select(rows).field)[..., 0]).numpy().T
    return pd.DataFrame(out[:, which], index=cells.index, columns=pd.Index(self.gene_names[which], name="gene"))
