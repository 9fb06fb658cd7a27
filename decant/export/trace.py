"""A network as an ONNX graph without its numbers: places for them, and marks where layers round inputs."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, inliner, numpy_helper
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from decant.checkpoints.activations import detach_
from decant.checkpoints.checkpoint import Checkpoint
from decant.errors import DecantError, Message
from decant.export.graph import read_within
from decant.export.recurrent import LAYER, RECURRENT, open_recurrent_
from decant.networks.calls import Example
from decant.networks.execution import by_name, tensors_of
from decant.networks.layer_inputs import Arguments, first_of, with_first
from decant.networks.record import example_of
from decant.networks.tracing import every_layer_called

INPUT, OUTPUT = "image", "logits"
"""The names of what networks of pictures take and give."""

MARK = "Inputs"
"""An operator that stands where a layer clamps or rounds its inputs."""

LINEAR = "Linear"
"""An operator that stands for a linear layer on rows of rows: of inputs, weight, and bias if there is one."""

ROWS = "N"
"""The name of the dimension that the rows of a batch are."""


@dataclass
class Form:
    """What a traced graph depends on, and no numbers.

    Attributes:
        text: A description: equal ones have equal graphs.
        module: A network to trace, its own to change; let go once it is traced.
        example: What it is called with, two rows at least.
        free: Which dimensions of each tensor of the example may vary: a name by dimension.
        names: Of each tensor of the example.
    """

    text: str
    module: nn.Module | None = field(repr=False)
    example: Example = field(repr=False)
    free: Sequence[Mapping[int, str]] = field(repr=False)
    names: Sequence[str] = field(repr=False)

    def __eq__(self, other: object) -> bool:
        """Say whether both have one graph."""
        return isinstance(other, Form) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def traced(checkpoint: Checkpoint) -> onnx.ModelProto:
    """Return the graph of the checkpoint's network, with numbers that mean nothing yet.

    Parameters and buffers are initializers under their own names. Where a layer clamps or rounds its inputs,
    the node `Inputs` with the layer's name stands for it: what it does is numbers, and the graph is the same
    for all numbers. Tracing takes seconds, so that each graph is traced once.

    Raises:
        DecantError: ONNX's exporter has no operator for something in the network, and names it; or the
            network takes one number of rows alone.
    """
    module = copy.deepcopy(checkpoint.module)
    marked = sorted({*checkpoint.grids, *checkpoint.clamps})
    detach_(module, marked)
    for name in marked:
        layer = module.get_submodule(name)
        layer.register_forward_pre_hook(functools.partial(_marked, name), with_kwargs=True)
    _open_bags_(module)
    open_recurrent_(module)
    example = tree_map_only(Tensor, _rows, example_of(checkpoint.module))
    free = [{0: ROWS} if each.dim() else {} for each in tree_leaves(example) if isinstance(each, Tensor)]
    for dims, each in zip(free, _takes(checkpoint).values(), strict=False):
        dims |= {at: str(n or f"length_{at}") for at, n in enumerate(each.shape, 1) if not isinstance(n, int)}
    names = _input_names(checkpoint, example)
    form = Form(_text(checkpoint, marked, free, names), module, example, free, names)
    trace = _graph.__wrapped__ if checkpoint.architecture is None else _graph
    kind = getattr(checkpoint.architecture, "kind", type(module).__name__)
    try:
        return onnx.ModelProto.FromString(trace(form))
    except torch.onnx.errors.OnnxExporterError as error:
        raise DecantError(
            f"ONNX has no operator for something in the architecture {kind!r}: {_cause(error)}; the model "
            "itself is whole, but it cannot be deployed as an ONNX file"
        ) from None
    except DecantError as error:
        raise DecantError(
            f"the architecture {kind!r} cannot be deployed as an ONNX file, the model itself is whole: "
            f"{error}"
        ) from None


def _input_names(checkpoint: Checkpoint, example: Example) -> Sequence[str]:
    """Return a name for each tensor that a network takes: what is said of it, or that of its argument."""
    leaves = len([each for each in tree_leaves(example) if isinstance(each, Tensor)])
    if leaves == len(_takes(checkpoint)):
        return list(_takes(checkpoint))
    if leaves == 1 and not _takes(checkpoint):
        return [INPUT]
    arguments = inspect.signature(type(checkpoint.module).forward).parameters
    names = [
        name for name in list(arguments)[1:] if arguments[name].kind is not inspect.Parameter.VAR_POSITIONAL
    ]
    each = dict(
        zip([*names, *(f"input_{at}" for at in range(len(names), len(example)))], example, strict=False)
    )
    return [name for name, _ in _named(each, "")]


def _named(values: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of nested dicts, lists, tuples and dataclasses, with a name for each."""
    values = by_name(values)
    if isinstance(values, Tensor):
        yield name, values
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from _named(value, f"{name}_{key}".removeprefix("_"))
    elif isinstance(values, list | tuple):
        for at, value in enumerate(values):
            yield from _named(value, f"{name or 'output'}_{at}")


