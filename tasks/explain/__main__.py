"""Stages `explain` and `explain-teacher`: python -m tasks.explain <model>"""

from __future__ import annotations

from pathlib import Path

from decant.networks.execution import make_deterministic
from decant.outputs import write_json
from tasks.explain import kept, sample
from tasks.explain.deployed import function_of
from tasks.explain.methods import explain
from tasks.explain.numbers import details, flat, unexplained
from tasks.pipeline import splits
from tasks.pipeline.lineages import MODELS, TEACHER
from tasks.pipeline.models import load_models
from tasks.pipeline.params import read_section
from tasks.pipeline.stage import run

EXPLAIN = Path("explain")


def main(model: str) -> None:
    """Read a model, the teacher and its explanations; write explain/<model>.json and its details.

    The teacher's own stage writes its explanations, of two draws each.
    """
    make_deterministic(read_section("threads.evaluate", int))
    models, test = load_models(TEACHER, model, with_parents=True), splits.read(splits.TEST)
    found = sample.take(models[TEACHER], test, read_section("seed", int))
    if isinstance(found, str):
        print(f"{model} is not explained: {found}")
        write_json(EXPLAIN / f"{model}.json", {})
        write_json(EXPLAIN / f"{model}.details.json", unexplained(model, found))
        return
    sources = [splits.TEST, MODELS / TEACHER / "lineage.json"]
    if model != TEACHER:
        kept.read(
            kept.TEACHER, found.features, sources
        )  # before anything is computed that it is compared with
    deployed = function_of(models[model], read_section("threads.evaluate", int))
    explained = explain(models[model].module, deployed.function, found, draws=2 if model == TEACHER else 1)
    if model == TEACHER:
        kept.write(kept.TEACHER, explained, sources)
    teacher = kept.read(kept.TEACHER, found.features, sources)
    write_json(EXPLAIN / f"{model}.json", flat(explained, teacher, found))
    write_json(EXPLAIN / f"{model}.details.json", details(model, deployed, explained, teacher, found))


if __name__ == "__main__":
    run(main)
