"""The benchmark of the training loop: all ways go their steps, and the arithmetic of its targets is right."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import training
from benchmarks.training import QUICK, TAUGHT, TURNS, WARM, WAYS, Clock, Target, page, targets
from tests.imports import ROOT

FACTS = {"machine": "a machine", "threads": 1, "rounds": 1, "steps": 2, "batch": 8}


@pytest.mark.slow
def test_quick_goes_all_ways_and_writes_the_page(tmp_path: Path) -> None:
    """In a process of its own: its loaders fork, which this one has too many threads for."""
    words = ["--quick", "--threads", "1", "--write", str(tmp_path / "page.md")]
    subprocess.run([sys.executable, "-m", "benchmarks.training", *words], check=True, cwd=ROOT)
    text = (tmp_path / "page.md").read_text()
    assert all(f"| {name} | " in text for name in WAYS)
    assert "peak memory" not in text


def test_the_clock_times_the_steps_after_those_that_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, now = Clock(QUICK), 0.0
    monkeypatch.setattr(training.time, "perf_counter", lambda: now)
    for _ in range(WARM + QUICK.steps + 3):
        clock.tick()
        now += 0.5
    assert clock.taken == 0.5 * QUICK.steps
    assert clock.rate == QUICK.batch / 0.5


def test_targets_by_hand() -> None:
    found = dict.fromkeys(WAYS, 100.0) | {"bare step": 200.0, "the loop": 180.0, "teacher's forward": 600.0}
    found |= {"plain loop, DataLoader": 90.0, "plain loop, DataLoader with 2 workers": 120.0}
    asked = {each.what.split(",")[0]: each for each in targets([found], {"bare step": 100, "the loop": 110})}
    assert asked["the loop / bare step"].found == pytest.approx(1.1)  # the last of the name: memory
    assert asked["the loop / bare step"].held
    assert asked["the loop / the faster plain loop"].found == pytest.approx(1.5)
    # 1/100 against 1/200 + 1/600: 0.01 / (0.02 / 3)
    learned = next(each for each in targets([found], {}) if each.what.startswith(TAUGHT[0]))
    assert learned.found == pytest.approx(1.5)
    assert not learned.held


def test_ratios_are_of_ways_that_followed_one_another() -> None:
    """A machine that grows ten times slower between rounds changes no ratio; one turn is of others."""
    turns = [{"bare step": 100.0, "the loop": 80.0}, {"bare step": 10.0, "the loop": 9.0}]
    found = [*turns, {"bare step": 50.0, "the loop": 50.0}, {"bare step": 1.0}]
    (target,) = targets(found, {})
    assert target.found == pytest.approx(0.9)
    assert "| 0.90 (0.85 to 0.95) |" in target.row


def test_every_way_has_its_turn_and_what_is_compared_follows_one_another() -> None:
    assert {name for names in TURNS for name in names} == set(WAYS)
    assert len(targets([dict.fromkeys(names, 1.0) for names in TURNS], {})) == 7


def test_the_page_says_what_was_not_reached() -> None:
    found = dict.fromkeys(WAYS, 100.0)
    text = page([found, found], {"bare step": 2**20, "the loop": 2**21}, FACTS)
    assert "| the loop / bare step, images/s | at least 0.95 | 1.00 (1.00 to 1.00) | yes |" in text
    assert "| the loop / bare step, peak memory | at most 1.15 | 2.00 | **no** |" in text
    assert "bare step 1 MiB, the loop 2 MiB" in text


def test_a_bound_itself_is_reached() -> None:
    assert Target("x", 1.5, [1.5]).held
    assert Target("x", 1.5, [1.5], above=False).held
    assert not Target("x", 1.5, [1.49]).held
