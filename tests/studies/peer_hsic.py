"""P-values of the peer package's HSIC-IR test. Runs in the peer's own interpreter, called by sv_score.py.

Input .npz: ``data``, ``indices``, ``indptr`` of the adjacency (CSR), and ``counts_<cell>`` (genes, spots,
isoforms). Output: ``<cell>`` p-values in the order of the genes (NaN where the peer drops the gene),
``<cell>_seconds``, wall-clock and processor, of its setup (which makes the kernel) and test, and ``version``.
Runs with splisosm 1.1.1 and 1.2.0; each tests by the null law that it has as its default.
"""

import sys
import time
import warnings
from importlib.metadata import version

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from splisosm import SplisosmNP


def hsic_pvalues(counts, adjacency):
    n_genes, n_spots, n_isos = counts.shape
    names = [f"g{g}" for g in range(n_genes)]
    matrix = counts.transpose(1, 0, 2).reshape(n_spots, -1)
    var = pd.DataFrame({"gene_symbol": np.repeat(names, n_isos)}, index=[f"i{j}" for j in range(matrix.shape[1])])
    data = ad.AnnData(sp.csr_matrix(matrix), var=var, obs=pd.DataFrame(index=[f"s{i}" for i in range(n_spots)]))
    data.layers["counts"] = data.X
    data.obsm["spatial"] = np.zeros((n_spots, 2))
    data.obsp["graph"] = adjacency
    start = np.array([time.perf_counter(), time.process_time()])
    model = SplisosmNP()
    model.setup_data(data, adj_key="graph", min_counts=0)
    model.test_spatial_variability(method="hsic-ir", n_jobs=1, print_progress=False)
    seconds = np.array([time.perf_counter(), time.process_time()]) - start
    table = model.get_formatted_test_results("sv").set_index("gene")
    return table["pvalue"].reindex(names).to_numpy(), seconds


def main(source, target):
    warnings.simplefilter("ignore")
    data = np.load(source)
    n_spots = len(data["indptr"]) - 1
    adjacency = sp.csr_matrix((data["data"], data["indices"], data["indptr"]), shape=(n_spots, n_spots))
    cells = [name.removeprefix("counts_") for name in data.files if name.startswith("counts_")]
    found = {"version": version("splisosm")}
    for cell in cells:
        found[cell], found[f"{cell}_seconds"] = hsic_pvalues(data[f"counts_{cell}"], adjacency)
    np.savez(target, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
