"""What a mixture says about itself: the constructor's call, as scikit-learn has it, and after a fit how that went."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sklearn.base import BaseEstimator

from pyrosplice._mixture.density_module import GaussianMixtureModel
from pyrosplice._representation import as_html, as_text
from pyrosplice.reasons import Reason

MOST_WEIGHTS = 10  # that are shown, the first of more


class DescribedMixture(BaseEstimator):
    """Shows itself as scikit-learn's estimators do before a fit, so that pipelines and searches stay legible."""

    if TYPE_CHECKING:
        model_: GaussianMixtureModel
        n_features_in_: int
        num_iter_: int
        nll_: float

        @property
        def reason_(self) -> Reason: ...

    def _rows(self) -> dict[str, str]:
        if not self._is_fitted():
            return {"fit": "not fitted; call fit"}
        rows, known = {}, vars(self)
        if "model_" in known:  # which a model of a person's own may lack
            weights = self.model_.component_probs.tolist()
            more = ", …" if len(weights) > MOST_WEIGHTS else ""
            size = f"{len(weights)} components, {self.n_features_in_} features"
            rows["mixture"] = f"{size}, {self.model_.covariance_type} covariances"
            rows["weights"] = ", ".join(f"{weight:.3g}" for weight in weights[:MOST_WEIGHTS]) + more
        ended = [self.reason_.value, *([f"{self.num_iter_} rounds"] if "num_iter_" in known else [])]
        loss = [f"negative log likelihood {self.nll_:.6g} nats a cell"] if "nll_" in known else []
        return rows | {"fit": ", ".join(ended + loss)}

    def _is_fitted(self) -> bool:
        return "converged_" in vars(self)

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        call = super().__repr__(N_CHAR_MAX)
        return as_text(call, self._rows()) if self._is_fitted() else call

    def _repr_html_(self) -> str:
        return as_html(super().__repr__(), self._rows())

    def _repr_mimebundle_(self, **formats: object) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}
