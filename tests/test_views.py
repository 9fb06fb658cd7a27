"""What a person sees while stages run: names keep their place, on a narrow terminal too."""

import io

from rich.console import Console

from flows.progress import Terminal
from flows.session import log_of

NAMES = ("evaluate@thin-ft-int8-static", "compress@thin-ft-int8-static")


def test_names_keep_their_place_beside_long_lines() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    view = Terminal(console, total=9)
    try:
        for name in NAMES:
            view.started(name)
            view.line(name, "epoch 3 of 12, " * 20, passing=True)
        with console.capture() as shown:
            console.print(view._view())
    finally:
        view.close()
    lines = shown.get().splitlines()
    for name in NAMES:
        assert any(name in line and "epoch 3" in line for line in lines), lines
    plain = Console(file=io.StringIO(), width=80, force_terminal=False)
    with plain.capture() as uncoloured:
        plain.print(view._view())
    assert max(map(len, uncoloured.get().splitlines())) <= 80


def test_each_stage_has_a_log_of_its_own() -> None:
    stages = ["compress@a", "compress-a", "sub/dvc.yaml:a", "sub-dvc.yaml-a", "a"]
    assert len({log_of(stage) for stage in stages}) == len(stages)
    assert {len(log_of(stage).parts) for stage in stages} == {4}
