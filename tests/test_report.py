"""The page: valid, alone, escaped, with every picture for light and dark readers."""

import io
from html.parser import HTMLParser

import matplotlib
import matplotlib.image as mpimg
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from pyrosplice._report import (
    ReportFigure,
    ReportSection,
    ReportTable,
    cell_text,
    png_size,
    report_page,
    themed_png,
    write_page,
)
from pyrosplice._usage_report import UsageReport
from pyrosplice.errors import InvalidArgumentError

VOID = {"meta", "img", "source", "br"}
EVIL = "<script>alert('x')</script> & \"quoted\""


class PageReader(HTMLParser):
    """Tags with their attributes and the text of a page; raises where tags do not close as they opened."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.text = [], [], ""
        self.feed(page)
        self.close()
        assert not self.open, self.open
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def pictures():
    matplotlib.use("Agg")

    def draw():
        ax = plt.subplots(figsize=(2, 1))[1]
        ax.plot([0, 1])
        return ax

    return themed_png(draw)


def page_of(*parts, **options):
    return report_page("A title", "Lead.", [ReportSection(title="One", text="Text.", parts=parts)], **options)


def test_a_page_is_whole_and_needs_no_network(pictures, tmp_path):
    light, dark = pictures
    figure = ReportFigure(light=light, dark=dark, alt="A line.", text="It rises.")
    table = ReportTable(frame=pd.DataFrame({"gene": ["a"], "p": [0.1]}), text="Tests.", file="tests & more.csv")
    page = page_of(figure, table, files={"model": "the model"}, foot="made here")
    read = PageReader(write_page(tmp_path / "index.html", page).read_bytes().decode("utf-8"))
    assert page.startswith("<!DOCTYPE html>") and read.of("html") == [{"lang": "en"}]
    assert all(image["src"].startswith("data:image/png;base64,") for image in read.of("img"))
    assert [source["media"] for source in read.of("source")] == ["(prefers-color-scheme: dark)"]
    assert "http" not in page and not read.of("script") and not read.of("link")
    assert "tests%20%26%20more.csv" in page and "made here" in read.text


def test_whatever_people_write_is_shown_as_text(pictures):
    frame = pd.DataFrame({EVIL: [EVIL]})
    figure = ReportFigure(light=pictures[0], alt=EVIL, text=EVIL)
    sections = [ReportSection(title=EVIL, text=EVIL, parts=[figure, ReportTable(frame=frame, text=EVIL)])]
    page = report_page(EVIL, EVIL, sections, files={EVIL: EVIL}, foot=EVIL)
    read = PageReader(page)
    assert not read.of("script") and read.text.count(EVIL) >= 11
    assert read.of("img")[0]["alt"] == EVIL


def test_light_and_dark_pictures_are_of_one_size_and_of_the_papers_colors(pictures):
    assert png_size(pictures[0]) == png_size(pictures[1]) == (288, 144)
    corners = [mpimg.imread(io.BytesIO(png))[0, 0, :3] for png in pictures]
    np.testing.assert_allclose(corners[0], 1.0)
    assert corners[1].max() < 0.2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1,234,567"),
        (np.int64(3), "3"),
        (0.000123456, "0.000123"),
        (1.5e-300, "1.5e-300"),
        (np.inf, "inf"),
        (True, "yes"),
        (np.bool_(False), "no"),
        (np.nan, '<span title="missing">–</span>'),
        (None, '<span title="missing">–</span>'),
        (pd.NA, '<span title="missing">–</span>'),
        (np.float32("nan"), '<span title="missing">–</span>'),
        ("a<b", "a&lt;b"),
    ],
)
def test_values_of_a_table_are_legible(value, text):
    assert cell_text(value) == text


def test_a_long_table_says_how_much_of_it_is_shown():
    table = ReportTable(frame=pd.DataFrame({"g": range(1200)}), text="All.", n_rows=5)
    page = page_of(table)
    assert "Shown: 5 of 1,200 rows." in page and page.count("<tr>") == 6
    assert "Shown" not in page_of(ReportTable(frame=pd.DataFrame({"g": [1]}), text="All."))
    PageReader(page_of(ReportTable(frame=pd.DataFrame({"g": []}), text="None.")))


def test_what_is_no_page_is_refused():
    with pytest.raises(InvalidArgumentError, match="sections"):
        report_page("t", "l", [])
    with pytest.raises(InvalidArgumentError, match="PNG"):
        page_of(ReportFigure(light=b"no picture", alt="", text=""))
    with pytest.raises(InvalidArgumentError, match="n_rows"):
        page_of(ReportTable(frame=pd.DataFrame({"g": [1]}), text="", n_rows=0))


def spatial_tests(pvalue_adj):
    size = len(pvalue_adj)
    names = [f"g{i}" for i in range(size)]
    return pd.DataFrame({"gene": names, "pvalue": pvalue_adj, "pvalue_adj": pvalue_adj, "reason": ""})


@pytest.mark.parametrize("found", [0, 2])
def test_sentences_follow_the_numbers(found):
    adjusted = [0.01] * found + [0.5, np.nan]
    genes = pd.DataFrame({"gene": [f"g{i}" for i in range(len(adjusted))], "converged": True, "reason": "converged"})
    genes.loc[0, "converged"] = False
    said = UsageReport(genes=genes, n_spots=1000, spatial=spatial_tests(adjusted)).sections()
    assert [section.title for section in said] == ["What was fitted", "Does usage vary in space?"]
    assert "1,000 spots" in said[0].text and "1 fits did not converge" in said[0].text
    assert f"{found} of {found + 1} genes" in said[1].text


@pytest.mark.parametrize("bias", [-0.1, 0.1])
def test_sigma_is_called_low_only_where_it_is(bias):
    truth = pd.DataFrame({"gene": ["a", "b"], "truth": [0.5, 1.0], "estimate": [0.5 + bias, 1 + bias]})
    genes = pd.DataFrame({"gene": ["a", "b"], "converged": True, "count_avg": [2.0, 4.0]})
    picture = {"recovered_sigma": (b"\x89PNG\r\n\x1a\n" + bytes(16), None)}
    report = UsageReport(genes=genes, n_spots=9, truth={"sigma": truth}, pictures=picture)
    figure = report.sections()[-1].parts[0]
    assert ("a little low" in figure.text) == (bias < 0)
    assert ("3.0 here" in figure.text) == (bias < 0)
