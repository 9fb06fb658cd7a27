"""Devices: the processor or a GPU that a network runs on, and all that is asked of torch about them.

What is drawn for a training on one of them is drawn by generators of the processor and moved, so that it is
the same on every device; only layers that draw by themselves use the device's own generator.
"""

from __future__ import annotations

import copy
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

from decant.errors import DecantError, Message
from decant.lazy import torch
from decant.memory import ran_out
from decant.networks.calls import KNOWN
from decant.networks.heap import kept_heap
from decant.networks.ties import put_, tied

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")

_NUMBERED = re.compile("cuda:(0|[1-9][0-9]*)")
"""One spelling for each GPU, that of torch: another one would be another recipe."""

CPU = "cpu"

TF32 = "tf32"
"""The precision in which a GPU multiplies float32 with 10 bits behind the point; only where it is asked."""

SUMS = "CUBLAS_WORKSPACE_CONFIG"
"""The variable by which cuBLAS is told to split sums the same way each time; read when CUDA starts."""

STEADY_SUMS = (":4096:8", ":16:8")

ELSEWHERE = "cpu, or a larger device"

ONE_LAYER = "the weights and what one layer's inputs are summed up to", ELSEWHERE
"""What layers that are solved one after another need memory for, and what to try."""

A_PASS = "a pass over 250 examples", ELSEWHERE

PATTERNS = (8, 0)
"""The least compute capability of a GPU that has instructions for two of four."""

OTHERS = 1.0
"""GiB from which on what other processes hold of a device is told; a context of our own takes some half."""

SHARE = 4
"""Examples lie on a device as a whole where they take no more than one in so many of its free bytes."""


def _known(name: str) -> str:
    if name not in (CPU, "cuda") and not _NUMBERED.fullmatch(name):
        raise ValueError(f"must be cpu, cuda, or cuda: and the number of one, such as cuda:1, got {name!r}")
    return name


Device = Annotated[str, AfterValidator(_known), Field(max_length=20, exclude_if=lambda name: name == CPU)]
"""In a recipe, and where it is not the processor in the lineage: what networks run on."""


def idle(name: str) -> str:
    """Return that a device is named and no network runs there; empty where it is the processor."""
    if name == CPU:
        return ""
    return f"device: {name} is where networks run and layers are solved, and here is neither: leave it out"


def untrue(name: str, precision: str) -> str:
    """Return that a precision is none of a device's; empty where it is one."""
    if precision != TF32 or name != CPU:
        return ""
    return (
        f"training.precision: {TF32} is how GPUs multiply, and this runs on {CPU}: take float32, or a device"
    )


def made_on(name: str) -> dict[str, str]:
    """Return what the lineage says of a device beside its name: the kind of GPU and its CUDA.

    Bits are the same on the same kind alone. Nothing for the processor.
    """
    if name == CPU:
        return {}
    return {"gpu": there()[str(find(name))], "cuda": str(torch.version.cuda)}


def there() -> dict[str, str]:
    """Return what each device of this machine is, by its name."""
    cards = range(torch.cuda.device_count())
    return {CPU: "the processor"} | {f"cuda:{card}": torch.cuda.get_device_name(card) for card in cards}


def without_patterns(device: torch.device) -> Message:
    """Return why a device cannot multiply packed weights of the pattern 2:4; empty where it can."""
    if device.type != "cuda":
        return f"semi_structured: weights are packed for GPUs, and this is {device.type}; leave it out"
    if (found := torch.cuda.get_device_capability(device)) >= PATTERNS:
        return ""
    return (
        f"semi_structured: {device} has compute capability {found[0]}.{found[1]}, and the instructions are "
        f"there from {PATTERNS[0]}.{PATTERNS[1]} on; leave it out, or take another GPU"
    )


def told_by_launcher(variable: str, otherwise: int) -> int:
    """Return the number in a variable by which `torchrun` tells a process of the others, or the other one.

    Raises:
        DecantError: It is no number.
    """
    text = os.environ.get(variable) or str(otherwise)
    if not (text.isascii() and text.isdecimal()):
        raise DecantError(
            f"{variable} is {text!r}, and torchrun puts a number there: start the processes by it, or unset "
            "the variable"
        )
    return int(text)


