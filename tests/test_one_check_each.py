"""One check each of shares, devices and unknown options, wherever they are given."""

import inspect

import numpy as np
import pandas as pd
import pytest
import torch

from pyrosplice import ExpressionGLM, MultinomGLM, MultinomGLMM, SplisosmGLMM, plotting
from pyrosplice._devices import as_device
from pyrosplice.data import simulate_isoforms
from pyrosplice.errors import InvalidArgumentError, UnknownOptionError, check_share

NO_SHARES = [0.0, 1.0, -0.1, 95, float("nan"), "0.5", True, None, [0.5], np.array([0.5])]
TABLE = pd.DataFrame({"pvalue": [0.1, 0.5], "pvalue_adj": [0.2, 0.5], "effect": [1.0, -1.0], "gene": ["a", "b"]})
COUNTS = np.random.default_rng(0).poisson(3.0, (20, 2))
CELLS = pd.DataFrame({"group": ["a", "b"] * 10})


@pytest.fixture(scope="module")
def usage():
    model = SplisosmGLMM("glm")
    model.setup_data(simulate_isoforms(n_spots=36, n_genes=2, covariates=("iid",)), design_mtx="iid")
    model.fit(with_design_mtx=True, print_progress=False)
    return model


@pytest.fixture(scope="module")
def expression():
    return ExpressionGLM("~1 + group").fit(COUNTS, sample_description=CELLS)


@pytest.mark.parametrize("value", NO_SHARES, ids=repr)
def test_a_share_is_a_number_between_none_and_all(value, usage, expression):
    calls = {
        "share": lambda: check_share("share", value),
        "confidence": lambda: plotting.qq(TABLE, confidence=value),
        "alpha": lambda: plotting.volcano(TABLE, effect="effect", alpha=value),
        "level": lambda: usage.get_effects(level=value),
    }
    if value is not None:  # which is its default: no floor but zero
        calls["floor"] = lambda: plotting.volcano(TABLE, effect="effect", floor=value)
    for name, call in calls.items():
        with pytest.raises(InvalidArgumentError, match=f"{name}: expected a number between 0 and 1, found"):
            call()


def test_ends_are_shares_only_where_they_may_be():
    assert [check_share("theta", value, ends=True) for value in (0, 0.5, np.float32(1))] == [0.0, 0.5, 1.0]
    for value in (-1e-9, 1.1, float("nan"), True):
        with pytest.raises(InvalidArgumentError, match=r"theta: expected a number in \[0, 1\]"):
            check_share("theta", value, ends=True)


@pytest.mark.parametrize("device", ["tpu", "meta", "cuda:99", 1.5, None])
def test_devices_that_torch_cannot_use_are_refused_everywhere(device):
    calls = (
        lambda: as_device(device),
        lambda: MultinomGLM().setup_data(torch.ones(4, 2), device=device),
        lambda: SplisosmGLMM(device=device),
        lambda: ExpressionGLM("~1").fit(COUNTS, sample_description=CELLS, device=device),
    )
    for call in calls:
        with pytest.raises(InvalidArgumentError, match="device: expected one that torch can use here"):
            call()


def test_a_device_without_double_precision_is_replaced_aloud():
    with pytest.warns(UserWarning, match="no float64"):
        assert as_device("mps") == torch.device("cpu")
    assert as_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(
    ("method", "owner"),
    [
        ("setup_data", "SplisosmGLMM"),
        ("fit", "SplisosmGLMM"),
        ("get_effects", "SplisosmGLMM"),
        ("test_differential_usage", "SplisosmGLMM"),
        ("posterior", "SplisosmGLMM"),
        ("save", "SplisosmGLMM"),
    ],
)
def test_options_that_no_method_of_usage_has_are_refused_with_those_it_has(usage, method, owner):
    with pytest.raises(UnknownOptionError, match=rf"{owner}\.{method}: no option 'n_job'; it takes .*") as error:
        getattr(usage, method)(n_job=2)
    assert isinstance(error.value, TypeError)


@pytest.mark.parametrize("kind", [MultinomGLM, MultinomGLMM, SplisosmGLMM])
def test_options_of_making_a_model(kind):
    with pytest.raises(UnknownOptionError, match=rf"{kind.__name__}: no option 'likelyhood'; it takes .*likelihood"):
        kind(likelyhood=None)
    assert "likelihood" in inspect.signature(kind).parameters  # the wrapped one is seen
