"""A recipe carried out: what comes before rounding, grids, widths, levels, and the rounding or training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from decant.calibration.batch_norms import with_statistics
from decant.calibration.range_search import Choice, held_out, tried_ranges
from decant.checkpoints.activations import Grid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import FREE, Constraints
from decant.compression.invariants import check_invariants
from decant.compression.ledger import Tables, merged
from decant.compression.promises import Promise
from decant.compression.selection import select
from decant.errors import DecantError
from decant.examples import Examples, Splits
from decant.lowering.folding import folded, moved, unfolded
from decant.networks.calls import Kind
from decant.networks.record import record_of
from decant.networks.structure import followers, unobservable
from decant.progress import progress_bar
from decant.quantize.activations import grids_for
from decant.quantize.bias_correction import corrected, uncorrected
from decant.quantize.equalization import equalized, smoothed
from decant.quantize.layer_schemes import Schemes, best_of, constrained, schemes_for, with_ranges
from decant.quantize.mixed_precision.widths import WidthAllocation, allocate
from decant.quantize.params import QuantizeParams
from decant.quantize.promises import leveled, rounded_inputs
from decant.quantize.qat.training import same_answers, train_rounded
from decant.quantize.quantizable import quantizable, rounded_layers, without_layer
from decant.quantize.recurrent import recurrent_grids
from decant.quantize.rounding.layers import round_layers
from decant.quantize.schemes import Scheme
from decant.recipes import counted
from decant.reconstruction.logits import facts_of, matched, rounded_in
from decant.training.fit import epochs_run
from decant.training.losses import loss_of, warning
from decant.training.run import Run
from decant.training.trainee import EpochMetrics

SHOWN = 1000
"""Training images on which two forms of one function are compared before anything is rounded."""

EQUAL = 1e-3
"""How far any logit may move, as a share of the logits' spread, where the function should stay the same."""


@dataclass(frozen=True)
class Quantized:
    """What a recipe made of its parent.

    Attributes:
        before: The parent in the form that the model is compared with: folded and balanced, not rounded.
        model: The child.
        untouched: Why other parameters were left alone.
        tables: What was tried for each weight, and taken.
        facts: What else the lineage should say.
        promises: What the recipe promises of the child.
        curve: Of the training, where there was one.
    """

    before: Checkpoint
    model: Checkpoint
    untouched: Mapping[str, str]
    tables: Tables
    facts: Mapping[str, Any]
    promises: Sequence[Promise]
    curve: Sequence[EpochMetrics] = ()


