"""One forward pass watched: which modules are at work, which operators run, and who reads whose results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from decant.errors import DecantError
from decant.networks.calls import Call, Example, Kind, Record, Weight
from decant.networks.dispatch import Watching, storage_of
from decant.networks.draws import drawing
from decant.networks.faults import where

aten = torch.ops.aten

PLAIN: Mapping[Any, Kind] = {
    nn.Conv1d.forward: Kind.CONVOLUTION,
    nn.Conv2d.forward: Kind.CONVOLUTION,
    nn.Conv3d.forward: Kind.CONVOLUTION,
    nn.ConvTranspose1d.forward: Kind.TRANSPOSED,
    nn.ConvTranspose2d.forward: Kind.TRANSPOSED,
    nn.ConvTranspose3d.forward: Kind.TRANSPOSED,
    nn.Linear.forward: Kind.LINEAR,
    nn.Embedding.forward: Kind.EMBEDDING,
    nn.EmbeddingBag.forward: Kind.EMBEDDING,
}
"""Layers that do what their class says, by their `forward`: a subclass with another one does not."""

RECURRENT = (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward)
CELLS = (nn.LSTMCell.forward, nn.GRUCell.forward, nn.RNNCell.forward)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
NORMALIZING = (
    aten.native_batch_norm,
    aten.cudnn_batch_norm,
    aten.miopen_batch_norm,
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_no_training,
    aten._batch_norm_with_update,
    aten._batch_norm_no_update,
)
"""Each takes what is normalized, scale, shift, mean, variance; some then whether to take the batch's own."""

ADDING = (aten.add, aten.add_, aten.sub, aten.sub_)
TABLES = (aten.embedding, aten._embedding_bag, aten._embedding_bag_forward_only)
FACTORS = {
    **dict.fromkeys((aten.mm, aten.bmm, aten.mv), (0, 1)),
    **dict.fromkeys((aten.addmm, aten.baddbmm, aten.addmv), (1, 2)),
}
"""Which arguments of an operator are multiplied."""

ATTENTION = (
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_cudnn_attention,
)
CONVOLUTIONS = nn.Conv2d.__module__
CONVOLVING = (aten.convolution, aten._convolution)  # the second in what torch.jit.trace has made
MULTIPLYING = {*CONVOLVING, aten._trilinear, aten.mkldnn_rnn_layer, *FACTORS, *TABLES, *ATTENTION}


def plain(layer: nn.Module) -> Kind | None:
    """Return the kind of a layer that computes what its class in torch does, with a weight of its own."""
    own = "forward" in layer.__dict__ or not isinstance(layer._parameters.get("weight"), nn.Parameter)
    return None if own else PLAIN.get(_computes(type(layer)))


def _computes(kind: type[nn.Module]) -> Any:
    """Return what a class computes with: its `forward`, or None where it replaces a part of that of torch."""
    parts = [getattr(base, "_conv_forward", None) for base in kind.__mro__ if base.__module__ == CONVOLUTIONS]
    return kind.forward if not parts or getattr(kind, "_conv_forward", None) is parts[0] else None


