"""Run the DAG of dvc.yaml in parallel, supervised: python -m flows.compress [targets…]

The command line of the flow in flows/dag.py. It plans before it loads Prefect, which takes seconds.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, get_args

from rich.console import Console

from decant.errors import DecantError
from decant.outputs import telling_full_disks
from flows.progress import choose, waiting
from flows.session import Runner, Session, opened


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 0 well, 1 not, 130 interrupted."""
    chosen = _chosen(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, _terminate)  # where it was started in the background it would be ignored
    console, folder = Console(soft_wrap=True), Path.cwd()
    try:
        with (
            telling_full_disks(),
            waiting("Looking for what has changed") as shown,
            opened(folder, chosen.targets, chosen.force) as session,
        ):
            shown.close()
            return _command(session, chosen, console)
    except KeyboardInterrupt:
        console.print("Interrupted. What had finished is kept; the same command goes on from there.")
        return 130
    except DecantError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", markup=False, highlight=False)
        return 1


def _chosen(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flows.compress", description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", help="stages, or files that stages write; none for all")
    parser.add_argument(
        "--jobs", type=int, help="stages at once (default: as their threads fit on the cores)"
    )
    parser.add_argument(
        "--keep-going",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="after a failure, run what does not depend on it",
    )
    parser.add_argument("--force", action="store_true", help="run what is up to date too")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and why")
    parser.add_argument(
        "--runner", choices=get_args(Runner), default="local", help="where stages run (local)"
    )
    parser.add_argument(
        "--scheduler",
        default=os.environ.get("DASK_SCHEDULER_ADDRESS"),
        help="address of the Dask scheduler, such as tcp://10.0.0.1:8786 (DASK_SCHEDULER_ADDRESS)",
    )
    parser.add_argument(
        "--base", default="HEAD", help="what the metrics are compared with in Prefect's UI (HEAD)"
    )
    chosen = parser.parse_args(arguments)
    if chosen.jobs is not None and chosen.jobs < 1:
        parser.error(f"argument --jobs: expected 1 or more, found {chosen.jobs}")
    return chosen


def _command(session: Session, chosen: argparse.Namespace, console: Console) -> int:
    if not session.to_run:
        console.print(f"All {len(session.plan.stages)} stages are up to date.")
        return 0
    if chosen.dry_run:
        for name in session.to_run:
            reason = "forced" if chosen.force else session.plan.reason(name)
            console.print(f"{name}: {reason}", markup=False, highlight=False)
        return 0
    console.print(f"{len(session.to_run)} of {len(session.plan.stages)} stages are to run")
    from prefect.settings import PREFECT_API_URL

    from flows import dag

    if not PREFECT_API_URL.value():
        console.print("Starting a Prefect server for this run, some ten seconds (PREFECT_API_URL names none)")
    _quiet()
    session.progress, began = choose(len(session.to_run)), time.monotonic()
    dag.PREPARED[session.folder] = session
    try:
        with _telling_of_the_server():
            state = dag.compress(
                chosen.targets,
                chosen.jobs,
                chosen.keep_going,
                chosen.force,
                folder=session.folder,
                base=chosen.base,
                runner=chosen.runner,
                scheduler=chosen.scheduler,
                return_state=True,
            )
    finally:
        session.progress.close()
    for text in session.failures():
        console.print(text, markup=False, highlight=False)
    counts = Counter(row["state"] for row in session.rows())
    counted = ", ".join(f"{count} {name}" for name, count in counts.items())
    console.print(f"{counted} in {time.monotonic() - began:.0f} s", highlight=False)
    if not state.is_completed() and not session.failures():
        console.print(f"{state.name}: {state.message}", markup=False, highlight=False)
    return 0 if state.is_completed() else 1


@contextmanager
def _telling_of_the_server() -> Iterator[None]:
    """Turn what a Prefect server that does not answer, or asks for a password, raises into a sentence.

    Raises:
        DecantError: It does.
    """
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

    try:
        yield
    except RuntimeError as error:
        if "ephemeral" not in str(error):
            raise
        raise DecantError(
            "the Prefect server of this run did not answer in time; run again when the machine is less busy, "
            "start one with `make serve` and name it in PREFECT_API_URL, or use `dvc repro`"
        ) from None
    except PrefectHTTPStatusError as error:
        if error.response.status_code not in (401, 403):
            raise
        found = "another" if PREFECT_API_AUTH_STRING.value() else "none"
        raise DecantError(
            f"the Prefect server at {PREFECT_API_URL.value()} asks for a password: expected it in "
            f"PREFECT_API_AUTH_STRING, found {found}; `make serve` says where that of its server is kept"
        ) from None


def _quiet() -> None:
    """Take Prefect's lines off the terminal, where our own view is; its server still gets them."""
    for name in ("prefect", "prefect.flow_runs", "prefect.task_runs", ""):
        logger = logging.getLogger(name)
        logger.handlers = [one for one in logger.handlers if type(one).__name__ != "PrefectConsoleHandler"]


def _terminate(*_: object) -> NoReturn:
    """Leave as on Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