class Recipe:
    """One block of params.yaml, and what it is carried out on.

    Attributes:
        block: The recipe.
        parent: What it starts from; untouched.
        before: The same function, folded and balanced as the recipe says.
        start: The same with the inputs of layers on their grids: what weights are rounded in.
        schemes: Of each weight that is rounded, by name.
    """

    def __init__(
        self,
        block: QuantizeParams,
        parent: Checkpoint,
        teacher: Checkpoint,
        train: Examples,
        validation: Examples,
    ) -> None:
        self.block = block = counted(block, Splits(train, validation).sizes)
        self.parent, self._teacher = parent, teacher
        self._train, self._validation = train, validation
        self._images = train.first(block.images).images
        self._facts: dict[str, Any] = {}
        if block.statistics:
            self.parent, self._facts = with_statistics(parent, train, block.device)
        self.before = self._prepared()
        every = list(quantizable(self.before.module))
        names, self._untouched = select(self.before.module, block.skip, every)
        self.schemes: Schemes = schemes_for(self.before, names, block)
        self._grids, of_inputs = self._calibrated()
        self.start = self.before.narrowed({}, self._grids)
        self._of_inputs, self._tables = tried_ranges({}, of_inputs), list[Tables]()
        self._allocation = self._allocated() if block.mixed is not None else None

    def rounded(self, seed: int = 0) -> Quantized:
        """Return the model with each weight on one of its levels, without labels; the seed is of draws."""
        schemes, of_weights = self._ranged(self.schemes)
        self._tables.append(tried_ranges(of_weights, {}))
        if self.block.rounding.needs_moments:
            self._tell("rounded to nearest", unobservable(self.start.module))
        model = self._round({name: self._held(name, scheme) for name, scheme in schemes.items()})
        if self.block.correct_bias:
            model = corrected(model, self.before.module, self._images, self.block.device)
            self._tell("uncorrected", uncorrected(model.module))
        if self.block.statistics:
            model, _ = with_statistics(model, self._train, self.block.device)
            return self._with_norms(self._matched(model, seed), self._untouched)
        return self._quantized(self.before, self._matched(model, seed), self._untouched)

    def _matched(self, model: Checkpoint, seed: int) -> Checkpoint:
        """Return the model with its answers near to the parent's, where that is asked."""
        if (logits := self.block.logits) is None:
            return model
        done = matched(
            model,
            self.parent.module,
            self._train.first(logits.images).images,
            logits,
            fixed=rounded_in(self.parent),
            toward=self._unrounded() if logits.codes else {},
            seed=seed,
        )
        self._facts |= facts_of([done])
        return done.model

    def _unrounded(self) -> dict[str, Tensor]:
        """Return the weights as they are before each goes to one of its levels, by name."""
        weights, held = quantizable(self.start.module), self.start.constraints
        return {
            name: scheme.shifted(weights[name][0].detach(), held.get(name, FREE).mask, weights[name][1])
            for name, scheme in self.schemes.items()
        }

    def trained(self, run: Run) -> Quantized:
        """Return the model trained on its levels: batch norms live until the end, and are folded then.

        They stay where the trained network would be another function once they are folded.
        """
        train = self.block.train
        assert train is not None
        schemes, of_weights = self._ranged(self.schemes)
        self._tables.append(tried_ranges(of_weights, {}))
        teacher, classes = self._teacher.module, len(self.parent.classes)
        child, curve = train_rounded(
            self.parent,
            schemes,
            self._grids,
            train,
            loss=loss_of(train.loss, train.training, teacher, self._train, classes, self.block.device),
            examples=self._train,
            validation=self._validation,
            run=run,
            teacher=teacher,
            device=self.block.device,
        )
        if message := warning(train.loss, child.narrowest):
            self._facts["warning"] = message
        self._facts |= epochs_run(train.training, curve)
        return self._with_norms(child, {}, curve)

    def _with_norms(
        self, child: Checkpoint, untouched: Mapping[str, str], curve: Sequence[EpochMetrics] = ()
    ) -> Quantized:
        """Return what was made of a child that has batch norms still: they are folded now, where asked."""
        if not self.block.fold or (whole := self._folded(child)) is None:
            return self._quantized(self.parent, child, untouched, curve)
        # Held here, as folding multiplies ranges and scales by what batch norms have become in the meantime.
        check_invariants(self.parent, child)
        before = folded(self.parent)
        masks = {name: Constraints(mask=held.mask) for name, held in before.constraints.items()}
        left = {
            name: why for name, why in untouched.items() if name in dict(before.module.named_parameters())
        }
        return self._quantized(replace(before, constraints=masks), whole, left, curve)

    def _folded(self, child: Checkpoint) -> Checkpoint | None:
        """Return a model folded; None, and a fact, where it is another function then."""
        whole = folded(child)
        if whole is child or same_answers(child.module, whole.module, self._validation.images):
            return whole
        self._facts["folded"] = "nothing: the network is another function once folded"
        return None

    def _prepared(self) -> Checkpoint:
        """Return the parent folded and balanced; check that it is the same function."""
        before, block = self.parent, self.block
        if block.fold and not block.statistics and (count := len(followers(before.module))):
            before = folded(before)
            self._show(before, "folded", f"{count} batch norms")
        if block.fold and not block.statistics and (left := unfolded(before)):
            self._facts["unfolded"] = listed(left)
        if block.equalize:
            before, pairs, _ = equalized(before, self._images)
            self._show(before, "equalized", f"{len(pairs)} pairs of layers")
        if block.smooth is not None:
            before, pairs, _ = smoothed(before, self._images, block.smooth)
            self._show(before, "smoothed", f"{len(pairs)} pairs of layers")
        return before

    def _show(self, before: Checkpoint, fact: str, message: str) -> None:
        images = self._train.at_most(SHOWN).images
        gap, spread = moved(self.parent, before, images)
        if not math.isfinite(spread):
            raise DecantError(
                f"Logits of {self.block.from_} are NaN or infinite on training images; train it anew"
            )
        if not gap <= EQUAL * spread:
            raise DecantError(
                f"{self.block.from_} is another function once {fact}: logits move by up to {gap:.3g}, their "
                f"spread is {spread:.3g}; leave it out of the recipe"
            )
        self._facts[fact] = f"{message}, logits move by at most {gap:.1g}"

    def _tell(self, fact: str, reasons: Mapping[str, str]) -> None:
        """Have the lineage say of which quantized weights a part of the recipe did not work, and why."""
        if text := listed({name: why for name, why in reasons.items() if name in self.schemes}):
            self._facts[fact] = text

    def _calibrated(self) -> tuple[Mapping[str, Grid], Mapping[str, Choice]]:
        """Return the grids of inputs by layer: of as many bits as its weights have, at the wide ends."""
        activations, ends = self.block.activations, self.block.ends
        if activations is None:
            return {}, {}
        wide = max(activations.bits, ends.bits) if ends else activations.bits
        layers = rounded_layers(self.before.module)
        widths = {
            layers[name]: activations.bits if scheme is self.block.scheme else wide
            for name, scheme in self.schemes.items()
            if name in layers
        }
        recurrent, within = recurrent_grids(self.before, self.schemes, activations)
        alone = {n: why for n, why in without_layer(self.before.module).items() if n not in within}
        self._tell("float inputs", alone)
        if not widths and not recurrent:
            raise DecantError(
                f"activations: inputs of no layer that is quantized can be rounded "
                f"({listed(alone) or 'tables have none'}); leave activations out"
            )
        grids, chosen = grids_for(
            self.before,
            widths,
            activations,
            self.block.images,
            self._train,
            self._convolutions(layers),
            self.block.device,
        )
        return {**grids, **recurrent}, chosen

    def _convolutions(self, layers: Mapping[str, str]) -> list[str]:
        """Return the convolutions that a runtime has integer kernels for, if their results are rounded.

        While a network is trained, or has its statistics estimated, its batch norms stand where they will
        be folded, so that nothing is rounded there.
        """
        if self.block.train is not None or self.block.statistics:
            return []
        weights = record_of(self.before.module).weights
        return [
            layers[name]
            for name, scheme in self.schemes.items()
            if name in layers and scheme.whole and weights[name].kind is Kind.CONVOLUTION
        ]

    def _allocated(self) -> WidthAllocation:
        """Choose the widths of integers under the recipe's budget, and give them to the schemes."""
        mixed = self.block.mixed
        assert mixed is not None
        options: dict[str, dict[int, Constraints]] = {}
        for name, scheme in progress_bar(self.schemes.items(), "ranges", "layers"):
            options[name] = {}
            for bits in mixed.bits if scheme is self.block.scheme else (_bits(scheme),):
                ranged, _ = self._ranged({name: _with_bits(scheme, bits)})
                options[name][bits] = self._held(name, ranged[name])
        allocation = allocate(
            self.start,
            options,
            self._round,
            mixed=mixed,
            teacher=self._teacher,
            validation=self._validation,
            learned=self.block.train is not None,
        )
        self.schemes = {
            name: _with_bits(scheme, allocation.widths[name]) for name, scheme in self.schemes.items()
        }
        self._tables.append(allocation.tables)
        return allocation

    def _ranged(self, schemes: Schemes) -> tuple[Schemes, dict[str, Choice]]:
        """Return the schemes with ranges that are known."""
        if (best := best_of(schemes)) is None:
            return schemes, {}
        used = self.block.images if self.block.activations is not None else 0
        return with_ranges(self.start, schemes, held_out(self._train, used, best))

    def _held(self, name: str, scheme: Scheme) -> Constraints:
        try:
            return constrained(self.start, name, scheme)
        except ValueError as error:
            raise DecantError(f"{name} of {self.block.from_}: {error}") from None

    def _round(self, held: Mapping[str, Constraints]) -> Checkpoint:
        """Return the start with these weights on their levels, as the recipe rounds."""
        start, weights = self.start.narrowed({}), quantizable(self.start.module)
        with torch.no_grad():
            for name, each in held.items():
                weight, axis = weights[name]
                shifted = self.schemes[name].shifted(weight, each.mask, axis)
                start.module.get_parameter(name).copy_(shifted)
        block, reference = self.block, self.before.module
        return round_layers(start, held, block.rounding, self._images, reference, block.device)

    def _quantized(
        self,
        before: Checkpoint,
        model: Checkpoint,
        untouched: Mapping[str, str],
        curve: Sequence[EpochMetrics] = (),
    ) -> Quantized:
        facts = self._facts
        if self._allocation is not None:
            facts = facts | self._allocation.check(model)
        tables, promises = merged([*self._tables, self._of_inputs]), self._promises()
        return Quantized(before, model, untouched, tables, facts, promises, curve)

    def _promises(self) -> list[Promise]:
        """Return what the recipe promises: levels of weights, grids of inputs, and the budget of widths."""
        budget = [] if self._allocation is None else [self._allocation.exceeded]
        return [leveled(self.schemes), rounded_inputs(self._grids), *budget]


def listed(reasons: Mapping[str, str]) -> str:
    """Return names with what is said of them, those of one reason together."""
    return "; ".join(
        f"{', '.join(name for name, why in reasons.items() if why == reason)}: {reason}"
        for reason in dict.fromkeys(reasons.values())
    )


def _bits(scheme: Any) -> int:
    """Return the width of an integer scheme."""
    return scheme.bits


def _with_bits(scheme: Any, bits: int) -> Any:
    """Return an integer scheme of another width."""
    return scheme.model_copy(update={"bits": bits})