@contextmanager
def every_layer_called() -> Iterator[None]:
    """Switch off torch's fused paths through attention, which read parameters and call no layer."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def trace(module: nn.Module, example: Example) -> Record:
    """Return the record of one pass over the example, in eval mode; the module is as before afterwards.

    Raises:
        DecantError: The network fails on its example; says where.
    """
    modes = [(each, each.training) for each in module.modules()]
    buffers = [
        (buffer, buffer.detach().clone()) for buffer in module.buffers() if buffer.device.type != "meta"
    ]
    placed = _placed(module, example)
    watch = _Watch(module, placed)
    try:
        module.eval()
        with torch.no_grad(), drawing(0), every_layer_called(), watch:
            outputs = module(*placed)
    except DecantError:
        raise
    except Exception as error:
        raise DecantError(f"The network fails on its example: {where(error)}") from error
    finally:
        for each, mode in modes:
            each.training = mode
        with torch.no_grad():
            for tensor, was in (*buffers, *watch.changed()):
                tensor.copy_(was)
    return watch.record(_rows(example), outputs)


def _placed(module: nn.Module, example: Example) -> Example:
    """Return the example on the network's device and, where it is of fractions, in the network's type."""
    tensors = [*module.parameters(), *module.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    kinds = {tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()}
    (dtype,) = kinds if len(kinds) == 1 else (None,)

    def place(tensor: Tensor) -> Tensor:  # as a copy, since a network may change its inputs in place
        return tensor.to(device, dtype if tensor.is_floating_point() else None, copy=True)

    placed: Example = tree_map_only(Tensor, place, example)
    return placed


def _rows(example: Example) -> int:
    tensors = [each for each in tree_leaves(example) if isinstance(each, Tensor)]
    return max(1, len(tensors[0])) if tensors and tensors[0].dim() else 1


@dataclass
class _Frame:
    """A module at work.

    Attributes:
        name: Of the module; empty for the network.
        module: It.
        received: Its first argument.
        first: How many calls there were when it began.
    """

    name: str
    module: nn.Module
    received: Any
    first: int


@dataclass
class _Made:
    """What one call of a plain layer gave, and who has read it since: names of modules, or what it is."""

    weight: str
    output: Tensor
    readers: set[str] = field(default_factory=set)


class _Watch(Watching):
    """Sees each operator and each module of a pass."""

    def __init__(self, module: nn.Module, example: Example) -> None:
        super().__init__()
        self._names = {each: name for name, each in module.named_modules()}
        self._module, self._handles = module, list[Any]()
        self._frames: list[_Frame] = []
        self._called: set[str] = set()
        self._calls: list[Call] = []
        self._alive: list[Any] = []  # so that no storage is given away again while the pass runs
        self._tensors: dict[str, Tensor] = {}  # parameters, and statistics of batch norms
        self._spans: dict[int, list[tuple[int, int, str]]] = {}  # of these, by storage: from, to, name
        self._every: dict[str, list[str]] = {}  # names of one tensor, by the first
        self._first: dict[str, str] = {}  # the first name of the same tensor, by any
        self._axes: dict[str, int] = {}
        self._users: dict[str, set[str]] = {}  # by tensor: modules at work when it was read
        self._elsewhere: dict[str, str] = {}  # by tensor: an operator that neither multiplies nor looks up
        self._before: dict[str, Tensor] = {}  # by tensor that the pass changes: what it was
        self._active: set[int] = set()  # storages that depend on what the network is called with
        self._derived: dict[
            int, frozenset[str]
        ] = {}  # storages computed from parameters alone, and from which
        self._computed: dict[str, str] = {}  # by parameter that a weight is computed from: the layer at work
        self._origins: dict[int, frozenset[str]] = {}  # by storage: the weights that it comes from last
        self._made: dict[int, _Made] = {}  # by storage
        self._outputs: dict[str, list[_Made]] = {}  # by weight
        self._normed: dict[str, list[Tensor]] = {}  # by batch norm: what it normalized with its own numbers
        self._feeds: dict[tuple[str, str], None] = {}
        self._sums: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
        self._alive += tree_leaves(example)
        self._active |= {storage_of(each) for each in self._alive if isinstance(each, Tensor)}
        for name, tensor in (*module.named_parameters(remove_duplicate=False), *_statistics(module)):
            self._know(name, tensor)

    def _know(self, name: str, tensor: Tensor) -> None:
        start, end = tensor.storage_offset(), tensor.storage_offset() + max(1, tensor.numel())
        spans = self._spans.setdefault(storage_of(tensor), [])
        first = next((known for low, high, known in spans if low < end and start < high), name)
        if self._tensors.setdefault(first, tensor) is not tensor:
            raise DecantError(
                f"{first} and {name} are two tensors in one memory, and in a copy they would be in two; "
                "make them one, as in `b.weight = a.weight`"
            )
        if first == name:
            spans.append((int(start), int(end), name))
        self._first[name] = first
        self._every.setdefault(first, []).append(name)

    def __enter__(self) -> _Watch:
        for each in self._names:
            if not isinstance(each, torch.jit.ScriptModule):  # what it calls, nobody is told
                enter = each.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True)
                leave = each.register_forward_hook(self._leave, prepend=True, always_call=True)
                self._handles += [enter, leave]
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def see(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func._schema.is_mutable:
            self._keep(func, args)
        result = func(*args, **kwargs)
        packet = func.overloadpacket
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        made = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        self._alive += [*given, *made]
        inputs = [storage_of(each) for each in given]
        active = any(key in self._active for key in inputs)
        self._read(given, self._normalize(args) if packet in NORMALIZING else "")
        if packet in ADDING and not self._inside_recurrent():
            self._add(args)
        weighs = packet in TABLES or (packet in MULTIPLYING and (active or self._at_work() is not None))
        self._derive(packet, given, made, active=active, weighs=weighs)
        if packet in MULTIPLYING and not self._inside_recurrent():
            self._multiply(packet, args, result, weighs=weighs)
        return result

    def _keep(self, func: Any, args: tuple[Any, ...]) -> None:
        """Keep what parameters are before an operator changes them."""
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.is_write and isinstance(value, Tensor) and (name := self._name(value)):
                self._before.setdefault(name, self._tensors[name].detach().clone())

    def changed(self) -> list[tuple[Tensor, Tensor]]:
        """Return each parameter that the pass changed, and what it was before."""
        return [(self._tensors[name], was) for name, was in self._before.items()]

    def _read(self, given: list[Tensor], norm: str) -> None:
        """Note who reads what: a batch norm with its own numbers, or whatever is at work."""
        name = self._frames[-1].name if self._frames else ""
        reader = norm or (f"a hook of {name}" if name in self._normed else name) or "the network itself"
        for each in given:
            if found := self._name(each):
                self._users.setdefault(found, set()).add(norm or name)
            if (made := self._made.get(storage_of(each))) is not None:
                made.readers.add(reader)

    def _normalize(self, args: tuple[Any, ...]) -> str:
        """Return the batch norm that is at work with its own numbers and does nothing else, if it is one."""
        module, name = (self._frames[-1].module, self._frames[-1].name) if self._frames else (None, "")
        names = [f"{name}.{each}" for each in ("weight", "bias", "running_mean", "running_var")]
        used = [None if each is None else self._name(each) for each in args[1:5]]
        own = [None if each is None else full for each, full in zip(args[1:5], names, strict=True)]
        if used[2]:
            self._normed.setdefault(used[2].rpartition(".")[0], [])
        if name not in self._normed or not used[2] or used != own or args[5] is True:
            return ""
        if (
            module is None
            or "forward" in module.__dict__
            or type(module).forward is not nn.BatchNorm2d.forward
        ):
            return ""
        self._normed[name].append(args[0])
        return name

    def _derive(
        self, packet: Any, given: list[Tensor], made: list[Tensor], *, active: bool, weighs: bool
    ) -> None:
        """Note what the results of an operator come from."""
        inputs = [storage_of(each) for each in given]
        origins: frozenset[str] = frozenset().union(*(self._origins.get(key, frozenset()) for key in inputs))
        names = frozenset(found for each in given if (found := self._name(each)))
        sources = names.union(*(self._derived.get(key, frozenset()) for key in inputs))
        if not weighs and not self._inside_norm() and any(storage_of(each) not in inputs for each in made):
            self._elsewhere |= dict.fromkeys(names, str(packet).removeprefix("aten."))
        for key in {storage_of(each) for each in made} - self._spans.keys():
            if active:
                self._active.add(key)
            elif sources:
                self._derived[key] = sources
            if origins or key not in inputs:
                self._origins[key] = origins

    def _add(self, args: tuple[Any, ...]) -> None:
        """Note an addition of two results."""
        sides = [storage_of(each) for each in args[:2] if isinstance(each, Tensor)]
        if len(sides) == 2 and all(side in self._active for side in sides):
            one, other = (tuple(sorted(self._origins.get(side, ()))) for side in sides)
            self._sums.append((one, other))

    def _multiply(self, packet: Any, args: Any, result: Any, *, weighs: bool) -> None:
        """Note a multiplication, or a look into a table."""
        layer = self._frames[-1].name if self._frames else ""
        note = partial(self._note, layer=layer, result=result, weighs=weighs)
        if packet in TABLES:
            note(args[0], Kind.EMBEDDING, given=args[1], macs=0)
        elif packet in CONVOLVING:
            kind = Kind.TRANSPOSED if args[6] else Kind.CONVOLUTION
            each = args[1][0].numel()  # of [O, I / groups, ...], or of [I, O / groups, ...]
            macs = (args[0] if args[6] else result).numel() * each
            note(args[1], kind, given=args[0], macs=macs, axis=1 if args[6] else 0)
        elif packet is aten.mkldnn_rnn_layer:
            for weight in args[1:3]:
                note(weight, Kind.RECURRENT, given=args[0], macs=args[0][..., 0].numel() * weight.numel())
        elif packet is aten._trilinear:  # of nn.Bilinear: rows [N, I], a weight [O, I, J], rows [N, J]
            note(args[1], Kind.LINEAR, given=args[0], macs=len(args[0]) * args[1].numel())
        elif packet in FACTORS:
            left, right = (args[index] for index in FACTORS[packet])
            macs = left.numel() * (right.shape[-1] if right.dim() > 1 else 1)
            weight, other = (left, right) if self._fixed(left) and not self._fixed(right) else (right, left)
            note(weight, Kind.LINEAR, given=other, macs=macs, axis=self._axis(weight, weight is left))
        elif packet in ATTENTION:
            macs = _attention(*args[:3])
            types = _type(args[0]), _type(result)
            self._calls.append(Call("", layer, None, tuple(args[0].shape), _shape(result), macs, *types))

    def _note(
        self,
        weight: Tensor,
        kind: Kind,
        *,
        layer: str,
        given: Tensor,
        result: Any,
        macs: int,
        weighs: bool,
        axis: int = 0,
    ) -> None:
        name = self._name(weight) if weighs else ""
        if name and self._tensors[name].dim() < 2:
            name = ""
        if name:
            self._axes.setdefault(name, axis)
        sources = self._derived.get(storage_of(weight), frozenset()) if weighs else frozenset()
        for source in sorted(sources):
            self._computed.setdefault(source, layer)
        kind_of = kind if name or sources else None
        shape = tuple(given.shape)
        types = _type(given), _type(result)
        self._calls.append(Call(name, layer, kind_of, shape, _shape(result), macs, *types, bool(sources)))

    def _fixed(self, tensor: Tensor) -> bool:
        return bool(self._name(tensor)) or storage_of(tensor) in self._derived

    def _axis(self, used: Tensor, left: bool) -> int:
        """Return which dimension of a parameter the outputs of a matrix product are."""
        name = self._name(used)
        if not name or used.dim() < 2:
            return 0
        stored = self._tensors[name]
        straight = used.stride()[-1] == stored.stride()[-1] and used.shape[-1] == stored.shape[-1]
        before_last = stored.dim() - 2 if used.dim() == stored.dim() else 0
        return before_last if straight == left else stored.dim() - 1

    def _name(self, tensor: Tensor) -> str:
        """Return the first name of the parameter, or statistics, that a tensor is, or is a view of."""
        spans = self._spans.get(storage_of(tensor), ())
        return next((name for low, high, name in spans if low <= tensor.storage_offset() < high), "")

    def _at_work(self) -> Kind | None:
        """Return the kind of the layer of torch that is at work, if it is one."""
        return plain(self._frames[-1].module) if self._frames else None

    def _inside_recurrent(self) -> bool:
        return any(type(frame.module).forward in (*RECURRENT, *CELLS) for frame in self._frames)

    def _inside_norm(self) -> bool:
        return bool(self._frames) and self._frames[-1].name in self._normed

    def _enter(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        name = self._names[module]
        self._called.add(name)
        received = next(iter((*args, *named.values())), None)
        self._frames.append(_Frame(name, module, received, len(self._calls)))
        self._alive += _tensors(received)
        if isinstance(received, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(received):
            raise DecantError(
                f"{name or 'The network'} is called inside a transform of torch.func, such as vmap, where "
                "nothing can be seen of what it receives; call it with a batch instead"
            )
        if isinstance(module, NORMS):
            self._normed.setdefault(name, [])
        if type(module).forward in (*RECURRENT, *CELLS):
            self._recur(name, module, received)

    def _recur(self, name: str, module: nn.Module, received: Any) -> None:
        """Note what a recurrent layer multiplies: each of its weights once for each step of each row."""
        tensor = received if isinstance(received, Tensor) else received[0]  # or a packed sequence
        steps = tensor.numel() // tensor.shape[-1]
        for _, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 2 and (first := self._name(parameter)):
                self._axes.setdefault(first, 0)
                shape = (*tensor.shape[:-1], len(parameter))
                macs = steps * parameter.numel()
                types = _type(tensor), _type(tensor)
                self._calls.append(
                    Call(first, name, Kind.RECURRENT, tuple(tensor.shape), shape, macs, *types)
                )

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        frame = self._frames.pop()
        own = self._calls[frame.first :]
        first = self._first.get(f"{frame.name}.weight".removeprefix("."), "")
        if not (isinstance(output, Tensor) and isinstance(frame.received, Tensor)):
            if own:
                self._connect({call.weight for call in own if call.weight}, frame.received, output)
            return
        if plain(module) is None or len(own) != 1 or own[0].weight != first:
            return
        self._calls[-1] = replace(own[0], inputs=tuple(frame.received.shape), outputs=tuple(output.shape))
        self._connect({first}, frame.received, output)
        if storage_of(output) != storage_of(frame.received):
            self._made[storage_of(output)] = made = _Made(first, output)
            self._outputs.setdefault(first, []).append(made)

    def _connect(self, weights: set[str], received: Any, output: Any) -> None:
        """Note that what these weights received came from others, and that what comes out is theirs."""
        for key in map(storage_of, _tensors(received)):
            origins = sorted(self._origins.get(key, ()))
            self._feeds |= {(origin, weight): None for origin in origins for weight in sorted(weights)}
        self._origins |= {storage_of(each): frozenset(weights) for each in _tensors(output)}

    def record(self, rows: int, outputs: Any) -> Record:
        """Return what was seen."""
        returned = _tensors(outputs)
        for each in returned:
            if (made := self._made.get(storage_of(each))) is not None:
                made.readers.add("the network's output")
            if name := self._name(each):
                self._users.setdefault(name, set()).add("the network's output")
        for name in self._before:
            self._computed[name] = next((call.layer for call in self._calls if call.weight == name), "")
        self._calls = [
            replace(call, weight="", computed=True) if call.weight in self._before else call
            for call in self._calls
        ]
        weights = self._weights()
        folds, unfolded = self._folds(weights)
        unused = [name for name, p in self._tensors.items() if p.dim() > 1 and name not in self._users]
        order = [pair for pair in self._feeds if pair[0] in weights and pair[1] in weights]
        computed = {name: layer for name, layer in self._computed.items() if name not in weights}
        return Record(
            rows=rows,
            calls=tuple(self._calls),
            weights=weights,
            folds=folds,
            unfolded=unfolded,
            feeds=tuple(order),
            sums=tuple(self._sums),
            unused=tuple(unused),
            outputs=tuple(tuple(each.shape) for each in returned),
            called=frozenset(self._called),
            computed=computed,
        )

    def _weights(self) -> dict[str, Weight]:
        found: dict[str, Weight] = {}
        for call in self._calls:
            if call.weight and call.weight not in found:
                found[call.weight] = self._weight(call.weight)
        return found

    def _weight(self, name: str) -> Weight:
        calls = [call for call in self._calls if call.weight == name]
        kinds = [call.kind for call in calls if call.kind not in (None, Kind.EMBEDDING)]
        kind = kinds[0] if kinds and kinds[0] else Kind.EMBEDDING
        layers = sorted({call.layer for call in calls})
        why = self._no_layer(name, layers)
        return Weight(
            name,
            tuple(self._every[name]),
            kind,
            self._axes[name],
            "" if why else layers[0],
            why,
            len(calls),
        )

    def _no_layer(self, name: str, layers: list[str]) -> str:
        """Return why a weight is not the business of one layer of torch alone; empty where it is."""
        if len(layers) > 1:
            return f"it is shared by {' and '.join(each or 'the network itself' for each in layers)}"
        module = self._module.get_submodule(layers[0])
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            return f"{layers[0]} multiplies by it once for each step of a sequence"
        if (operator := self._elsewhere.get(name)) is not None:
            return f"it is read by {operator} as well"
        if plain(module) is None or f"{layers[0]}.weight".removeprefix(".") not in self._every[name]:
            return "no layer of torch is called for it, a function reads it"
        return ""

    def _folds(self, weights: Mapping[str, Weight]) -> tuple[dict[str, str], dict[str, str]]:
        folds: dict[str, str] = {}
        unfolded: dict[str, str] = {}
        for norm in self._normed:
            weight, why = self._fold(norm, weights)
            if why:
                unfolded[norm] = why
            else:
                folds[weight] = norm
        # In the order in which the layers run, whichever norm was met first.
        return {weight: folds[weight] for weight in weights if weight in folds}, unfolded

    def _fold(self, norm: str, weights: Mapping[str, Weight]) -> tuple[str, str]:
        """Return the weight into whose layer a batch norm may be folded; or why there is none."""
        module: Any = self._module.get_submodule(norm)
        if module.running_mean is None or module.running_var is None:
            return "", "it keeps no statistics, but takes those of each batch"
        if not self._normed[norm]:
            return "", "it does not just normalize with its own numbers"
        if module._forward_hooks or module._forward_pre_hooks:
            return "", "it has hooks, which would be lost"
        givers = [self._made.get(storage_of(each)) for each in self._normed[norm]]
        whole = [
            made.weight
            for made, each in zip(givers, self._normed[norm], strict=True)
            if made is not None and _same_view(made.output, each)
        ]
        if len(whole) < len(givers) or len(set(whole)) != 1:
            return "", "what it receives is not what one layer gives, and nothing else"
        (name,) = set(whole)
        weight = weights.get(name)
        if weight is None or not weight.layer or len(weight.names) > 1:
            return "", f"{name}: {weight.why if weight and weight.why else 'it has several names'}"
        others = {reader for made in self._outputs[name] for reader in made.readers} - {norm}
        if others:
            return "", f"what {weight.layer} gives is read by {', '.join(sorted(others))} as well"
        if why := self._misfit(weight, module):
            return "", why
        own = [each for each in self._every if each.rpartition(".")[0] == norm]
        bias = f"{weight.layer}.bias".removeprefix(".")
        for tensor, user in [(name, weight.layer), (bias, weight.layer), *((each, norm) for each in own)]:
            if self._users.get(tensor, {user}) != {user} or len(self._every.get(tensor, [""])) > 1:
                return "", f"{tensor} is used elsewhere as well"
        return name, ""

    def _misfit(self, weight: Weight, norm: Any) -> str:
        layer: Any = self._module.get_submodule(weight.layer)
        channels = layer.weight.shape[0]
        if weight.kind is Kind.TRANSPOSED:
            channels = layer.weight.shape[1] * layer.groups
        dims = 2 if weight.kind is Kind.LINEAR else layer.weight.dim()
        if any(made.output.dim() != dims for made in self._outputs[weight.name]):
            return f"it normalizes another dimension than the channels of {weight.layer}"
        return "" if norm.num_features == channels else f"it has other channels than {weight.layer}"


def _statistics(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the mean and the variance that each batch norm keeps, by all of their names."""
    for name, each in module.named_modules(remove_duplicate=False):
        if isinstance(each, NORMS):
            for attribute, tensor in each.named_buffers(recurse=False):
                if tensor.dim():
                    yield f"{name}.{attribute}".removeprefix("."), tensor


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors in what a module takes or gives, however they are packed."""
    if isinstance(value, Tensor):
        return [value]
    parts: Iterable[Any] = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple | set):
        parts = value
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, each.name) for each in fields(value)]
    return [tensor for part in parts for tensor in _tensors(part)]


def _shape(result: Any) -> tuple[int, ...]:
    return tuple(_tensors(result)[0].shape)


def _type(result: Any) -> str:
    return str(_tensors(result)[0].dtype).removeprefix("torch.")


def _same_view(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors are the same numbers in the same places."""
    return (
        storage_of(one) == storage_of(other)
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.storage_offset() == other.storage_offset()
    )


def _attention(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Return the multiplications of q kᵀ [..., L, S] and of its rows with v."""
    return query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