def _takes(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return what is said of the tensors that a network takes, by name; nothing of pictures."""
    return checkpoint.shape if isinstance(checkpoint.shape, Mapping) else {}


def _rows(tensor: Tensor) -> Tensor:
    """Return at least two rows: of one, the exporter thinks that there is never another."""
    return torch.cat([tensor, tensor]) if tensor.dim() and len(tensor) == 1 else tensor


def _text(checkpoint: Checkpoint, *more: Any) -> str:
    """Describe all that a graph depends on."""
    module, kind = checkpoint.module, type(checkpoint.architecture)
    own = {type(each) for each in module.modules() if not type(each).__module__.startswith("torch.")}
    forwards = sorted((each.__qualname__, _code(each)) for each in own)
    every = [(name, each) for name, each in module.state_dict().items() if isinstance(each, Tensor)]
    shapes = [(name, tuple(each.shape), str(each.dtype)) for name, each in every]
    example = [
        (tuple(each.shape), str(each.dtype))
        for each in tree_leaves(example_of(module))
        if hasattr(each, "shape")
    ]
    parts = (kind.__module__, kind.__qualname__, checkpoint.architecture, checkpoint.shape, *more)
    return repr((*parts, str(module), shapes, example, forwards))


def _code(kind: type[nn.Module]) -> str:
    """Return what a module's class computes with, as text."""
    code = getattr(kind.forward, "__code__", None)
    return "" if code is None else repr((code.co_code, code.co_names, code.co_varnames, _constants(code)))


def _constants(code: Any) -> list[Any]:
    return [each.co_code if inspect.iscode(each) else each for each in code.co_consts]


@functools.cache
def _graph(form: Form) -> bytes:
    module, form.module = form.module, None
    assert module is not None
    state = set(module.state_dict())
    outputs: list[str] = []
    tensors = (module.named_parameters, module.named_buffers)
    names = {name for each in tensors for name, _ in each(remove_duplicate=False)}
    model = _exported(_flat(module, outputs), form)
    _hand_back_(model.graph, names)
    if model.functions:
        model = inliner.inline_local_functions(model)
    if any(node.op_type == "ConcatFromSequence" for node in model.graph.node):
        # What torch's exporter makes of embedding_bag; opening it ends the process, in ONNX Runtime 1.32.
        raise DecantError(
            "it joins what a loop gives, as embedding_bag does; use nn.EmbeddingBag or embedding"
        )
    _cast_constants_(model.graph)
    _drop_biases_(model.graph)
    _fix_shapes_(model.graph)
    _join_linear_(model.graph)
    _drop_idle_(model.graph)
    _name_dimensions_(model.graph, form.free)
    _name_ends_(model.graph, form.names, outputs, state)
    _strip_(model)
    for initializer in model.graph.initializer:
        if initializer.name in state:
            initializer.raw_data = b""
    return model.SerializeToString(deterministic=True)


def _exported(module: nn.Module, form: Form) -> onnx.ModelProto:
    """Return what torch's exporter makes of a network."""
    free = iter(form.free)

    def dims(leaf: Any) -> Any:
        return dict.fromkeys(next(free), torch.export.Dim.AUTO) if isinstance(leaf, Tensor) else None

    # A dict in the last place would be taken for arguments by name.
    arguments = (*form.example, {}) if isinstance(form.example[-1], dict) else form.example
    with silent(), every_layer_called(), torch.no_grad(), _lengths_vary(module), _masks_as_given():
        # Without the exporter's optimizer each weight keeps its name.
        program = torch.onnx.export(
            _held(module),
            arguments,
            dynamic_shapes=_by_argument(module, [tree_map(dims, each) for each in form.example]),
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


def _held(module: nn.Module) -> nn.Module:
    """Return a network all of whose tensors have a dot in their names, which no result has."""
    if not [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        return module
    whole = nn.Module().eval()
    whole.network, whole.forward = module, module.forward
    return whole


def _hand_back_(graph: onnx.GraphProto, names: Iterable[str]) -> None:
    """Give tensors their own names, in place, where a network was held, and others to results of these."""
    if any("." not in name for name in names):
        free = {name: f"{name}/result" for name in names}
        _rename_(graph, free | {f"network.{name}": name for name in names})


def _rename_(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give values other names, in place, in graphs within as well."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for each in node.attribute:
            if each.type == onnx.AttributeProto.GRAPH:
                _rename_(each.g, names)
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = names.get(value.name, value.name)


def _by_argument(module: nn.Module, each: Sequence[Any]) -> tuple[Any, ...]:
    """Return what is given for each input once for each argument: `*inputs` is one, whatever it takes."""
    kinds = [argument.kind for argument in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds[: len(each)]:
        return tuple(each)
    place = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*each[:place], tuple(each[place:]))


@contextmanager
def _lengths_vary(module: nn.Module) -> Iterator[None]:
    """Have `len(x)`, in the files of a network's classes, be a size that may vary, as `x.shape[0]` is.

    Python's own makes a number of it, and the graph would have that number of rows, and no other, for good.
    """

    def length(value: Any) -> Any:
        return value.shape[0] if isinstance(value, Tensor) and value.dim() else len(value)

    kinds = {type(each) for each in module.modules() if not type(each).__module__.startswith("torch.")}
    files = {id(places := inspect.unwrap(kind.forward).__globals__): places for kind in kinds}
    own = [places for places in files.values() if "len" not in places]
    for places in own:
        places["len"] = length
    try:
        yield
    finally:
        for places in own:
            del places["len"]


@contextmanager
def _masks_as_given() -> Iterator[None]:
    """Have torch's transformers add the masks that they are given, and not look whether they are causal.

    They would compute the same without such a mask; the exporter cannot look at what is in one.
    """
    inside = nn.modules.transformer
    before = inside._detect_is_causal_mask
    inside._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        inside._detect_is_causal_mask = before


def _flat(module: nn.Module, names: list[str]) -> nn.Module:
    """Have a network, in place, return its tensors alone, in order, and write their names down."""
    forward = module.forward

    @functools.wraps(forward)
    def flat(*arguments: Any, **named: Any) -> Any:
        outputs = forward(*arguments, **named)
        found = tuple(tensors_of(outputs))
        names[:] = [OUTPUT] if isinstance(outputs, Tensor) else [name for name, _ in _named(outputs, "")]
        return found[0] if len(found) == 1 else found

    module.forward = flat
    return module


def _open_bags_(module: nn.Module) -> None:
    """Have each bag of rows, in place, look its rows up and join them, which ONNX has operators for."""
    for layer in module.modules():
        if type(layer) is nn.EmbeddingBag:
            layer.forward = functools.partial(_bag, layer)  # type: ignore[method-assign]


def _bag(layer: nn.EmbeddingBag, places: Tensor, *more: Tensor | None, **named: Tensor | None) -> Tensor:
    plain = layer.padding_idx is None and layer.max_norm is None
    if places.dim() != 2 or not plain or any(each is not None for each in (*more, *named.values())):
        raise DecantError("an EmbeddingBag with offsets, weights, padding_idx or max_norm has no operator")
    rows = nn.functional.embedding(places, layer.weight)
    return rows.amax(1) if layer.mode == "max" else rows.sum(1) if layer.mode == "sum" else rows.mean(1)


def _marked(name: str, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Arguments:
    first = first_of(given, named)
    mark: Tensor = torch.onnx.ops.symbolic(
        f"decant::{MARK}", (first,), {LAYER: name}, dtype=first.dtype, shape=first.shape, version=1
    )
    return with_first(mark, given, named)


def _cause(error: BaseException) -> Message:
    """Return the first line of the innermost error; the outer ones are advice on how to report it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _cast_constants_(graph: onnx.GraphProto) -> None:
    """Replace, in place, each constant that is cast to the type of another value by one of that type.

    The exporter writes the ends of a clamp so. ONNX Runtime casts them at each run, and does not see that
    the rounding after the clamp cuts alike: it runs the layer before both in float32.
    """
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    made = {name: node for node in graph.node for name in node.output}
    for node in list(graph.node):
        if node.op_type != "CastLike" or node.input[1] not in types:
            continue
        value = _scalar(made, node.input[0])
        if value is not None:
            kind = helper.tensor_dtype_to_np_dtype(types[node.input[1]])
            graph.initializer.append(numpy_helper.from_array(np.array(value, kind), node.output[0]))
            graph.node.remove(node)
    _join_clamps_(graph)


def _scalar(made: Mapping[str, onnx.NodeProto], name: str) -> float | int | None:
    """Return the number that a name stands for, cast or not; None where it is none."""
    source = made.get(name)
    while source is not None and source.op_type == "Cast":
        source = made.get(source.input[0])
    if source is None or source.op_type != "Constant":
        return None
    value = helper.get_attribute_value(source.attribute[0])
    if isinstance(value, onnx.TensorProto):
        array = numpy_helper.to_array(value)
        value = None if array.ndim else array.item()
    return value if isinstance(value, float | int) else None


def _join_clamps_(graph: onnx.GraphProto) -> None:
    """Write, in place, the larger and the lesser of a result and a number as what they are: a clamp."""
    numbers = {each.name for each in graph.initializer if not each.dims}
    for node in graph.node:
        if node.op_type in ("Max", "Min") and len(node.input) == 2 and node.input[1] in numbers:
            ends = node.input[1:] if node.op_type == "Max" else ["", node.input[1]]
            node.op_type, node.input[1:] = "Clip", ends


def _drop_biases_(graph: onnx.GraphProto) -> None:
    """Remove, in place, the zeros that the exporter adds where a convolution has no bias.

    They are computed at run time, so ONNX Runtime takes them for no constants and does not choose its fast
    layout, and the network runs half as fast.
    """
    made = {name: node for node in graph.node for name in node.output}
    numbers = {initializer.name: initializer for initializer in graph.initializer}

    def zero(name: str) -> bool:
        if name in numbers:
            return not numpy_helper.to_array(numbers[name]).any()
        node = made.get(name)
        if node is not None and node.op_type == "Constant":
            return (
                not np.any(helper.get_attribute_value(node.attribute[0]))
                if not node.attribute[0].HasField("t")
                else not numpy_helper.to_array(node.attribute[0].t).any()
            )
        return node is not None and node.op_type in ("CastLike", "Expand") and zero(node.input[0])

    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) > 2:
            source = made.get(node.input[2])
            if source is not None and source.op_type == "Expand" and zero(source.input[0]):
                del node.input[2:]


def _fix_shapes_(graph: onnx.GraphProto) -> None:
    """Replace, in place, each shape that is computed from the number of images by one that is known.

    The exporter counts the images with operators that run each time; ONNX's -1 says the same for nothing.
    """
    made = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        shape = made.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is None or shape.op_type != "Concat":
            continue
        sizes = [_constant(made[name]) if name in made else None for name in shape.input]
        if sizes[0] is not None or any(size is None for size in sizes[1:]):
            continue
        name = f"{node.output[0]}.shape"
        known = [int(size) for each in sizes[1:] if each is not None for size in each]
        if min(known) < 1:
            continue
        graph.initializer.append(numpy_helper.from_array(np.array([-1, *known], np.int64), name))
        node.input[1] = name


def _constant(node: onnx.NodeProto) -> Sequence[int] | None:
    found = [a.ints for a in node.attribute if a.name == "value_ints"] if node.op_type == "Constant" else []
    return found[0] if found else None


def _join_linear_(graph: onnx.GraphProto) -> None:
    """Put, in place, the node `Linear` where the exporter writes a linear layer as product and sum."""
    constants = {initializer.name for initializer in graph.initializer}
    turned = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Transpose"
        and node.input[0] in constants
        and list(node.attribute[0].ints) == [1, 0]
    }
    outputs = {each.name for each in graph.output}
    for product in [each for each in graph.node if each.op_type == "MatMul" and each.input[1] in turned]:
        readers = [node for node in graph.node if product.output[0] in node.input]
        inputs, result = [product.input[0], turned[product.input[1]]], product.output[0]
        if len(readers) == 1 and readers[0].op_type == "Add" and result not in outputs:
            bias = next(
                name for name in (*readers[0].input, result) if name != result or len({*readers[0].input}) < 2
            )
            if bias in constants and readers[0].input[0] == result:
                inputs, result = [*inputs, bias], readers[0].output[0]
                graph.node.remove(readers[0])
        joined = helper.make_node(LINEAR, inputs, [result], name=product.name)
        product.CopyFrom(joined)


def _drop_idle_(graph: onnx.GraphProto) -> None:
    """Remove, in place, the nodes whose results nobody reads, and such results of recurrent layers."""
    while True:
        read = {name for node in graph.node for name in (*node.input, *read_within(node))}
        read |= {out.name for out in graph.output}
        idle = [node for node in graph.node if not read & set(node.output)]
        if not idle:
            break
        for node in idle:
            graph.node.remove(node)
    for node in graph.node:
        if node.op_type == RECURRENT:
            node.output[:] = [name if name in read else "" for name in node.output]


def _name_dimensions_(graph: onnx.GraphProto, free: Sequence[Mapping[int, str]]) -> None:
    """Give the dimensions that may vary their names, in place.

    Raises:
        DecantError: One of them cannot vary in the graph.
    """
    names: dict[str, str] = {}
    for given, dims in zip(graph.input, free, strict=True):
        for at, name in dims.items():
            dim = given.type.tensor_type.shape.dim[at]
            if not dim.dim_param:
                what = "rows" if name == ROWS else f"places in dimension {at}"
                raise DecantError(
                    f"in its forward, {given.name} has {dim.dim_value} {what} and no other number of them "
                    "(a shape written down as a number, where x.shape would say it)"
                )
            names.setdefault(dim.dim_param, name)
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]


def _name_ends_(
    graph: onnx.GraphProto, inputs: Sequence[str], outputs: Sequence[str], state: Iterable[str]
) -> None:
    """Give inputs and outputs their names, in place, and other ones to values within that have these."""
    taken, wanted = {*state}, []
    for name, end in [*((name, "input") for name in inputs), *((name, "output") for name in outputs)]:
        free = re.sub(r"\W", "_", name)
        while free in taken:
            free = f"{free}_{end}"
        taken.add(free)
        wanted.append(free)
    given = {value.name for value in graph.input} | {each.name for each in graph.initializer}
    ends = dict(zip([each.name for each in graph.input], wanted, strict=False))
    for value, name in zip(graph.output, wanted[len(graph.input) :], strict=True):
        if value.name in ends or value.name in given:  # an input, a constant, or twice the same
            graph.node.append(helper.make_node("Identity", [value.name], [f"{name}/end"]))
            value.name = f"{name}/end"
        ends[value.name] = name
    inner = {name for node in graph.node for name in node.output} | given
    _rename_(graph, {name: f"{name}/inner" for name in inner.intersection(wanted)} | ends)


def _strip_(model: onnx.ModelProto) -> None:
    """Remove, in place, what depends on this machine: stack traces with paths, the name of the build."""
    model.producer_name, model.producer_version, model.doc_string = "decant", "", ""
    graph = model.graph
    graph.name, graph.doc_string = "model", ""
    del graph.value_info[:]
    del model.functions[:]
    parts = (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output)
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""


@contextmanager
def silent() -> Iterator[None]:
    """Keep exporters from warning of libraries that are not used here, and from printing."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
