"""The coefficients of fitted models of usage as one tidy table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrosplice._hypothesis.test_table import TestTable, unless_ended
from pyrosplice._optimize.convergence import Convergence
from pyrosplice.errors import InvalidArgumentError, NotReadyError, check_option
from pyrosplice.reasons import Reason


class WithCoefficients(Protocol):
    """A model of usage of a batch of genes."""

    beta: Tensor
    bias_eta: Tensor
    counts: Tensor
    logger: Convergence

    def standard_errors(self) -> dict[str, Tensor]: ...

    def _require_data(self) -> None: ...


def coefficient_table(self: WithCoefficients, *, names: Mapping[str, Sequence[object]] | None = None) -> pd.DataFrame:
    """Tabulate the coefficients, a row a gene, coefficient and isoform, on the log odds against the last isoform.

    Parameters
    ----------
    names
        Names by ``gene``, ``covariate`` and ``isoform`` (K); their numbers where not given.

    Returns
    -------
    DataFrame
        ``gene``, ``coefficient`` (``"intercept"``, then the covariates), ``isoform``, ``against``, ``effect``, ``se``
        (:meth:`standard_errors`), ``reason``, "" or why there is no estimate or finite error, and ``fit_ended``: of a
        gene that is "separated" they are where the search stopped on its way to infinity.

    Raises
    ------
    NotReadyError
        Before ``setup_data`` and ``fit``.
    InvalidArgumentError
        Names of something else, or another number of them.

    Examples
    --------
    >>> import torch
    >>> from pyrosplice import MultinomGLM
    >>> counts = torch.poisson(torch.full((2, 40, 3), 5.0), generator=torch.Generator().manual_seed(0))
    >>> model = MultinomGLM()
    >>> model.setup_data(counts, design_mtx=torch.linspace(-1, 1, 40)[:, None])
    >>> model.fit(quiet=True)
    >>> model.to_frame().query("gene == 0")[["coefficient", "isoform", "against", "reason"]]
      coefficient isoform  against reason
    0   intercept       0        2
    1   intercept       1        2
    2           0       0        2
    3           0       1        2
    """
    self._require_data()
    if Reason.RUNNING in self.logger.reason:
        raise NotReadyError("The model is not fitted yet: call fit() first.")
    (g, p, q), k = self.beta.shape, self.counts.shape[-1]
    label = _labels({"gene": g, "covariate": p, "isoform": k}, names)
    errors = self.standard_errors()
    effect, se = (
        torch.cat([v["bias_eta"].unsqueeze(1), v["beta"]], 1).detach().cpu().numpy()
        for v in ({"bias_eta": self.bias_eta, "beta": self.beta}, errors)
    )
    ended = [reason.value for reason in self.logger.reason]
    table = TestTable(
        labels={
            "gene": np.repeat(label["gene"], (p + 1) * q),
            "coefficient": np.tile(np.repeat(np.array(["intercept", *label["covariate"]], dtype=object), q), g),
            "isoform": np.tile(label["isoform"][:q], g * (p + 1)),
            "against": label["isoform"][-1],
        },
        effect=effect,
        se=se,
        why=np.repeat(unless_ended(ended, Reason.NOT_IDENTIFIED.value), (p + 1) * q),
        more={"fit_ended": np.repeat(ended, (p + 1) * q)},
    )
    return table.to_frame()


def _labels(sizes: Mapping[str, int], names: Mapping[str, Sequence[object]] | None) -> dict[str, np.ndarray]:
    """Names of each kind; numbers where there are none."""
    given = dict(names or {})
    for kind, own in given.items():
        check_option("names", kind, sizes)
        if len(own) != sizes[kind]:
            raise InvalidArgumentError(f"names[{kind!r}]: expected {sizes[kind]} names, one each, found {len(own)}.")
    return {kind: np.array(list(given.get(kind, range(size))), dtype=object) for kind, size in sizes.items()}
