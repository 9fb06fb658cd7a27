"""Too little memory is one sentence, whoever says so, and wherever a stage was."""

import errno
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch

from decant.errors import DecantError
from decant.memory import ran_out, telling_too_little_memory
from tests.imports import ROOT


@pytest.mark.parametrize(
    "ask", [lambda: torch.empty(1 << 60), lambda: np.ones(1 << 50)], ids=["torch", "numpy"]
)
def test_what_libraries_raise_is_one_sentence(ask: object) -> None:
    told = r"^There is not enough memory \(.*allocate.*\); end other programs, raise a limit"
    with pytest.raises(DecantError, match=told), telling_too_little_memory():
        ask()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (DecantError("the processor ran out of memory, says a sentence of ours"), False),
    ],
    ids=repr,
)
def test_what_counts_as_too_little_memory(error: Exception, expected: bool) -> None:
    assert ran_out(error) is expected
    with pytest.raises(DecantError if expected else type(error)), telling_too_little_memory():
        raise error


def test_a_command_ends_with_the_sentence() -> None:
    script = "from tasks.pipeline.stage import report_errors\nwith report_errors(): bytearray(1 << 40)"
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))  # noqa: E731
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, preexec_fn=limit
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: There is not enough memory (MemoryError); end other programs")
    assert done.stderr.count("\n") == 1
