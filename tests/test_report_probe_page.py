"""The report: one page, complete in itself, readable with few classes and with many."""

import re

import numpy as np
import pytest
from PIL import Image

from aim_mlx.errors import OutputError
from aim_mlx.report.charts import Curve, curves
from aim_mlx.report.figures import confusion, figures_of
from aim_mlx.report.probe_page import Mistake, ProbeReport, write_report
from tests.small import photo
from tests.test_report_contact_sheet import HOSTILE, Page


def report(classes: int, several: bool = False, **options) -> ProbeReport:
    rng = np.random.default_rng(0)
    names = [HOSTILE, *(f"class {i}" for i in range(1, classes))]
    if several:
        labels = (rng.random((60, classes)) < 0.3).astype(np.float32)
        probabilities = rng.random((60, classes))
    else:
        labels = rng.integers(0, classes, 10 * classes)
        probabilities = rng.dirichlet(np.full(classes, 0.2), 10 * classes)
    table = None if several else confusion(probabilities, labels)
    return ProbeReport(
        "A probe",
        "test",
        figures_of(probabilities, labels, names),
        confusion=table,
        scores=[Curve("head 1", [0.5, None, 0.7]), Curve("head 2", [0.4, 0.8, 0.9], best=True)],
        losses=[Curve("head 1", [2.0, None, 1.5]), Curve("head 2", [1.9, 1.0, 0.4], best=True)],
        heads=[{"head": "1", "rate": "1e-3"}, {"head": "2", "rate": "2e-3", "chosen": True}],
        **options,
    )


def written(tmp_path, made: ProbeReport) -> tuple[str, Page]:
    write_report(tmp_path / "report.html", made)
    text = (tmp_path / "report.html").read_text("utf-8")
    return text, Page(text)


@pytest.mark.parametrize(
    ("classes", "several"), [(3, False), (100, False), (300, False), (5, True)]
)
def test_a_page_holds_everything_and_loads_nothing(tmp_path, classes, several):
    text, page = written(tmp_path, report(classes, several))
    tags = {tag for tag, _ in page.tags}
    assert "svg" in tags and not tags & {"script", "link", "iframe", "object", "embed", "a"}
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "url(" not in text
    assert "default-src 'none'" in text
    assert len(text) < 2_000_000


def test_names_from_outside_are_text(tmp_path):
    mistake = Mistake(HOSTILE, HOSTILE, HOSTILE, Image.fromarray(photo(0, 56, 56)))
    text, page = written(
        tmp_path, report(25, facts=[(HOSTILE, HOSTILE)], warnings=[HOSTILE], mistakes=[mistake])
    )
    assert "<script" not in text and "\x1b" not in text and "\u202e" not in text
    assert "alert(1)" in page.text
    assert len(page.sources()) == 1 and page.sources()[0].startswith("data:image/jpeg")


def test_few_classes_are_a_table_of_numbers_and_many_a_picture(tmp_path):
    few = report(4)
    assert few.confusion is not None
    _, page = written(tmp_path, few)
    assert sum("hit" in (attributes.get("class") or "") for _, attributes in page.tags) == sum(
        np.diag(few.confusion) > 0
    )
    many = report(100)
    assert many.confusion is not None
    _, page = written(tmp_path, many)
    marks = [attributes.get("class") for tag, attributes in page.tags if tag == "rect"]
    assert marks.count("right") + marks.count("wrong") == np.count_nonzero(many.confusion)
    assert "class 7 taken for" in page.text


def test_of_very_many_classes_those_confused_most_are_drawn(tmp_path):
    _, page = written(tmp_path, report(300))
    assert "The 200 of 300 classes that are confused most are shown" in page.text


def test_the_figures_stand_on_the_page(tmp_path):
    made = report(4)
    _, page = written(tmp_path, made)
    low, high = made.figures["accuracy_interval"]
    for value in (made.figures["accuracy"], made.figures["balanced_accuracy"], made.figures["ece"]):
        assert f"{value:.1%}" in page.text
    assert f"{low:.1%} to {high:.1%}" in page.text and "40 images of test" in page.text


def test_classes_have_a_number_only_where_the_confusions_name_them_by_it(tmp_path):
    words = "The picture of confusions names a class by its number"
    text, page = written(tmp_path, report(100))
    assert words in page.text and "<td>8 class 7</td>" in text
    text, page = written(tmp_path, report(4))
    assert words not in page.text and "<td>class 3</td>" in text


def test_bars_end_where_their_numbers_begin_whatever_these_are(tmp_path):
    """A wider number, 100.0%, must not push its bar aside."""
    text, _ = written(tmp_path, report(4))
    assert ".number { display: inline-block; min-width: 4.2em }" in text
    assert re.search(r'<i style="width:\d+%"></i></span><span class="number">[\d.]+%</span>', text)


def test_calibration_is_explained_in_words(tmp_path):
    made = report(4)
    _, page = written(tmp_path, made)
    assert "Of all answers given with 80% confidence, eight in ten should be right" in page.text
    assert f"{made.figures['ece']:.1%} apart on average (the expected calibration" in page.text


def test_mistakes_show_the_photo_and_where_the_head_looked(tmp_path):
    looks = [Image.fromarray(photo(i, 448, 448)) for i in range(2)]
    mistake = Mistake("data/a.jpg", "class 1", "class 2 with 99%", looks[0], looks[1])
    made = report(3, mistakes=[mistake])
    _, page = written(tmp_path, made)
    assert len(page.sources()) == 2 and "data/a.jpg" in page.text
    assert looks[0].size == (448, 448)  # left as they are


def test_the_chosen_head_is_drawn_last_and_a_gap_is_no_value():
    svg = curves(report(3).scores, "score")
    first, second = re.findall(r'<polyline class="(\w+)" points="([^"]*)"', svg)
    assert (first[0], second[0]) == ("curve", "best")
    assert len(first[1].split()) == 2 and len(second[1].split()) == 3
    heights = [float(point.split(",")[1]) for point in second[1].split()]
    assert heights == sorted(heights, reverse=True)


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [1.0, 1.0, 1.0], [1e-9, 2e-9], [1e6, 3.0]])
def test_curves_of_any_values_have_an_axis_that_holds_them(values):
    svg = curves([Curve("head", values, best=True)], "loss")
    heights = [float(p.split(",")[1]) for p in re.findall(r'points="([^"]*)"', svg)[0].split()]
    assert all(0 <= height <= 300 for height in heights) and "nan" not in svg


def test_a_page_that_cannot_be_written_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        write_report(tmp_path / "missing" / "report.html", report(3))
