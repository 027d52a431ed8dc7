"""What the site's pages say is there: names of the library, and what scripts of others are told of them."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import pyrosplice
import pyrosplice.api as de
from pyrosplice.data import simulate_isoforms
from pyrosplice.spatial import get_cov_sp
from tests.paths import pages_of_text

ROOT = Path(__file__).resolve().parents[1]
MIGRATIONS = [name for name in pages_of_text() if "/migrate-from-" in name]
HISTORY = ("docs/changelog.md", "CONTRIBUTING.md")
FILES = (".py", ".h5ad", ".safetensors")
OTHERS = {  # of anndata, Pyro and scanpy; and "diag(a) B diag(a)" of the glossary
    "Predictive",
    "StudentT",
    "diag",
    "init_to_value",
    "rank_genes_groups",
    "rank_genes_groups_df",
    "read_h5ad",
}
WITH_CODE = ("docs/howto/", "docs/guide/", "docs/gallery.md", "docs/what-this-is-not.md")
WIDEST = 72  # letters of code that are seen without scrolling, in the theme's column
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
FENCE = re.compile(r"^(`{3,}).*?^\1`*$", re.MULTILINE | re.DOTALL)


def words(text: str) -> Iterator[str]:
    """What stands in backticks outside of blocks of code."""
    yield from CODE.findall(FENCE.sub("", text))


def rows(text: str, header: str) -> Iterator[list[str]]:
    """Cells of the tables below a header line."""
    for table in re.findall(re.escape(header) + r".*\n\|[-|]+\n((?:\|.*\n?)+)", text):
        for line in table.strip().splitlines():
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.mark.parametrize("name", [name for name in pages_of_text() if name.startswith(WITH_CODE)])
def test_code_of_pages_is_no_wider_than_the_page(name: str) -> None:
    blocks = [found[0] for found in FENCE.finditer((ROOT / name).read_text(encoding="utf-8"))]
    wide = [line for block in blocks for line in block.splitlines() if len(line) > WIDEST]
    assert not wide


def resolve(name: str) -> object:
    """Value of a dotted name whose first words are a module."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            value = getattr(value, part)
        return value
    raise ModuleNotFoundError(name)


@cache
def fitted(name: str) -> object:
    """A fitted object of a class, since some attributes are there only then."""
    rng = np.random.default_rng(0)
    if name == "SplisosmGLMM":
        model = pyrosplice.SplisosmGLMM()
        model.setup_data(simulate_isoforms(n_spots=36, n_genes=2, seed=0))
        model.fit(print_progress=False)
        return model
    if name in ("MultinomGLM", "MultinomGLMM"):
        counts = torch.from_numpy(rng.poisson(4.0, (2, 25, 3)))
        place = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))
        space = {"corr_sp": get_cov_sp(place, k=4, rho=0.9)} if name == "MultinomGLMM" else {}
        glm = getattr(pyrosplice, name)()
        glm.setup_data(counts, **space)
        glm.fit(quiet=True)
        return glm
    if name in ("Estimator", "ExpressionTest"):
        cells = pd.DataFrame({"group": ["a", "b"] * 20})
        if name == "Estimator":
            return de.fit.model(rng.poisson(3.0, (40, 3)), "~1+group", sample_description=cells)
        options = {"sample_description": cells, "formula_loc": "~1+group", "factor_loc_totest": "group"}
        return de.test.wald(rng.poisson(3.0, (40, 3)), **options)
    if name == "GaussianMixture":
        return pyrosplice.GaussianMixture(2, random_state=0).fit(rng.normal(size=(50, 2)))
    obs = pd.DataFrame({"sample": np.repeat(list("abcd"), 30), "patient_group": np.repeat(["x", "y"], 60)})
    obs.index = obs.index.astype(str)
    dataset = pyrosplice.AnnData_TripletDataset(anndata.AnnData(rng.normal(size=(120, 2)), obs=obs), n_cells=20)
    return pyrosplice.fit_gmm(dataset, k_comps=1, verbose=False)


FITTED = (
    "AnnData_TripletDataset",
    "Estimator",
    "ExpressionTest",
    "GaussianMixture",
    "MultinomGLM",
    "MultinomGLMM",
    "SplisosmGLMM",
)


def there(name: str) -> bool:
    """Whether a name of a page is there: a module's, or that of a class or a fitted object."""
    head, *parts = name.split(".")
    try:
        if head not in FITTED or not parts:
            resolve(name if head == "pyrosplice" else f"pyrosplice.{name}")
            return True
        value = fitted(head)
        for part in parts:
            value = getattr(value, part)
    except (AttributeError, ModuleNotFoundError):
        return False
    return True


