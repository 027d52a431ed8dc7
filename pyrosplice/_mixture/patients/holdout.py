"""How well stored mixtures predict the cells that their selection left out, patient by patient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd

from pyrosplice._mixture.patients.schema import key_of
from pyrosplice._mixture.patients.stored_mixtures import mixtures_in
from pyrosplice._mixture.patients.triplets import AnnData_TripletDataset
from pyrosplice._tables.labels import read_labels
from pyrosplice._tables.names import text_names
from pyrosplice.errors import InvalidArgumentError, check_known, own_options_only

GLOBAL = "__global__"
"""What stands for all patients where they share components."""
METRICS = ("train_nll", "validation_nll", "nll_gap")


@own_options_only
def evaluate_holdout_nll(
    adata: anndata.AnnData, *, gmm_key: str, patient_col: str, label_col: str | None = None
) -> pd.DataFrame:
    """Mean negative log likelihood of training cells and of cells left out, at the chosen number of components.

    Read from what ``fit_gmm`` stored when it selected by held-out likelihood: nothing is split or fitted again.
    *Differs from* the documented system's: it takes no options of a split, which have no effect there.

    Parameters
    ----------
    adata
        AnnData with the mixtures in ``uns``.
    gmm_key
        Their key.
    patient_col, label_col
        Columns of ``obs``: the patient of a cell, and the patient's group (in the table where given).

    Returns
    -------
    One row a patient (one in all for shared components): ``distribution_id``, ``distribution_index``,
    ``n_components``, ``n_cells_total``, ``n_train_cells``, ``n_val_cells``, ``train_nll``, ``validation_nll``,
    ``nll_gap``, ``train_frac``, ``val_frac``, ``component_sharing``, ``covariance_type``, ``use_rep``, ``gmm_key``,
    and ``label``.

    Raises
    ------
    InvalidArgumentError
        A key or column is missing, or the selection was not by held-out likelihood.

    Examples
    --------
    >>> import anndata as ad
    >>> import numpy as np
    >>> import pandas as pd
    >>> from pyrosplice import AnnData_TripletDataset, evaluate_holdout_nll, fit_gmm
    >>> patients = np.repeat(["P1", "P2", "P3", "P4"], 60)
    >>> x = np.random.default_rng(0).normal(size=(240, 2)) + 6 * (np.arange(240)[:, None] % 2)
    >>> groups = np.repeat(["healthy", "ill"], 120)
    >>> obs = pd.DataFrame({"sample": patients, "patient_group": groups}, index=map(str, range(240)))
    >>> adata = ad.AnnData(x, obs=obs)
    >>> dataset = AnnData_TripletDataset(adata, n_cells=50)
    >>> _ = fit_gmm(dataset, k_comps=[1, 2, 3], k_selection_metric="heldout_nll", gmm_key="gmm", verbose=False)
    >>> table = evaluate_holdout_nll(adata, gmm_key="gmm", patient_col="sample")
    >>> table[["n_components", "n_cells_total", "n_train_cells"]]
       n_components  n_cells_total  n_train_cells
    0             2             60             30
    1             2             60             30
    2             2             60             30
    3             2             60             30
    """
    stored = mixtures_in(adata, gmm_key)
    selection = stored.get("selection")
    if selection is None or str(selection["metric"]) != "heldout_nll":
        raise InvalidArgumentError(
            f"gmm_key: uns[{gmm_key!r}] was not selected by held-out likelihood; call fit_gmm with several k_comps and "
            "k_selection_metric='heldout_nll'."
        )
    patients = _labels(adata, "patient_col", patient_col)
    groups = None if label_col is None else _labels(adata, "label_col", label_col)
    shared = str(stored["component_sharing"]) == "global"
    names = [GLOBAL] if shared else [str(name) for name in stored["weight_inference"]["distribution_ids"]]
    same: dict[str, Any] = {name: str(stored[name]) for name in ("component_sharing", "covariance_type", "use_rep")}
    same |= {name: float(selection[name]) for name in ("train_frac", "val_frac")}
    records = []
    for index, name in enumerate(names):
        mine = np.ones(adata.n_obs, dtype=bool) if shared else patients == name
        if not mine.any():
            raise InvalidArgumentError(f"patient_col: obs[{patient_col!r}] has no cell of patient {name!r}.")
        key = next(iter(selection["scores_by_distribution"])) if shared else key_of(name)
        record = _at_best(selection, key) | same | {"distribution_id": name, "distribution_index": index}
        record |= {"n_cells_total": int(mine.sum()), "gmm_key": gmm_key}
        if groups is not None and not shared:
            own = sorted({str(label) for label in groups[mine]})
            if len(own) > 1:
                raise InvalidArgumentError(f"label_col: patient {name!r} has several groups {own}; expected one.")
            record["label"] = groups[mine][0]
        records.append(record)
    first = ["distribution_id", "distribution_index", "n_components", "n_cells_total", "n_train_cells", "n_val_cells"]
    table = pd.DataFrame.from_records(records)
    return table[[*first, *METRICS, *(name for name in table if name not in (*first, *METRICS))]]


@own_options_only
def summarize_holdout_nll(results: pd.DataFrame, *, groupby_cols: Sequence[str] | None = None) -> pd.DataFrame:
    """Number of patients, and mean and standard deviation over them, of each diagnostic.

    Parameters
    ----------
    results
        Result of :func:`evaluate_holdout_nll`.
    groupby_cols
        Columns whose groups have a row each; one row for all when None.

    Returns
    -------
    Columns ``count``, and ``mean_`` and ``sd_`` of ``train_nll``, ``validation_nll`` and ``nll_gap``; the standard
    deviation of one patient is NaN (the documented system says 0).

    Examples
    --------
    >>> import anndata as ad
    >>> import numpy as np
    >>> import pandas as pd
    >>> from pyrosplice import AnnData_TripletDataset, fit_gmm, summarize_holdout_nll, validate_gmm
    >>> patients = np.repeat(["P1", "P2", "P3", "P4"], 60)
    >>> x = np.random.default_rng(0).normal(size=(240, 2)) + 6 * (np.arange(240)[:, None] % 2)
    >>> groups = np.repeat(["healthy", "ill"], 120)
    >>> obs = pd.DataFrame({"sample": patients, "patient_group": groups}, index=map(str, range(240)))
    >>> adata = ad.AnnData(x, obs=obs)
    >>> dataset = AnnData_TripletDataset(adata, n_cells=50)
    >>> _ = fit_gmm(dataset, k_comps=[1, 2, 3], k_selection_metric="heldout_nll", gmm_key="gmm", verbose=False)
    >>> table, _ = validate_gmm(dataset)
    >>> summarize_holdout_nll(table)["count"].tolist()
    [4]
    """
    if not isinstance(results, pd.DataFrame):
        raise InvalidArgumentError(
            f"results: expected the table of evaluate_holdout_nll, found {type(results).__name__}."
        )
    columns = ["group"] if groupby_cols is None else text_names(groupby_cols, "groupby_cols")
    if not columns:
        raise InvalidArgumentError("groupby_cols: expected at least one column, or None for all rows, found none.")
    results = results.assign(group="All") if groupby_cols is None else results
    absent = [name for name in (*columns, *METRICS) if name not in results]
    if absent:
        raise InvalidArgumentError(f"groupby_cols: expected columns of the results {list(results)}, found {absent}.")
    grouped = results.groupby(columns, sort=False, dropna=False)
    summary = pd.DataFrame({"count": grouped.size()})
    for name in METRICS:
        summary[f"mean_{name}"], summary[f"sd_{name}"] = grouped[name].mean(), grouped[name].std()
    return summary


@own_options_only
def validate_gmm(
    dataset: AnnData_TripletDataset, *, groupby_cols: Sequence[str] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure how well a fitted data set predicts cells left out (:func:`evaluate_holdout_nll`), and summarise.

    Parameters
    ----------
    dataset
        After ``fit_gmm`` with ``k_selection_metric="heldout_nll"``.
    groupby_cols
        As of :func:`summarize_holdout_nll`; ``["label"]`` for the patients' groups.

    Examples
    --------
    >>> import anndata as ad
    >>> import numpy as np
    >>> import pandas as pd
    >>> from pyrosplice import AnnData_TripletDataset, fit_gmm, validate_gmm
    >>> patients = np.repeat(["P1", "P2", "P3", "P4"], 60)
    >>> x = np.random.default_rng(0).normal(size=(240, 2)) + 6 * (np.arange(240)[:, None] % 2)
    >>> groups = np.repeat(["healthy", "ill"], 120)
    >>> obs = pd.DataFrame({"sample": patients, "patient_group": groups}, index=map(str, range(240)))
    >>> adata = ad.AnnData(x, obs=obs)
    >>> dataset = AnnData_TripletDataset(adata, n_cells=50)
    >>> _ = fit_gmm(dataset, k_comps=[1, 2, 3], k_selection_metric="heldout_nll", gmm_key="gmm", verbose=False)
    >>> table, summary = validate_gmm(dataset, groupby_cols=["label"])
    >>> table.shape[0], summary["count"].tolist()
    (4, [2, 2])
    """
    if not isinstance(dataset, AnnData_TripletDataset) or dataset.gmm_key is None:
        raise InvalidArgumentError("dataset: expected an AnnData_TripletDataset after fit_gmm.")
    columns = {"patient_col": dataset.patient_col, "label_col": dataset.label_col}
    results = evaluate_holdout_nll(dataset.adata, gmm_key=dataset.gmm_key, **columns)
    return results, summarize_holdout_nll(results, groupby_cols=groupby_cols)


def _labels(adata: anndata.AnnData, argument: str, column: str) -> np.ndarray:
    check_known(argument, column, list(adata.obs), "a column of obs")
    return read_labels(adata.obs[column], f"{argument}: obs[{column!r}]", keep_missing=True).names


def _at_best(selection: Any, key: str) -> dict[str, Any]:
    """The stored scores of one distribution at its chosen number of components."""
    best, trace = int(selection["best_k_by_distribution"][key]), selection["scores_by_distribution"][key]
    at = list(trace["k"]).index(best)
    counts = {name: int(trace[name][at]) for name in ("n_train_cells", "n_val_cells")}
    return {"n_components": best} | counts | {name: float(trace[name][at]) for name in METRICS}
