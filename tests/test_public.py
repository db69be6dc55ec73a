"""The names that users import: all there, seen by editors, and imported only when used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import aim_mlx
from aim_mlx.cli import main as cli
from tests import small, user_program

SOURCE = Path(aim_mlx.__file__)


def seen_by_editors() -> dict[str, str]:
    """The names that __init__.py imports for type checkers, with their modules."""
    tree = ast.parse(SOURCE.read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    (block,) = (node for node in blocks if ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert all(name.asname == name.name for node in imports for name in node.names)
    return {name.name: str(node.module) for node in imports for name in node.names}


def test_editors_see_the_names_that_python_finds():
    assert aim_mlx._HOME == seen_by_editors()
    assert set(aim_mlx.__all__) < set(dir(aim_mlx))


@pytest.mark.parametrize("name", aim_mlx.__all__)
def test_every_public_name_can_be_had_and_says_what_it_is(name):
    value = getattr(aim_mlx, name)
    if name not in ("MODELS", "ImageSource"):  # which are no classes or functions
        assert value.__name__ == name and value.__doc__


def test_every_error_is_public():
    from aim_mlx import errors

    kinds = aim_mlx.AimError, UserWarning
    raised = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, kinds)}
    assert raised == {name for name, home in aim_mlx._HOME.items() if home == "aim_mlx.errors"}


def test_a_name_that_is_not_there_is_named():
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = aim_mlx.lode  # pyright: ignore[reportAttributeAccessIssue]


def test_a_program_that_the_strictest_type_checker_accepts_runs(tmp_path, capsys):
    files = [tmp_path / f"{seed}.png" for seed in range(12)]
    for seed, file in enumerate(files):
        Image.fromarray(small.photo(seed // 6)).save(file)
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    model, lit = small.save(tmp_path / "model"), small.save_lit(tmp_path / "lit")
    assert user_program.most_alike(model, [bad, *files], files[0])[0][0] == pytest.approx(1)
    assert "bad.jpg not_image" in capsys.readouterr().out
    assert user_program.tokens_of(model, files) == (12, 16, 64)
    assert (
        cli._run(["embed", str(files[0]), "-o", str(tmp_path / "st"), "--model", str(model)]) == 0
    )
    assert user_program.rows_of(tmp_path / "st") == {files[0]: pytest.approx(1)}
    assert len(user_program.in_words(lit, files, ["a cat", "a dog"], tmp_path / "head")) == 12
    names = ["one"] * 6 + ["two"] * 6
    assert user_program.trained(model, files, names, tmp_path / "probe") == names
    assert user_program.widths()["aimv2-3B-patch14-224"] == 3072
    assert user_program.reason(b"", model) == "empty"
    assert user_program.reason(b"", tmp_path / "none").startswith("4: ")


def test_the_import_brings_in_nothing_but_python_itself():
    code = "import sys, aim_mlx; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"mlx", "numpy", "PIL", "pyarrow", "typer"} & set(done.stdout.split())
