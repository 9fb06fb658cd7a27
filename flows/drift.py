"""Look every night at what a model got that day: the deployment `drift` of prefect.yaml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from decant.errors import DecantError

MOVED = 1
"""The exit code of `tasks.drift` where something has moved."""


class MovedError(DecantError):
    """What a model gets does not look like what it was tested on."""


@flow(name="drift")
def drift(
    reference: Path,
    today: Path,
    model: str,
    alpha: float = 0.01,
    least: float = 0.1,
    folder: Path = Path(),
) -> State[Any]:
    """Hold today's inputs against those that a model was tested on; the artifact `drift` has the figures.

    Args:
        reference: A table of `prepare`, or .npz or .safetensors with the tensors that the network takes.
        today: The like.
        model: One of params.yaml's, built in `folder`.
        alpha: The largest share of false alarms among what is told, in (0, 1).
        least: The smallest shift that is told, in (0, 1).
        folder: The workspace.

    Raises:
        MovedError: Something has moved, so that the run is *Failed* and an automation can say so.
        DecantError: It could not be judged.
    """
    words = [str(reference), str(today), "--model", model, "--alpha", str(alpha), "--least", str(least)]
    done = subprocess.run(
        [sys.executable, "-m", "tasks.drift", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, MOVED):
        raise DecantError(done.stderr.strip().removeprefix("error: ") or f"exit code {done.returncode}")
    get_run_logger().info("%s", done.stdout)
    create_markdown_artifact(key="drift", markdown=f"```\n{done.stdout}```\n", description=f"{model} today")
    if done.returncode == MOVED:
        raise MovedError(f"What {model} gets has moved; see the artifact `drift`")
    return Completed(message=f"What {model} gets has not moved")
