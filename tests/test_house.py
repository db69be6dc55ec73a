"""The rooms of the package lie on floors: an import leads down, or stays in its room.

`python tests/test_house.py` writes the list of files in docs/house.md again.
"""

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import aim_mlx

# From the ground up. A room may use those on the floors below it; on the ground, which has single
# files and no rooms, each may use those named before it.
GROUND = ["errors", "wording", "failures", "files", "config", "openblas", "backend"]
FLOORS = [
    GROUND,
    ["models", "registry"],
    ["weights"],
    ["images", "training"],
    ["encoder"],
    ["tokens", "data", "report"],
    ["store"],
    ["embedding", "words"],
    ["search", "loading"],
    ["probe", "lit_training"],
    ["pretrain", "finetune", "graphs", "self_test"],
    ["bridge", "cli"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ROOT = Path(aim_mlx.__file__).parent
PAGE = Path(__file__).parent.parent / "docs/house.md"
MODULES = {
    path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__"): path
    for path in ROOT.rglob("*.py")
    if path != ROOT / "__init__.py"
}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path, always: bool = False) -> Iterator[str]:
    """The modules of the package that a file imports, as they are named in MODULES.

    With `always`, those alone that are imported as soon as the file is.
    """
    tree = parsed(path)
    for node in tree.body if always else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aim_mlx"):
            package = (node.module or "").replace(".", "/").removeprefix("aim_mlx").lstrip("/")
            for alias in node.names:
                inner = f"{package}/{alias.name}".lstrip("/")
                if inner in MODULES or package:
                    yield inner if inner in MODULES else package
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("aim_mlx.").replace(".", "/")
                for alias in node.names
                if alias.name.startswith("aim_mlx.")
            )


def is_below(target: str, room: str) -> bool:
    if target in GROUND and room in GROUND:
        return GROUND.index(target) < GROUND.index(room)
    return FLOOR[target] < FLOOR[room]


def test_every_room_has_a_floor():
    assert {module.split("/")[0] for module in MODULES} == set(FLOOR)


def test_imports_lead_down_to_other_rooms():
    found = 0
    for module, path in MODULES.items():
        room = module.split("/")[0]
        for other in imports(path):
            target = other.split("/")[0]
            found += target != room
            assert target == room or is_below(target, room), f"{module} imports {other}"
    assert found > 300  # that imports are seen at all


def test_no_modules_import_each_other_in_a_circle():
    left = {module: set(imports(path, always=True)) - {module} for module, path in MODULES.items()}
    while free := [module for module, used in left.items() if not used & left.keys()]:
        for module in free:
            del left[module]
    assert not left


def test_the_name_of_a_public_class_is_used_once():
    nodes = [node for path in MODULES.values() for node in ast.walk(parsed(path))]
    names = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    twice = [name for name, count in names.items() if count > 1 and not name.startswith("_")]
    assert len(names) > 100 and not twice


def test_the_tests_that_run_with_other_kernels_are_there():
    repository = ROOT.parent
    (patterns,) = re.findall(
        r"^numeric=\(.*?\)$", (repository / ".ci/run").read_text(), re.M | re.S
    )
    script = f'shopt -s failglob\n{patterns}\nls -- "${{numeric[@]}}"'
    done = subprocess.run(["bash", "-c", script], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 30, done.stderr


def files() -> str:
    """The list of docs/house.md: each file with the first line of its docstring, floor by floor."""
    lines = []
    for number, rooms in enumerate(FLOORS):
        lines += [f"### {'Ground' if not number else f'Floor {number}'}", ""]
        for room in rooms:
            if room in MODULES and MODULES[room].name != "__init__.py" and number:
                lines += ["**Single files**", ""]
            for module, path in sorted(MODULES.items()):
                text = ast.get_docstring(parsed(path)) or ""
                first = text.splitlines()[0].rstrip(".:")
                if module == room and path.name == "__init__.py":
                    lines += [f"**{room}/** {first}", ""]
                elif module.split("/")[0] == room:
                    lines.append(f"- `{module}.py`: {first}")
            if lines[-1].startswith("- ") and room not in GROUND:
                lines.append("")
        lines += [""] if lines[-1] else []
    return "\n".join(lines)


def test_the_page_lists_every_file():
    assert all(ast.get_docstring(parsed(path)) for path in MODULES.values())
    found = re.search(r"<!-- files -->\n(.*)<!-- end -->", PAGE.read_text(), re.S)
    assert found and found[1] == files(), "write it again: python tests/test_house.py"


def test_the_way_of_a_photo_is_short_and_there():
    text = PAGE.read_text()
    way = re.findall(r"^\d+\. `([\w/]+)\.py`", text, re.M)
    assert 5 < len(way) <= 12 and set(way) <= set(MODULES)


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition("<!-- files -->\n")
    after = rest.partition("<!-- end -->")[2]
    PAGE.write_text(f"{before}<!-- files -->\n{files()}<!-- end -->{after}")
