"""What is said of effects that people write."""

import numpy as np
import pandas as pd
import pytest

from pyrosplice.effects import Effect, Groups
from pyrosplice.testing import check_effect

TABLE = pd.DataFrame({"donor": list("abcd") * 6, "x": np.random.default_rng(0).normal(size=24)})
TABLE["condition"] = np.repeat(["u", "v"], 12)


class Donors(Effect):
    """One method is enough."""

    def levels(self, table):
        return table["donor"]


class Siblings(Donors):
    """Donors a and b are related."""

    def root(self, level_names):
        related = [{"a", "b"} == {one, other} for one in level_names for other in level_names]
        size = len(level_names)
        return np.linalg.cholesky(np.eye(size) + 0.5 * np.reshape(related, (size, size)))


class SharedVariance(Donors):
    """An intercept and a slope of the same variance."""

    def columns(self, table):
        return np.column_stack([np.ones(len(table)), table["x"]])

    def basis(self, column_names):
        return np.eye(2)[None]


@pytest.mark.parametrize(
    "effect",
    [Donors(), Siblings(), SharedVariance(), Groups("donor", "~ x"), Groups("donor", "~ x", "diagonal"),
     Groups("donor", "~ condition"), Groups(("donor", "condition"))],
    ids=lambda effect: f"{type(effect).__name__} {effect.name}",
)  # fmt: skip
def test_right_ones_pass(effect):
    check_effect(effect, TABLE)


def test_what_they_bind_to():
    block = SharedVariance().bind(TABLE)
    assert (block.name, block.parameters, block.column_names) == ("SharedVariance", ("psi1",), ("1", "2"))
    np.testing.assert_allclose(
        (Siblings().bind(TABLE).root @ Siblings().bind(TABLE).root.T)[:2, :2], [[1, 0.5], [0.5, 1]]
    )


WRONG = {
    "nothing": ({}, "override levels"),
    "short": ({"levels": lambda self, table: ["a"]}, "expected 24 labels, one a row, found 1"),
    "missing": ({"levels": lambda self, table: [None, *table["donor"][1:]]}, "1 of 24 missing"),
    "by place": ({"levels": lambda self, table: list("abcd") * 6}, "rows in another order: .* are in another group"),
    "one group": ({"levels": lambda self, table: ["a"] * len(table)}, "two groups at least"),
    "flat": ({"columns": lambda self, table: np.ones(len(table))}, r"columns\(\): expected shape \(24, "),
    "infinite": ({"columns": lambda self, table: np.full((len(table), 1), np.inf)}, "finite numbers"),
    "columns by place": ({"columns": lambda self, table: np.arange(24.0)[:, None]}, "rows in another order"),
    "zero": ({"columns": lambda self, table: np.zeros((24, 1))}, "zero everywhere"),
    "matrix": ({"basis": lambda self, names: np.eye(1)}, r"basis\(\): expected shape \(parameters, 1, 1\)"),
    "twice": ({"basis": lambda self, names: np.ones((2, 1, 1))}, "independent matrices"),
    "no variance": ({"basis": lambda self, names: np.zeros((1, 1, 1))}, "singular|independent"),
    "changing": ({"basis": lambda self, names: np.random.default_rng().normal(size=(1, 1, 1))}, "same matrices"),
    "root": ({"root": lambda self, names: np.eye(3)}, r"root\(\): expected finite numbers, shape \(4, 4\)"),
    "equal": ({"root": lambda self, names: np.ones((4, 4))}, "full rank"),
    "root by place": ({"root": lambda self, names: np.diag([1.0, 2, 3, 4])}, "groups in another order"),
    "name": ({"name": property(lambda self: None)}, "name: expected text"),
}


@pytest.mark.parametrize("kind", sorted(WRONG))
def test_wrong_ones_are_told_what_is_wrong(kind):
    methods, says = WRONG[kind]
    parent = Effect if kind == "nothing" else Donors
    with pytest.raises(AssertionError, match=rf"(?s)Wrong breaks its contract.*{says}"):
        check_effect(type("Wrong", (parent,), methods)(), TABLE)


def test_matrices_that_say_the_same_of_the_covariance_are_found():
    basis = np.array([np.eye(2), [[0.0, 1], [-1, 0]]])  # psi turns and stretches: L L' is a multiple of 1 always
    wrong = type("Turned", (SharedVariance,), {"basis": lambda self, names: basis})
    with pytest.raises(AssertionError, match="2 parameters say less"):
        check_effect(wrong(), TABLE)


def test_anything_else_is_no_effect():
    with pytest.raises(AssertionError, match="expected an object of a subclass"):
        check_effect("donor", TABLE)
