"""The page in Chromium: what a reader does with it, with a mouse, with keys, on a phone, in the dark."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tasks.report.page.columns import MINUS, known_metrics
from tests import browsers, pages
from tests.imports import ROOT

pytestmark = pytest.mark.slow

EXPORTED = ("teacher", "prune-80-int8")

KEPT = known_metrics()["explanations_kept"].title

HOSTILE = """</script><script>alert(1)</script><img src=x onerror=alert(2)>'"&"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsers.chromium() as found:
        yield found


def write_page(folder: Path, *words: str) -> Path:
    """Write the page of a project; return where it is."""
    from tasks.report.page.__main__ import main

    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main([*words]) == 0
    finally:
        os.chdir(before)
    return folder / "report" / "index.html"


@pytest.fixture(scope="module")
def project(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project of four models, on which everything has run."""
    folder = tmp_path_factory.mktemp("project")
    pages.put_project(folder, exported=EXPORTED)
    pages.put_times(folder, {"prune-80": 0.002, "binary": 0.001})
    for name in ("teacher", *pages.RECIPES):
        pages.put_stability(folder, name)
    write_page(folder)
    return folder


@pytest.fixture(scope="module")
def index(project: Path) -> Path:
    return project / "report" / "index.html"


@contextmanager
def opened(browser: Any, path: Path, hash: str = "", **settings: Any) -> Iterator[Any]:
    """Yield the page, once it is drawn; fail where it asks any host, or its console tells anything."""
    context = browser.new_context(
        **{"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"} | settings
    )
    said: list[str] = []
    asked: list[str] = []

    def route(route: Any) -> None:
        asked.append(route.request.url)
        route.continue_() if route.request.url.startswith("file:") else route.abort()

    context.route("**/*", route)
    page = context.new_page()
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.goto(path.as_uri() + hash)
    page.wait_for_selector("#chart svg, #chart[hidden]", state="attached")
    yield page
    context.close()
    assert said == []
    assert asked == [path.as_uri() + hash] or asked == [path.as_uri()]


def names_of(page: Any) -> list[str]:
    """Return the models of the table that are shown, from top to bottom."""
    found: list[str] = page.locator("#table tbody tr:not([hidden]) th a").all_text_contents()
    return found


def column(page: Any, title: str) -> list[str]:
    heads = [
        head.removesuffix(" ↑").removesuffix(" ↓")
        for head in page.locator("#table thead th").all_inner_texts()
    ]
    cells = f"#table tbody tr:not([hidden]) td:nth-child({heads.index(title) + 1})"
    found: list[str] = page.locator(cells).all_inner_texts()
    return found


# --- what a reader does


def test_sixty_models_are_less_than_three_megabytes(project: Path, browser: Any, tmp_path: Path) -> None:
    shutil.copytree(project / "models", tmp_path / "models")
    blocks = pages.put_copies(tmp_path, 56)
    for name in ("teacher", *blocks):
        pages.put_stability(tmp_path, name)
    index = write_page(tmp_path)
    assert index.stat().st_size < 3e6
    with opened(browser, index) as page:
        assert len(names_of(page)) == 60
        assert page.locator("#chart svg .mark-symbol path").count() >= 60
        assert page.locator(".card:visible").count() == 1


def test_the_front_that_the_page_computes_is_the_one_of_the_report(index: Path, browser: Any) -> None:
    with opened(browser, index) as page:
        starred = page.locator("#table tr:has(.star) th a").all_text_contents()
        note = page.locator("#chart-note").inner_text()
        told = note[note.index("line): ") + len("line): ") :].split(".")[0].split(", ")
        assert sorted(told) == sorted(starred)


def test_the_table_is_sorted_by_a_click_and_by_a_key(index: Path, browser: Any) -> None:
    with opened(browser, index) as page:
        head = page.locator("#table thead th", has_text="accuracy %").first
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "descending"  # the best first
        shown = [float(cell) for cell in column(page, "accuracy %")]
        assert shown == sorted(shown, reverse=True)
        head.get_by_role("button").press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        assert [float(cell) for cell in column(page, "accuracy %")] == sorted(shown)
        page.locator("#table thead button", has_text="size, KB").press("Space")
        assert head.get_attribute("aria-sort") == "none"
        sizes = [float(cell) for cell in column(page, "size, KB")]
        assert sizes == sorted(sizes)
        page.locator("#table thead button", has_text="model").click()
        assert names_of(page) == ["binary", "prune-80", "prune-80-int8", "teacher"]


def test_the_filter_is_for_the_table_and_the_chart(index: Path, browser: Any) -> None:
    with opened(browser, index) as page:
        page.get_by_label("Filter", exact=True).fill("PRUNE int8")
        assert names_of(page) == ["prune-80-int8"]
        assert page.locator("#count").inner_text() == "1 of 4 models."
        page.wait_for_function("() => document.querySelectorAll('#chart svg .mark-symbol path').length < 8")
        assert "One model only" in page.locator("#chart-note").inner_text()
        page.get_by_label("Filter", exact=True).fill("nothing like it")
        assert names_of(page) == [] and page.locator("#chart").is_hidden()
        assert page.locator("#chart-note").inner_text() == "No model that passes the filter has both numbers."
        page.get_by_label("Filter", exact=True).fill("")
        page.locator("#step").select_option("prune")
        assert names_of(page) == ["prune-80"]
        page.locator("#step").select_option("")
        page.get_by_label("on the front only").check()
        assert names_of(page) == page.locator("#table tr:has(.star) th a").all_text_contents()


def test_columns_are_chosen(index: Path, browser: Any) -> None:
    with opened(browser, index) as page:
        heads = page.locator("#table thead th:visible").all_inner_texts()
        assert heads == ["model", "accuracy %", "change", "agreement %", "size, KB", "MMACs"]
        page.get_by_text("Columns", exact=True).click()
        page.locator("#columns").get_by_label(KEPT, exact=True).check()
        page.locator("#columns").get_by_label("MMACs").uncheck()
        assert KEPT in page.locator("#table thead th:visible").all_inner_texts()
        assert "MMACs" not in page.locator("#table thead th:visible").all_inner_texts()
        assert set(column(page, KEPT)) == {"0.875"}


def test_a_point_tells_its_model_and_leads_to_its_card(index: Path, browser: Any) -> None:
    with opened(browser, index) as page:
        point = page.locator("#chart svg .mark-symbol path").nth(1)
        point.hover()
        page.wait_for_selector("#vg-tooltip-element.visible")
        told = page.locator("#vg-tooltip-element").inner_text()
        assert "model" in told and "made by" in told and "accuracy %" in told
        point.click()
        page.wait_for_function("() => location.hash.startsWith('#model/')")
        name = page.locator(".card:visible h3").inner_text().removesuffix(" ★")
        assert page.evaluate("decodeURIComponent(location.hash)") == f"#model/{name}" and name in told


AXES = [("MMACs", "accuracy %"), ("ms, Some", "drift"), ("size, KB", KEPT), ("NLL", "NLL")]


def test_axes_are_chosen(index: Path, browser: Any) -> None:
    with opened(browser, index) as page:
        for x, y in AXES:
            page.locator("#axis-x").select_option(label=x)
            page.locator("#axis-y").select_option(label=y)
            page.wait_for_function(
                "titles => [...document.querySelectorAll('#chart svg .role-axis-title text')]"
                ".map(title => title.textContent).join('|') === titles",
                arg=f"{x}|{y}",
            )
            note = page.locator("#chart-note").inner_text()
            assert ("Without one of the numbers: teacher" in note) == (x == "ms, Some")


def test_the_page_is_used_with_keys_alone(index: Path, browser: Any) -> None:
    with opened(browser, index) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the table"
        page.keyboard.press("Enter")
        assert page.evaluate("location.hash") == "#models"
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent") == "prune-80":
                break
        page.keyboard.press("Enter")
        page.wait_for_function(
            "() => document.querySelector('.card.shown h3').textContent.startsWith('prune-80')"
        )
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        page.locator("#axis-x").focus()
        assert page.evaluate(outline) != "none"


def test_a_card_has_its_charts_and_recipe(index: Path, browser: Any) -> None:
    with opened(browser, index, "#model/teacher") as page:
        page.wait_for_selector(".card.shown [data-chart=reliability] svg")
        assert page.locator(".card.shown [data-chart] svg").count() == 4
        page.locator("#chosen").select_option(label="prune-80-int8")
        card = page.locator(".card.shown")
        assert (
            card.locator("[data-language=yaml]").inner_text().startswith("prune-80-int8:\n  op: quantize\n")
        )
        assert card.locator("table.layers tbody tr").count() > 5
        card.get_by_label("Copy the recipe of prune-80-int8").click()
        page.wait_for_function(
            "() => /Copied|Selected/.test(document.querySelector('.card.shown .copy').textContent)"
        )


def test_two_models_are_compared(index: Path, browser: Any) -> None:
    with opened(browser, index) as page:
        page.locator("#first").select_option(label="teacher")
        page.locator("#second").select_option(label="prune-80")
        rows = {
            row.locator("th").inner_text(): row.locator("td").all_inner_texts()
            for row in page.locator("#comparison").get_by_label("Numbers").locator("tbody tr").all()
        }
        assert rows["accuracy %"] == ["90.00", "89.00", f"{MINUS}1.00", "intervals overlap"]
        assert rows["size, KB"] == ["9.0", "4.5", f"{MINUS}4.5", "better"]
        assert rows["NLL"][3] == ""
        recipes = page.locator("#comparison").get_by_label("Recipes").inner_text()
        assert "budget.sparsity" in recipes and "not set" in recipes
        layers = page.locator("#comparison").get_by_label("Layers").inner_text()
        assert "stages.0.conv1.weight" in layers


def test_the_graph_tells_each_step_and_leads_to_its_model(index: Path, browser: Any) -> None:
    with opened(browser, index) as page:
        lines = page.locator("#lineage path.edge")
        assert lines.count() == 3
        step = page.locator("#lineage .made", has_text="prune-80-int8")
        words = step.locator("text").all_text_contents()
        assert words == ["quantize", f"{MINUS}1.00 points", f"{MINUS}1.5 KB", "prune-80-int8"]
        width = "getComputedStyle(document.querySelectorAll('#lineage path.edge')[1]).strokeWidth"
        thin = page.evaluate(width)
        link = page.get_by_role("link", name="prune-80-int8: made from prune-80 by quantize", exact=False)
        link.focus()
        assert page.evaluate(width) != thin  # the step of the model that keys are at
        link.press("Enter")
        page.wait_for_function(
            "() => document.querySelector('.card.shown h3').textContent.startsWith('prune-80-int8')"
        )
        inside = """[...document.querySelectorAll('#lineage a')].every(link => {
          const [box, name] = ['rect', 'text'].map(part => link.querySelector(part).getBoundingClientRect());
          return box.left < name.left && name.right < box.right;
        })"""
        assert page.evaluate(inside)


def test_budgets_are_dashed_lines_of_both_axes(browser: Any, tmp_path: Path) -> None:
    budgets = {"small": {"bytes": 5000}, "narrow": {"kib": 4}, "fast": {"latency": 0.5}}
    pages.put_params(
        tmp_path, {name: {"op": "prune", "from": "teacher", "budget": each} for name, each in budgets.items()}
    )
    pages.put_metrics(
        tmp_path,
        {name: pages.numbers(0.9 - 0.01 * i, 9000 / (1 + i)) for i, name in enumerate(["teacher", *budgets])},
    )
    pages.put_times(tmp_path, {"teacher": 0.002, "fast": 0.0009})
    with opened(browser, write_page(tmp_path)) as page:
        for axis, column, told in (
            ("x", "size, KB", ["small: budget.bytes 5000", "narrow: budget.kib 4"]),
            ("x", "ms, Some", ["fast: budget.latency 0.5"]),
            ("y", "parameters", ["fast: budget.latency 0.5", "narrow: budget.kib 4"]),
        ):
            page.locator(f"#axis-{axis}").select_option(label=column)
            note = f"Dashed: budgets that recipes set ({', '.join(told)})."
            page.wait_for_function(
                "note => document.querySelector('#chart-note').textContent.includes(note)", arg=note
            )
            page.wait_for_function(
                "count => document.querySelectorAll('#chart svg .mark-rule line[stroke-dasharray]').length"
                " === count",
                arg=len(told),
            )


# --- how it looks


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_axe_finds_no_violation_and_nothing_is_wider_than_the_window(
    index: Path, browser: Any, width: int, scheme: str
) -> None:
    axe = (browsers.module("axe-core") / "axe.min.js").read_text(encoding="utf-8")
    settings = {"viewport": {"width": width, "height": 740}, "color_scheme": scheme}
    with opened(browser, index, "#model/prune-80-int8", **settings) as page:
        page.wait_for_selector(".card.shown [data-chart=reliability] svg")
        for details in page.locator("details").all():
            details.evaluate("each => each.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.evaluate(axe)
        found = page.evaluate("axe.run({ resultTypes: ['violations'] })")
        assert [(each["id"], each["nodes"][0]["html"][:200]) for each in found["violations"]] == []


def test_colours_follow_the_system_also_in_charts(index: Path, browser: Any) -> None:
    look = """[getComputedStyle(document.body).backgroundColor,
      document.querySelector('#chart svg .role-axis-title text').getAttribute('fill')]"""
    with opened(browser, index, color_scheme="light") as page:
        light = page.evaluate(look)
        page.emulate_media(color_scheme="dark")
        page.wait_for_function(f"() => ({look})[1] !== {json.dumps(light[1])}")
        assert light[0] == "rgb(255, 255, 255)" and page.evaluate(look)[0] == "rgb(20, 23, 26)"


def test_without_scripts_everything_but_charts_is_there(index: Path, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(index.as_uri())
    assert page.locator(".card:visible").count() == 4 and page.locator("#axis-x").is_hidden()
    context.close()


# --- bad input


def test_no_name_or_recipe_runs(project: Path, browser: Any, tmp_path: Path) -> None:
    blocks = {HOSTILE: {"op": HOSTILE, "from": "teacher", HOSTILE: HOSTILE}}
    pages.put_params(tmp_path, blocks)
    pages.put_metrics(tmp_path, {"teacher": pages.numbers(0.9, 10)})
    with opened(browser, write_page(tmp_path)) as page:
        page.locator("#chosen").select_option(label=HOSTILE)
        assert page.locator(".card.shown h3").inner_text() == HOSTILE
        assert HOSTILE in page.locator("#comparison").inner_text()
        page.locator("#table th a").nth(1).click()
        assert page.locator("img").count() == 0


@pytest.mark.parametrize("metrics", [{}, {"teacher": pages.numbers(0.9, 10)}])
def test_a_project_of_one_model_or_of_none_is_drawn_or_told(
    browser: Any, tmp_path: Path, metrics: dict[str, dict[str, float]]
) -> None:
    pages.put_params(tmp_path, {})
    if metrics:
        pages.put_metrics(tmp_path, metrics)
    expected = "One model only" if metrics else "No model has numbers"
    with opened(browser, write_page(tmp_path)) as page:
        assert page.locator("#chart-note").inner_text().startswith(expected)


def test_three_hundred_models_are_shown(browser: Any, tmp_path: Path) -> None:
    blocks = {
        f"model-{i}": {"op": "prune", "from": f"model-{i - 1}" if i % 5 else "teacher"} for i in range(300)
    }
    pages.put_params(tmp_path, blocks)
    rows = {name: pages.numbers(0.9 - 0.002 * i, 9000 + 7 * i) for i, name in enumerate(["teacher", *blocks])}
    pages.put_metrics(tmp_path, rows)
    with opened(browser, write_page(tmp_path)) as page:
        assert len(names_of(page)) == 301
        page.get_by_label("Filter", exact=True).fill("model-29")
        assert len(names_of(page)) == 11  # 29, and 290 to 299; what was made from these is among them


# --- how models are loaded


def code_of(page: Any, title: str) -> str:
    found: str = page.locator(f".card.shown [data-snippet='{title}']").text_content()
    return found


def test_the_code_on_a_card_runs_in_python(index: Path, project: Path, browser: Any) -> None:
    with opened(browser, index, "#model/prune-80-int8") as page:
        snippets = [code_of(page, title) for title in ("PyTorch", "ONNX Runtime")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    for snippet, told in zip(snippets, ("torch.Size([1, 10])", "(1, 10)"), strict=True):
        command = [sys.executable, "-c", snippet]
        done = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout.strip()) == (0, told), done.stderr


@contextmanager
def site(project: Path, browser: Any) -> Iterator[tuple[Any, str, Callable[[], list[str]]]]:
    """Yield a page, the address of the project with npm's packages in it, and what the console told."""
    runtime = browsers.module("onnxruntime-web")
    packages = project / "node_modules"
    if not packages.exists():
        packages.symlink_to(runtime.parent, target_is_directory=True)
    with browsers.serving(project) as address:
        page = browser.new_context().new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        yield page, address, lambda: said
        page.context.close()


def test_the_code_on_a_card_runs_in_a_browser(index: Path, project: Path, browser: Any) -> None:
    with opened(browser, index, "#model/prune-80-int8") as page:
        snippet = code_of(page, "Browser")
    (project / "copied.html").write_text(
        f"<!doctype html><link rel='icon' href='data:,'>\n{snippet}", encoding="utf-8"
    )
    with site(project, browser) as (page, address, said), page.expect_console_message():
        page.goto(f"{address}/copied.html")
    assert said() == ["[1, 10]"] or said() == ["Array(2)"]


LOGITS = """async ([model, pixels, dims]) => {
  const ort = await import("./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs");
  const session = await ort.InferenceSession.create(model);
  const outputs = await session.run({ image: new ort.Tensor("float32", new Float32Array(pixels), dims) });
  return [...outputs.logits.data];
}"""


@pytest.mark.parametrize("name", EXPORTED)
def test_a_browser_gets_the_logits_of_python(project: Path, browser: Any, name: str) -> None:
    pixels = pages.splits().validation.images.numpy().astype(np.float32) / 255
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(project / "onnx" / f"{name}.onnx", options)
    (expected,) = session.run(None, {"image": pixels})
    (project / "empty.html").write_text("<!doctype html><title>empty</title>", encoding="utf-8")
    with site(project, browser) as (page, address, _):
        page.goto(f"{address}/empty.html")
        given = [f"./onnx/{name}.onnx", pixels.flatten().tolist(), [*pixels.shape]]
        found = np.reshape(page.evaluate(LOGITS, given), expected.shape)
    spread = float(np.ptp(expected))
    # In float32 sums are in another order; in integers one on the edge of a step may fall to its other side.
    assert np.abs(found - expected).max() <= spread * (2**-18 if "int8" not in name else 1 / 64)
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 1 - 1 / len(pixels)
