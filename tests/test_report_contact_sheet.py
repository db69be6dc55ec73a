"""Contact sheets: everything in one file, nothing in it runs, every picture or its reason."""

import base64
import io
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
import pytest
from PIL import Image

from aim_mlx.errors import OutputError
from aim_mlx.report.contact_sheet import Line, Origin, Picture, Section, write_contact_sheet
from tests.small import photo

HOSTILE = (
    "<script>alert(1)</script>\"'><img src=http://x/y onerror=z>\x1b[31m\u202egpj.exe\udcff\n.jpg"
)


ORIGIN = Origin({"model": "some-model", "trained": True}, Path("my store"))


class Page(HTMLParser):
    """Tags with their attributes, and the text, as a browser would have them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def sources(self) -> list[str]:
        return [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]


def written(tmp_path, sections, title="Title", note="") -> tuple[str, Page]:
    target = tmp_path / "page.html"
    write_contact_sheet(target, title, sections, ORIGIN, note)
    text = target.read_text("utf-8")
    return text, Page(text)


def pictures(page: Page) -> list[Image.Image]:
    data = [source.removeprefix("data:image/jpeg;base64,") for source in page.sources()]
    return [Image.open(io.BytesIO(base64.b64decode(each, validate=True))) for each in data]


def test_pictures_are_small_upright_jpegs_in_their_order(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    tall = Image.fromarray(photo(1, 800, 500))
    tall.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    images = [tmp_path / "turned.png", photo(2, 60, 80), tall]
    _, page = written(tmp_path, [Section("All", [Picture(image, ["x"]) for image in images])])
    turned, small, upright = pictures(page)
    assert (turned.size, small.size) == ((200, 320), (80, 60)) and turned.format == "JPEG"
    assert not turned.getexif()
    # Both were scaled and compressed from the same upright pixels.
    np.testing.assert_array_equal(np.asarray(turned), np.asarray(upright))


def test_whatever_a_name_holds_is_text(tmp_path):
    lines = [HOSTILE, Line(HOSTILE, 0.5)]
    section = Section(HOSTILE, [Picture(photo(0), lines)], HOSTILE)
    text, page = written(tmp_path, [section], HOSTILE, HOSTILE)
    tags = {tag for tag, _ in page.tags}
    assert "script" not in tags and len(page.sources()) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    visible = "<script>alert(1)</script>\"'><img src=http://x/y onerror=z>"
    visible += "\\x1b[31m\\u202egpj.exe\\udcff\\n.jpg"
    assert page.text.count(visible) == 7  # two titles, two notes, one heading, two lines
    assert "\x1b" not in text and "\u202e" not in text


def test_nothing_is_loaded_and_nothing_may_run(tmp_path):
    text, page = written(tmp_path, [Section("All", [Picture(photo(0), ["a"])])])
    policy = [
        a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert text.index("Content-Security-Policy") < text.index("<style>")  # holds for what follows
    assert not {"script", "link", "iframe", "object", "base"} & {t for t, _ in page.tags}
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources())
    assert not re.search(r"https?:|url\(|@import|//", re.sub(r'src="data:[^"]*"', "", text))


def test_a_photo_that_is_not_there_keeps_its_place_with_the_reason(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    images = [tmp_path / "gone.jpg", photo(0), tmp_path / "bad.jpg"]
    named = [Picture(image, [str(place)]) for place, image in enumerate(images)]
    text, page = written(tmp_path, [Section("All", named)])
    assert len(page.sources()) == 1
    figures = [Page(figure).text for figure in re.findall(r"<figure>.*?</figure>", text, re.S)]
    assert figures[0].startswith("vanished") and figures[0].endswith("0")
    assert figures[1] == "1" and figures[2].startswith("not_image")


def links(page: Page) -> list[str]:
    return [attributes["href"] or "" for tag, attributes in page.tags if tag == "a"]


NAMES = ["a b.jpg", "javascript:alert(1).jpg", "50%25 #1?x&y.jpg", "\"'<b>.jpg", "\udcff\n.jpg"]


@pytest.mark.parametrize("below", [True, False], ids=["below the page", "elsewhere"])
def test_a_picture_links_to_its_photo_whatever_its_name_holds(tmp_path, below):
    folder = tmp_path / "pages"
    photos = (folder if below else tmp_path) / "my photos"
    for made in (folder, photos):
        made.mkdir()
    places = [photos / name for name in NAMES if sys.platform == "linux" or name.isprintable()]
    for place in places:
        Image.fromarray(photo(0)).save(place)
    _, page = written(folder, [Section("All", [Picture(place, ["x"]) for place in places])])
    assert len(links(page)) == len(places)
    for link, place in zip(links(page), places, strict=True):
        assert link.startswith("./my%20photos/" if below else f"file://{tmp_path}/my%20photos/")
        parts = urlsplit(link)
        assert not (parts.query or parts.fragment or parts.netloc)
        target = unquote_to_bytes(parts.path)
        assert os.path.join(os.fsencode(folder), target).replace(b"./", b"") == os.fsencode(place)


def test_what_is_no_file_or_is_not_there_is_no_link(tmp_path):
    _, page = written(tmp_path, [Section("All", [Picture(photo(0), []), Picture("gone.jpg", [])])])
    assert links(page) == []


def test_a_page_says_which_model_store_and_time_it_is_of(tmp_path):
    _, page = written(tmp_path, [])
    assert re.search(
        r"Model: some-model\. Store: my store\. \d{4}-\d\d-\d\d \d\d:\d\d\.", page.text
    )
    assert "untrained" not in page.text


def test_a_page_of_an_untrained_model_says_that_it_means_nothing(tmp_path):
    origin = Origin({"model": "m", "trained": False})
    write_contact_sheet(tmp_path / "page.html", "Title", [], origin)
    text = Page((tmp_path / "page.html").read_text()).text
    assert "The encoder's weights are random: similarities mean little," in text


def test_a_path_breaks_after_its_separators_alone(tmp_path):
    section = Section("All", [Picture(photo(0), ["photos/hubble_deep-field.jpg", "-0.5000"])])
    text, page = written(tmp_path, [section])
    assert "<div>photos/<wbr>hubble_<wbr>deep-<wbr>field.jpg</div><div>-0.5000</div>" in text
    assert "photos/hubble_deep-field.jpg" in page.text


def test_a_bar_is_as_long_as_its_share(tmp_path):
    shares = [0.0, 0.25, 1.0, 7.0, -1.0]
    lines = [Line(str(share), share) for share in shares]
    text, _ = written(tmp_path, [Section("All", [Picture(photo(0), lines)])])
    assert re.findall(r"width:([\d.]+)%\"", text) == ["0.0", "25.0", "100.0", "100.0", "0.0"]


def test_more_pictures_than_are_decoded_at_once_come_whole_and_in_order(tmp_path):
    few = [photo(seed) for seed in range(3)]
    many = [Picture(few[i % 3], [f"number {i}"]) for i in range(150)]
    _, page = written(tmp_path, [Section("All", many), Section("Empty", [])])
    assert re.findall(r"number (\d+)", page.text) == [str(i) for i in range(150)]
    sources = page.sources()
    assert sources == sources[:3] * 50 and len(set(sources)) == 3


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        write_contact_sheet(tmp_path / "missing" / "page.html", "Title", [], ORIGIN)
    (tmp_path / "page.html").write_text("old")
    failing = Section("All", [Picture(photo(0), [5])])  # type: ignore[list-item]
    with pytest.raises(AttributeError):
        write_contact_sheet(tmp_path / "page.html", "Title", [failing], ORIGIN)
    assert (tmp_path / "page.html").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