def test_there_are_four_migrations():
    libraries = {name.partition("/migrate-from-")[2] for name in MIGRATIONS}
    assert libraries == {"splisosm.md", "diffxpy.md", "pycave.md", "ggml-ot.md"}


@pytest.mark.parametrize("name", MIGRATIONS)
def test_every_name_that_a_script_is_sent_to_is_there(name):
    table = list(rows((ROOT / name).read_text(encoding="utf-8"), "| there | here | differs |"))
    assert len(table) >= 5 and all(len(row) == 3 and CODE.findall(row[1]) for row in table)
    named = [word for row in table for word in CODE.findall(row[1])]
    assert [word for word in named if not there(word)] == []


@pytest.mark.parametrize("name", MIGRATIONS)
def test_arguments_have_the_places_and_defaults_that_scripts_are_told(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    sections = re.split(r"^### Arguments of ", text, flags=re.MULTILINE)[1:]
    assert sections
    for section in sections:
        path = CODE.findall(section)[0]
        told = [(CODE.findall(row[0])[0], row[1].strip("`")) for row in rows(section, "| argument | default | here |")]
        taken = [p for p in inspect.signature(resolve(path)).parameters.values() if p.name != "self"]
        empty = inspect.Parameter.empty
        actual = [(p.name, "required" if p.default is empty else repr(p.default)) for p in taken]
        assert told == actual[: len(told)], path


@pytest.mark.parametrize("name", MIGRATIONS)
def test_a_name_that_is_not_there_would_be_found(name):
    assert not there("pyrosplice.SplisosmNP") and not there("SplisosmGLMM.n_gene") and not there("api.fit.modell")
    assert there("pyrosplice.api.fit.model") and there("GaussianMixture.model_.means")


@cache
def known() -> frozenset[str]:
    """Names of all public things, of their members and arguments, by their last word."""
    from tests.test_public_examples import RESULTS, public_things  # noqa: PLC0415 (as heavy as its examples)

    found: set[str] = set()
    for path, thing in [*public_things(), *((cls.__name__, cls) for cls in RESULTS)]:
        found |= {path.rpartition(".")[2], *dir(thing)}
        for member in (thing, *(getattr(thing, word) for word in dir(thing) if not word.startswith("__"))):
            try:
                found |= set(inspect.signature(member).parameters)
            except (TypeError, ValueError):
                continue
    return frozenset(found)


def strangers(text: str) -> list[str]:
    """Names in backticks that look like the library's and are not: dotted ones, calls, and options (``word=``)."""
    wrong = []
    for word in words(text):
        if "/" in word or re.match(r"^(pip|make|python|apt-get|export|git)\b", word):
            continue
        dotted = [full for full in re.findall(r"\bpyrosplice(?:\.\w+)+", word) if not full.endswith(FILES)]
        wrong += [full for full in dotted if not there(full)]
        wrong += [called for called in re.findall(r"(\w+)\(", word) if called not in known() | OTHERS]
        wrong += [f"{option}=" for option in re.findall(r"\b([a-z]\w+)=(?!=)", word) if option not in known() | OTHERS]
    return wrong


@pytest.mark.parametrize("name", [page for page in pages_of_text() if page not in HISTORY])
def test_names_that_pages_give_are_the_librarys(name):
    assert strangers((ROOT / name).read_text(encoding="utf-8")) == []


def test_names_that_are_not_the_librarys_are_found():
    text = "`pyrosplice.GausianMixture`, `model.unit()`, `fit(batchsize=3)`, `k_comp=`; `units()`, `fit_gmm(k_comps=2)`"
    assert strangers(text) == ["pyrosplice.GausianMixture", "unit", "batchsize=", "k_comp="]


OTHER_PACKAGES = re.compile(r"\b(splisosm|diffxpy|pycave|ggml_ot|spatialdata)\b")  # which the suite has not
NO_CODE = {"bash", "bibtex", "sh", "text"}


@pytest.mark.parametrize("name", pages_of_text())
def test_python_that_a_page_shows_is_run_unless_it_needs_what_is_not_here(name):
    """Cells by the build, ``python`` by the suite; ``py`` is only shown."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for language, code in re.findall(r"^```(\S+)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        assert language.startswith("{") or language in {"python", "py", *NO_CODE}, language
        assert language != "py" or OTHER_PACKAGES.search(code), code
