"""Running networks: with the same bits every time, and without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from decant.errors import DecantError
from decant.examples import arguments
from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from decant.examples import Batch


def predict(
    module: Callable[..., Any], images: Batch, batch_size: int = 250, dtype: torch.dtype | None = None
) -> Tensor:
    """Return the answers to all of `images`, as `answers`, without gradients; the caller sets eval mode.

    The batch size is fixed because the last bits of a sum depend on it.

    Raises:
        DecantError: The images are neither a tensor nor rows, as an array of NumPy's is.
    """
    if not hasattr(images, "split"):
        raise DecantError(
            f"Images are {type(images).__name__}, expected a tensor, uint8 [N, C, H, W], or decant.Rows; "
            "give torch.from_numpy(images) of an array"
        )
    with torch.no_grad():
        return torch.cat([answers(module, batch, dtype) for batch in images.split(batch_size)])


def answers(module: Callable[..., Any], batch: Batch, dtype: torch.dtype | None = None) -> Tensor:
    """Return what a network answers to one batch, as one tensor, with each of its layers called.

    Args:
        module: The network, or any function of as many tensors as it takes.
        batch: Pictures or rows, N of them.
        dtype: Of all inputs that are fractions; their own where None.

    Returns:
        Logits [N, K] as they are; anything else as `as_rows`: [N, M].

    Raises:
        DecantError: What it returns does not come in N rows.
    """
    from decant.networks.tracing import every_layer_called

    with every_layer_called():
        return as_rows(module(*arguments(batch, dtype)), len(batch))


def as_rows(outputs: Any, rows: int) -> Tensor:
    """Return a network's outputs as one tensor: [N, K] as it is, anything else row by row, side by side.

    Args:
        outputs: A tensor [N, ...], or tuples, lists, dicts and dataclasses of them, in their order.
        rows: N.

    Raises:
        DecantError: There is no tensor, or one is not of N rows.
    """
    found = list(tensors_of(outputs))
    if not found:
        raise DecantError(f"The network returns {type(outputs).__name__}, expected tensors of a row for each")
    for tensor in found:
        if not tensor.dim() or len(tensor) != rows:
            raise DecantError(
                f"The network returns a tensor of shape {[*tensor.shape]} for {rows} rows; the first "
                "dimension of each output has to be the rows'"
            )
    if len(found) == 1 and found[0].dim() == 2:
        return found[0]
    return torch.cat([tensor.reshape(rows, tensor[0].numel() if rows else -1) for tensor in found], dim=1)


def tensors_of(outputs: Any) -> Iterator[Tensor]:
    """Yield the tensors of what a network returns, in order."""
    outputs = by_name(outputs)
    if isinstance(outputs, torch.Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from tensors_of(value)
    elif isinstance(outputs, list | tuple):
        for value in outputs:
            yield from tensors_of(value)
    elif outputs is not None:
        raise DecantError(
            f"The network returns {type(outputs).__name__}, expected tensors, or tuples, lists, dicts "
            "or dataclasses of them"
        )


def by_name(outputs: Any) -> Any:
    """Return the parts of a dataclass or a named tuple by their names, and anything else as it is."""
    if is_dataclass(outputs) and not isinstance(outputs, type):
        return {each.name: getattr(outputs, each.name) for each in fields(outputs)}
    return outputs._asdict() if isinstance(outputs, tuple) and hasattr(outputs, "_asdict") else outputs


def make_deterministic(threads: int) -> None:
    """Set the process up so that it gives the same bits every time.

    Args:
        threads: How many every sum is split over; the order of a sum decides its last bits.
    """
    torch.set_num_threads(threads)
    # The same as use_deterministic_algorithms(True), which also imports torch's compiler: a second per stage.
    torch.set_deterministic_debug_mode("error")
    # It also fills fresh memory with NaN, to show who reads it too early; a training slows down by a tenth.
    # (The attribute is a property that torch hangs onto the module at run time, which mypy cannot see.)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
