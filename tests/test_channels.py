"""Which channels belong together, how many a budget leaves, and that the network without them is the same."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.coupling import (
    ChannelGroup,
    find_groups,
    groups_of,
    kept_of,
    proven,
    zeroed,
)
from decant.costs import counts
from decant.costs.layers import LayerShape, layers_of, macs
from decant.errors import DecantError
from decant.export.layer_timing import Calls, OnnxRuntime, layer_call, stopwatch
from decant.networks.architectures import Lenet5, Resnet, build
from decant.networks.execution import predict
from decant.networks.record import give_example_
from decant.prune.channels.ladder import ChannelPlan, Ladder, ladder_of, shrink, shrink_to_drift, smallest
from decant.prune.channels.latency import (
    ATTEMPTS,
    CHANNEL_MULTIPLES,
    Table,
    best_step,
    read_table,
    shrink_to_latency,
)
from decant.prune.structures import lowest
from tests.nets import NETS, SHAPE, EveryOther, Looped, drawn, images, net
from tests.slow import slow_but


def left(plan: ChannelPlan) -> dict[str, int]:
    return {group.name: int((~plan.gone[group.name]).sum()) for group in plan.groups}


def owned(group: ChannelGroup) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(name, dim): tuple(indices.shape) for name, dim, indices in group.members}


# --- Groups


def test_a_residual_addition_binds_all_that_it_adds() -> None:
    stem, inner, second, last_inner, last = groups_of(net(NETS["residual"]))
    names = [group.name for group in (stem, inner, second, last_inner, last)]
    assert names == ["stem.0", "stages.0.conv1", "stages.1.conv1", "stages.2.conv1", "stages.2.conv2"]
    makers = {name for (name, dim) in owned(stem) if dim == 0 and "norm" not in name and ".1." not in name}
    assert {"stem.0.weight", "stages.0.conv2.weight"} <= makers
    assert owned(stem)["stages.1.conv2.weight", 0] == (6, 1)
    assert owned(stem)["stages.2.shortcut.0.weight", 1] == (6, 1)
    assert owned(last)["head.weight", 1] == (8, 4)  # two by two pixels behind the flattening
    assert owned(last)["stages.2.shortcut.1.running_var", 0] == (8, 1)


def test_pixels_behind_a_flattening_go_with_their_channel() -> None:
    conv, linear = groups_of(net(NETS["flattened"]))
    (indices,) = (i for name, dim, i in conv.members if (name, dim) == ("5.weight", 1))
    assert indices.tolist() == [list(range(c * 25, c * 25 + 25)) for c in range(6)]
    assert (linear.name, linear.count) == ("5", 7)


def test_grouped_convolutions_lose_one_channel_of_each_group() -> None:
    first, both = groups_of(net(NETS["grouped"]))[:2]
    # The inputs of four groups of two: channels 0, 2, 4, 6 go together, and 1, 3, 5, 7.
    made = {name: indices.tolist() for name, dim, indices in first.members if dim == 0}
    assert made["0.weight"] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    # The outputs of four groups of three are the inputs of two groups of six.
    made = {(name, dim): indices.tolist() for name, dim, indices in both.members}
    assert made["3.weight", 0] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert made["6.weight", 1] == [[0, 3], [1, 4], [2, 5]]


def test_a_depthwise_convolution_goes_with_its_input() -> None:
    first, second = groups_of(net(NETS["depthwise"]))
    assert (first.name, second.name) == ("0", "6")
    assert {"0.weight", "3.weight", "4.running_mean"} <= {name for name, dim, _ in first.members if dim == 0}
    assert ("3.weight", 1) not in owned(first)


def test_branches_side_by_side_are_two_groups() -> None:
    groups = {group.name: group for group in groups_of(net(NETS["joined"]))}
    assert list(groups) == ["left", "right", "both"]
    (read,) = (i for name, dim, i in groups["right"].members if (name, dim) == ("both.weight", 1))
    assert read.flatten().tolist() == [5, 6, 7, 8]


def test_pictures_and_logits_are_never_removed() -> None:
    for architecture in NETS.values():
        parent = net(architecture)
        layers = layers_of(parent.module)
        places = {(name, dim) for group in groups_of(parent) for name, dim, _ in group.members}
        assert (layers[0].name, 1) not in places
        assert (layers[-1].name, 0) not in places


def test_a_skipped_layer_keeps_its_outputs() -> None:
    names = [group.name for group in groups_of(net(NETS["residual"]), ["stages.1.conv2", "stages.2.conv1"])]
    assert names == ["stages.0.conv1", "stages.1.conv1", "stages.2.conv2"]
    with pytest.raises(DecantError, match="No channels can be removed"):
        groups_of(net(NETS["depthwise"]), ["0", "6"])


def test_groups_are_the_same_each_time_and_the_model_is_untouched() -> None:
    parent = net(NETS["grouped"])
    parent.module.requires_grad_(False)
    before = predict(parent.module, images())
    first, second = (find_groups(parent.module) for _ in range(2))
    assert [(g.name, g.count, str(g.members)) for g in first] == [
        (g.name, g.count, str(g.members)) for g in second
    ]
    assert torch.equal(predict(parent.module, images()), before)
    assert not any(parameter.requires_grad for parameter in parent.module.parameters())


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_of_any_kind_ends_and_what_goes_is_proven(mode: str) -> None:
    layers = [nn.Conv2d(channels, 4, 3, padding=1, padding_mode=mode) for channels in (SHAPE[0], 4, 4)]
    top = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    module = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.ReLU(), *top).eval()
    parent = Checkpoint(None, SHAPE, tuple("abc"), module)  # type: ignore[arg-type]
    groups = {group.name: group for group in groups_of(parent)}
    assert "4" in groups  # behind which nothing is padded
    assert mode != "zeros" or set(groups) == {"0", "2", "4"}
    plan = ChannelPlan(parent, list(groups.values()), {name: torch.arange(4) < 2 for name in groups})
    plan.check(images())


def test_channels_of_which_every_other_one_is_read_stay() -> None:
    """Without the even ones alone it would still run, and be another function; without the odd ones fail."""
    groups, unproven = proven(net(EveryOther()))
    assert ([group.name for group in groups], unproven) == (["even"], ["first", "first#2"])
    untried = find_groups(net(EveryOther()).module)
    gone = {each.name: torch.arange(each.count) < 1 for each in untried if each.name == "first"}
    plan = ChannelPlan(net(EveryOther()), untried, gone)
    with pytest.raises(DecantError, match=r"channels of first cannot be called \(.*put it into skip"):
        plan.check(images())


def test_a_coupling_that_is_not_seen_is_left_alone_or_refused() -> None:
    groups, unproven = proven(net(Looped()))
    assert [group.name for group in groups] == [group.name for group in groups_of(net(Looped()))] == ["after"]
    assert unproven == ["conv"]
    with pytest.raises(DecantError, match=r"channels of conv cannot be removed: .*no others"):
        groups_of(net(Looped()), ["after"])


def test_one_channel_is_no_group() -> None:
    parent = net(Resnet(widths=(1, 4), blocks=(0, 1)))
    assert [group.name for group in groups_of(parent)] == ["stages.0.conv1", "stages.0.conv2"]


def test_scores_are_summed_over_all_that_a_channel_owns() -> None:
    parent = net(NETS["flattened"])
    conv, _ = groups_of(parent)
    scores = {n: p.detach().abs() for n, p in parent.module.named_parameters() if p.dim() > 1}
    by_hand = scores["0.weight"].double().sum((1, 2, 3)) + scores["5.weight"].double().reshape(7, 6, 25).sum(
        (0, 2)
    )
    assert torch.allclose(conv.pool(scores), by_hand)
    scores["0.weight"][2] = -torch.inf  # removed already, but read still
    assert torch.isfinite(conv.pool(scores)).all()
    assert conv.pool({"0.weight": scores["0.weight"]})[2] == -torch.inf


# --- Masked is removed


@pytest.mark.parametrize("seed", slow_but([0], range(4)))
@pytest.mark.parametrize("kind", NETS)
def test_zeros_and_no_channels_give_the_same_logits(kind: str, seed: int) -> None:
    plan = drawn(net(NETS[kind], seed), seed)
    plan.check(images())
    whole, found = predict(plan.parent.module, images()), predict(plan.model.module, images())
    assert torch.allclose(found, predict(plan.masked, images()), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, whole, rtol=1e-2, atol=1e-2)
    assert {
        name: tuple(t.shape) for name, t in plan.model.module.state_dict().items() if t.dim()
    } == plan.shapes
    layers = layers_of(plan.parent.module)
    assert macs(layers, plan.shapes) == counts.macs(plan.model.module)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("residual", lambda a, b, c, d, e: 18 * a + 2 * a + 18 * a * (b + c) + 2 * (b + a + c + a)
         + 9 * a * d + 2 * d + 9 * d * e + a * e + 4 * e + 16 * e + 4),
        ("grouped", lambda a, b, c: 72 * a + 12 * a + 36 * a * b + 8 * b + 36 * b * c + 10 * c + 4),
        ("depthwise", lambda a, b: 18 * a + 3 * a + 9 * a + 2 * a + a * b + b + 4 * b + 4),
        ("flattened", lambda a, b: 18 * a + a + 25 * a * b + b + 4 * b + 4),
        ("joined", lambda a, b, c: 18 * (a + b) + a + 2 * (a + b) + 9 * c * (a + b) + c + 4 * c + 4),
    ],
)  # fmt: skip
def test_parameters_by_hand(kind: str, count: object) -> None:
    for seed in range(3):
        plan = drawn(net(NETS[kind]), seed)
        assert callable(count)
        assert counts.parameters(plan.model.module) == count(*left(plan).values())


def test_a_wrong_removal_is_noticed() -> None:
    parent = net(NETS["residual"])
    groups = groups_of(parent)
    stem = groups[0]
    # As if the batch norm had lost another channel than the convolution before it.
    members = tuple((n, d, i.flip(0) if n == "stem.1.weight" else i) for n, d, i in stem.members)
    wrong = ChannelPlan(
        parent,
        groups,
        {"stem.0": torch.arange(6) < 2, **{g.name: torch.zeros(g.count) > 0 for g in groups[1:]}},
    )
    wrong.check(images())
    broken = ChannelPlan(parent, [ChannelGroup("stem.0", 6, members)], {"stem.0": torch.arange(6) < 2})
    object.__setattr__(broken, "masked", wrong.masked)
    with pytest.raises(DecantError, match="does not compute what it does with zeros"):
        broken.check(images())


def test_what_is_removed_already_is_zeroed_alike() -> None:
    parent = net(NETS["depthwise"])
    (group, *_) = groups_of(parent)
    gone = {group.name: torch.arange(8) == 3}
    masked = zeroed(parent.module, [group], gone)
    hidden = masked[:6](images()[:2].float() / 255)  # type: ignore[index]
    assert not hidden[:, 3].any()
    assert kept_of(parent.module, [group], gone)["0.weight"][0].tolist() == [0, 1, 2, 4, 5, 6, 7]


# --- The budget


def share(scores: Mapping[str, Tensor], removed: int) -> dict[str, int]:
    """Return an allocation that is not nested: every layer loses the same share, rounded."""
    sizes = {name: len(score) for name, score in scores.items()}
    total = sum(sizes.values())
    counts = {name: removed * size // total for name, size in sizes.items()}
    rest = sorted(sizes, key=lambda name: counts[name] - removed * sizes[name] / total)
    for name in rest[: removed - sum(counts.values())]:
        counts[name] += 1
    return counts


def together(scores: Mapping[str, Tensor], removed: int) -> dict[str, int]:
    """Return an allocation in which all channels compete."""
    chosen = lowest(torch.cat(list(scores.values())), removed).split([len(s) for s in scores.values()])
    return {name: int(part.sum()) for name, part in zip(scores, chosen, strict=True)}


PARENT = net(Resnet(widths=(6, 8), blocks=(2, 1), pool=2))
GROUPS = groups_of(PARENT)
LAYERS = layers_of(PARENT.module)


def ladder(
    scores: dict[str, Tensor], allocation: object = together, round_to: int = 1, minimum: int = 1
) -> Ladder:
    assert callable(allocation)
    counts = lambda removed: allocation(scores, removed)  # noqa: E731
    return ladder_of(PARENT, GROUPS, scores, counts, round_to=round_to, minimum=minimum)


def drawn_scores(seed: int, ties: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = {g.name: torch.rand(g.count, generator=generator, dtype=torch.double) for g in GROUPS}
    return {name: (score * 3).round() for name, score in scores.items()} if ties else scores


def channels(plan: ChannelPlan) -> float:
    return plan.channels


def test_exactly_as_many_channels_as_asked_go_and_the_least_important() -> None:
    scores = drawn_scores(0)
    total = sum(group.count for group in GROUPS)
    for number in range(1, total - 8):
        plan = shrink(ladder(scores), channels, total - number, "sparsity")
        assert plan.channels == total - number
        gone = torch.cat([plan.gone[group.name] for group in GROUPS])
        floor = all(count > 1 for count in left(plan).values())
        if floor:
            assert torch.equal(gone, lowest(torch.cat(list(scores.values())), number))


def test_of_equal_scores_the_later_goes_first() -> None:
    scores = {group.name: torch.ones(group.count) for group in GROUPS}
    plan = shrink(ladder(scores, share), channels, sum(g.count for g in GROUPS) // 2, "sparsity")
    for gone in plan.gone.values():
        assert gone.tolist() == sorted(gone.tolist())


def test_rounding_goes_up_and_what_the_budget_allows_comes_back() -> None:
    plan = shrink(ladder(drawn_scores(1), share, round_to=4), channels, 20, "sparsity")
    assert plan.channels <= 20
    for group in GROUPS:
        assert left(plan)[group.name] % 4 == 0 or left(plan)[group.name] == group.count
    # One step more of any group would not fit, whichever is next.
    assert plan.channels > 16


@given(
    seed=st.integers(0, 100),
    ties=st.booleans(),
    allocation=st.sampled_from([share, together]),
    round_to=st.sampled_from([1, 2, 3, 4, 8]),
    minimum=st.integers(1, 5),
    budgets=st.tuples(st.floats(0.02, 0.98), st.floats(0.02, 0.98)),
)
def test_no_budget_is_broken_and_more_never_leaves_fewer(
    seed: int, ties: bool, allocation: object, round_to: int, minimum: int, budgets: tuple[float, float]
) -> None:
    scores = drawn_scores(seed, ties)
    rungs = ladder(scores, allocation, round_to, minimum)
    whole, widths = macs(LAYERS, {layer.name: layer.weight for layer in LAYERS}), []

    def cost(plan: ChannelPlan) -> float:
        return macs(LAYERS, plan.shapes)

    for limit in (budget * whole for budget in sorted(budgets)):
        try:
            plan = shrink(rungs, cost, limit, "macs")
        except DecantError as error:
            least = cost(smallest(PARENT, GROUPS, round_to, minimum))
            assert least > limit
            assert f"{least:,.0f}" in str(error)
            widths.append({group.name: 0 for group in GROUPS})
            continue
        assert counts.macs(plan.model.module) == cost(plan) <= limit
        for group in GROUPS:
            kept = left(plan)[group.name]
            assert kept == group.count or (kept % round_to == 0 and kept >= minimum)
            remaining, lost = (
                scores[group.name][sel] for sel in (~plan.gone[group.name], plan.gone[group.name])
            )
            assert not len(lost) or remaining.min() >= lost.max()
        widths.append(left(plan))
    assert all(widths[0][name] <= widths[1][name] for name in widths[0])


def test_an_impossible_budget_names_the_nearest_and_a_met_one_what_there_is() -> None:
    rungs = ladder(drawn_scores(0), minimum=2)
    assert smallest(PARENT, GROUPS, 1, 2).channels == 10
    with pytest.raises(DecantError, match=r"sparsity 9 cannot be met.* is 10, the nearest possible"):
        shrink(rungs, channels, 9, "sparsity")
    assert shrink(rungs, channels, 10, "sparsity").channels == 10
    with pytest.raises(DecantError, match="is met already: the model to prune has 34"):
        shrink(rungs, channels, 34, "sparsity")


def test_the_drift_allowed_is_used_up() -> None:
    rungs = ladder(drawn_scores(2))
    plan = shrink_to_drift(rungs, lambda p: 34 - p.channels, 7)
    assert plan.channels == 27
    with pytest.raises(DecantError, match=r"allows no removal.* by 1, the nearest"):
        shrink_to_drift(rungs, lambda p: 34 - p.channels, 0.5)


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(DecantError, match=r"channels of stem\.0 hold NaN"):
        ladder(drawn_scores(0) | {"stem.0": torch.full((6,), torch.nan)})


# --- Times


def test_layers_tell_all_that_their_time_depends_on() -> None:
    parent = net(NETS["depthwise"])
    first, each, point, last = layers_of(parent.module)
    assert first.describe() == "8x2x3x3 on 12x12 stride 2 pad 0"
    assert each.describe() == "8x1x3x3 on 5x5 stride 1 pad 1 groups 8"
    assert each.of((5, 1, 3, 3)).describe() == "5x1x3x3 on 5x5 stride 1 pad 1 groups 5"
    assert last.describe() == "4x10 on 1 rows"
    assert [layer.macs for layer in (first, each, point, last)] == [144 * 25, 72 * 25, 80 * 25, 40]
    lenet = build(Lenet5(), (1, 28, 28), 10, seed=0)
    assert sum(layer.macs for layer in layers_of(lenet)) == counts.macs(lenet)
    same = nn.Sequential(nn.Conv2d(2, 3, (3, 5), padding="same"))
    give_example_(same, (torch.zeros(1, 2, 8, 8),))
    assert layers_of(same)[0].padding == (1, 2)


@pytest.mark.parametrize(
    "layer",
    [
        LayerShape("conv", (6, 4, 3, 5), (9, 8), 72, (2, 1), (1, 2), (1, 1)),
        LayerShape("each", (6, 1, 3, 3), (9, 9), 81, (1, 1), (1, 1), (2, 2), 6, True),
        LayerShape("linear", (10, 512), (), 1),
        LayerShape("rows", (10, 16), (7,), 7),
    ],
)
@pytest.mark.parametrize("batch", [1, 5])
def test_a_layer_runs_alone(layer: LayerShape, batch: int) -> None:
    rows = batch * (7 if layer.name == "rows" else 1)
    results = layer_call(layer, batch)()
    assert isinstance(results, list)
    assert all(result.shape[:2] == (rows, layer.weight[0]) for result in results)


class Watch:
    """A stopwatch that takes a layer's time from its shape: full speed at multiples of `step` only."""

    def __init__(self, step: int) -> None:
        self.step, self.timed = step, list[str]()

    def __call__(self, calls: Calls, rounds: int) -> dict[str, list[float]]:
        self.timed += calls
        return {name: [self.seconds(name)] * rounds for name in calls}

    def seconds(self, name: str) -> float:
        if not name[0].isdigit():
            return {"reference": 1e-3, "model": 1.0, "other": 2.0}[name]
        outputs, inputs, *kernel = (int(number) for number in name.split(" ")[0].split("x"))
        up = [-(-number // self.step) * self.step for number in (outputs, inputs)]
        return 1e-9 * torch.tensor([*up, *kernel]).prod().item()


@pytest.mark.parametrize("step", [4, 8, 16])
def test_auto_finds_the_step_of_the_kernels(step: int, tmp_path: Path) -> None:
    parent = net(Resnet(widths=(64, 128), blocks=(1, 1)))
    watch = Watch(step)
    table = Table(tmp_path / "some.json", OnnxRuntime(watch))
    assert best_step(table, parent, 1) == step
    timed = len(watch.timed)
    content = (tmp_path / "some.json").read_bytes()
    assert best_step(table, parent, 1) == step
    assert len(watch.timed) == timed
    assert (tmp_path / "some.json").read_bytes() == content
    assert list(json.loads(content)["layers"]) == sorted(json.loads(content)["layers"])
    assert step in CHANNEL_MULTIPLES


def test_a_slower_hour_does_not_count_as_a_slower_layer(tmp_path: Path) -> None:
    first, second = (LayerShape("linear", (10, width), (), 1) for width in (16, 32))
    speed = [1.0]

    def watch(calls: Calls, rounds: int) -> dict[str, list[float]]:
        seconds = {name: Watch(1).seconds(name) * speed[0] for name in calls}
        return {name: [time] * rounds for name, time in seconds.items()}

    table = Table(tmp_path / "some.json", OnnxRuntime(watch))
    alone = table.seconds([first], 1)
    speed[0] = 3.0
    assert table.seconds([second], 1) == pytest.approx(2 * alone)
    assert table.seconds([first, second, first], 1) == pytest.approx(4 * alone)


def test_the_table_is_read_where_it_is_there(tmp_path: Path) -> None:
    layer, watch = LayerShape("linear", (10, 16), (), 1), Watch(1)
    written = read_table(tmp_path, OnnxRuntime(watch))
    seconds = written.seconds([layer], 1)
    again = read_table(tmp_path, OnnxRuntime(watch))
    assert again.seconds([layer], 1) == seconds
    assert watch.timed.count("10x16 on 1 rows batch 1") == 1
    other = LayerShape("linear", (10, 8), (), 1)  # two stages at once: neither loses what the other measured
    written.seconds([other], 1)
    again.seconds([LayerShape("linear", (10, 4), (), 1)], 1)
    assert len(read_table(tmp_path, OnnxRuntime(watch)).layers) == 3
    content = json.loads(written.path.read_text())
    written.path.write_text(json.dumps(content | {"onnxruntime": "0.1"}))
    assert read_table(tmp_path, OnnxRuntime(watch)).layers == {}
    written.path.write_text("{")
    with pytest.raises(DecantError, match="holds no timings"):
        read_table(tmp_path, OnnxRuntime(watch))


class Affine(Table):
    """A table whose networks take a fixed time beside their multiplications."""

    def seconds(self, layers: object, batch: int) -> float:
        assert isinstance(layers, list)
        return float(sum(layer.macs for layer in layers))

    def ratio(self, model: Checkpoint, other: Checkpoint, batch: int) -> float:
        mine, its = (counts.macs(m.module) for m in (model, other))
        self.networks.setdefault(f"{mine}", 0.0)
        return self.of_macs(mine) / self.of_macs(its)

    @staticmethod
    def of_macs(count: int) -> float:
        return 3e4 + count**0.9


@pytest.mark.parametrize("limit", [0.75, 0.9])
def test_a_latency_is_kept_and_nearly_used_up(limit: float, tmp_path: Path) -> None:
    table = Affine(tmp_path / "some.json", OnnxRuntime())
    rungs = ladder(drawn_scores(0))
    plan, ratio = shrink_to_latency(rungs, table, PARENT, limit, 1)
    assert ratio == table.ratio(plan.model, PARENT, 1) <= limit
    assert len(table.networks) <= ATTEMPTS + 2
    assert plan.channels > rungs.plan(0).channels
    costs = [table.of_macs(macs(LAYERS, rungs.plan(rung).shapes)) for rung in range(len(rungs.steps) + 1)]
    whole = costs[-1]
    most = max(rung for rung, cost in enumerate(costs) if cost <= limit * whole)
    assert ratio > limit * 0.95 or plan.channels == rungs.plan(most).channels


def test_an_impossible_latency_names_the_nearest(tmp_path: Path) -> None:
    table = Affine(tmp_path / "some.json", OnnxRuntime())
    with pytest.raises(DecantError, match=r"latency 0\.1 cannot be met.*nearest possible"):
        shrink_to_latency(ladder(drawn_scores(0)), table, PARENT, 0.1, 1)


def test_networks_are_timed_once_and_paired(tmp_path: Path) -> None:
    watch = Watch(1)
    table = Table(tmp_path / "some.json", OnnxRuntime(watch))
    model = smallest(PARENT, GROUPS).model
    assert table.ratio(PARENT, PARENT, 1) == 1.0
    assert table.ratio(model, PARENT, 1) == 0.5
    assert table.ratio(model, PARENT, 1) == 0.5
    assert watch.timed == ["model", "other"]


def test_the_stopwatch_takes_turns() -> None:
    now, called = [0.0], []

    def call(name: str, seconds: float) -> None:
        called.append(name)
        now[0] += seconds

    calls: Calls = {"slow": lambda: call("slow", 2e-3), "fast": lambda: call("fast", 1e-4)}
    seconds = stopwatch(calls, 3, lambda: now[0])
    assert seconds["slow"] == pytest.approx([2e-3] * 3)
    assert seconds["fast"] == pytest.approx([1e-4] * 3)
    assert called.count("fast") > called.count("slow")
