"""The door to the command line: Ctrl-C while it is still loading ends like any other."""

import sys


def main() -> None:
    """Loads the commands and runs one."""
    try:
        from aim_mlx.cli.main import main as run
    except KeyboardInterrupt:
        print("aim-mlx: error: interrupted", file=sys.stderr)
        sys.exit(130)
    run()
