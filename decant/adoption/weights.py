"""Weights from files of other people: read without running anything, and put in their places by name."""

from __future__ import annotations

import difflib
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from decant.errors import DecantError, Message
from decant.networks.memory import free_memory
from decant.sealed import one_line

TORCH = (".pth", ".pt", ".bin", ".ckpt")
WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before each name."""

SHOWN = 8
"""How many names a sentence lists."""

SNIPPET = (
    "convert it where you trust it:\n"
    "    import torch, safetensors.torch\n"
    "    network = {load}\n"
    '    safetensors.torch.save_model(network, "network.safetensors")'
)


def read_weights(path: Path, key: str = "") -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the processor.

    Args:
        path: A .safetensors file, a folder of them, or one of torch's that holds tensors and plain containers
            alone.
        key: Where in a file of torch's the tensors lie, with dots; found by itself where one place has them.

    Raises:
        DecantError: There is no such file; it would run code when it is read (a pickle, TorchScript, an
            exported program); it does not fit into memory; or it holds no tensors, or several sets of them.
    """
    check_memory(path)
    if path.is_dir() or path.suffix == ".safetensors":
        return {name: each for file in files_of(path) for name, each in _safetensors(file).items()}
    if path.suffix not in TORCH:
        load = f'joblib.load("{path}")  # or pickle.load: runs whatever the file says'
        raise DecantError(
            f"{path} is neither .safetensors nor {', '.join(TORCH)}, and other files are not read, as they "
            f"may run code; {SNIPPET.format(load=load)}"
        )
    return _nested(_torch(path), key, path)


def files_of(path: Path) -> list[Path]:
    """Return the files of weights that a path names: itself; of a folder, model.safetensors or its parts.

    Raises:
        DecantError: One of them is not there.
    """
    files = [path]
    if path.is_dir():
        index = path / "model.safetensors.index.json"
        names = _parts(index) if index.is_file() else ["model.safetensors"]
        files = [path / name for name in names]
    for file in files:
        if not file.is_file():
            raise DecantError(f"No weights at {file}; put the file there, or name another")
    return files


