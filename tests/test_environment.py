"""A stage that a Python without the pipeline's packages starts ends in one sentence, and only such a one."""

import os
import signal
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tasks.pipeline import environment
from tests.imports import ROOT

LATER = """
import os, signal
from tasks.pipeline.stage import run
def interrupted():
    os.kill(os.getpid(), signal.SIGINT)
import sys
sys.argv[1:] = []
run(interrupted)
"""
"""A torch that stands for a stage which is interrupted in its main."""

STAGES = sorted(path.parent.name for path in (ROOT / "tasks").glob("*/__main__.py"))


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Python that has the standard library alone."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True, with_pip=False)
    return folder / "bin" / "python"


def run(python: Path | str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(python), *words]
    return subprocess.run(command, cwd=folder, env=variables, text=True, capture_output=True, check=False)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_without_packages_ends_in_one_sentence(stage: str, bare_python: Path, tmp_path: Path) -> None:
    done = run(bare_python, tmp_path, "-m", f"tasks.{stage}")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {bare_python} (Python 3.")
    assert "has no module '" in line
    assert ". .venv/bin/activate" in line


def test_another_program_keeps_its_stack_traces(tmp_path: Path) -> None:
    code = "import sys, tasks; assert sys.excepthook is sys.__excepthook__"
    assert run(sys.executable, tmp_path, "-c", code).returncode == 0


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError(name="decant.nowhere"), ValueError("a mistake of ours")]
)
def test_mistakes_of_ours_keep_their_stack_trace(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        raise error
    except Exception as raised:
        environment._explain(type(raised), raised, raised.__traceback__)
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("torch", "ending"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", (-signal.SIGINT, "", "")),
        (LATER, (130, "", "interrupted\n")),
    ],
    ids=["while it is loaded", "afterwards"],
)
def test_ctrl_c_leaves_no_stack_trace(torch: str, ending: tuple[int, str, str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(torch)
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "tasks.evaluate", "teacher"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=variables,
        text=True,
        capture_output=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a shell's background
    )
    assert (done.returncode, done.stdout, done.stderr) == ending


def test_a_python_that_is_too_old_is_named_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "OLDEST", (99, 1))
    told = r"^error: .* \(Python 3\.\d+\) is older than the 99\.1 that stages need; activate"
    with pytest.raises(SystemExit, match=told):
        environment._explain(SyntaxError, SyntaxError("match"), None)
