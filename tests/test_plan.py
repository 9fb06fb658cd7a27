"""Which stages run, in which order, and how many at once: by hand, and for random graphs by property."""

from types import SimpleNamespace
from typing import Any

import pytest
from dvc.dependency import ParamsDependency
from hypothesis import given
from hypothesis import strategies as st

from decant.errors import DecantError
from flows.described import gpus
from flows.plan import Limits, Plan, Schedule, Stage


def plan(**upstream: str) -> Plan:
    """Return stages with what they depend on, as in `c="a b"`; all are stale."""
    return Plan(
        {name: Stage(name, upstream=tuple(words.split()), stale=("x",)) for name, words in upstream.items()}
    )


def with_stages(*stages: Stage) -> Plan:
    return Plan({stage.name: stage for stage in stages})


def names(begun: list[tuple[Stage, tuple[str, ...]]]) -> list[str]:
    return [stage.name for stage, _ in begun]


def test_what_descends_from_a_stale_stage_may_have_to_run() -> None:
    found = with_stages(
        Stage("a"),
        Stage("b", stale=("modified b.py",)),
        Stage("c", upstream=("b",)),
        Stage("d", upstream=("a",)),
    )
    assert found.to_run() == ["b", "c"]
    assert found.to_run(force=True) == ["a", "b", "c", "d"]
    assert found.reason("b") == "modified b.py"
    assert found.reason("c") == "comes after others that run"


def test_many_reasons_are_counted() -> None:
    found = with_stages(Stage("a", stale=("1", "2", "3", "4", "5")))
    assert found.reason("a") == "1, 2, 3 and 2 more"


@pytest.mark.parametrize(
    ("name", "command", "operation", "model"),
    [
        ("compress@int8", "python -m tasks.quantize int8", "quantize", "int8"),
        ("teacher", "python -m tasks.teacher", "teacher", "teacher"),
        ("evaluate-teacher", "python -m tasks.evaluate teacher", "evaluate", "teacher"),
        ("report", "python -m tasks.report", "report", ""),
        ("sub/dvc.yaml:b@x", "sleep 1", "b", "x"),
        ("b", "", "b", ""),
    ],
)
def test_operation_and_model(name: str, command: str, operation: str, model: str) -> None:
    stage = Stage(name, command)
    assert (stage.operation, stage.model) == (operation, model)


def test_a_diamond_runs_its_sides_at_once() -> None:
    schedule = Schedule(plan(a="", b="a", c="a", d="b c"), "abcd", jobs=2, cores=2, gpus=[])
    assert names(schedule.start()) == ["a"]
    assert names(schedule.start()) == []
    schedule.done("a")
    assert names(schedule.start()) == ["b", "c"]
    schedule.done("b")
    assert names(schedule.start()) == []
    schedule.done("c")
    assert names(schedule.start()) == ["d"]
    assert not schedule.finished
    schedule.done("d")
    assert schedule.finished


def test_the_longest_chain_begins_first() -> None:
    schedule = Schedule(
        plan(short="", long="", then="long", last="then"), ["short", "long", "then", "last"], 1, 1, []
    )
    assert names(schedule.start()) == ["long"]


def test_what_is_not_to_run_is_not_waited_for() -> None:
    schedule = Schedule(plan(a="", b="a"), ["b"], 1, 1, [])
    assert names(schedule.start()) == ["b"]


def test_more_jobs_than_cores_are_for_stages_that_say_nothing_of_threads() -> None:
    def begun(threads: int) -> int:
        stages = with_stages(*(Stage(name, threads=threads) for name in "abcdef"))
        return len(Schedule(stages, stages.stages, 4, 2, []).start())

    assert [begun(threads) for threads in (0, 1, 2)] == [4, 2, 1]


def test_threads_stay_within_the_cores() -> None:
    stages = with_stages(Stage("a", threads=2), Stage("b", threads=2), Stage("c"), Stage("d", threads=9))
    schedule = Schedule(stages, "abcd", jobs=4, cores=3, gpus=[])
    assert names(schedule.start()) == ["a", "c"]
    schedule.done("c")
    assert names(schedule.start()) == []
    schedule.done("a")
    assert names(schedule.start()) == ["b"]
    schedule.done("b")
    assert names(schedule.start()) == ["d"]  # more than there are: when it is alone


def test_threads_of_what_runs_are_summed() -> None:
    stages = with_stages(Stage("a", threads=2), Stage("b"), Stage("c", threads=4))
    schedule = Schedule(stages, "abc", jobs=4, cores=4, gpus=[])
    assert schedule.threads == 0
    assert names(schedule.start()) == ["a", "b"]
    assert schedule.threads == 3
    schedule.done("a")
    assert schedule.threads == 1


def test_a_stage_that_measures_time_runs_alone() -> None:
    stages = with_stages(Stage("a"), Stage("timed", limits=Limits(alone=True)), Stage("b"))
    schedule = Schedule(stages, ["a", "timed", "b"], 3, 3, [])
    assert names(schedule.start()) == ["a", "b"]
    schedule.done("a")
    assert names(schedule.start()) == []
    schedule.done("b")
    assert names(schedule.start()) == ["timed"]


def test_each_gpu_has_one_stage() -> None:
    stages = with_stages(*(Stage(name, limits=Limits(gpu=1)) for name in "abc"), Stage("d"))
    schedule = Schedule(stages, "abcd", jobs=4, cores=4, gpus=["0", "7"])
    assert [(stage.name, gpus) for stage, gpus in schedule.start()] == [
        ("a", ("0",)),
        ("b", ("7",)),
        ("d", ()),
    ]
    schedule.done("b")
    assert [(stage.name, gpus) for stage, gpus in schedule.start()] == [("c", ("7",))]


