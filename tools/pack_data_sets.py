"""Reduce public count tables, as AnnData files, to the small sets of the package.

    python tools/pack_data_sets.py FOLDER [--to pyrosplice/data/sets]

FOLDER holds the ``.h5ad`` files named below, made of the files of public repositories that the ``.toml`` of each set
names. Counts, names and coordinates are taken as they are; what is left out stands in ``changes`` of the ``.toml``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyrosplice.data._packed import packed_counts

# set: file, columns of obs, columns of var by their name in the package
SETS = {
    "bulb_families": ("mob_rep11_families", {"total_counts": "total_counts"}, {"gene_symbol": "gene_symbol"}),
    "glioblastoma": (
        "glioblastoma_5patients",
        {"patient_id": "patient_id", "condition": "condition", "sample_id": "sample_id"},
        {"gene_symbol": "gene_symbol"},
    ),
    "lung_junctions": (
        "lung_junctions_spliz",
        {"compartment": "compartment", "cell_type": "cell_type", "sample": "sample"},
        {name: name for name in ("gene_symbol", "usage_group", "anchor", "junc_start", "junc_end")},
    ),
    "breast_sections": ("paste_breast_4sections", {"slice": "section", "total": "total_counts"}, {"family": "family"}),
    "allele_counts": ("vireo_allele_counts", {}, {"gene_symbol": "gene_symbol", "allele": "allele"}),
}


def arrays_of(adata: anndata.AnnData, obs: dict[str, str], var: dict[str, str]) -> dict[str, np.ndarray]:
    """All that is stored of a set."""
    counts = adata.layers.get("counts", adata.X)
    arrays = packed_counts(sp.csr_matrix(counts))
    for axis, table, columns in (("obs", adata.obs, obs), ("var", adata.var, var)):
        arrays[f"{axis}_names"] = encoded(table.index)
        for column, name in columns.items():
            arrays |= column_of(table[column], f"{axis}/{name}", labels=axis == "obs")
    return arrays | {f"obsm/{key}": np.asarray(value, dtype=np.float64) for key, value in adata.obsm.items()}


def column_of(column: pd.Series, key: str, *, labels: bool) -> dict[str, np.ndarray]:
    """Store a column: numbers as int32, text as it is, labels of cells as codes and levels."""
    if pd.api.types.is_numeric_dtype(column):
        return {key: column.to_numpy().astype(np.int32)}
    text = column.astype(object)
    if not labels:
        return {key: encoded(text)}
    codes, levels = pd.factorize(text, sort=True)
    return {key: codes.astype(np.uint8), f"{key}.levels": encoded(levels)}


def encoded(names: object) -> np.ndarray:
    """Text as bytes of one length."""
    return np.char.encode(np.asarray(list(names), dtype=str), "utf-8")


def main() -> None:
    """Write the sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--to", type=Path, default=Path(__file__).resolve().parents[1] / "pyrosplice" / "data" / "sets")
    given = parser.parse_args()
    for name, (file, obs, var) in SETS.items():
        adata = anndata.read_h5ad(given.folder / f"{file}.h5ad")
        np.savez_compressed(given.to / f"{name}.npz", **arrays_of(adata, obs, var))
        print(f"{name}: {adata.n_obs} × {adata.n_vars}, {(given.to / f'{name}.npz').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