def find(name: str) -> torch.device:
    """Return a device, once it is sure that it is there and can repeat its sums.

    Raises:
        DecantError: It is not there; names those that are. Or it cannot be begun with, or its sums would have
            other bits each time; or the launcher's variable is no number.
    """
    if name == CPU:
        return torch.device(CPU)
    # tensors say which, so the device does; of several processes on a machine each has its own
    numbered = name if ":" in name else f"{name}:{told_by_launcher('LOCAL_RANK', 0)}"
    if SUMS not in os.environ and not torch.cuda.is_initialized():
        os.environ[SUMS] = STEADY_SUMS[0]  # before the names of devices are asked for, which starts CUDA
    if numbered not in (known := _begun(name)):
        listed = ", ".join(f"{each} ({what})" for each, what in known.items())
        raise DecantError(f"device: {name} is not there; this machine has {listed}")
    if (found := os.environ.get(SUMS)) not in STEADY_SUMS:
        raise DecantError(
            f"The GPU would give other bits each time: {SUMS} is {found or 'not set'}; set it to "
            f"{STEADY_SUMS[0]} before anything runs on the GPU"
        )
    return torch.device(numbered)


def _begun(name: str) -> dict[str, str]:
    """Return what is there, once CUDA has begun.

    Raises:
        DecantError: It cannot begin.
    """
    try:
        return there()
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
        raise DecantError(
            f"device: {name} cannot be begun with ({first}): another process may hold all of it; wait for "
            "that, or take cpu"
        ) from None


def take_(device: torch.device) -> str:
    """Let this process have the device for all that names none; return what its tensors are summed over.

    Between processors that is gloo, between GPUs NCCL.
    """
    if device.type == CPU:
        return "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return f"{CPU}:gloo,{device.type}:nccl"


def in_one_kernel(parameters: Iterable[Tensor]) -> bool | None:
    """Say whether a step of an optimizer is one kernel: on GPUs; elsewhere its bits are others (None)."""
    return any(each.device.type == "cuda" for each in parameters) or None


# --- placement


def moved(value: T, device: torch.device | str) -> T:
    """Return a tensor on a device, or a dataclass, dict, list or tuple with all of its tensors there.

    What is there already is returned as it is, not copied.
    """
    return _moved(value, device)


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, torch.Tensor):
        return value if value.device == torch.device(device) else value.detach().to(device)
    if is_dataclass(value) and not isinstance(value, type):
        changed = _changed({each.name: getattr(value, each.name) for each in fields(value)}, device)
        return replace(value, **changed) if changed else value
    if isinstance(value, dict):
        changed = _changed(value, device)
        return type(value)({**value, **changed}) if changed else value
    if type(value) in (list, tuple):
        changed = _changed(dict(enumerate(value)), device)
        return type(value)(changed.get(at, each) for at, each in enumerate(value)) if changed else value
    return value


def _changed(parts: dict[Any, Any], device: torch.device | str) -> dict[Any, Any]:
    """Return those parts that had to be moved."""
    there = {key: moved(part, device) for key, part in parts.items()}
    return {key: part for key, part in there.items() if part is not parts[key]}


def sent(value: T, device: torch.device) -> T:
    """Return the same as `moved`, without waiting until a GPU has done what it was asked before.

    What is sent goes through memory that the processor may not swap out, which torch keeps for the next time:
    for batches, not for whole data sets.
    """
    if device.type != "cuda":
        return moved(value, device)
    return _sent(value, device)


