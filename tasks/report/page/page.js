// The page's own code: it sorts, filters, draws, compares and copies. Text gets into the page as text alone.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { models, columns, specs, limits } = data;
  const byId = (id) => document.getElementById(id);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  document.documentElement.classList.add("scripted");

  // ---- numbers

  const value = (model, column) => model.values[column.key];
  const has = (model, column) => column.key in model.values;
  const told = (column, difference) => {
    const scaled = column.factor * difference;
    const digits = column.significant
      ? { maximumSignificantDigits: column.digits || 1 }
      : { minimumFractionDigits: column.digits, maximumFractionDigits: column.digits };
    const text = Math.abs(scaled).toLocaleString("en", digits);
    return (scaled < 0 ? "−" : "+") + text;
  };
  // Which of two numbers is the better one: 1 the first, -1 the second, 0 neither.
  const judged = (column, a, b) => (column.better ? Math.sign(a - b) * (column.better === "higher" ? 1 : -1) : 0);

  function element(tag, text, attributes = {}) {
    const made = document.createElement(tag);
    made.textContent = text;
    for (const [name, word] of Object.entries(attributes)) made.setAttribute(name, word);
    return made;
  }

  // ---- charts

  function looks() {
    const style = getComputedStyle(document.documentElement);
    const [ink, soft, line] = ["--ink", "--soft", "--line"].map((name) => style.getPropertyValue(name).trim());
    const font = getComputedStyle(document.body).fontFamily;
    return {
      background: "transparent", font, aria: false, view: { stroke: null }, text: { color: ink },
      axis: { labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 11, titleFontSize: 11, titleFontWeight: "normal" },
      legend: { labelColor: ink, titleColor: soft, labelFontSize: 11, symbolOpacity: 1, columns: innerWidth < 640 ? 3 : 0 },
    };
  }

  const drawn = new Map(); // what is on the page, to be drawn again in other colours
  async function draw(holder, spec, datasets) {
    drawn.set(holder, () => draw(holder, spec, datasets));
    const settings = { actions: false, renderer: "svg", ast: true, config: looks(), tooltip: { theme: dark.matches ? "dark" : "light" } };
    const made = await vegaEmbed(holder, { ...spec, datasets }, settings);
    holder.querySelector("svg").setAttribute("aria-hidden", "true"); // the holder says what it is; tables have the numbers
    return made;
  }
  dark.addEventListener("change", () => drawn.forEach((again) => again()));

  const axes = { x: byId("axis-x"), y: byId("axis-y") };
  const usable = columns.filter((column) => models.some((model) => has(model, column)));
  for (const [axis, select] of Object.entries(axes)) {
    for (const column of usable) select.append(element("option", column.title, { value: column.key }));
    if (usable.some((column) => column.key === data.axes[axis])) select.value = data.axes[axis];
  }

  // The names of those that no other one beats: as good in both, and better in one.
  function frontOf(points, x, y) {
    if (!x.better || !y.better) return new Set();
    const beats = (a, b) => {
      const [dx, dy] = [judged(x, a.rawX, b.rawX), judged(y, a.rawY, b.rawY)];
      return dx >= 0 && dy >= 0 && dx + dy > 0;
    };
    return new Set(points.filter((point) => !points.some((other) => beats(other, point))).map((point) => point.name));
  }

  // Where some lost much more than the others, the axis ends below those that can be told apart.
  function floorOf(points, y) {
    if (y.better !== "higher" || points.length < 3) return null;
    const sorted = points.map((point) => point.y).sort((a, b) => a - b);
    const best = sorted[sorted.length - 1];
    const reach = Math.max(3 * y.point, 4 * (best - sorted[sorted.length >> 1]));
    const shown = sorted.filter((each) => each >= best - reach);
    return shown.length === sorted.length || best - sorted[0] < 2 * reach ? null : shown[0] - 0.1 * reach;
  }

  function pointsOf(x, y) {
    return shown().filter((model) => has(model, x) && has(model, y)).map((model) => ({
      name: model.name, operation: model.operation, chain: model.chain.join(" → "),
      rawX: value(model, x), rawY: value(model, y), x: x.factor * value(model, x), y: y.factor * value(model, y),
      x_text: `${model.texts[x.key]} (${x.title})`, y_text: `${model.texts[y.key]} (${y.title})`,
      ...(y.key === data.quality ? intervalOf(model, y) : {}),
    }));
  }

  const NAMED = 8; // budgets
  function budgetsOf(column) {
    const names = new Set(shown().map((model) => model.name));
    return limits.filter((limit) => limit.metric === column.key && names.has(limit.model))
      .map(({ value, label }) => ({ value: column.factor * value, label }));
  }

  function intervalOf(model, y) {
    if (!model.ends) return {};
    const [low, high] = model.ends.map((end) => y.factor * end);
    return { low, high, interval: `${low.toFixed(y.digits)} to ${high.toFixed(y.digits)}` };
  }

  async function drawTradeoff() {
    const [x, y] = [axes.x, axes.y].map((select) => usable.find((column) => column.key === select.value));
    const points = x && y ? pointsOf(x, y) : [];
    points.sort((a, b) => (a.operation === "teacher") - (b.operation === "teacher")); // on top of all others
    byId("chart").hidden = !points.length;
    byId("chart-note").textContent = noteOf(points, x, y);
    if (!points.length) return;
    const front = frontOf(points, x, y);
    const floor = floorOf(points, y);
    const canLog = points.every((point) => point.x > 0);
    const spec = structuredClone(specs.tradeoff);
    for (const layer of spec.layer) {
      const { encoding } = layer;
      if (encoding.x?.field === "x") {
        encoding.x.title = x.title;
        encoding.x.scale.type = byId("log-x").checked && canLog ? "log" : "linear";
        if (encoding.x.scale.type === "linear") encoding.x.scale.zero = false;
      }
      if (encoding.y?.field === "y") {
        encoding.y.title = y.title;
        if (floor !== null) encoding.y.scale.domain = [floor, Math.max(...points.map((point) => point.high ?? point.y))];
      }
      if (layer.mark.interpolate) layer.mark.interpolate = x.better === "higher" ? "step-before" : "step-after";
    }
    const line = points.filter((point) => front.has(point.name)).sort((a, b) => a.x - b.x || a.y - b.y);
    const named = (point) => front.has(point.name) || point.operation === "teacher";
    const datasets = {
      points: points.map((point) => ({ ...point, named: named(point), low: point.low ?? point.y, high: point.high ?? point.y })),
      front: line.map(({ x, y }) => ({ x, y })),
      limits: budgetsOf(x),
      heights: budgetsOf(y),
    };
    // Vega warns of a layer without data.
    spec.layer = spec.layer.filter(({ data, mark }) => datasets[data.name].length && (mark.type !== "text" || points.some(named)));
    const made = await draw(byId("chart"), spec, datasets);
    made.view.addEventListener("click", (event, item) => {
      if (item?.datum?.name) location.hash = `model/${encodeURIComponent(item.datum.name)}`;
    });
  }

  function noteOf(points, x, y) {
    if (!usable.length) return "No model has numbers, so there is nothing to draw: `dvc repro` measures them.";
    if (!points.length) return "No model that passes the filter has both numbers.";
    const front = frontOf(points, x, y);
    const floor = floorOf(points, y);
    const below = floor === null ? [] : points.filter((point) => point.y < floor);
    const missing = shown().filter((model) => !has(model, x) || !has(model, y));
    const dashed = [...budgetsOf(x), ...(x === y ? [] : budgetsOf(y))].map(({ label }) => label);
    return [
      points.length === 1 ? "One model only: there is nothing to compare it with." : `${points.length} models.`,
      front.size && points.length > 1 ? `Pareto front (grey line): ${points.filter((point) => front.has(point.name)).sort((a, b) => b.x - a.x).map((point) => point.name).join(", ")}.` : "",
      below.length ? `Below the axis, drawn on its edge: ${below.map((point) => `${point.name} (${point.y.toFixed(y.digits)})`).join(", ")}.` : "",
      missing.length ? `Without one of the numbers: ${missing.map((model) => model.name).join(", ")}.` : "",
      dashed.length ? `Dashed: budgets that recipes set (${dashed.slice(0, NAMED).join(", ")}${dashed.length > NAMED ? `, and ${dashed.length - NAMED} more` : ""}).` : "",
    ].filter(Boolean).join(" ");
  }

  // ---- filter and table

  const rows = all("#table tbody tr");
  const modelOf = (row) => models[Number(row.dataset.model)];

  function passes(model) {
    const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = [model.name, ...model.chain, model.operation].join(" ").toLowerCase();
    const step = byId("step").value;
    return words.every((word) => text.includes(word)) && (!step || model.operation === step) && (!byId("front-only").checked || model.front);
  }
  const shown = () => models.filter(passes);

  function filterTable() {
    for (const row of rows) row.hidden = !passes(modelOf(row));
    byId("count").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} models.`;
  }

  function sortTable(key, descending) {
    const column = columns[Number(key)];
    const order = (a, b) => {
      if (key === "name") return a.name.localeCompare(b.name, "en", { numeric: true });
      if (!has(a, column) || !has(b, column)) return 0;
      return value(a, column) - value(b, column);
    };
    const lacks = (model) => key !== "name" && !has(model, column); // these come last either way
    const sorted = [...rows].sort((one, other) => {
      const [a, b] = [modelOf(one), modelOf(other)];
      return lacks(a) - lacks(b) || (descending ? -1 : 1) * order(a, b) || one.dataset.model - other.dataset.model;
    });
    byId("table").tBodies[0].append(...sorted);
    for (const button of all("#table thead button")) {
      const way = descending ? "descending" : "ascending";
      button.closest("th").setAttribute("aria-sort", button.dataset.sort === key ? way : "none");
    }
  }

  for (const button of all("#table thead button")) {
    button.addEventListener("click", () => {
      const now = button.closest("th").getAttribute("aria-sort");
      const bestFirst = columns[Number(button.dataset.sort)]?.better === "higher";
      sortTable(button.dataset.sort, now === "none" ? bestFirst : now === "ascending");
    });
  }

  function showColumn(index, visible) {
    for (const cell of all(`#table [data-column="${index}"]`)) cell.classList.toggle("off", !visible);
  }
  const narrow = innerWidth < 640; // a phone: the quality, its change and the size
  for (const box of all("#columns input")) {
    if (narrow) box.checked = [data.quality, "change", "size_bytes"].includes(columns[Number(box.value)].key);
    showColumn(box.value, box.checked);
    box.addEventListener("change", () => showColumn(box.value, box.checked));
  }

  const filtered = () => (filterTable(), drawTradeoff());
  byId("filter").addEventListener("input", filtered);
  for (const id of ["step", "front-only"]) byId(id).addEventListener("change", filtered);
  axes.x.addEventListener("change", () => (byId("log-x").checked = isWide(), drawTradeoff()));
  axes.y.addEventListener("change", drawTradeoff);
  byId("log-x").addEventListener("change", drawTradeoff);
  function isWide() {
    const column = usable.find((each) => each.key === axes.x.value);
    const numbers = column ? models.filter((model) => has(model, column)).map((model) => value(model, column)) : [];
    return Math.min(...numbers) > 0 && Math.max(...numbers) / Math.min(...numbers) > 5;
  }

  // ---- one model

  const charts = {
    curve: (model) => [specs.curve, { curve: seriesOf(model.curve) }],
    corruption: (model) => [titled(specs.corruption, model.quality), { curve: model.corruptions }],
    deletion: (model) => [specs.deletion, { curve: model.deletion }],
    reliability: (model) => [specs.reliability, { curve: model.reliability, diagonal: [0, 1].map((end) => ({ confidence: end, accuracy: end })) }],
  };
  function titled(spec, title) {
    const made = structuredClone(spec);
    made.encoding.y.title = title;
    return made;
  }
  // Losses and shares are of different sizes: shares are drawn, and losses where there are no shares.
  function seriesOf(curve) {
    const names = Object.keys(curve[0] ?? {}).filter((name) => name !== "epoch");
    const shares = names.filter((name) => !name.includes("loss"));
    return curve.flatMap((row) => (shares.length ? shares : names).map((name) => ({ epoch: row.epoch, value: row[name], series: name.replaceAll("_", " ") })));
  }

  function showCard(index) {
    byId("chosen").value = index;
    for (const card of all(".card")) card.classList.toggle("shown", Number(card.dataset.card) === index);
    for (const holder of all(".card.shown [data-chart]")) {
      const [spec, datasets] = charts[holder.dataset.chart](models[index]);
      draw(holder, spec, datasets);
    }
  }

  const hashOf = (index) => `#model/${encodeURIComponent(models[index].name)}`;
  function follow() {
    if (!location.hash.startsWith("#model/")) return;
    let name = location.hash.slice("#model/".length);
    try { name = decodeURIComponent(name); } catch { return; } // a broken link leads nowhere
    const index = models.findIndex((model) => model.name === name);
    if (index < 0) return;
    showCard(index);
    byId("model").scrollIntoView();
  }
  addEventListener("hashchange", follow);
  byId("chosen").addEventListener("change", (event) => {
    history.replaceState(null, "", hashOf(event.target.value));
    showCard(Number(event.target.value));
  });

  for (const button of all(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch { // no leave to: what is selected can be copied by hand
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
    });
  }

  // ---- two models

  function table(caption, heads, lines) {
    const made = element("table", "");
    made.append(element("caption", caption, { class: "hidden" }));
    const head = made.createTHead().insertRow();
    for (const [text, kind] of heads) head.append(element("th", text, { scope: "col", class: kind }));
    const body = made.createTBody();
    for (const [name, ...cells] of lines) {
      const row = body.insertRow();
      row.append(element("th", name, { scope: "row" }));
      for (const [text, kind] of cells) row.append(element("td", text, { class: kind }));
    }
    const holder = element("div", "", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption });
    holder.append(made);
    return holder;
  }

  function verdictOf(column, a, b) {
    if (a.texts[column.key] === b.texts[column.key]) return ""; // what cannot be read is not judged
    const word = ["worse", "", "better"][judged(column, value(b, column), value(a, column)) + 1];
    if (column.counted) return word;
    if (column.key !== data.quality || !a.ends || !b.ends) return ""; // nobody knows what of it is chance
    const apart = a.ends[0] > b.ends[1] || b.ends[0] > a.ends[1];
    return apart ? word : "intervals overlap";
  }

  function compareNumbers(a, b) {
    const derived = ["change", "interval"];
    return columns.filter((column) => has(a, column) && has(b, column) && !derived.includes(column.key)).map((column) => {
      const verdict = verdictOf(column, a, b);
      const difference = told(column, value(b, column) - value(a, column));
      return [column.title, [a.texts[column.key], "num"], [b.texts[column.key], "num"], [difference, "num"], [verdict, verdict]];
    });
  }

  function compareSettings(a, b) {
    const places = [...new Set([...Object.keys(a.settings), ...Object.keys(b.settings)])];
    return places.filter((place) => a.settings[place] !== b.settings[place])
      .map((place) => [place, [a.settings[place] ?? "not set", ""], [b.settings[place] ?? "not set", ""]]);
  }

  function compareLayers(a, b) {
    const names = [...new Set([...Object.keys(a.layers), ...Object.keys(b.layers)])];
    const text = (layer, index) => [layer ? layer[index].toLocaleString("en") : "–", "num"];
    return names.filter((name) => String(a.layers[name]) !== String(b.layers[name]))
      .map((name) => [name, text(a.layers[name], 0), text(b.layers[name], 0), text(a.layers[name], 1), text(b.layers[name], 1)]);
  }

  function compare() {
    const [a, b] = ["first", "second"].map((id) => models[Number(byId(id).value)]);
    const parts = [];
    const numbers = compareNumbers(a, b);
    const titles = [["number", ""], [a.name, "num"], [b.name, "num"], ["difference", "num"], ["verdict", ""]];
    parts.push(numbers.length ? table("Numbers", titles, numbers) : element("p", "They have no number in common.", { class: "note" }));
    const differing = compareSettings(a, b);
    parts.push(element("h3", "Recipes"));
    parts.push(differing.length ? table("Recipes", [["setting", ""], [a.name, ""], [b.name, ""]], differing) : element("p", "The last steps have the same recipe.", { class: "hint" }));
    const layers = compareLayers(a, b);
    const heads = [["tensor", ""], [`bytes, ${a.name}`, "num"], [`bytes, ${b.name}`, "num"], ["zeros", "num"], ["zeros", "num"]];
    parts.push(element("h3", "Layers that differ"));
    parts.push(layers.length ? table("Layers", heads, layers) : element("p", "Every tensor has as many bytes and zeros.", { class: "hint" }));
    byId("comparison").replaceChildren(...parts);
  }
  const front = models.filter((model) => model.front && model !== models[0]);
  const smallest = front.sort((a, b) => a.values.size_bytes - b.values.size_bytes)[0] ?? models[1] ?? models[0];
  byId("second").value = String(models.indexOf(smallest));
  for (const id of ["first", "second"]) byId(id).addEventListener("change", compare);

  byId("log-x").checked = isWide();
  filterTable();
  compare();
  showCard(0);
  follow();
  drawTradeoff();
})();
