"""A fitted mixture as a table, and its states in an AnnData."""

from __future__ import annotations

from typing import Protocol

import anndata as ad
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyrosplice._mixture.density_module import GaussianMixtureModel
from pyrosplice._mixture.gaussian_mixture import MixtureParameters
from pyrosplice._results.annotations import Annotations, check_target, places_in, storable_table
from pyrosplice.reasons import Reason


class FittedMixture(Protocol):
    """A fitted :class:`~pyrosplice.GaussianMixture`."""

    model_: GaussianMixtureModel
    covariance_type: str
    use_rep: str | None
    nll_: float

    @property
    def reason_(self) -> Reason: ...

    def _require_gaussian(self) -> None: ...

    def _evaluate(self, X: object) -> list[tuple[Tensor, Tensor]]: ...


def mixture_frame(self: FittedMixture) -> pd.DataFrame:
    """Tabulate the fitted mixture, a row a component and feature: ``weight``, ``mean`` and ``sd``.

    ``component`` counts from 0, as :meth:`predict` does; ``feature`` is its name, or its number where the cells of the
    fit had none.

    Examples
    --------
    >>> import numpy as np
    >>> from pyrosplice import GaussianMixture
    >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
    >>> mixture = GaussianMixture(2, random_state=0).fit(x)
    >>> mixture.to_frame()[["component", "feature"]]
       component feature
    0          0       0
    1          0       1
    2          1       0
    3          1       1
    """
    check_is_fitted(self, "model_")
    self._require_gaussian()
    parameters = self.model_.parameters_of()
    names = getattr(self, "feature_names_in_", np.arange(parameters.means.shape[1]))
    return component_rows(parameters, [str(name) for name in names])


def component_rows(parameters: MixtureParameters, features: list[str]) -> pd.DataFrame:
    """Weight, mean and standard deviation, a row a component and feature."""
    m, d = parameters.means.shape
    variances = parameters.covariance_matrices().diagonal(dim1=-2, dim2=-1)
    return pd.DataFrame(
        {
            "component": np.repeat(np.arange(m), d),
            "feature": np.tile(features, m),
            "weight": np.repeat(parameters.weights.numpy(), d),
            "mean": parameters.means.numpy().ravel(),
            "sd": variances.expand(m, d).sqrt().numpy().ravel(),
        }
    )


def write_states(self: FittedMixture, adata: ad.AnnData, key_added: str = "mixture") -> pd.DataFrame:
    """Write the states of the cells of an AnnData, read as :meth:`fit` reads it (``use_rep``), to it.

    ``obs[<key>_state]``: the most likely component, a categorical of "0", "1", …; ``obs[<key>_probability]``: its
    probability; ``obs[<key>_log_density]``; ``obsm[<key>_responsibilities]`` ``(N, M)``; ``uns[key]``: ``components``
    (:meth:`to_frame`), ``weights``, ``means`` and ``covariances``. Survives h5ad and zarr files.

    Parameters
    ----------
    adata
        Cells with the features of the fit, by name where they have names; the cells need not be those of the fit.
    key_added
        Key of ``uns``, and prefix of the others.

    Returns
    -------
    DataFrame
        What was written: ``part``, ``key``, ``missing``.

    Raises
    ------
    InvalidArgumentError
        A view; other features; names of cells that stand twice; a key that is not of an earlier mixture; cells that
        have missing values.

    Examples
    --------
    >>> import anndata as ad
    >>> import numpy as np
    >>> from pyrosplice import GaussianMixture
    >>> x = np.random.default_rng(0).normal(size=(200, 2)) + 8 * (np.arange(200)[:, None] % 2)
    >>> mixture = GaussianMixture(2, random_state=0).fit(x)
    >>> adata = ad.AnnData(x)
    >>> _ = mixture.write(adata)
    >>> adata.obs["mixture_state"].value_counts().tolist()
    [100, 100]
    """
    check_target(adata, key_added)
    table = mixture_frame(self)
    m = int(table["component"].max()) + 1
    described = {name: np.empty(0) for name in ("state", "probability", "log_density")}
    places_in(adata.obs_names, adata.obs_names, "adata.obs_names", "cell")  # refuses names that stand twice
    Annotations(kind="GaussianMixture", obs=described, obsm={"responsibilities": np.empty(0)}).check(adata, key_added)
    log_resp, log_density = (torch.cat(parts).double() for parts in zip(*self._evaluate(adata), strict=True))
    resp: NDArray[np.float64] = log_resp.exp().numpy()
    parameters = self.model_.parameters_of()
    states = pd.Categorical.from_codes(resp.argmax(1), categories=[str(k) for k in range(m)])
    return Annotations(
        kind="GaussianMixture",
        cells=adata.obs_names,
        obs={"state": states, "probability": resp.max(1), "log_density": log_density.numpy()},
        obsm={"responsibilities": resp},
        uns={
            "components": storable_table(table),
            "weights": parameters.weights.numpy(),
            "means": parameters.means.numpy(),
            "covariances": parameters.covariances.numpy(),
        },
        settings={
            "covariance_type": self.covariance_type,
            "num_components": m,
            "use_rep": self.use_rep or "X",
            "fit_ended": self.reason_.value,
            "nll": float(self.nll_),
        },
    ).write(adata, key_added)
