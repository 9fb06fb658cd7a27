"""The norms of a model's weights beside its teacher's, as metrics and as details."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from decant.checkpoints.checkpoint import Checkpoint
from decant.evidence.weights import LayerNorms, Norms, norms


def compared(model: Checkpoint, teacher: Checkpoint) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the flat metrics, and what the details say of the weights before and after."""
    after, before = norms(model), norms(teacher)
    names = dict.fromkeys([*before.layers, *after.layers])
    details = {
        "before": _total(before),
        "after": _total(after),
        "layers": [
            {
                "layer": name,
                "before": _layer(before.layers.get(name)),
                "after": _layer(after.layers.get(name)),
            }
            for name in names
        ],
    }
    return _metrics(after, before), details


def _metrics(after: Norms, before: Norms) -> dict[str, float]:
    found = {"l2_ratio": after.l2 / before.l2} if before.l2 else {}
    if after.lipschitz is not None and before.lipschitz:
        found["lipschitz_ratio"] = after.lipschitz / before.lipschitz
    return found


def _total(every: Norms) -> dict[str, Any]:
    found = {"l1": every.l1, "l2": every.l2, "lipschitz": every.lipschitz}
    return found | ({"why": every.why} if every.why else {})


def _layer(layer: LayerNorms | None) -> dict[str, float] | None:
    return None if layer is None else asdict(layer)
