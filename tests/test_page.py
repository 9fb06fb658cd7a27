"""The page of all models: what stands on it, what is a sentence there, and that no text of a user runs."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import decant
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Constraints, Range
from decant.errors import DecantError
from tasks.pipeline.lineages import chain
from tasks.pipeline.metrics import OF_CLASSES, OF_NUMBERS
from tasks.report.page import __main__ as command
from tasks.report.page import charts, render
from tasks.report.page.against import compare
from tasks.report.page.columns import MINUS, columns_of, verdict
from tasks.report.page.evidence import corruptions, deletion, read_evidence, reliability, tables
from tasks.report.page.layers import layers_of
from tasks.report.page.lineage import graph, second_teacher
from tasks.report.page.models import Model
from tasks.report.page.recipes import as_yaml, budgets, settings
from tasks.report.page.times import read_times
from tests import nets, pages
from tests.toys import git

HOSTILE = """it's </script><script>alert("1")</script><!-- & <b>"""


class Elements(HTMLParser):
    """What a browser takes out of the page: its elements, and the text of each script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        else:
            self.text += data


@pytest.fixture(autouse=True)
def without_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave Vega out, whose bundle takes more than a second to make."""
    monkeypatch.setattr(render, "_runtime", lambda: "const a = '</script>';")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    pages.put_project(folder)
    return folder


