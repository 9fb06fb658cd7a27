"""Every mistake in params.yaml is told in words with its path in the file, all of them at once."""

import copy
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from dvc.utils.serialize import parse_yaml
from hypothesis import given
from hypothesis import strategies as st

from decant.errors import DecantError
from decant.finetune.params import FinetuneParams
from decant.quantize.params import QuantizeParams
from decant.schema import Section, did_you_mean, mistakes
from decant.seeds import derive_seed
from tasks.pipeline import yaml_reader
from tasks.pipeline.params import read_section, read_yaml, sections, validate
from tasks.pipeline.stage import run
from tasks.validate import __main__ as stage
from tasks.validate.recipes import Recipes, Threads, check
from tests.imports import OPERATIONS, ROOT

TRAINING = {"epochs": 2, "optimizer": {"kind": "sgd", "learning_rate": 0.05}}
VALID: dict[str, Any] = {
    "seed": 1,
    "threads": dict.fromkeys((*OPERATIONS, "teacher", "evaluate"), 2),
    "data": {"source": "digits", "validation": 100},
    "teacher": {"architecture": {"kind": "mlp", "hidden": [8]}, "training": TRAINING},
    "models": {
        "cut": {"op": "clip", "from": "teacher", "cut": {"kind": "percentile", "keep": 0.99}},
        "prune-80": {
            "op": "prune",
            "from": "cut",
            "criterion": {"kind": "magnitude"},
            "budget": {"sparsity": 0.8},
        },
        "int8": {"op": "quantize", "from": "prune-80", "scheme": {"kind": "integer", "bits": 8}},
        "student": {
            "op": "distill",
            "from": "teacher",
            "student": {"kind": "resnet", "widths": [4, 8], "blocks": [1, 1]},
            "loss": {"kind": "temperature", "temperature": 2.0},
            "training": copy.deepcopy(TRAINING),
        },
    },
    "benchmark": {},
}
ABSENT = object()


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the valid content with another value at `a.b.c`, or without it."""
    content = copy.deepcopy(VALID)
    *parents, last = path.split("/")
    inside = content
    for key in parents:
        inside = inside[key]
    if value is ABSENT:
        del inside[last]
    else:
        inside[last] = value
    return content


def complaints(content: dict[str, Any]) -> list[str]:
    with pytest.raises(DecantError) as told:
        check(content)
    first, *lines = str(told.value).splitlines()
    assert first == "params.yaml is not valid:"
    assert all(line.startswith("  ") for line in lines)
    return [line.removeprefix("  ") for line in lines]


def test_the_committed_params_are_valid() -> None:
    recipes = check(read_yaml(ROOT / "params.yaml"))
    assert len(recipes.models) >= 12
    assert {block.op for block in recipes.models.values()} == {
        "clip",
        "prune",
        "quantize",
        "distill",
        "finetune",
    }


def test_all_of_params_yaml_is_checked_without_torch_which_comes_at_its_first_use() -> None:
    code = (
        "import sys, tasks.validate.__main__\n"
        "from tasks.pipeline.params import read_yaml\n"
        "from tasks.validate.recipes import check\n"
        "check(read_yaml())\n"
        "slow = {'torch', 'torch_pruning', 'numpy', 'scipy', 'sklearn', 'onnx', 'pyarrow', 'tqdm'}\n"
        "print(sorted(slow & set(sys.modules)))\n"
        "from decant.lazy import torch\n"
        "print(torch.Tensor is sys.modules['torch'].Tensor)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\nTrue\n"


def test_this_file_s_own_example_is_valid() -> None:
    assert list(check(VALID).models) == ["cut", "prune-80", "int8", "student"]


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        # Unknown words, and the nearest known ones.
        ("seeds", 3, "top level: unknown key 'seeds'; did you mean 'seed'?"),
        ("data/sorce", "x", "data: unknown key 'sorce'; did you mean 'source'?"),
        ("data/source", "digit", "data.source: unknown source 'digit'; did you mean 'digits'?"),
        (
            "models/prune-80/budget/sparsty",
            0.5,
            "models.prune-80.budget: unknown key 'sparsty'; did you mean 'sparsity'?",
        ),
        ("models/prune-80/from_", "cut", "models.prune-80: unknown key 'from_'; did you mean 'from'?"),
        ("models/int8/scheme/bit", 8, "models.int8.scheme: unknown key 'bit'; did you mean 'bits'?"),
        (
            "models/cut/cut/zzz",
            1,
            "models.cut.cut: unknown key 'zzz'; known are keep, kind, per_channel",
        ),
        (
            "models/prune-80/criterion",
            {"kind": "magnitud"},
            "models.prune-80.criterion: unknown kind 'magnitud'; did you mean 'magnitude'?",
        ),
        (
            "models/prune-80/criterion",
            {"kind": "xyz"},
            "models.prune-80.criterion: unknown kind 'xyz'; known are drift, fisher, magnitude, movement, "
            "obs, random, reconstruction, snip, taylor, wanda",
        ),
        ("models/prune-80/op", "prunes", "models.prune-80: unknown op 'prunes'; did you mean 'prune'?"),
        (
            "models/student/training/optimizer",
            {"kind": "adam"},
            "models.student.training.optimizer: unknown kind 'adam'; did you mean 'adamw'?",
        ),
        (
            "teacher/architecture",
            {"kind": "lenet5"},
            "teacher.architecture: unknown kind 'lenet5'; did you mean 'lenet-5'?",
        ),
        # What is not there.
        ("teacher", ABSENT, "teacher: is missing"),
        ("models", ABSENT, "models: is missing"),
        ("benchmark", ABSENT, "benchmark: is missing"),
        ("models/cut/from", ABSENT, "models.cut.from: is missing"),
        ("models/cut/op", ABSENT, "models.cut: needs the key 'op'"),
        ("models/prune-80/criterion", {}, "models.prune-80.criterion: needs the key 'kind'"),
        ("models/student/loss", ABSENT, "models.student.loss: is missing"),
        # Wrong types.
        ("models", [1], "models: must be a mapping of keys to values, got [1]"),
        ("models/cut", None, "models.cut: must be a mapping of keys to values, got None"),
        (
            "models/prune-80/criterion",
            "magnitude",
            "models.prune-80.criterion: must be a mapping of keys to values, got 'magnitude'",
        ),
        ("models/cut/skip", "head", "models.cut.skip: must be a list, got 'head'"),
        ("models/cut/skip", ["a", 1], "models.cut.skip.1: must be a word, got 1"),
        ("models/cut/from", 3, "models.cut.from: must be a word, got 3"),
        (
            "models/prune-80/budget/sparsity",
            "80 %",
            "models.prune-80.budget.sparsity: must be a number, got '80 %'",
        ),
        ("models/int8/scheme/bits", 4.5, "models.int8.scheme.bits: must be a whole number, got 4.5"),
        (
            "models/int8/scheme/per_channel",
            "perhaps",
            "models.int8.scheme.per_channel: must be true or false, got 'perhaps'",
        ),
        (
            "models/student/student/widths",
            [4, "x"],
            "models.student.student.widths.1: must be a whole number, got 'x'",
        ),
        ("seed", True, "seed: must not be true or false"),
        (
            "models/prune-80/budget/sparsity",
            True,
            "models.prune-80.budget.sparsity: must not be true or false",
        ),
        # Values out of range.
        ("seed", -1, "seed: must be greater than or equal to 0, got -1"),
        ("threads/prune", 0, "threads.prune: must be greater than 0, got 0"),
        (
            "models/prune-80/budget/sparsity",
            1.0,
            "models.prune-80.budget.sparsity: must be less than 1, got 1.0",
        ),
        ("models/int8/scheme/bits", 9, "models.int8.scheme.bits: must be less than or equal to 8, got 9"),
        (
            "models/prune-80/budget/sparsity",
            math.nan,
            "models.prune-80.budget.sparsity: must be a finite number, got nan",
        ),
        (
            "models/prune-80/budget/sparsity",
            math.inf,
            "models.prune-80.budget.sparsity: must be a finite number, got inf",
        ),
        (
            "models/prune-80/allocation",
            {"kind": "globl"},
            "models.prune-80.allocation: unknown kind 'globl'; did you mean 'global'?",
        ),
        ("models", {}, "models: needs 1 or more entries, got {}"),
        (
            "models/student/student/blocks",
            [1],
            "models.student.student: widths has 2 entries and blocks 1",
        ),
        (
            "models/cut/cut",
            {"kind": "bounds", "minimum": 1, "maximum": -1},
            "models.cut.cut: minimum 1.0 is not below maximum -1.0",
        ),
        # Between blocks.
        (
            "models/cut/from",
            "teacher2",
            "models.cut.from: there is no model 'teacher2'; did you mean 'teacher'?",
        ),
    ],
)
def test_one_mistake_is_one_line_with_its_path(path: str, value: Any, line: str) -> None:
    assert complaints(changed(path, value)) == [line]


def test_a_section_keeps_its_other_mistakes_beside_an_unknown_key() -> None:
    content = changed("models/prune-80/skp", 0.5)
    content["models"]["prune-80"] |= {"budget": {"sparsity": 7}, "allocation": {"kind": "none"}}
    assert complaints(content) == [
        "models.prune-80.allocation: unknown kind 'none'; known are adaptive, erk, global, lamp, layer",
        "models.prune-80.budget.sparsity: must be less than 1, got 7",
        "models.prune-80: unknown key 'skp'; did you mean 'skip'?",
    ]


def test_every_operation_has_a_count_of_threads() -> None:
    assert set(Threads.model_fields) == {"teacher", "evaluate", *OPERATIONS}
    content = copy.deepcopy(VALID)
    del content["threads"]["prune"]
    assert complaints(content) == ["threads.prune: is missing"]


def test_mistakes_of_every_kind_are_told_at_once() -> None:
    content = changed("seeds", 1)
    content["threads"]["prune"] = 0
    content["models"]["cut"]["from"] = "int8"
    content["models"]["int8"] |= {"from": "prune-80", "scheme": {"kind": "integre"}}
    content["models"]["student"]["from"] = "nobody"
    assert sorted(complaints(content)) == [
        "models.cut.from: a cycle, cut → int8 → prune-80 → cut",
        "models.int8.scheme: unknown kind 'integre'; did you mean 'integer'?",
        "models.student.from: there is no model 'nobody'; known are cut, int8, prune-80, teacher",
        "threads.prune: must be greater than 0, got 0",
        "top level: unknown key 'seeds'; did you mean 'seed'?",
    ]


def with_parents(parents: dict[str, str]) -> dict[str, Any]:
    block = {"op": "clip", "cut": {"kind": "percentile"}}
    return VALID | {"models": {name: block | {"from": parent} for name, parent in parents.items()}}


@pytest.mark.parametrize(
    ("parents", "cycles"),
    [
        ({"a": "a"}, ["a → a"]),
        ({"b": "a", "a": "b"}, ["a → b → a"]),
        ({"c": "a", "a": "b", "b": "c"}, ["a → b → c → a"]),
        ({"a": "b", "b": "a", "leads-in": "a", "x": "x", "sound": "teacher"}, ["a → b → a", "x → x"]),
    ],
)
def test_each_cycle_is_told_once(parents: dict[str, str], cycles: list[str]) -> None:
    told = [f"models.{cycle[0]}.from: a cycle, {cycle}" for cycle in cycles]
    assert complaints(with_parents(parents)) == told


@given(st.lists(st.integers(0, 9), min_size=10, max_size=10))
def test_a_lineage_is_sound_exactly_when_every_walk_ends_at_the_teacher(picks: list[int]) -> None:
    parents = {f"m{i}": f"m{pick}" if pick else "teacher" for i, pick in enumerate(picks)}

    def ends(name: str) -> bool:
        for _ in parents:
            name = parents.get(name, "teacher")
        return name == "teacher"

    if all(ends(name) for name in parents):
        check(with_parents(parents))
    else:
        assert all("a cycle" in line for line in complaints(with_parents(parents)))


@pytest.mark.parametrize("name", ["a.b", ".a", "A", "-a", "a b", "a/b", "..", "", "ä", "a\n"])
def test_names_that_paths_and_dotted_keys_cannot_bear(name: str) -> None:
    with pytest.raises(DecantError) as told:
        check(with_parents({name: "teacher"}))
    place = name if name.isprintable() else repr(name)
    assert str(told.value).endswith(
        f"models.{place}: a name has lower-case letters, digits, - and _ "
        f"and begins with a letter, got {name!r}"
    )


def test_a_model_may_not_be_called_teacher() -> None:
    (line,) = complaints(with_parents({"teacher": "teacher", "a": "teacher"}))
    assert line == "models.teacher: the name belongs to the section teacher; choose another"


def test_no_model_is_proposed_as_its_own_parent() -> None:
    (line,) = complaints(with_parents({"prune-80-ft": "prune-80-f", "other": "teacher"}))
    assert line == ("models.prune-80-ft.from: there is no model 'prune-80-f'; known are other, teacher")


@pytest.mark.parametrize(
    "place",
    [
        ("models/cut/cut", "keep"),
        ("models/prune-80/criterion", "kind"),
        ("models/int8/scheme", "bits"),
        ("models/student/loss", "kind"),
        ("models/student/training/optimizer", "learning_rate"),
        ("teacher/architecture", "hidden"),
    ],
)
def test_no_tag_of_a_union_is_part_of_a_path(place: tuple[str, str]) -> None:
    path, key = place
    (line,) = complaints(changed(f"{path}/{key}", {"no": "such value"}))
    assert line.startswith((f"{path.replace('/', '.')}.{key}: ", f"{path.replace('/', '.')}: unknown kind"))


def test_a_schedule_in_the_place_of_a_number_has_paths_without_its_tag() -> None:
    lines = complaints(changed("models/student/loss/hard", {"start": 0.5, "ends": 1}))
    assert [line.partition(": ")[0] for line in lines] == [
        "models.student.loss.hard.end",
        "models.student.loss.hard",
    ]


def test_a_long_value_is_cut_short() -> None:
    (line,) = complaints(changed("models/cut/from", list(range(1000))))
    assert len(line) < 110


# --- reading the file


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "params.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: 1\nb: {c: 1}\na: 2\n", "line 3, column 1: the key 'a' stands twice"),
        (
            "models:\n  x: {op: clip}\n  x: {op: prune}\n",
            "line 3, column 3: the key 'x' stands twice",
        ),
        ("a: {b: 1, b: 1}", "the key 'b' stands twice"),
        (
            "models:\n  80: {op: clip}\n",
            "line 2, column 3: this key is of type int to YAML; put it in quotes",
        ),
        ("models: {1e3: {op: clip}}\n", "this key is of type float to YAML; put it in quotes"),
        ("models: {true: {op: clip}}\n", "this key is of type bool to YAML; put it in quotes"),
        ("? [a, b]\n: 1\n", "line 1, column 3: a key must be a word"),
        ("a: [1, 2\n", "line 2, column 1: did not find expected|line 1, column 9: expected"),
        ("a: 1\n\tb: 2\n", "line 2, column 1: found .*tab"),
        (
            "a: !!python/object/apply:os.system [ls]\n",
            "line 1, column 4: .* is a tag; write the value without",
        ),
        ("a: !!str 5\n", "line 1, column 4: tag:yaml.org,2002:str is a tag"),
        ("a: 2026-02-30\n", "line 1, column 4: '2026-02-30' is of type timestamp to YAML; put it in quotes"),
        ("a: 2001-01-01\n", "is of type timestamp to YAML"),
        ("a: [1, +_]\n", "line 1, column 8: '.*' is no number; put it in quotes if it is a word"),
        ("a: ._e+1\n", "is no number"),
        (f"a: {'9' * 5000}\n", "line 1, column 4: a value of 5,000 characters; 40 is the most"),
        (f"a: 0x{'f' * 60}\n", "a value of 62 characters; 40 is the most"),
        (f"a: {'x' * 20_000}\n", "a value of 20,000 characters; 10,000 is the most"),
        (f"{'x' * 300}: 1\n", "a key of 300 characters; 250 is the most"),
        (f"a: {'[' * 5000}\n", "line 1, column 67: values lie more than 64 deep in one another"),
        (f"a: {'{b: ' * 900}", "values lie more than 64 deep in one another"),
        (f"a: [{'x, ' * 100_000}]", "the file stands for more than 100,000 values"),
        ("a" * (2**20 + 1), "has more than the 1,048,576 characters that are read"),
        (
            "a: *b\n",
            "line 1, column 4: `&`, `\\*` and `<<` share values, and `dvc exp run -S` would then set",
        ),
        ("a: &b {c: 1}\n", "line 1, column 4: `&`, `\\*` and `<<` share values"),
        ("a: &b 1\n", "line 1, column 4: `&`, `\\*` and `<<` share values"),
        ("a: {<<: {b: 1}}\n", "line 1, column 5: `&`, `\\*` and `<<` share values"),
        ("%YAML 1.1\n---\na: on\n", "line 1, column 1: a line that begins with % changes how YAML is read"),
        ("a: 1\n--- 2\n", "line 2, column 1: but found another document"),
        ("a: 1\nbé: \0\n", "line 2, column 5: control characters are not allowed; remove the character"),
        ("", "must hold named sections, found NoneType"),
        ("- a\n", "must hold named sections, found list"),
        (b"a: \xff\n", r"Cannot read .*it must be a text file in UTF-8"),
    ],
)
def test_what_is_no_params_file(content: str | bytes, words: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(DecantError, match=words) as told:
        read_yaml(path)
    assert str(path) in str(told.value)
    assert "unicode string" not in str(told.value)


def test_a_missing_file_says_where_to_stand(tmp_path: Path) -> None:
    with pytest.raises(DecantError, match=r"No .*params\.yaml here; run from the root of the repository"):
        read_yaml(tmp_path / "params.yaml")


def test_files_that_dvc_writes_may_share_values() -> None:
    content = "a: {b: {c: &x {<<: {k: 2, l: 3}, k: 1}}}\ny: {<<: *x, l: 4}\nz: [*x, *x]\n"
    assert sections(content, "dvc.lock") == {
        "a": {"b": {"c": {"k": 1, "l": 3}}},
        "y": {"k": 1, "l": 4},
        "z": [{"k": 1, "l": 3}] * 2,
    }


def nested(line: str, times: int) -> str:
    """Return ever larger values: each line may use the one before by `*`."""
    return "\n".join(
        ["b0: &b0 [x, x]", *(f"b{i}: &b{i} " + line.replace("*", f"*b{i - 1}") for i in range(1, times))]
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            nested("[*, *, *, *, *, *, *, *, *]", 30),
            "line 7, .* the file stands for more than 1,000,000 values",
        ),
        (nested("[*]", 3000), "line 63, .* values lie more than 64 deep in one another"),
        (
            nested("{<<: *}", 3000).replace("[x, x]", "{}", 1),
            "more than 64 deep in one another",
        ),
        ("a: &a [*a]\n", "line 1, column 8: no value before this one is named &a"),
        ("a: &a {<<: *a}\n", "no value before this one is named &a"),
        ("a: &a b\nc: {*a : 1}\n", "line 2, column 5: an alias is no key"),
        ("a: {<<: [1]}\n", "line 1, column 10: expected a mapping for merging"),
    ],
    ids=["values", "depth", "merges", "itself", "merged-with-itself", "key", "merged-number"],
)
def test_what_is_small_and_stands_for_much_is_refused_at_once(content: str, words: str) -> None:
    began = time.process_time()
    with pytest.raises(DecantError, match=words):
        sections(content, "dvc.lock")
    assert time.process_time() - began < 1


WORDS = [
    "2e-3",
    "1e3",
    "0e0",
    "1e400",
    "0o17",
    "017",
    "010",
    "08",
    "1_000",
    "0x1F",
    "+1",
    "1.",
    "-.5",
    "on",
    "off",
]
WORDS += [
    "yes",
    "no",
    "y",
    "1:30",
    "12:30:45",
    "~",
    "",
    "null",
    "True",
    ".inf",
    "'5'",
    '"\\x41"',
    "|\n  a\n",
    "é",
]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_means_what_it_means_to_dvc(word: str) -> None:
    text = f"a: {word}\nb: [x, 1]\n"
    assert repr(sections(text, "params.yaml", shared=False)) == repr(dict(parse_yaml(text, "params.yaml")))


@given(st.text(alphabet="ab01: -[]{}',\"#&*!|>%@?<\n\t\\e._~", max_size=60))
def test_whatever_is_read_is_read_as_dvc_does_and_all_else_is_one_sentence(text: str) -> None:
    try:
        ours = yaml_reader.parse(text, "params.yaml")
    except DecantError as error:
        assert len(str(error)) < 1200
        assert str(error).startswith("params.yaml")
    else:
        assert repr(ours or {}) == repr(parse_yaml(text, "params.yaml"))


def test_one_section_is_read_and_named_by_its_path(tmp_path: Path) -> None:
    path = written(tmp_path, yaml.safe_dump(VALID))
    assert read_section("models.prune-80.budget.sparsity", float, path) == 0.8
    assert read_section("threads.prune", int, path) == 2
    with pytest.raises(DecantError, match=r"params\.yaml has no 'seeed'; did you mean 'seed'\?"):
        read_section("seeed", int, path)
    with pytest.raises(DecantError, match=r"^models has no 'prune-8'; did you mean 'prune-80'\?"):
        read_section("models.prune-8.op", str, path)
    with pytest.raises(DecantError, match=r"^seed has no 'deeper'$"):
        read_section("seed.deeper", int, path)
    with pytest.raises(DecantError, match=r"models\.prune-80\.op: must be a whole number, got 'prune'"):
        read_section("models.prune-80.op", int, path)


class Inner(Section):
    kind: Literal["inner"] = "inner"
    wanted: bool = False
    count: int | None = None


class Outer(Section):
    inner: tuple[Inner, ...] = ()
    wanted: bool | None = None


def test_mistakes_deep_inside_are_told_once_and_true_stays_where_it_belongs() -> None:
    assert mistakes({"inner": [{"wanted": True}, {"count": None}], "wanted": True}, Outer) == []
    assert mistakes({"inner": [{}, {"count": False, "cuont": 1}]}, Outer, "here") == [
        "here.inner.1.count: must not be true or false",
        "here.inner.1: unknown key 'cuont'; did you mean 'count'?",
    ]


def test_sections_are_immutable_and_survive_the_round_trip() -> None:
    recipes = check(VALID)
    with pytest.raises(ValueError, match="frozen"):
        recipes.seed = 2
    assert validate(recipes.model_dump(by_alias=True), Recipes) == recipes


def test_near_words_are_proposed_far_ones_listed_and_none_made_up() -> None:
    assert did_you_mean("sparsty", ["scope", "sparsity"]) == "; did you mean 'sparsity'?"
    assert did_you_mean("zzz", ["b", "a"]) == "; known are a, b"
    assert did_you_mean("zzz", []) == ""


# --- seeds


@given(st.integers(0, 2**64), st.text())
def test_a_seed_fits_every_generator_and_is_a_function_of_its_arguments(seed: int, name: str) -> None:
    derived = derive_seed(seed, name)
    assert 0 <= derived < 2**63
    assert derived == derive_seed(seed, name)
    assert derived != derive_seed(seed + 1, name)
    assert derived != derive_seed(seed, name + "x")


def test_seeds_never_change_from_release_to_release() -> None:
    assert derive_seed(1, "teacher") == 5064975169101656172


def test_models_with_near_names_get_far_seeds() -> None:
    seeds = {derive_seed(seed, f"model-{index}") for seed in range(30) for index in range(30)}
    assert len(seeds) == 900
    # 16 cells of the upper bits: chance puts 56 of 900 in each, give or take 7.
    cells = [sum(derived >> 59 == cell for derived in seeds) for cell in range(16)]
    assert min(cells) > 25
    assert max(cells) < 95


# --- the stage


def run_validate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tasks.validate", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_stage_leaves_its_output_alone_when_something_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, yaml.safe_dump(VALID))
    stage.main()
    before = stage.VALID.read_bytes()
    stage.main()
    written(tmp_path, yaml.safe_dump(changed("models/cut/from", "tacher")))
    with pytest.raises(DecantError, match="there is no model 'tacher'"):
        stage.main()
    assert stage.VALID.read_bytes() == before
    assert sorted(path.name for path in stage.VALID.parent.iterdir()) == ["files", "params.valid"]


def test_a_bad_file_on_a_fresh_machine_leaves_nothing_but_words(tmp_path: Path) -> None:
    written(tmp_path, yaml.safe_dump(changed("models/cut/from", "tacher")))
    done = run_validate(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: params.yaml is not valid:\n"
        "  models.cut.from: there is no model 'tacher'; did you mean 'teacher'?\n"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("block", "line"),
    [
        # A key of the name of its block's kind, beside a mistake that is another's.
        (
            {"kind": "temperature", "temperature": 2, "hard": 2},
            "loss.hard: must be less than or equal to 1, got 2",
        ),
        ({"kind": "temperature", "temperature": 0}, "loss.temperature: must be greater than 0, got 0"),
        (
            {"kind": "temperature", "temperature": 2, "hrad": 0},
            "loss: unknown key 'hrad'; did you mean 'hard'?",
        ),
        ({"kind": "temperature", "temperature": True}, "loss.temperature: must not be true or false"),
    ],
    ids=str,
)
def test_the_place_is_that_of_the_mistake_where_a_key_has_its_kind_s_name(block: Any, line: str) -> None:
    content = {"op": "finetune", "from": "teacher", "training": {"epochs": 1}, "loss": block}
    assert mistakes(content, FinetuneParams) == [line]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"first_and_last": "sam"}, "first_and_last: must be 'same', got 'sam'"),
        ({"first_and_last": {"kind": "binary"}}, "first_and_last.kind: must be 'integer', got 'binary'"),
        (
            {"first_and_last": {"kind": "integer", "bits": 9}},
            "first_and_last.bits: must be less than or equal to 8, got 9",
        ),
        (
            {"mixed": {"budget": {"bytes": 0.2}, "bits": [4, 9]}},
            "mixed.bits.1: must be less than or equal to 8, got 9",
        ),
        (
            {"train": {"kind": "ste", "training": {"epochs": 1}}, "equalize": True, "correct_bias": True},
            "top level: equalize, correct_bias are undone by training: leave out equalize, correct_bias, "
            "or train",
        ),
    ],
    ids=str,
)
def test_one_mistake_is_one_line(more: Any, line: str) -> None:
    content = {"op": "quantize", "from": "teacher", "scheme": {"kind": "integer", "bits": 4}}
    assert mistakes(content | more, QuantizeParams) == [line]


@pytest.mark.parametrize("word", ["../../etc", "/etc/passwd", "", "Int8"])
def test_what_no_model_can_be_called_becomes_no_path(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def main(model: str) -> None:
        raise AssertionError(model)

    monkeypatch.setattr(sys, "argv", ["stage", word])
    with pytest.raises(SystemExit, match=f"error: model: a name has lower-case letters.*got {word!r}"):
        run(main)


def test_too_many_words_get_the_usage(tmp_path: Path) -> None:
    done = run_validate(tmp_path, "params.yaml")
    assert (done.returncode, done.stderr) == (1, "usage: python -m tasks.validate\n")
    done = run_validate(tmp_path, "--help")
    assert (done.returncode, done.stdout, done.stderr) == (0, "usage: python -m tasks.validate\n", "")


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (
            "models/prune-80/skip",
            ["haed"],
            "models.prune-80.skip: skip names no layer 'haed'; did you mean 'head'?",
        ),
        (
            "models/again",
            {"op": "quantize", "from": "int8", "scheme": {"kind": "binary"}},
            "models.again.from: int8 is quantized already; start from its ancestor, or name the layers in "
            "skip that have levels",
        ),
        (
            "models/again",
            {"op": "finetune", "from": "int8", "training": {"epochs": 0}, "statistics": True},
            "models.again.statistics: there are no batch norms to estimate them of: an ancestor folded them",
        ),
        (
            "models/student/student",
            {"kind": "lenet-5"},
            "models.student.student: lenet-5 needs images of at least 16 x 16, these are 8 x 8",
        ),
    ],
)
def test_what_would_fail_only_after_the_training_is_told_before(path: str, value: Any, told: str) -> None:
    content = changed(path, value)
    content["data"]["source"] = "digits"
    content["teacher"]["architecture"] = {"kind": "resnet", "widths": [4, 8], "blocks": [1, 1]}
    with pytest.raises(DecantError) as failure:
        check(content)
    assert str(failure.value).splitlines()[1:] == [f"  {told}"]


def test_the_rest_of_a_quantized_model_may_be_quantized() -> None:
    content = changed("models/int8/skip", ["head"])
    rest = {"op": "quantize", "from": "int8", "scheme": {"kind": "binary"}, "skip": ["stem.0"]}
    content["models"]["rest"] = rest
    content["teacher"]["architecture"] = {"kind": "resnet", "widths": [4], "blocks": [0]}
    assert check(content).models["rest"].from_ == "int8"


def test_a_student_of_a_quantized_teacher_may_be_quantized() -> None:
    content = changed("models/student/from", "int8")
    content["models"]["small"] = {"op": "quantize", "from": "student", "scheme": {"kind": "binary"}}
    assert check(content).models["small"].from_ == "student"


def test_statistics_need_batch_norms() -> None:
    content = changed("models/cut/statistics", True)
    with pytest.raises(DecantError, match=r"models\.cut\.statistics: .* to estimate them of: mlp has none"):
        check(content)
    content["teacher"]["architecture"] = {"kind": "resnet", "widths": [4], "blocks": [0]}
    assert check(content).models["cut"].from_ == "teacher"
