import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp


@pytest.fixture
def tissue():
    """12 spots; genes A (columns 0, 2, 5), B (1, 4), C (3: one isoform), and a missing gene (6)."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, size=(12, 7)).astype(np.int32)
    counts[:, 4] = 0
    counts[:3, 4] = [4, 3, 5]
    var = pd.DataFrame(
        {
            "gene_symbol": ["A", "B", "A", "C", "B", "A", "D"],
            "label": ["alpha", "beta", "alpha", "gamma", "beta", "alpha", "delta"],
        },
        index=[f"iso{i}" for i in range(7)],
    )
    obs = pd.DataFrame(
        {"region": pd.Categorical(["x", "y", "z"] * 4), "age": np.arange(12.0), "flag": [True, False] * 6},
        index=[f"spot{i}" for i in range(12)],
    )
    coords = np.stack(np.divmod(np.arange(12), 4), 1).astype(float)
    return ad.AnnData(
        X=counts.astype(np.float32),
        obs=obs,
        var=var,
        layers={"counts": sp.csr_matrix(counts)},
        obsm={"spatial": coords},
    )
