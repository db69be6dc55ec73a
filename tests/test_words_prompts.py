"""Labels and templates, and every way in which their files can be wrong."""

import time
from pathlib import Path

import pytest

from aim_mlx.errors import UsageError
from aim_mlx.words.prompts import (
    PRESETS,
    as_labels,
    as_templates,
    filled,
    read_labels,
    read_templates,
)


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "list.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_presets_have_one_place_for_the_label_each_and_no_template_twice():
    assert as_templates("plain") == ("a photo of a {}.",)
    varied = as_templates("varied")
    assert varied == PRESETS["varied"] and 20 <= len(varied) == len(set(varied))


def test_the_label_takes_the_place_and_nothing_else_is_formatted():
    assert filled("a photo of a {}.", "red panda") == "a photo of a red panda."
    assert filled("a {0.__class__} of {}", "cat") == "a {0.__class__} of cat"
    assert filled("of {}", "{0.__class__} {}") == "of {0.__class__} {}"


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{0.__class__}", "{0}", "{ }", 3])
def test_a_template_without_a_place_or_with_two_is_refused(template):
    with pytest.raises(UsageError, match="must have one {}"):
        as_templates([template])


@pytest.mark.parametrize("labels", [[], ["", "cat"], ["cat", "  "]])
def test_empty_labels_are_refused(labels):
    with pytest.raises(UsageError, match=r"got none|is empty"):
        as_labels(labels)


@pytest.mark.parametrize("twin", ["cat", " cat ", "Cat", "CAT", "cat\t"])
def test_labels_that_the_model_reads_alike_are_refused(twin):
    with pytest.raises(UsageError, match="twice"):
        as_labels(["cat", "dog", twin])


def test_labels_in_two_forms_of_unicode_are_the_same():
    with pytest.raises(UsageError, match="twice"):
        as_labels(["caf\u00e9", "cafe\u0301"])


def test_one_label_is_refused_unless_labels_are_judged_independently():
    with pytest.raises(UsageError, match="nothing to choose from"):
        as_labels(["cat"])
    assert as_labels(["cat"], single=True) == ("cat",)


@pytest.mark.parametrize("labels", ["cat", [3, "cat"], [b"cat", "dog"], ["caf\udce9", "dog"]])
def test_what_is_no_list_of_texts_is_refused(labels):
    with pytest.raises(UsageError, match="expected"):
        as_labels(labels)


def test_files_are_cleaned_of_marks_line_ends_and_blank_lines(tmp_path):
    path = written(tmp_path, b"\xef\xbb\xbfcat\r\n\r\n  big dog \r\n\t\r\nhorse")
    assert read_labels(path) == ("cat", "big dog", "horse")


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("read", [read_labels, read_templates])
def test_empty_files_are_refused(read, content, tmp_path):
    with pytest.raises(UsageError, match=r"has no (labels|templates)"):
        read(written(tmp_path, content))


@pytest.mark.parametrize("read", [read_labels, read_templates])
def test_files_that_are_not_utf_8_are_refused(read, tmp_path):
    with pytest.raises(UsageError, match="not UTF-8"):
        read(written(tmp_path, "caf\u00e9".encode("latin-1")))


@pytest.mark.parametrize("read", [read_labels, read_templates])
def test_what_is_no_file_is_refused(read, tmp_path):
    with pytest.raises(UsageError, match="text file"):
        read(tmp_path)
    with pytest.raises(UsageError):
        read(tmp_path / "missing")


def test_an_unknown_preset_names_the_presets():
    with pytest.raises(UsageError, match="plain, varied or a file"):
        as_templates("varied2")


def test_templates_come_one_a_line(tmp_path):
    path = written(tmp_path, "a {}.\n# not a comment: a {}\n")
    assert as_templates(path) == ("a {}.", "# not a comment: a {}")


@pytest.mark.parametrize(
    "content",
    [
        "templates = [\n    'a bad photo of a {}.',\n    \"the {}'s picture\",\n]\n",
        "[\n'a bad photo of a {}.',\n'the {}\\'s picture'\n]",
        '[\n  "a bad photo of a {}.",\n  "the {}\'s picture"\n]',
        "(\n lambda c: f'a bad photo of a {c}.',\n # more\n lambda c: f\"the {c}'s picture\",\n)",
    ],
)
def test_lists_as_they_stand_in_python_or_json_work_as_they_are(content, tmp_path):
    path = written(tmp_path, content)
    assert as_templates(path) == ("a bad photo of a {}.", "the {}'s picture")


def test_a_line_of_code_among_templates_is_not_run(tmp_path):
    path = written(tmp_path, "'a {}.',\n__import__('os').system('echo {}'),\n")
    assert as_templates(path)[1] == "__import__('os').system('echo {}'),"


def test_many_labels_and_long_lines_take_time_by_their_size_and_no_more(tmp_path):
    begun = time.process_time()
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"label {number}" for number in range(50_000)))
    assert len(as_labels(read_labels(labels))) == 50_000
    spaces = tmp_path / "templates.txt"
    spaces.write_text("'a {}',\nb" + " " * 100_000 + "c")
    with pytest.raises(UsageError, match="must have one"):
        as_templates(spaces)
    # Seen 0.1 s; by the square of their size these took 10 and 30 s.
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("text", ["x" * 2001, "\ud800"])
def test_labels_and_templates_that_are_no_phrases_are_refused(text):
    with pytest.raises(UsageError, match="label"):
        as_labels([text, "dog"])
    with pytest.raises(UsageError, match="template"):
        as_templates([text + " {}"])