def _sent(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        on_its_way = value.device == device or value.device.type != CPU
        return moved(value, device) if on_its_way else value.pin_memory().to(device, non_blocking=True)
    if type(value) in (list, tuple):
        return type(value)(_sent(each, device) for each in value)
    return moved(value, device)


def place_(module: nn.Module, device: torch.device | str) -> nn.Module:
    """Move a network, in place, with all that hangs at it: tensors in attributes and hooks too; return it.

    Its example stays on the processor, and tensors of several names stay one tensor.
    """
    _place_state_(module, torch.device(device))
    for each in module.modules():
        own = {name: value for name, value in vars(each).items() if name not in _not_ours()}
        vars(each).update(_changed(own, device))
        for hooks in (each._forward_pre_hooks, each._forward_hooks):
            hooks.update(_changed(hooks, device))
    return module


def _place_state_(module: nn.Module, device: torch.device) -> None:
    """Move parameters and buffers, in place."""
    if all(tensor.device == device for tensor in [*module.parameters(), *module.buffers()]):
        return
    shared = tied(module)
    module.to(device)
    tensors = module.state_dict(keep_vars=True)
    for first, *others in shared:
        for name in others:
            put_(module, name, tensors[first])


def _not_ours() -> set[str]:
    """Return the attributes in which torch keeps a module's parts, and what is known of a network."""
    return {*vars(torch.nn.Module()), KNOWN}


def resident(examples: T, size: int, device: torch.device) -> T:
    """Return examples of so many bytes on the device where there is room enough; else as they are."""
    if device.type == "cuda" and size * SHARE > torch.cuda.mem_get_info(device)[0]:
        return examples
    return moved(examples, device)


def fed(network: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Return a network that lies on a device as a function of tensors that may lie elsewhere."""
    if device.type == CPU:
        return network
    return lambda *inputs: network(*moved(inputs, device))


def device_of(module: nn.Module) -> torch.device:
    """Return where a network lies; the processor where it has no numbers."""
    return next((tensor.device for tensor in module.parameters()), torch.device(CPU))


def placed(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of a network on a device; on the processor the network itself.

    Its record has to be there already, if it is asked for: it is made where the example lies.
    """
    return module if device.type == CPU else place_(copy.deepcopy(module), device)


# --- what is computed on it


@contextmanager
def training_on(
    module: nn.Module,
    device: torch.device,
    batch_size: int,
    accumulate: int = 1,
    precision: str = "float32",
    processes: int = 1,
) -> Iterator[None]:
    """Have a network on a device, in place, that repeats its bits; afterwards it is on the processor.

    On the processor, memory of a step is kept for the next one.

    Args:
        module: The network.
        device: Where.
        batch_size: Examples that are computed at once.
        accumulate: How many such batches a step sums the gradients of.
        precision: Of the recipe; `tf32` is one of the device.
        processes: How many share each batch.

    Raises:
        DecantError: The device has not enough memory for such batches, or no kernel that repeats its bits.
    """
    needed = _smaller(batch_size, accumulate, processes)
    if device.type == CPU:
        with computing_on(device, needed), kept_heap():
            yield
        return
    try:
        with computing_on(device, needed, precision):
            place_(module, device)
            yield
    finally:
        place_(module, CPU)


@contextmanager
def computing_on(device: torch.device, needed: tuple[str, str], precision: str = "float32") -> Iterator[None]:
    """Have a device repeat its bits, and say in a sentence where it cannot, or lacks the memory.

    Args:
        device: Where.
        needed: What the memory is for, and what to try where there is too little of it.
        precision: `tf32` lets a GPU multiply float32 in it.

    Raises:
        DecantError: The device has not enough memory, or no kernel that repeats its bits.
    """
    try:
        with _steady(device, precision):
            yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is one
        if (message := _told(error, device, needed)) is None:
            raise
        raise DecantError(message) from None


def _told(error: Exception, device: torch.device, needed: tuple[str, str]) -> Message | None:
    """Return what is told of an error of torch; None where it is none of the device's."""
    if ran_out(error):
        what, todo = needed
        if device.type == CPU:
            todo = "a machine with more memory" if todo == ELSEWHERE else todo
            return f"The processor has not enough memory for {what}; try {todo}"
        return f"{device} has not enough memory ({_room(device)}) for {what}; try {todo}"
    if device.type == CPU or "deterministic" not in str(error):
        return None
    return (
        f"On {device} there is no kernel of {str(error).split(maxsplit=1)[0]} that gives the same bits each "
        "time; take cpu"
    )


def _smaller(batch_size: int, accumulate: int, processes: int) -> tuple[str, str]:
    """Return what a training needs memory for, and the recipe of the same steps that needs half of it."""
    if batch_size < 2 * processes:  # of half of it a process would have nothing
        return ("a single example" if batch_size == 1 else f"batches of {batch_size}"), ELSEWHERE
    half = f"training.batch_size: {batch_size // 2} and training.accumulate: {2 * accumulate}"
    same = "the same steps" if batch_size % 2 == 0 else "nearly the same steps"
    return f"batches of {batch_size}", f"{half}, {same} but for batch norms"


def _room(device: torch.device) -> Message:
    """Return how much memory a device has, and who holds it."""
    free, whole, ours = _memory(device)
    others = whole - free - ours
    held = f"{free:.1f} of {whole:.1f} GiB are free"
    return held if others < OTHERS else f"{held}, {others:.1f} are held by other processes"


def _memory(device: torch.device) -> tuple[float, float, float]:
    """Return how much of a device is free, how much there is, and how much this process holds, in GiB."""
    if device.type != "cuda":
        return 0.0, 0.0, 0.0
    try:
        sizes = (*torch.cuda.mem_get_info(device), torch.cuda.memory_reserved(device))
    except RuntimeError:  # so full that this process cannot even begin to use it
        sizes = (0, torch.cuda.get_device_properties(device).total_memory, 0)
    free, whole, ours = (size / 2**30 for size in sizes)
    return free, whole, ours


@contextmanager
def _steady(device: torch.device, precision: str = "float32") -> Iterator[None]:
    """Let a GPU repeat its bits, and multiply float32 as float32 or TF32; afterwards it is as it was."""
    if device.type != "cuda":
        yield
        return
    # torch hangs these attributes onto its modules at run time, which mypy cannot see.
    precise = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]  # type: ignore[attr-defined]
    before = [each.fp32_precision for each in precise]
    mode, benchmark = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    pool = torch.nn.functional.adaptive_avg_pool2d
    try:
        for each in precise:
            each.fp32_precision = TF32 if precision == TF32 else "ieee"
        torch.set_deterministic_debug_mode("error")
        torch.backends.cudnn.benchmark = False
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.nn.functional.adaptive_avg_pool2d = pooled
        yield
    finally:
        for each, precision in zip(precise, before, strict=True):
            each.fp32_precision = precision
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cudnn.benchmark = benchmark
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.nn.functional.adaptive_avg_pool2d = pool


def pooled(input: Tensor, output_size: int | tuple[int | None, int | None] | None) -> Tensor:
    """Return `adaptive_avg_pool2d`, [..., H, W] -> [..., h, w], as two products with tables of shares.

    torch's own adds up gradients in whatever order they come on a GPU where windows overlap.
    """
    wanted = output_size if isinstance(output_size, tuple | list) else (output_size, output_size)
    height, width = input.shape[-2:]
    kind = input.dtype, input.device
    rows = _shares(height, height if wanted[0] is None else wanted[0], *kind)
    columns = _shares(width, width if wanted[1] is None else wanted[1], *kind)
    return rows @ input @ columns.T


@cache
def _shares(size: int, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return which share each of `size` cells has in each of `count` averages; [count, size]."""
    at = torch.arange(count)[:, None]
    cells = torch.arange(size)
    inside = (cells >= at * size // count) & (cells < -(-(at + 1) * size // count))
    return (inside.to(dtype) / inside.sum(1, keepdim=True)).to(device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which products are of bfloat16 or float16, where that is the precision."""
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision in ("bfloat16", "float16"))


@contextmanager
def drawn_by(device: torch.device, seed: int) -> Iterator[None]:
    """Let a device's own generator draw as this seed says; afterwards it stands where it stood."""
    before = drawn_so_far(device)
    try:
        if before is not None:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
    finally:
        draw_from_(device, before)


def drawn_so_far(device: torch.device) -> Tensor | None:
    """Return where a device's own generator stands; None for the processor, which has torch's only."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def draw_from_(device: torch.device, state: Tensor | None) -> None:
    """Let a device's own generator go on from where it stood; nothing for None."""
    if state is not None:
        torch.cuda.set_rng_state(state, device)


# --- time


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return how long something takes, once all that was asked of the device before is done."""
    if device.type == "cuda":
        return _seconds_there(work, device)
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _seconds_there(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds between two events of a GPU, before and after all that it is asked meanwhile."""
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        synchronize(device)
        begin.record()
        work()
        end.record()
        synchronize(device)
    return float(begin.elapsed_time(end)) / 1000


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
