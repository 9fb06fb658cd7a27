"""The whole default pipeline on the digits in a throw-away clone: python -m tests.smoke"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.clones import clone, isolated, shrink
from tests.warm import warm_python


def main() -> int:
    """Run every stage and show the table; return the exit status."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="decant-smoke-") as temporary:
        folder = clone(Path(temporary) / "decant")
        shrink(folder)
        with warm_python() as warm:
            environment = isolated(warm)
            done = subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=folder, env=environment)
        if done.returncode == 0:
            print((folder / "report" / "README.md").read_text(encoding="utf-8"))
        words = "finished" if done.returncode == 0 else "failed"
        print(f"The pipeline {words} in {time.monotonic() - began:.0f} s; the clone is removed")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
