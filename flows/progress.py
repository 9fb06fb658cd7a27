"""What a person sees while stages run: one tidy view in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

COLOURS = {
    "Ran": "green",
    "RestoredFromRunCache": "cyan",
    "UpToDate": "dim",
    "Failed": "red",
    "Skipped": "yellow",
}
EVERY = 10.0
"""Seconds between two states of a progress bar where every line stays."""


class Progress(Protocol):
    """Is told what happens, from any thread."""

    def started(self, stage: str) -> None:
        """A stage began."""

    def line(self, stage: str, text: str, passing: bool) -> None:
        """A stage printed a line; a passing one is to be overwritten by the next."""

    def finished(self, stage: str, state: str, seconds: float, why: str = "") -> None:
        """A stage ended, or was skipped."""

    def stopping(self, stages: list[str]) -> None:
        """These stages are being ended, which may take a few seconds."""

    def close(self) -> None:
        """Nothing more will happen."""


class Silent:
    """Shows nothing: a deployment's log is in Prefect."""

    def started(self, stage: str) -> None:
        """Show nothing."""

    def line(self, stage: str, text: str, passing: bool) -> None:
        """Show nothing."""

    def finished(self, stage: str, state: str, seconds: float, why: str = "") -> None:
        """Show nothing."""

    def stopping(self, stages: list[str]) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Show nothing."""


class Plain:
    """Lines for a file or a pipe, each with the time and the stage."""

    def __init__(self, console: Console) -> None:
        self._console, self._shown = console, dict[str, float]()
        self._lock = threading.Lock()

    def started(self, stage: str) -> None:
        """Say so."""
        self._say(stage, "begins")

    def line(self, stage: str, text: str, passing: bool) -> None:
        """Show the line; of those that pass, one every few seconds."""
        now = time.monotonic()
        if passing and now - self._shown.get(stage, -EVERY) < EVERY:
            return
        if passing:
            self._shown[stage] = now
        self._say(stage, text)

    def finished(self, stage: str, state: str, seconds: float, why: str = "") -> None:
        """Say what became of it."""
        self._say(stage, f"{state}, {seconds:.1f} s{f': {why}' if why else ''}")

    def stopping(self, stages: list[str]) -> None:
        """Say so."""
        with self._lock:
            self._console.print(_stopping(stages), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """All lines are out."""

    def _say(self, stage: str, text: str) -> None:
        with self._lock:
            line = f"{time.strftime('%H:%M:%S')} {stage}: {text}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


@dataclass
class _Row:
    began: float = field(default_factory=time.monotonic)
    text: str = ""


class Terminal:
    """The running stages with their last line, redrawn in place; finished ones scroll away above."""

    def __init__(self, console: Console, total: int) -> None:
        self._total, self._done, self._rows = total, set[str](), dict[str, _Row]()
        self._began = time.monotonic()
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._view, transient=True)
        self._live.start()

    def started(self, stage: str) -> None:
        """Give it a row; one that is tried again is not done any more."""
        self._done.discard(stage)
        self._rows[stage] = _Row()

    def line(self, stage: str, text: str, passing: bool) -> None:
        """Show it in the stage's row."""
        if row := self._rows.get(stage):
            row.text = text

    def finished(self, stage: str, state: str, seconds: float, why: str = "") -> None:
        """Take the row away and leave a line above."""
        self._rows.pop(stage, None)
        self._done.add(stage)
        line = Text.assemble((f"{state:<20}", COLOURS.get(state, "")), f" {seconds:7.1f} s  {stage}")
        self._live.console.print(line.append(f"  {why.splitlines()[0]}" if why else ""))

    def stopping(self, stages: list[str]) -> None:
        """Say so above the rows."""
        self._live.console.print(_stopping(stages), markup=False, highlight=False)

    def close(self) -> None:
        """Take the view away."""
        self._live.stop()

    def _view(self) -> RenderableType:
        table = Table.grid(padding=(0, 2), expand=True)  # a last line takes what names and times leave of it
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        now = time.monotonic()
        for stage, row in list(self._rows.items()):
            table.add_row(Text(stage, "bold"), f"{now - row.began:.0f} s", Text(row.text))
        running, done, seconds = len(self._rows), len(self._done), now - self._began
        head = f"{done} of {self._total} stages done, {running} running, {seconds:.0f} s"
        return Group(Text(head, "bold"), table)


def _stopping(stages: list[str]) -> str:
    count = f"{len(stages)} stage{'' if len(stages) == 1 else 's'}"
    return f"stopping {count}: {', '.join(stages)}…"


@contextlib.contextmanager
def waiting(words: str) -> Iterator[contextlib.ExitStack]:
    """Show at once that something is done; closing what is yielded takes it off a terminal again."""
    console = Console(stderr=True)
    with contextlib.ExitStack() as shown:
        if console.is_terminal:
            shown.enter_context(console.status(words))
        else:
            console.print(words)
        yield shown


def choose(total: int) -> Progress:
    """Return the view for where the output goes."""
    console = Console()
    return Terminal(console, total) if console.is_terminal else Plain(console)
