"""What a user's editor says of the README's Python and of a program in pyright's strict mode.

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
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    if not blocks:
        raise SystemExit("README.md has no Python")
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "readme.py": "\n".join(blocks),  # later ones go on with the names of earlier ones
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