def _parts(index: Path) -> list[str]:
    """Return the names of the files over which an index says that weights are spread."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DecantError(f"{index} is no index of weights ({one_line(error)})") from None
    if strange := [each for each in names if Path(each).name != each or not each.endswith(".safetensors")]:
        raise DecantError(f"{index} names {strange[0]!r}, expected .safetensors files beside it")
    return names


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(safetensors.torch.load_file(path))
    except Exception as error:  # whichever of its own errors and of the system's
        raise DecantError(f"{path} is no whole safetensors file ({one_line(error)}); write it anew") from None


def _torch(path: Path) -> Any:
    if kind := _program(path):
        load = (
            f'torch.jit.load("{path}", "cpu")'
            if kind == "TorchScript"
            else f'torch.export.load("{path}").module()'
        )
        raise DecantError(f"{path} is {kind}, a program and no weights; {SNIPPET.format(load=load)}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whichever of pickle's, zip's and torch's
        load = f'torch.load("{path}", "cpu", weights_only=False)'
        raise DecantError(
            f"{path} holds more than tensors, and reading that may run code ({one_line(error)[:80]}); "
            f"{SNIPPET.format(load=load)}"
        ) from None


def _program(path: Path) -> str:
    """Return what kind of program a zip file is; empty where it is none."""
    if not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    if any(name.startswith("code/") for name in names):
        return "TorchScript"
    exported = ("serialized_", "archive_format")
    return "an exported program" if any(name.startswith(exported) for name in names) else ""


def _nested(content: Any, key: str, path: Path) -> dict[str, Tensor]:
    """Return the tensors in what a file holds."""
    for part in key.split(".") if key else ():
        if not isinstance(content, Mapping) or part not in content:
            known = ", ".join(map(str, content)) if isinstance(content, Mapping) else "nothing"
            raise DecantError(f"{path} has no {key!r}; it has {known}")
        content = content[part]
    if _are_tensors(content):
        return dict(content)
    found = dict(_places(content)) if not key else {}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise DecantError(
            f"{path} has several sets of tensors, {', '.join(found)}; name one: "
            f"weights: {{file: {path}, key: {next(iter(found))}}}"
        )
    raise DecantError(
        f"{path} holds {type(content).__name__}, expected tensors by name, such as `network.state_dict()`"
    )


def _are_tensors(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(each, Tensor) for name, each in content.items())
    )


def _places(content: Any, place: str = "", depth: int = 3) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if not isinstance(content, Mapping) or not depth:
        return
    for name, each in content.items():
        if not isinstance(name, str):
            continue  # an optimizer numbers what it keeps
        there = f"{place}.{name}".removeprefix(".")
        if _are_tensors(each):
            yield there, dict(each)
        else:
            yield from _places(each, there, depth - 1)


def check_memory(path: Path) -> None:
    """Check that weights fit into memory beside the network that they go into.

    Raises:
        DecantError: They do not; or they are not there.
    """
    size, free = sum(file.stat().st_size for file in files_of(path)), free_memory()
    if 2 * size > free:
        raise DecantError(
            f"{path} has {size / 1e9:.1f} GB and takes as much again in the network, {2 * size / 1e9:.1f} "
            f"GB, where {free / 1e9:.1f} GB are free; take a machine with more memory, or a smaller network"
        )


def place_(module: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> list[str]:
    """Put tensors into a network in place; return what its user should know of it.

    Raises:
        DecantError: A tensor has no place, a place no tensor, or a shape or type differs; or one holds NaN,
            or a parameter infinity.
    """
    own = module.state_dict(keep_vars=True)
    tensors, notes = _bare(tensors, own)
    wrong = [*_unplaced(tensors, own), *_misshapen(tensors, own)]
    if wrong:
        rest = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise DecantError(
            f"{origin} does not fit the network, in {len(wrong)} places: {'; '.join(wrong[:SHOWN])}{rest}; "
            "build the network as it was trained, or take its own weights"
        )
    for name, tensor in tensors.items():
        wrong_there = ~torch.isfinite(tensor) if isinstance(own[name], nn.Parameter) else torch.isnan(tensor)
        if bool(wrong_there.any()):
            raise DecantError(
                f"{origin}: {name} holds NaN or infinity, so no output of the network would be a number"
            )
        if tensor.dtype != own[name].dtype and f"stored as {tensor.dtype}" not in notes:
            notes.append(f"stored as {tensor.dtype}")
    module.load_state_dict(dict(tensors), strict=False)
    return notes


def _bare(tensors: Mapping[str, Tensor], own: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors without what wrappers put before each name."""
    found, notes = dict(tensors), list[str]()
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in found) and not any(n.startswith(wrapper) for n in own):
            found = {name.removeprefix(wrapper): tensor for name, tensor in found.items()}
            notes.append(f"without the prefix {wrapper}")
    return found, notes


def _unplaced(tensors: Mapping[str, Tensor], own: Mapping[str, Any]) -> Iterator[str]:
    """Yield each name that only one side has, with the nearest one of the other side and the shapes."""
    missing = [name for name in own if name not in tensors and not _counts(name)]
    # A tied tensor is often written once: its other names need none.
    tied = {id(tensor) for name, tensor in own.items() if name in tensors}
    missing = [name for name in missing if id(own[name]) not in tied]
    extra = [name for name in tensors if name not in own]
    for name in missing:
        yield f"{name} {_shape(own[name])} is missing{_near(name, {n: tensors[n] for n in extra})}"
    for name in extra:
        yield f"{name} {_shape(tensors[name])} has no place{_near(name, {n: own[n] for n in missing})}"


def _misshapen(tensors: Mapping[str, Tensor], own: Mapping[str, Any]) -> Iterator[str]:
    for name, tensor in tensors.items():
        if name in own and tensor.shape != own[name].shape:
            yield f"{name} has the shape {_shape(tensor)}, the network's {_shape(own[name])}"
        elif name in own and tensor.is_floating_point() != own[name].is_floating_point():
            yield f"{name} is of {tensor.dtype}, the network's of {own[name].dtype}"


def _near(name: str, others: Mapping[str, Any]) -> Message:
    near = difflib.get_close_matches(name, others, n=1, cutoff=0.3)
    return f" (nearest: {near[0]} {_shape(others[near[0]])})" if near else ""


def _shape(tensor: Any) -> str:
    return str([*tensor.shape]) if isinstance(tensor, Tensor) else type(tensor).__name__


def _counts(name: str) -> bool:
    """Say whether it is batch norm's count of batches, which older files do not have."""
    return name.endswith("num_batches_tracked")