@pytest.mark.parametrize(
    ("command", "params", "seen"),
    [
        ("python -m tasks.finetune a", {"models.a": {"op": "finetune", "device": "cuda"}, "seed": 1}, 1),
        ("python -m tasks.finetune a", {"models.a": {"op": "finetune", "device": "cuda:2"}}, 3),
        ("python -m tasks.finetune a", {"models.a": {"op": "finetune"}}, 0),
        ("python -m tasks.evaluate a", {"models.a": {"op": "finetune", "device": "cuda"}}, 0),
        ("python -m tasks.teacher", {"teacher": {"architecture": {}, "device": "cuda"}}, 1),
        ("python -m tasks.benchmark", {"benchmark": {"device": "cuda"}, "models": {"a": {}}}, 1),
        ("python -m tasks.evaluate teacher", {"teacher": {"device": "cuda"}}, 0),
        ("python -m tasks.teacher", {"teacher": {"training": {"processes": 4}, "device": "cuda"}}, 4),
        ("python -m tasks.teacher", {"teacher": {"training": {"processes": 4}}}, 0),
    ],
)
def test_a_recipe_on_a_device_has_gpus_to_itself(command: str, params: dict[str, Any], seen: int) -> None:
    class Params(ParamsDependency):  # type: ignore[misc]
        def __init__(self) -> None: ...

        def read_params(self, *_: Any, **__: Any) -> dict[str, Any]:
            return params

    stage: Any = SimpleNamespace(cmd=command, deps=[Params()])
    assert gpus(stage) == seen
    entry: dict[str, Any] = dict.fromkeys(("name", "command", "code"), "a")
    entry |= {"upstream": [], "stale": [], "threads": 1, "frozen": False, "meta": {"gpu": 1}, "gpus": seen}
    assert Plan.read([entry]).stages["a"].limits == Limits(gpu=max(1, seen))


def test_too_few_gpus_are_told_before_anything_runs() -> None:
    with pytest.raises(
        DecantError, match=r"a wants 2 GPUs \(meta.gpu in dvc.yaml, or .*\), and this machine has 1"
    ):
        Schedule(with_stages(Stage("a", limits=Limits(gpu=2))), "a", 1, 1, ["0"])


def test_a_failure_skips_what_depends_on_it_and_names_the_cause() -> None:
    schedule = Schedule(plan(a="", b="a", c="b", d="", e="d c"), "abcde", 1, 1, [])
    assert names(schedule.start()) == ["a"]
    skipped = schedule.failed("a", go_on=True)
    assert [(stage.name, cause) for stage, cause in skipped] == [("b", "a"), ("c", "a"), ("e", "a")]
    assert names(schedule.start()) == ["d"]
    schedule.done("d")
    assert schedule.finished


def test_without_going_on_nothing_more_begins() -> None:
    schedule = Schedule(plan(a="", b="", c=""), "abc", 2, 2, [])
    assert names(schedule.start()) == ["a", "b"]
    assert [stage.name for stage, _ in schedule.failed("a", go_on=False)] == ["c"]
    assert not schedule.finished
    schedule.done("b")
    assert schedule.finished


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Plan, set[str]]:
    """Return a random DAG and some of its stages, which will fail."""
    stages: dict[str, Stage] = {}
    for index in range(draw(st.integers(1, 12))):
        upstream = draw(st.sets(st.sampled_from(sorted(stages)), max_size=3)) if stages else set()
        name = f"s{index}"
        stages[name] = Stage(name, upstream=tuple(sorted(upstream)), threads=draw(st.integers(0, 4)))
    return Plan(stages), draw(st.sets(st.sampled_from(sorted(stages)), max_size=2))


@given(graphs(), st.integers(1, 4), st.integers(1, 4), st.data())
def test_every_stage_runs_once_after_its_upstream_or_is_skipped_for_a_failure(
    graph: tuple[Plan, set[str]], jobs: int, cores: int, data: st.DataObject
) -> None:
    found, failing = graph
    schedule = Schedule(found, found.stages, jobs, cores, [])
    well, bad, running = set[str](), set[str](), set[str]()
    while not schedule.finished:
        for stage, _ in schedule.start():
            assert well.issuperset(stage.upstream)
            running.add(stage.name)
        assert 1 <= len(running) <= jobs
        assert len(running) == 1 or sum(found.stages[name].threads for name in running) <= cores
        ended = data.draw(st.sampled_from(sorted(running)))
        running.remove(ended)
        if ended in failing:
            bad.add(ended)
            for stage, cause in schedule.failed(ended, go_on=True):
                assert bad.intersection(stage.upstream)
                assert cause in failing
                bad.add(stage.name)
        else:
            schedule.done(ended)
            well.add(ended)
    assert well | bad == set(found.stages)
    assert not well & bad


@pytest.mark.parametrize(
    ("meta", "limits"),
    [
        ({}, Limits()),
        ({"timeout": 1.5, "retries": 2, "retry_delay": 3, "other": "x"}, Limits(1.5, 2, 3)),
        ({"gpu": True, "alone": True}, Limits(gpu=1, alone=True)),
        ({"gpu": 2}, Limits(gpu=2)),
    ],
)
def test_limits_are_read(meta: dict[str, object], limits: Limits) -> None:
    assert Limits.read("a", meta) == limits


@pytest.mark.parametrize(
    "meta",
    [{"timeout": "5m"}, {"retries": -1}, {"retries": 1.5}, {"retries": True}, {"alone": 1}, {"gpu": "all"}],
)
def test_wrong_limits_are_told_with_their_place(meta: dict[str, object]) -> None:
    (name,) = meta
    with pytest.raises(DecantError, match=rf"dvc\.yaml, a, meta\.{name}: expected .*, found"):
        Limits.read("a", meta)
