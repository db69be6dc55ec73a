"""What a user's editor says of the Python in docs/ and of a program in pyright's strict mode.

Pyright runs in a folder of its own and finds the package as an installed one: only what is
annotated and public counts.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    pages = {
        f"{page.stem}.py": "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
        for page in (ROOT / "docs").glob("*.md")
    }
    if not any(pages.values()):
        raise SystemExit("docs/ has no Python")
    with tempfile.TemporaryDirectory() as folder:
        files = {
            **pages,
            "user_program.py": (ROOT / "tests/user_program.py").read_text(),
            "pyrightconfig.json": json.dumps({"typeCheckingMode": "strict"}),
        }
        for name, text in files.items():
            Path(folder, name).write_text(text)
        command = ["pyright", "--pythonpath", sys.executable]
        return subprocess.run(
            command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
