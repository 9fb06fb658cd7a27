"""An example of examples/, built by the same dvc.yaml and tasks in a clone: python -m tests.example minilm"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.clones import clone, commit, isolated
from tests.imports import ROOT

EXAMPLES = ROOT / "examples"
ASKED = ("benchmark", "report")
"""The stages that an example is for: stability and explanations are measured for whoever asks for them."""
KEPT = ("results.md", "tradeoff.svg")
"""Files that are copied back beside the example's README."""


def main(name: str = "") -> int:
    """Build the example and show its table; return the exit status."""
    names = sorted(path.parent.name for path in EXAMPLES.glob("*/params.yaml"))
    if name not in names:
        print(f"error: there is no example {name!r}; make example NAME={' or '.join(names)}", file=sys.stderr)
        return 2
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="decant-example-") as temporary:
        folder = placed(name, Path(temporary) / "decant")
        status = built(folder)
        for kept in KEPT if status == 0 else ():
            if (folder / kept).exists():
                shutil.copyfile(folder / kept, EXAMPLES / name / kept)
    ending = "finished" if status == 0 else "failed"
    print(f"The example {ending} in {time.monotonic() - began:.0f} s; the clone is removed")
    return status


def placed(name: str, folder: Path) -> Path:
    """Return a clone in `folder` with the example's files in the place of the project's own."""
    clone(folder)
    shutil.copytree(EXAMPLES / name, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md"))
    # They speak of other models.
    (folder / "dvc.lock").unlink(missing_ok=True)
    for old in ("metrics", "headline", "stability", "explain", "benchmark", "report"):
        shutil.rmtree(folder / old, ignore_errors=True)
    commit(folder, f"the example {name}")
    return folder


def built(folder: Path) -> int:
    """Fetch the example's files, run all stages, compare; return the first exit status that is not 0."""
    steps = (["fetch.py"], ["-m", "tasks.validate"], ["-m", "dvc", "repro", *ASKED], ["compare.py"])
    for words in steps:
        if words[0].endswith(".py") and not (folder / words[0]).exists():
            continue
        if status := subprocess.run([sys.executable, *words], cwd=folder, env=isolated()).returncode:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
