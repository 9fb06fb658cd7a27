"""Compare every model here with a Git revision, and let the gates of params.yaml judge the difference.

    python -m flows.compare [REV] [model …] [--md | --json]

Exit code: 0 the gates hold, 1 a gate failed, 2 no verdict: it could not be compared, whatever the reason, or
only with numbers that are out of date; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from decant.errors import DecantError
from decant.schema import did_you_mean
from decant.sealed import one_line
from flows import tables
from flows.judgement import Comparison, differing_devices, differing_settings, judge
from flows.noise import TEACHER, MetricValues
from flows.snapshots import CannotCompare, Revision, Snapshot, WorkingTree
from flows.staleness import stale_models
from flows.tables import markdown
from tasks.pipeline.metrics import set_of
from tasks.pipeline.params import validate
from tasks.validate.gates import Gates

__all__ = ["CannotCompare", "Comparison", "compare", "main", "markdown"]


def compare(folder: Path, revision: str, models: Collection[str] = ()) -> Comparison:
    """Return what differs between the working tree and a revision, judged by the gates of the working tree.

    Args:
        folder: The root of the project.
        revision: Whatever Git takes for a commit: a branch, a tag, a hash, `HEAD~3`; or a DVC experiment.
        models: Which models; all where none is named.

    Raises:
        CannotCompare: A revision or model that there is not, a file that is missing or broken, a number that
            is missing or NaN, a model that vanished, or no model that both sides have; or anything else
            went wrong, so that no verdict can be believed.
    """
    with in_words():
        return _compared(folder, revision, models)


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """Turn whatever goes wrong inside, a mistake of ours too, into a CannotCompare: it is no failed gate."""
    try:
        yield
    except CannotCompare:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise CannotCompare(
            f"Could not be compared: {type(error).__name__}: {one_line(error)} (in "
            f"{Path(place.filename).name}, line {place.lineno}); where no file is damaged, it is a defect of "
            "Decant that its authors want to hear of"
        ) from error


def _compared(folder: Path, revision: str, models: Collection[str]) -> Comparison:
    committed, tree = Revision.find(folder, revision), WorkingTree(folder)
    there, here = Snapshot.of(committed), Snapshot.of(tree)
    gates = _gates(here)
    chosen = _chosen(models, there, here)
    removed = _removed(chosen, there, here, gates)
    wanted = {TEACHER, *chosen}  # whether the teacher changed decides how surely two models differ
    new = here.rows([model for model in here.models if model in wanted])
    old = there.rows([model for model in there.models if model in wanted.intersection(new)])
    common = [model for model in new if model in old and model in chosen]
    if not common:
        raise CannotCompare(f"Nothing to compare: no chosen model is both here and in {revision}")
    _check_sets(common, old, new, gates, there.label)
    return Comparison(
        revision=revision,
        commit=committed.commit,
        models={model: judge(model, old, new, gates) for model in common},
        new={model: row for model, row in new.items() if model in chosen and model not in old},
        removed=removed,
        settings=differing_settings(there.settings(), here.settings()),
        gates=sum(len(gates.of(model)) for model in common),
        devices=differing_devices(common, there.params, here.params),
        stale=tuple(model for model in stale_models(here.params, tree.lock()) if model in chosen),
    )


def _gates(here: Snapshot) -> Gates:
    """Return the gates of the working tree; a change of them stands among the settings that differ."""
    try:
        gates: Gates = validate(here.params.get("gates", {}), Gates, "gates")
    except DecantError as error:
        raise CannotCompare(str(error)) from None
    if wrong := gates.strangers(here.models):
        raise CannotCompare("params.yaml is not valid:\n" + "\n".join(f"  {line}" for line in wrong))
    return gates


def _check_sets(
    models: Collection[str],
    old: Mapping[str, MetricValues],
    new: Mapping[str, MetricValues],
    gates: Gates,
    there: str,
) -> None:
    """Refuse models that are measured otherwise there than here, or have no number for one of their gates."""
    for model in models:
        before, after = set_of(old[model]), set_of(new[model])
        if before is not after:
            raise CannotCompare(
                f"{model} is measured by its {before.quality} {there} and by its {after.quality} here; "
                "compare with a revision whose data have the same kind of labels, or lack them as well"
            )
        measured = [metric for metric in after.gated if metric in new[model]]
        if missing := [metric for metric in gates.of(model) if metric not in measured]:
            raise CannotCompare(
                f"gates: {model} has no {', '.join(missing)}, as it is measured by its {after.quality}; take "
                f"a gate of {', '.join(measured)}"
            )


def _chosen(models: Collection[str], there: Snapshot, here: Snapshot) -> list[str]:
    """Return the models to compare, in the order of params.yaml, those that are only there last."""
    known = list(dict.fromkeys([*here.models, *there.models]))
    for model in models:
        if model not in known:
            raise CannotCompare(
                f"There is no model {model!r}, neither here nor there{did_you_mean(model, known)}"
            )
    return [model for model in known if model in models or not models]


def _removed(chosen: Collection[str], there: Snapshot, here: Snapshot, gates: Gates) -> tuple[str, ...]:
    """Return the models that only the revision has; each must be allowed to be missing here."""
    missing = [model for model in chosen if model not in here.models]
    if vanished := [model for model in missing if model not in gates.removed]:
        names = ", ".join(vanished)
        raise CannotCompare(
            f"Expected every model that is {there.label}, found no block here for {names}; put it back into "
            f"params.yaml, or say that it is gone for good: `gates: {{removed: [{names}]}}`"
        )
    return tuple(missing)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison that the command line asks for, and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        with in_words():
            return _print(options)
    except CannotCompare as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _print(options: argparse.Namespace) -> int:
    style = options.style
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may have no ✗
        sys.stdout.reconfigure(errors="replace")
    try:
        comparison = compare(Path(), options.revision, options.models)
    except CannotCompare as error:
        print(tables.apology(options.revision, str(error), style), end="")
        raise
    try:
        _show(comparison, style)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough; the verdict is the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return comparison.code


def _show(comparison: Comparison, style: str | None) -> None:
    if style == "md":
        print(markdown(comparison), end="")
    elif style == "json":
        print(tables.as_json(comparison), end="")
    else:
        tables.show(comparison)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.compare",
        description="Compare metrics and params of every model here with a Git revision, and judge the "
        "difference by the gates of params.yaml.",
        epilog="Exit code: 0 the gates hold, 1 a gate failed, 2 no verdict: it could not be compared, or "
        "numbers are out of date.",
    )
    what = "branch, tag, commit or DVC experiment (main)"
    parser.add_argument("revision", nargs="?", default="main", metavar="REV", help=what)
    parser.add_argument("models", nargs="*", metavar="model", help="only these models")
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--md", dest="style", action="store_const", const="md", help="print GitHub's Markdown")
    style.add_argument("--json", dest="style", action="store_const", const="json", help="print strict JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
