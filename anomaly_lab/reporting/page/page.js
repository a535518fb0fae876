"use strict";
// The report's behaviour. Names of files and classes come from outside: they are set as text, and escaped for Plotly.
const data = JSON.parse(document.getElementById("data").textContent);
const shown = data.shown;
const byId = (id) => document.getElementById(id);
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
const DASHES = ["solid", "dash", "dot", "dashdot"];

const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function make(tag, attributes = {}, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

// ---- themes -------------------------------------------------------------------------------------------------------
const isDark = () => (document.documentElement.dataset.theme
  ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const themeButton = byId("theme");
function showTheme() {
  themeButton.setAttribute("aria-pressed", isDark());
  themeButton.textContent = isDark() ? "Light" : "Dark";
}
themeButton.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  showTheme();
  charts.forEach((draw) => draw());
});
showTheme();

// ---- charts: drawn when they come into view ---------------------------------------------------------------------------
const charts = new Map();
const waiting = new Set(); // what is drawn when it comes into view, or goes to a printer
addEventListener("beforeprint", () => waiting.forEach((make) => make()));
function chart(id, draw) {
  const element = byId(id);
  if (!element) return;
  const first = () => {
    waiting.delete(first);
    charts.set(id, () => draw(element));
    draw(element);
  };
  waiting.add(first);
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    if (waiting.has(first)) first();
  }, { rootMargin: "400px" }).observe(element);
}
const redraw = (id) => charts.get(id)?.();

function layout(more) {
  const style = getComputedStyle(document.documentElement);
  const [text, line] = ["--text", "--line"].map((name) => style.getPropertyValue(name).trim());
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: text, family: "system-ui, sans-serif" },
    margin: { l: 50, r: 10, t: 10, b: 45 }, legend: { orientation: "h", y: 1, yanchor: "bottom" }, hovermode: "closest", ...more,
    xaxis: { ...axis, ...more.xaxis }, yaxis: { ...axis, ...more.yaxis },
  };
}
const options = { responsive: true, displayModeBar: false };

function curves(kind, x, y) {
  return (element) => {
    const dataset = byId("curves-dataset").value;
    const groups = data.groups.filter((group) => group.dataset === dataset && group[kind]);
    const traces = groups.map((group, number) => ({
      x: group[kind][0], y: group[kind][1], name: escaped(group.name), mode: "lines",
      line: { color: COLOURS[number % COLOURS.length], dash: DASHES[Math.floor(number / COLOURS.length) % DASHES.length], shape: kind === "roc" ? "linear" : "vh" },
      hovertemplate: `${x} %{x:.3f}<br>${y} %{y:.3f}<extra>%{fullData.name}</extra>`,
    }));
    const chance = kind === "roc" ? [[0, 1], [0, 1]] : [[0, 1], Array(2).fill(groups[0]?.share ?? 0)];
    traces.push({ x: chance[0], y: chance[1], name: "chance", mode: "lines", line: { color: "#888", width: 1, dash: "dot" }, hoverinfo: "skip" });
    const below = 19 * traces.length; // pixels, of the names
    element.style.height = `${370 + below}px`;
    Plotly.react(element, traces, layout({
      height: 370 + below, margin: { l: 50, r: 10, t: 10, b: 55 + below },
      legend: { orientation: "v", x: 0, y: 0, yref: "container", yanchor: "bottom", font: { size: 11 } },
      xaxis: { title: { text: x }, range: [0, 1.005] }, yaxis: { title: { text: y }, range: [0, 1.01] },
    }), options);
  };
}
chart("roc", curves("roc", "false positive rate", "true positive rate"));
chart("pr", curves("pr", "recall", "precision"));
byId("curves-dataset").addEventListener("change", () => { redraw("roc"); redraw("pr"); });

chart("size-chart", (element) => {
  const traces = data.sizes.flatMap((line, number) => {
    const colour = COLOURS[number % COLOURS.length];
    const name = escaped(line.name);
    const found = [{
      x: line.size, y: line.mean, name, error_y: { type: "data", array: line.deviation, visible: true }, mode: "lines+markers",
      line: { color: colour }, marker: { symbol: number }, legendgroup: name,
    }];
    if (line.floor !== null) {
      const ends = [line.size[0], line.size.at(-1)];
      found.push({ x: ends, y: [line.floor, line.floor], mode: "lines", line: { color: colour, dash: "dot", width: 1 }, legendgroup: name, showlegend: false, hoverinfo: "skip" });
    }
    return found;
  });
  const sizes = [...new Set(data.sizes.flatMap((line) => line.size))];
  Plotly.react(element, traces, layout({
    xaxis: { type: "log", title: { text: "latent size d" }, tickvals: sizes }, yaxis: { title: { text: "AUROC" } },
  }), options);
});

