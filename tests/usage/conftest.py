import numpy as np
import pytest
import scipy.sparse as sp

from pyrosplice.data import simulate_isoforms


def tissue_of(n_isoforms_per_gene=(3, 2, 3, 4, 2, 3), **settings):
    """Simulated genes with different numbers of isoforms on a 6 × 6 grid."""
    adata = simulate_isoforms(n_spots=36, n_genes=len(n_isoforms_per_gene), n_isoforms=4, depth=12.0, **settings)
    kept = np.concatenate([np.arange(k) + 4 * g for g, k in enumerate(n_isoforms_per_gene)])
    adata = adata[:, kept].copy()
    adata.layers["counts"] = sp.csr_matrix(adata.layers["counts"])
    adata.obs["half"] = np.where(np.arange(36) < 18, "upper", "lower")
    adata.var["label"] = "the " + adata.var["gene_symbol"].astype(str)
    return adata


@pytest.fixture
def tissue():
    return tissue_of(seed=1, covariates=("smooth", "iid"))
