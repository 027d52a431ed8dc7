"""Sizes and powers on the page that says which test to take are those of the pages and tables that measured them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.test_site_pages import rows

ROOT = Path(__file__).resolve().parents[1]
CHOOSE = (ROOT / "docs" / "choose.md").read_text(encoding="utf-8")
MEASURED = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "measured").glob("*.md")}
PERCENT = re.compile(r"(?<![\w.])[\d.]+(?:[–-][\d.]+)? %")
NOT_SIZES = {"5 %", "95 %"}  # levels of tests and intervals


def percent(low: float, high: float | None = None) -> str:
    return f"{low:.1f} %" if high is None else f"{low:.1f}–{high:.1f} %"


def firsts(page: str, header: str, *columns: int, where: Callable[[str], bool] = lambda _: True) -> list[float]:
    """First numbers (those at 5 %) in some columns of a table, of rows whose first cell is as asked."""
    kept = [row for row in rows(MEASURED[page], header) if where(row[0])]
    return [float(match[0]) for row in kept for c in columns if (match := re.search(r"\d*\.?\d+", row[c]))]


def one(page: str, header: str, column: int, name: str) -> float:
    (value,) = firsts(page, header, column, where=lambda first: first == name)
    return value


def calibration(**kept: list[object]) -> tuple[float, float]:
    """Smallest and largest percentage of the table of tests of expression, of some of its rows."""
    table = pd.read_csv(ROOT / "tests" / "studies" / "negative_binomial_calibration.csv")
    for column, values in kept.items():
        table = table[table[column].isin(values)]
    return 100 * table["at 5%"].min(), 100 * table["at 5%"].max() + 1e-9  # 5.95 is 6.0


LAYOUTS, DONORS = "| layout | null |", "| design | no random effect"
USAGE, RATIO = "| usage, layout | independent", "| donors (their sd) |"


def of_tables() -> dict[str, str]:
    """What the page says, by the words around it, with the number that the measured tables have."""
    grids = firsts("isoform-usage", LAYOUTS, 2, 3, 4, where=lambda name: name.startswith("grid"))[:12]  # of space
    reliable = firsts("isoform-usage", USAGE, 1, 2, 3, where=lambda name: name.startswith(("domains", "…")))
    few = firsts("random-effects", RATIO, 1)

    def donors(name: str, column: int) -> str:
        return percent(one("random-effects", DONORS, column, name))

    paired = [f"{n} donors, both conditions each" for n in (6, 12)]
    return {
        "{} at 1, 5 and 20 molecules a spot (256 and 1,024 spots": percent(min(grids), max(grids)),
        "{} of p-values called `reliable` (usage in domains": percent(min(reliable), max(reliable)),
        "| 3 | the same | {} (cells as units: 40 %)": donors("3 v 3", 3),
        "| 4 | the same | {} |": donors("4 v 4", 3),
        "| 6 and more | the same | {}, sparse": donors("6 v 6 donors", 3),
        "sparse counts {} |": donors("6 v 6, sparse", 3),
        "where donors do not differ at all {}": donors("6 v 6, donors alike", 3),
        '`"~ condition + (1 \\| donor/sample)"` | {} |': ", ".join(donors(name, 4) for name in paired),
        '`"~ condition + (1 + condition \\| donor)"` | {} |': ", ".join(donors(name, 5) for name in paired),
        '`"~ condition + (1 \\| donor)"` | **{}** |': ", ".join(donors(name, 3) for name in paired),
        "| {} (3 v 3 to 6 v 6) |": percent(min(few), max(few)),
        '| {} | `"wald"` costs nothing': percent(*calibration(samples=[200, 2000], method=["wald", "lrt"])),
        "| {}; 1.7–2.4 % at 7 samples": percent(*ql()),
    }


def ql() -> tuple[float, float]:
    """Sizes of the quasi-likelihood F of few samples, but those of 7 samples and mean .5, which stand beside."""
    table = pd.read_csv(ROOT / "tests" / "studies" / "negative_binomial_calibration.csv")
    table = table[table["samples"].isin([7, 20]) & (table["method"] == "ql")]
    table = table[(table["samples"] != 7) | (table["mean"] != 0.5)]
    return 100 * table["at 5%"].min(), 100 * table["at 5%"].max()


# of sentences: words of the page, and of the measured page that they are from
OF_SENTENCES = [
    ("would find 23–27 % for a gradient", "isoform-usage", "23 and 27 % for a gradient"),
    ('with `variance="model"` 30–68 %', "isoform-usage", '(with `variance="model"` 30–68 %)'),
    ("with 1 molecule and σ = .4 it finds 9 to 46 %", "isoform-usage", "| grid 32x32 | 0.4 | 0.7 | 0.46 /"),
    ("3.3–3.7 % (4 v 4 sections of 256 spots); without `(1 \\| section)` 20 %", "random-effects", "(usage 20.2 / 8.5)"),
    (
        "3.3–3.7 % (4 v 4 sections",
        "random-effects",
        "4.6 / 1.2 (3.3 / 0.9), with an effect of each spot 4.8 / 1.0 (3.7",
    ),
    ("| 4.6 %; a field alone 25 %, warned of", "random-effects", "a field alone 25.2 / 13.4"),
    ("(cells as units: 40 %)", "random-effects", "| 3 v 3 | 40.1"),
    ("power .54 for a log fold change of 1", "random-effects", ".54 and .55 (3 v 3, 1)"),
    ("power .52 for .8", "random-effects", ".52 and .53 (4 v 4, .8)"),
    ("power .54 for .5", "random-effects", ".54 and .54 (6 v 6, effect .5)"),
    ('| 5.3–5.7 % | not `method="score"`: 7.0 %', "random-effects", '5.3 and 5.7 (1.4, 1.7), `"score"` 7.0 and 7.0'),
    ("| 4.0–4.7 % at 256 spots; 1.5 % at mean .05", "random-effects", "a field of 256 spots 4.0–4.7 (mean .05: 1.5)"),
    ('`method="cluster", donors=` | 3.9–6.3 %', "expression", '`"cluster"` (3.9–6.3 % at 5 %'),
    ("1.7–2.4 % at 7 samples and mean .5", "expression", "1.7–2.4 % at 7 samples and mean 0.5"),
    ("the likelihood ratio has up to 12 %", "expression", "likelihood ratio up to 12 %"),
    (
        "| 4.5–5.8 %, at 1 % .4–1.0 | the likelihood ratio has 1.5–2.8 at 1 %",
        "expression",
        "4.5–5.8 %, at 1 % .4–1.0, where the likelihood ratio has 1.5–2.8",
    ),
    ("| 4.5–5.5 % | Wald has 0–1.1 %", "expression", '`"robust"` (4.5–5.5 %, Wald 0–1.1'),
    (
        "held-out likelihood a cell −18.64, without −21.39",
        "cell-states",
        "40 × 60 | −21.39 / .17 | −21.90 / .20 | −18.64",
    ),
    (
        "at 1 count a spot it found 15 of 20 genes off, at 5 counts 4, at 20 none",
        "posteriors",
        "15 at one count a spot",
    ),
]


@pytest.mark.parametrize("words", of_tables())
def test_numbers_of_measured_tables_are_copied_as_they_are(words):
    assert words.format(of_tables()[words]) in CHOOSE


@pytest.mark.parametrize(("words", "page", "source"), OF_SENTENCES)
def test_numbers_of_measured_sentences_are_copied_as_they_are(words, page, source):
    assert words in CHOOSE and source in " ".join(MEASURED[page].split())


def test_no_other_percentage_stands_on_the_page():
    """A new one needs a row above, which says where it was measured."""
    known = " ".join([*(words.format(number) for words, number in of_tables().items()), *(w for w, *_ in OF_SENTENCES)])
    assert {*PERCENT.findall(CHOOSE)} - {*PERCENT.findall(known)} <= NOT_SIZES | {"1 %"}