// ---- sortable tables ----------------------------------------------------------------------------------------------
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const isNumber = head.classList.contains("number");
    const down = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : isNumber;
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // what is not known stays last
      return (down ? -1 : 1) * (isNumber ? x - y : x.localeCompare(y));
    };
    body.append(...[...body.rows].sort(compare));
  }));
}
byId("dataset")?.addEventListener("change", (event) => {
  for (const row of document.querySelectorAll("#leaderboard tbody tr")) row.hidden = event.target.value && row.dataset.dataset !== event.target.value;
  if (event.target.value) {
    byId("curves-dataset").value = event.target.value;
    byId("curves-dataset").dispatchEvent(new Event("change"));
  }
});

// ---- scores and threshold ---------------------------------------------------------------------------------------------
if (shown.scores) {
  const { scores, label, defect, path } = shown;
  const [low, high] = [scores.reduce((a, b) => Math.min(a, b)), scores.reduce((a, b) => Math.max(a, b))];
  const STEPS = 1000;
  const reach = (high - low || 1) * 1.02;
  const slider = byId("threshold");
  let threshold = shown.threshold ?? (low + high) / 2;
  const listeners = [];
  const verdict = (row) => scores[row] > threshold;
  const kind = (row) => (verdict(row) === Boolean(label[row]) ? "right" : label[row] ? "missed" : "alarm");
  const percent = (part, whole) => (whole ? `${(100 * part / whole).toFixed(1)}%` : "—");

  function setThreshold(value, fromSlider = false) {
    threshold = value; // the run's own may lie beyond all scores
    if (!fromSlider) slider.value = Math.round((threshold - low) / reach * STEPS);
    const counts = { tp: 0, fn: 0, fp: 0, tn: 0 };
    scores.forEach((_, row) => { counts[label[row] ? (verdict(row) ? "tp" : "fn") : (verdict(row) ? "fp" : "tn")] += 1; });
    for (const [name, count] of Object.entries(counts)) byId(name).textContent = count;
    const { tp, fn, fp, tn } = counts;
    byId("sensitivity").textContent = `sensitivity ${percent(tp, tp + fn)}`;
    byId("specificity").textContent = `specificity ${percent(tn, tn + fp)}`;
    byId("threshold-value").textContent = threshold.toPrecision(5);
    slider.setAttribute("aria-valuetext", threshold.toPrecision(5));
    byId("summary").textContent = `Precision ${percent(tp, tp + fp)}, F1 ${tp ? (2 * tp / (2 * tp + fp + fn)).toFixed(3) : "0"}.`;
    moveLine();
    listeners.forEach((listener) => listener());
  }
  function moveLine() {
    const element = byId("histogram");
    if (element.layout) Plotly.relayout(element, { "shapes[0].x0": threshold, "shapes[0].x1": threshold });
  }
  slider.addEventListener("input", () => setThreshold(low + slider.value / STEPS * reach, true));
  byId("own").addEventListener("click", () => setThreshold(shown.threshold));

  const classes = [...new Set(defect)].sort((a, b) => (a === "good" ? -1 : b === "good" ? 1 : a.localeCompare(b)));
  chart("histogram", (element) => {
    const traces = classes.map((name, number) => ({
      type: "histogram", name: escaped(name), x: scores.filter((_, row) => defect[row] === name), opacity: 0.75,
      xbins: { start: low, end: low + reach, size: reach / 60 },
      marker: { color: name === "good" ? "#999999" : COLOURS[(number - 1 + COLOURS.length) % COLOURS.length] },
      hovertemplate: "%{x}: %{y}<extra>%{fullData.name}</extra>",
    }));
    Plotly.react(element, traces, layout({
      barmode: "stack", dragmode: false, xaxis: { title: { text: `score ${shown.score}` }, fixedrange: true },
      yaxis: { title: { text: "images, stacked" }, fixedrange: true, dtick: scores.length < 100 ? 1 : undefined },
      shapes: [{ type: "line", x0: threshold, x1: threshold, yref: "paper", y0: 0, y1: 1, line: { color: getComputedStyle(document.body).color, width: 2, dash: "dash" } }],
    }), options);
    if (element.dataset.drags) return;
    element.dataset.drags = "yes";
    const at = (event) => {
      const axis = element._fullLayout.xaxis;
      return inside(axis.p2d(event.clientX - element.getBoundingClientRect().left - axis._offset));
    };
    const inside = (value) => Math.min(low + reach, Math.max(low - 0.02 * reach, value));
    let drags = false;
    element.addEventListener("pointerdown", (event) => {
      if (event.target.closest(".legend")) return;
      drags = true;
      setThreshold(at(event));
    }, true);
    addEventListener("pointermove", (event) => { if (drags) setThreshold(at(event)); });
    for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => { drags = false; });
  });

  // ---- gallery ------------------------------------------------------------------------------------------------------
  if (shown.places.length) {
    const STEP = 48; // cards made at a time
    let strips = null; // read when they are needed
    const strip = (place) => {
      strips ??= byId("strips").textContent.split("\n");
      return `data:image/webp;base64,${strips[place]}`;
    };
    const choose = byId("class");
    choose.append(...classes.map((name) => make("option", { value: name, textContent: name })));
    let list = [];
    let made = 0;

    function card(place) {
      const row = shown.places[place];
      const which = kind(row);
      const told = { right: verdict(row) ? "found" : "passed", missed: "missed", alarm: "false alarm" }[which];
      const image = make("img", { alt: `${path[row]}: ${shown.kinds.join(", ")}`, src: strip(place), loading: "lazy", decoding: "async", width: 96 * shown.kinds.length, height: 96 });
      const text = make("span", {}, make("b", { textContent: scores[row].toPrecision(4) }), ` ${told} · ${defect[row]} · ${path[row]}`);
      return make("button", { className: `card ${which}`, type: "button", onclick: () => enlarge(place) }, image, text);
    }
    function enlarge(place) {
      const row = shown.places[place];
      const last = shown.kinds.length - 1;
      const part = (name, number) => // of the strip
        make("div", { role: "img", ariaLabel: name, style: `background: ${number * 100 / (last || 1)}% 0 / ${100 * (last + 1)}% 100% url(${strip(place)})` });
      const whole = (name) => make("img", { alt: name, src: `${encodeURIComponent(shown.full)}/${shown.index[place]}-${name}.webp` });
      const pictures = shown.kinds.map((name, number) => make("figure", {}, shown.full ? whole(name) : part(name, number), make("figcaption", { textContent: name })));
      byId("large-body").replaceChildren(...pictures);
      byId("large-about").replaceChildren(make("p", { textContent: `${path[row]} · ${defect[row]} · score ${scores[row].toPrecision(6)}` }));
      byId("large").showModal();
    }
    function more() {
      byId("cards").append(...list.slice(made, made + STEP).map(card));
      made = Math.min(made + STEP, list.length);
    }
    function fill() {
      const wrongness = (row) => (label[row] ? threshold - scores[row] : scores[row] - threshold);
      const orders = {
        high: (a, b) => scores[b] - scores[a], low: (a, b) => scores[a] - scores[b],
        wrong: (a, b) => wrongness(b) - wrongness(a), path: (a, b) => path[a].localeCompare(path[b]),
      };
      const [name, wanted] = [choose.value, byId("verdict").value];
      const fits = (row) => (!name || defect[row] === name) && (!wanted || kind(row) === wanted || (wanted === "wrong" && kind(row) !== "right"));
      const order = orders[byId("order").value];
      list = [...shown.places.keys()].filter((place) => fits(shown.places[place])).sort((a, b) => order(shown.places[a], shown.places[b]));
      made = 0;
      byId("cards").replaceChildren();
      byId("count").textContent = `${list.length} pictures`;
      more();
    }
    for (const id of ["class", "verdict", "order"]) byId(id).addEventListener("change", fill);
    let pause = 0;
    listeners.push(() => { clearTimeout(pause); pause = setTimeout(() => { if (made) fill(); }, 150); });
    waiting.add(() => { if (!made) fill(); });
    new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) (made || list.length ? more : fill)();
    }, { rootMargin: "800px" }).observe(byId("more"));
  }
  setThreshold(threshold);
}
