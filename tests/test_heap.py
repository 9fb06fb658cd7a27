"""Memory that is kept for the next step, and given back afterwards."""

import resource
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from decant.networks import heap
from decant.networks.heap import KEPT, MAP, MAPPED, TRIM, TRIMMED, kept_heap


@pytest.mark.skipif(heap._glibc() is None, reason="needs glibc")
def test_memory_that_was_freed_is_there_without_new_pages() -> None:
    with kept_heap():
        for _ in range(12):  # until the heap has grown around it
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.ones(1 << 22)  # 16 MiB: 4,096 pages
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000


def test_memory_is_given_back_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []
    fake = SimpleNamespace(
        mallopt=lambda *of: asked.append(("limit", of)),
        malloc_trim=lambda of: asked.append(("trim", of.value)),
    )
    monkeypatch.setattr(heap, "_glibc", lambda: fake)
    with pytest.raises(KeyboardInterrupt), kept_heap():
        assert asked == [("limit", (TRIM, KEPT)), ("limit", (MAP, MAPPED))]
        raise KeyboardInterrupt
    assert asked[2:] == [("limit", (TRIM, TRIMMED)), ("limit", (MAP, MAPPED)), ("trim", 0)]


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    with kept_heap():
        pass
