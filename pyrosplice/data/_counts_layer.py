"""What every door does with the counts of an AnnData: checked, whole, in ``layers["counts"]``."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from pyrosplice._tables.containers import loaded
from pyrosplice._usage.reading.isoforms import check_counts, check_key, check_unique, matrix_name
from pyrosplice.errors import InvalidArgumentError

COUNTS = "counts"


def counted(adata: AnnData, layer: str | None) -> AnnData:
    """Copy an AnnData into memory, its counts in ``layers["counts"]`` as sparse whole numbers.

    Parameters
    ----------
    layer
        Layer of the counts; None for ``layers["counts"]`` where there is one, else ``X``.

    Raises
    ------
    InvalidArgumentError
        Names of spots or features that stand twice; no such layer; another layer than ``"counts"`` where that is there
        too; entries that are no counts.
    """
    for axis in ("obs", "var"):
        check_unique(f"adata.{axis}_names", getattr(adata, f"{axis}_names"))
    check_key(adata, "layer", layer, "layers", " None reads layers['counts'], or else X.")
    if layer is None and COUNTS in adata.layers:
        layer = COUNTS
    if layer not in (None, COUNTS) and COUNTS in adata.layers:
        raise InvalidArgumentError(
            f"layer: {layer!r} would replace layers['counts'], which is there; rename it, or take layer='counts'."
        )
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise InvalidArgumentError(f"layer: adata.X is None; name the layer of counts, one of {sorted(adata.layers)}.")
    counts = loaded(matrix, matrix_name(layer))
    check_counts(counts, adata, matrix_name(layer))
    copied = adata.to_memory(copy=True) if adata.isbacked or adata.is_view else adata.copy()
    copied.layers[COUNTS] = as_integers(counts)
    return copied


def as_integers(counts: object) -> sp.csr_matrix:
    """Sparse counts as int32, or int64 where they are larger."""
    matrix = sp.csr_matrix(counts)
    large = matrix.nnz and matrix.data.max() > np.iinfo(np.int32).max
    return sp.csr_matrix(matrix, dtype=np.int64 if large else np.int32)