@pytest.fixture
def project(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(built, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project without a model on disk."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def data_of(page: str) -> dict[str, Any]:
    """Return what the page's code reads."""
    content: dict[str, Any] = json.loads(
        Elements(page).scripts[0], parse_constant=lambda word: pytest.fail(word)
    )
    return content


def entry_of(page: str, name: str) -> dict[str, Any]:
    (entry,) = [entry for entry in data_of(page)["models"] if entry["name"] == name]
    return entry


# --- the whole


def test_the_same_files_give_the_same_bytes_and_other_ones_do_not(project: Path) -> None:
    first = command.page()
    assert command.page() == first
    pages.put_metrics(project, {"binary": pages.numbers(0.5, 1000)})
    assert command.page() != first
    assert str(project) not in first


def test_the_page_has_a_row_a_card_and_a_place_in_the_graph_for_each_model(project: Path) -> None:
    page = command.page()
    names = ["teacher", *pages.RECIPES]
    assert [entry["name"] for entry in data_of(page)["models"]] == names
    assert page.count('<article class="card"') == len(names)
    assert all(page.count(f'<a href="#model/{name}"') >= 2 for name in names)
    assert entry_of(page, "prune-80-int8")["chain"] == ["teacher", "prune-80", "prune-80-int8"]
    # 0.88 - 0.89 is one point, 3000 - 4500 bytes is 1.5 KB
    lineage = page[page.index('<section id="lineage"') : page.index('<section id="model"')]
    told = f"prune-80-int8: made from prune-80 by quantize; {MINUS}1.00 points, {MINUS}1.5 KB"
    assert f"<title>{told}</title>" in lineage and f'aria-label="{told}"' in lineage
    step = lineage[lineage.index(f"<title>{told}<") :].split("</g>")[0]
    assert re.findall(r"<text[^>]*>([^<]*)<", step) == ["quantize", f"{MINUS}1.00 points", f"{MINUS}1.5 KB"]
    assert lineage.count('class="edge"') == 3 and "answers" not in lineage


def test_the_browser_may_run_two_scripts_and_ask_no_host(project: Path) -> None:
    import base64

    found = Elements(command.page())
    (policy,) = [
        value or ""
        for name, value in found.attributes
        if name == "content" and "default-src" in (value or "")
    ]
    sums = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found.scripts[1:]]
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{sums[0]}' 'sha256-{sums[1]}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    links = [value for name, value in found.attributes if name in ("src", "href", "srcset", "action")]
    assert all(link and link.startswith(("#", "data:")) for link in links)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert found.scripts[1] == r"const a = '\x3c/script>';"


def test_no_text_of_a_user_becomes_an_element(project: Path) -> None:
    """Names of models, values of recipes, class names and sentences of errors."""
    plain = Elements(command.page()).tags
    content = yaml.safe_load(Path("params.yaml").read_text())
    blocks = {name.replace("binary", HOSTILE): block for name, block in content["models"].items()}
    blocks[HOSTILE]["scheme"]["kind"] = HOSTILE
    pages.put_params(project, blocks)
    found = Elements(page := command.page())
    assert len(found.scripts) == 3
    assert {tag: found.tags.count(tag) for tag in ("script", "article")} == {"script": 3, "article": 4}
    assert "b" not in found.tags and set(found.tags) <= {*plain, "p"}
    assert entry_of(page, HOSTILE)["settings"]["scheme.kind"] == HOSTILE
    assert HOSTILE in found.text


# --- what is missing


def test_a_model_without_metrics_and_one_without_files_are_sentences(project: Path) -> None:
    Path("metrics/prune-80.json").unlink()
    shutil.rmtree("models/binary")
    text = Elements(page := command.page()).text
    assert "No metrics/prune-80.json; run `dvc repro evaluate@prune-80`" in text
    assert "It has no metrics." in text and "There is no model on disk to look at." in text
    assert "No model at models/binary/" in text
    assert entry_of(page, "prune-80")["values"] == {} and entry_of(page, "binary")["layers"] == {}
    assert entry_of(page, "prune-80")["front"] is False


def test_a_project_in_which_nothing_has_run_is_a_page_that_says_so(bare: Path) -> None:
    pages.put_params(bare, {})
    found = Elements(page := command.page())
    assert "0 compressed models; none has been measured" in found.text
    assert "Nothing was timed" in found.text
    assert data_of(page)["columns"] == [] and data_of(page)["quality"] == ""


def test_numbers_that_are_not_finite_never_get_on_the_page(bare: Path) -> None:
    pages.put_params(bare, {})
    Path("metrics").mkdir()
    Path("metrics/teacher.json").write_text(json.dumps(pages.numbers(0.9, 10) | {"nll": float("nan")}))
    assert entry_of(command.page(), "teacher")["values"] == {}


def test_models_that_predict_numbers_have_columns_of_their_own(bare: Path) -> None:
    pages.put_params(bare, {"half": {"op": "prune", "from": "teacher"}})
    rows = {"teacher": pages.numbers(0.8, 100, OF_NUMBERS), "half": pages.numbers(0.7, 50, OF_NUMBERS)}
    pages.put_metrics(bare, rows)
    found = data_of(command.page())
    assert found["quality"] == "r2"
    assert {"R²", "MAE", "change"} <= {column["title"] for column in found["columns"]}
    assert entry_of(command.page(), "half")["texts"]["change"] == f"{MINUS}0.1000"


def test_models_that_are_measured_by_different_things_stand_beside_each_other(bare: Path) -> None:
    pages.put_params(bare, {"old": {"op": "prune", "from": "teacher"}})
    pages.put_metrics(bare, {"teacher": pages.numbers(0.9, 9), "old": pages.numbers(0.7, 8, OF_NUMBERS)})
    page = command.page()
    assert "change" not in entry_of(page, "old")["values"]
    assert entry_of(page, "old")["values"]["r2"] == 0.7
    assert [entry["front"] for entry in data_of(page)["models"]] == [True, False]


# --- layers


@pytest.mark.parametrize("scheme", [None, *nets.SCHEMES])
@pytest.mark.parametrize("masked", [False, True])
def test_the_layers_add_up_to_the_bytes_on_disk(scheme: str | None, masked: bool, tmp_path: Path) -> None:
    model = pages.teacher()
    draw = torch.Generator().manual_seed(3)
    weights = {name: p for name, p in model.module.named_parameters() if p.dim() > 1}
    masks = {name: torch.rand(p.shape, generator=draw) < 0.3 for name, p in weights.items()}
    bounds = Range(torch.full((16, 1, 1, 1), -9.0), torch.full((16, 1, 1, 1), 9.0))
    constraints = {
        name: Constraints(
            range=bounds if p.shape[0] == 16 and p.dim() == 4 else None,
            levels=None
            if scheme is None
            else nets.SCHEMES[scheme].levels(p.detach(), masks[name] if masked else None),
            mask=masks[name] if masked else None,
        )
        for name, p in weights.items()
    }
    for name, p in weights.items():
        p.data = constraints[name].project(p.data)
    decant.save(Checkpoint(**{**vars(model), "constraints": constraints}), tmp_path)
    layers = layers_of(loaded := decant.load(tmp_path), {})
    content = (tmp_path / "model.safetensors").read_bytes()
    assert sum(layer.bytes for layer in layers) == len(content) - 8 - struct.unpack("<Q", content[:8])[0]
    zeros = {layer.name: layer.zeros for layer in layers}
    assert all(
        zeros[name] == p.numel() - int(p.count_nonzero()) for name, p in loaded.module.named_parameters()
    )


def test_a_layer_tells_what_the_ledger_says_of_it(project: Path) -> None:
    page = command.page()
    ledger = {entry["name"]: entry for entry in json.loads(Path("models/prune-80/ledger.json").read_text())}
    card = page[page.index('aria-label="prune-80"') :]
    row = card[card.index("stages.0.conv1.weight") :].split("</tr>")[0]
    entry = ledger["stages.0.conv1.weight"]
    assert f">{entry['changed']:,}<" in row and entry["holds"] in row


# --- recipes and budgets


@pytest.mark.parametrize(
    "block",
    [
        {"op": "prune", "from": "teacher", "budget": {"sparsity": 0.8}},
        {"op": "quantize", "from": HOSTILE, "note": "on", "rate": 1e-3, "none": None, "list": [1, 2.5]},
        {"training": {"optimizer": {"kind": "sgd", "learning_rate": 0.1}, "patience": None}, "empty": {}},
    ],
)
def test_a_recipe_can_be_read_back(block: dict[str, Any]) -> None:
    from tasks.pipeline import yaml_reader

    text = as_yaml("a: b", block)
    assert yaml_reader.parse(text, "copied", shared=False) == {"a: b": block}


def test_settings_are_every_leaf_by_its_place() -> None:
    block = {"op": "prune", "budget": {"macs": 0.5}, "skip": [], "plan": {}}
    assert dict(settings(block)) == {"op": "prune", "budget.macs": "0.5", "skip": "[]", "plan": "{}"}


def test_a_verdict_takes_what_is_counted_or_intervals_that_are_apart() -> None:
    by_key = {column.key: column for column in columns_of([OF_CLASSES], [], [], ["accuracy"])}
    old, near, far = (pages.numbers(quality, 100) for quality in (0.9, 0.885, 0.87))
    assert verdict(by_key["accuracy"], near, old) == "intervals overlap"
    assert verdict(by_key["accuracy"], far, old) == "worse"
    assert verdict(by_key["accuracy"], old, far) == "better"
    assert verdict(by_key["nll"], old | {"nll": 0.1}, old) == ""
    assert verdict(by_key["size_bytes"], old | {"size_bytes": 99}, old) == "better"
    assert verdict(by_key["sparsity"], old | {"sparsity": 0.1}, old) == "worse"


def test_budgets_are_in_the_unit_of_what_they_bound() -> None:
    teacher = {"macs": 6000.0, "size_bytes": 1000.0, "time:some": 0.004, "accuracy": 0.9}
    block = {
        "budget": {"macs": 0.5},
        "mixed": {"budget": {"bytes": 400}},
        "student": {"budget": {"macs": 2000, "kib": 40}},
        "fast": {"budget": {"latency": 0.25}},
        "near": {"budget": {"drift": 0.01}},
        "other": {"budget": {"sparsity": 0.8, "bytes": True, "nonzeros": 0.1, "kib": float("nan")}},
        "budget_of": 3,
    }
    found = [(each["label"], each["metric"], each["value"]) for each in budgets("a", block, teacher)]
    assert found == [
        ("a: budget.macs 0.5", "macs", 3000.0),
        ("a: mixed.budget.bytes 400", "size_bytes", 400.0),
        ("a: student.budget.macs 2000", "macs", 2000.0),
        ("a: student.budget.kib 40", "parameters", 10240.0),  # of 4 bytes each
        ("a: student.budget.kib 40", "size_bytes", 40960.0),
        ("a: fast.budget.latency 0.25", "time:some", 0.001),
        ("a: near.budget.drift 0.01", "logit_drift", 0.01),
    ]
    assert budgets("a", None, teacher) == []


# --- lineage


def descendants(**blocks: Mapping[str, Any]) -> list[Model]:
    """Return models by their blocks, with nothing on disk."""
    params = {"models": blocks}
    made = [Model(name, tuple(chain(name, params)), str(blocks[name]["op"]), blocks[name]) for name in blocks]
    return [Model("teacher", ("teacher",), "teacher", {}), *made]


def test_a_chain_is_a_line_and_a_second_child_begins_a_row() -> None:
    models = descendants(
        a={"op": "clip", "from": "teacher"},
        late={"op": "prune", "from": "early"},
        early={"op": "clip", "from": "teacher"},
        b={"op": "quantize", "from": "a"},
        c={"op": "quantize", "from": "a"},
    )
    found = graph(models, {model.name: {} for model in models}, [])
    places = {node.model.name: (node.x, node.y) for node in found.nodes}
    columns, rows = (sorted({place[axis] for place in places.values()}) for axis in (0, 1))
    where = {name: (columns.index(x), rows.index(y)) for name, (x, y) in places.items()}
    assert [where[name] for name in ("teacher", "a", "b", "c")] == [(0, 0), (1, 0), (2, 0), (2, 1)]
    assert [where[name] for name in ("early", "late")] == [(1, 2), (2, 2)]
    assert all(one.x + one.width < columns[where[one.model.name][0] + 1] for one in found.nodes[:2])
    ends = {node.model.name: re.findall(r"[\d.]+", node.edge) for node in found.nodes}
    assert ends["teacher"] == [] and ends["b"] == [
        str(places["a"][0] + found.nodes[1].width),
        *map(str, [places["a"][1], places["b"][0]]),
    ]
    assert ends["c"][-1] == str(places["c"][0]) and not found.answers
    assert found.width > columns[-1] and found.height > rows[-1]


def test_a_model_has_a_second_parent_where_it_learns_what_the_teacher_answers() -> None:
    soft = {"loss": {"kind": "temperature"}}
    models = descendants(
        tuned={"op": "finetune", "from": "teacher", **soft},
        student={"op": "distill", "from": "tuned", **soft},
        both={"op": "distill", "from": "student", "ensemble": True, **soft},
        again={"op": "finetune", "from": "student", **soft},
        plain={"op": "finetune", "from": "student", "loss": {"kind": "smoothing"}},
        levels={"op": "quantize", "from": "student", "train": {"kind": "ste", **soft}},
        broken={"op": "prune", "from": "student", "schedule": [1]},
    )
    found = graph(models, {model.name: {} for model in models}, [])
    second = {node.model.name: second_teacher(node.model) for node in found.nodes}
    assert {name for name, other in second.items() if other} == {"both", "again", "levels"}
    drawn = {node.model.name: node for node in found.nodes}
    assert drawn["again"].told == "again: made from student by finetune, with the answers of teacher"
    assert drawn["again"].answers.endswith(f"V{drawn['again'].y - 12}") and not drawn["tuned"].answers


def test_long_names_are_cut_in_the_drawing_alone_and_deep_chains_are_drawn() -> None:
    blocks = {f"m{i}": {"op": "clip", "from": f"m{i - 1}" if i else "teacher"} for i in range(1200)}
    params = [Model("teacher", ("teacher",), "teacher", {})]
    for name, block in blocks.items():
        params.append(Model(name, (*params[-1].chain, name), "clip", block))
    assert len(graph(params, {each.name: {} for each in params}, []).nodes) == 1201
    long = descendants(**{"x" * 50: {"op": "clip", "from": "teacher"}})
    node = graph(long, {each.name: {} for each in long}, []).nodes[1]
    assert node.label == "x" * 27 + "…" and node.told.startswith("x" * 50)


# --- times, stability, explanations


def test_times_of_former_models_and_broken_tables_are_left_out(bare: Path) -> None:
    assert read_times(["a"]) == ([], [])
    Path("onnx").mkdir()
    for name in ("now", "since"):
        Path("onnx", f"{name}.onnx").write_bytes(name.encode())
    sums = {"now": hashlib.md5(b"now", usedforsecurity=False).hexdigest(), "since": "0" * 32}
    pages.put_times(bare, {"now": 0.25, "since": 0.5, "elsewhere": 1.0}, sums)
    Path("benchmark/broken.json").write_text("<<<<<<< HEAD")
    (table,), (problem,) = read_times(["now", "since", "elsewhere", "untimed"])
    assert table.seconds == {"now": 0.25, "elsewhere": 1.0}  # of the last there is no file to compare with
    assert table.left_out == ("since", "untimed")
    assert problem.startswith("benchmark/broken.json does not hold what it should")
    pages.put_times(bare, {"now": -1.0}, sums)
    assert read_times(["now"])[0] == []


def test_times_and_figures_of_other_stages_are_columns(project: Path) -> None:
    pages.put_times(project, {"teacher": 0.002, "binary": 0.001})
    pages.put_stability(project, "binary")
    page = command.page()
    titles = {column["key"]: column["title"] for column in data_of(page)["columns"]}
    assert titles["time:some"] == "ms, Some"
    entry = entry_of(page, "binary")
    assert entry["texts"]["time:some"] == "1.000" and entry["values"]["drift"] == 0.0125
    assert entry["values"]["explanations_kept"] == 0.875
    assert len(entry["corruptions"]) == 10
    assert [point["count"] for point in entry["reliability"]] == [10, 20, 30, 40]
    assert entry["texts"]["change"] == f"{MINUS}3.00 (chance)"
    assert "Accuracy: no difference from the teacher beyond chance." in Elements(page).text
    assert f"{MINUS}1.000 ms" in page and "as measured (times: Some Processor);" in page
    assert "Not measured: there is no stability/teacher.json." in Elements(page).text
    assert "smaller, and faster" in Elements(page).text
    assert [(point["method"], point["share"]) for point in entry["deletion"]][2:4] == [
        ("lime", 1.0),
        ("random", 0.0),
    ]
    card = page[page.index('<article class="card" data-card="3"') :]
    assert '<td class="num">75.00%</td><td class="num">50.00%</td>' in card  # a class: the teacher's, here
    assert '<th scope="row">1</th><td class="num">7</td><td class="num">12</td>' in card
    assert '<th scope="row">lime</th><td class="num">0.875</td><td class="num">0.750</td>' in card


def test_evidence_of_any_form_is_taken_as_far_as_it_goes(bare: Path) -> None:
    Path("stability").mkdir()
    assert read_evidence(Path("stability"), "a").figures == {}
    Path("stability/a.json").write_text('{"drift": 0.5, "passed": true, "words": "x", "rows": [1]}')
    assert read_evidence(Path("stability"), "a").figures == {"drift": 0.5}
    for content in ("[]", "{", '{"drift": NaN}'):
        Path("stability/a.json").write_text(content)
        found = read_evidence(Path("stability"), "a")
        assert found.figures == {} and "run `dvc repro stability@a`" in found.problem
    assert corruptions(
        {"corruptions": {"noise": [{"strength": 1}, None, {"strength": 1, "accuracy": 0.5}]}}
    ) == [{"corruption": "noise", "strength": 1, "value": 0.5}]
    errors = {"target": "numbers", "corruptions": {"noise": [{"strength": 2, "mae": 3.5}]}}
    assert corruptions(errors) == [{"corruption": "noise", "strength": 2, "value": 3.5}]
    assert corruptions(errors | {"target": []}) == []
    assert corruptions({"corruptions": [1]}) == [] and reliability({"reliability": {"a": 1}}) == []
    assert deletion({"methods": {"a": {"deletion": [0.5]}, "b": 3, "c": {"deletion": [0.5, None]}}}) == []
    assert deletion({"methods": []}) == []
    broken = {"classes": {"a": 1}, "flips": [{"from": "a", "to": "b", "count": None}, 3], "examples": None}
    assert tables(broken, {"methods": {"lime": {"kept": 0.5}}}) == {"stability": [], "explanations": []}


def test_what_was_left_out_is_on_the_card(project: Path) -> None:
    for folder, details in (
        ("stability", {"left_out": ["flips: numbers are no classes", 3]}),
        ("explain", {"unexplained": "no explanation fits", "methods": {}}),
    ):
        Path(folder).mkdir()
        Path(folder, "binary.json").write_text("{}")
        Path(folder, "binary.details.json").write_text(json.dumps(details))
    Path("explain/teacher.json").write_text("[")
    text = Elements(command.page()).text
    assert "Left out: flips: numbers are no classes." in text
    assert "Not explained: no explanation fits." in text and "there is no explain/binary.json" not in text
    assert "run `dvc repro explain-teacher`" in text


# --- columns


def test_six_columns_are_shown_at_first() -> None:
    columns = columns_of([OF_CLASSES], [], [], ["accuracy"])
    assert ["model", *[column.title for column in columns if column.default]] == [
        "model",
        "accuracy %",
        "change",
        "agreement %",
        "size, KB",
        "MMACs",
    ]
    by_key = {column.key: column for column in columns}
    assert (
        by_key["change"].text(-0.0125) == f"{MINUS}1.25" and by_key["size_bytes"].difference(1500) == "+1.5"
    )
    assert by_key["sparsity"].better == "higher"


def test_every_operation_has_a_style_also_one_that_is_new() -> None:
    chosen = charts.styles(["teacher", "prune", "fold", "merge"])
    assert list(chosen) == ["teacher", "prune", "fold", "merge"]
    assert len(set(chosen.values())) == 4


# --- against a revision


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=D", "-c", "user.email=d@example.org", "commit", "--quiet", "-m", "a state")


@pytest.fixture
def repository(bare: Path) -> Path:
    git(bare, "init", "--quiet", "--initial-branch", "main")
    pages.put_params(bare, {"a": {"op": "prune", "bits": 8}, "gone": {"op": "clip"}, "bare": {"op": "clip"}})
    rows = {name: pages.numbers(0.9, 10000) for name in ("teacher", "a", "gone")}
    pages.put_metrics(bare, rows)
    commit(bare)
    return bare


def against(values: Mapping[str, Mapping[str, float]]) -> Any:
    params = yaml.safe_load(Path("params.yaml").read_text())
    return compare("main", params, values, columns_of([OF_CLASSES], [], [], ["accuracy"]))


def test_against_a_revision_the_page_says_what_differs(repository: Path) -> None:
    pages.put_params(
        repository, {"a": {"op": "prune", "bits": 4}, "new": {"op": "clip"}, "bare": {"op": "clip"}}
    )
    values = {
        "teacher": pages.numbers(0.9, 10000),
        "a": pages.numbers(0.885, 5000, nll=0.500001, calibration_error=0.25),
        "new": pages.numbers(0.9, 10000),
        "bare": {},
    }
    found = against(values)
    told = {
        (each.model, each.title): (each.there, each.here, each.difference, each.verdict)
        for each in found.changes
    }
    assert told["a", "accuracy %"] == ("90.00", "88.50", f"{MINUS}1.50", "intervals overlap")
    assert told["a", "ECE %"][3] == ""  # nobody knows what of it is chance
    assert told["a", "size, KB"] == ("10.0", "5.0", f"{MINUS}5.0", "better")
    assert ("a", "NLL") not in told  # what cannot be read cannot be told
    assert {model for model, _ in told} == {"a"}
    assert (found.same, found.new, found.removed, found.unmeasured) == (
        ("teacher",),
        ("new",),
        ("gone",),
        ("bare",),
    )
    assert ("models.a.bits", "8", "4") in found.settings
    assert ("models.new.op", "not set", "clip") in found.settings
    assert found.commit == git(repository, "rev-parse", "main").strip()[:12]


def test_the_page_against_a_revision(repository: Path) -> None:
    pages.put_metrics(repository, {"a": pages.numbers(0.88, 5000)})
    content = yaml.safe_load(Path("params.yaml").read_text())
    for block in content["models"].values():
        block["from"] = "teacher"
    pages.put_params(repository, content["models"])
    assert command.main(["--against", "main", "--out", "some/where.html"]) == 0
    text = Elements(Path("some/where.html").read_text(encoding="utf-8")).text
    assert "1 model differs from main." in text and "python -m flows.compare main" in text


@pytest.mark.parametrize(
    ("revision", "words"),
    [("mian", "There is no revision 'mian' here"), ("--all", "There is no revision '--all' here")],
)
def test_a_revision_that_there_is_not_is_one_sentence(
    repository: Path, capsys: pytest.CaptureFixture[str], revision: str, words: str
) -> None:
    pages.put_params(repository, {})
    assert command.main([f"--against={revision}"]) == 1
    assert words in (told := capsys.readouterr().err) and told.startswith("error: ") and told.count("\n") == 1
    assert not Path("report/index.html").exists()


def test_a_broken_file_of_a_revision_is_one_sentence(repository: Path) -> None:
    Path("metrics/a.json").write_text("[]")
    commit(repository)
    with pytest.raises(DecantError, match=r"^metrics/a\.json in main holds no mapping of numbers$"):
        against({"a": {}})
    Path("metrics/a.json").write_text("{")
    commit(repository)
    with pytest.raises(DecantError, match=r"^metrics/a\.json in main is no JSON of numbers"):
        against({"a": {}})
    Path("params.yaml").unlink()
    commit(repository)
    with pytest.raises(DecantError, match=r"^main has no params\.yaml"):
        compare("main", {}, {}, [])


# --- the command


def test_a_page_is_opened_only_where_there_is_a_screen(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages.put_params(bare, {})
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("sys.platform", "linux")
    for key in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(key, raising=False)
    assert command.main(["--open"]) == 0
    assert opened == []
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert command.main(["--open"]) == 0
    assert opened == [Path("report/index.html").resolve().as_uri()]


def test_without_params_there_is_a_sentence_and_no_page(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([]) == 1
    assert capsys.readouterr().err == "error: No params.yaml here; run from the root of the repository\n"
    Path("params.yaml").write_text("seed: 1\n")
    assert command.main([]) == 1
    assert "has no section `models`" in capsys.readouterr().err
