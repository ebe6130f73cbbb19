// Score against threshold, frequency, demand and generation over the scans that are held, on one axis of time.

import uPlot from "./vendor/uplot-1.6.32/uPlot.esm.js";
import { byId, el, mark, say } from "./dom.js";
import { abnormal, clock, lasted, number, stamp } from "./format.js";
import { panels } from "./series.js";
import { state, touch, view } from "./store.js";

const HEIGHTS = { few: [92, 74], many: [72, 54] }; // of the score, of the others; many from four panels on
const sync = uPlot.sync("time");
let plots = [];
let built = "";
let zoomed = null; // [from, to] in seconds, null for everything held
let span = 0; // newest scans shown, 0 for all

export function start() {
  view(["history", "past", "scheme", "size"], draw);
  new ResizeObserver(() => touch("size")).observe(byId("plots"));
  for (const button of document.querySelectorAll("[data-span]")) {
    button.addEventListener("click", () => {
      span = Number(button.dataset.span);
      zoomed = null;
      touch("history");
    });
  }
}

function draw() {
  const host = byId("plots");
  const scans = state.history;
  const width = host.clientWidth;
  if (!scans.length || !width) {
    if (!scans.length) clear(host);
    return;
  }
  const told = panels(scans);
  const css = getComputedStyle(document.body);
  const key = JSON.stringify([
    told.map((one) => [one.id, one.names, one.sparse]),
    css.getPropertyValue("--panel"),
    state.grid,
  ]);
  if (key !== built) {
    clear(host);
    built = key;
    zoomed = null;
    plots = told.map((one, k) =>
      make(host, one, width, HEIGHTS[told.length > 3 ? "many" : "few"][k ? 1 : 0], k === told.length - 1, css),
    );
  }
  told.forEach((one, k) => {
    const { chart } = plots[k];
    if (chart.width !== width) chart.setSize({ width, height: chart.height });
    chart.setData(one.data, false);
    reach(chart, one.data[0]);
    keyed(plots[k], one);
  });
  const step = scans.at(-1).step_s;
  say(
    byId("time-note"),
    zoomed
      ? `${clock(zoomed[0] * 1000)} to ${clock(zoomed[1] * 1000)} UTC`
      : `${scans.length} scans, ${lasted(1000 * step)} apart`,
  );
  for (const button of document.querySelectorAll("[data-span]"))
    mark(button, "aria-pressed", String(!zoomed && Number(button.dataset.span) === span));
}

function clear(host) {
  for (const { chart } of plots) chart.destroy();
  plots = [];
  built = "";
  host.replaceChildren();
}

function reach(chart, xs) {
  const all = [xs[span ? Math.max(0, xs.length - span) : 0], xs.at(-1)];
  const [min, max] = zoomed ?? all;
  chart.setScale("x", { min, max: max > min ? max : min + 1 });
}

function make(host, panel, width, tall, last, css) {
  const colour = (name) => css.getPropertyValue(`--${name}`).trim();
  const title = el("p", { class: "plot-title" }, panel.unit ? `${panel.title}, ${panel.unit}` : panel.title);
  const values = el("p", { class: "plot-values" });
  const place = el(
    "div",
    { class: "plot", role: "img", "aria-label": panel.title },
    el("div", { class: "plot-head" }, title, values),
  );
  host.append(place);
  const axis = {
    stroke: colour("muted"),
    grid: { stroke: colour("line-weak"), width: 1 },
    ticks: { show: false },
    font: `11px ${css.fontFamily}`,
  };
  const n = panel.names.length;
  const series = panel.names.map((name, k) => ({
    label: name,
    width: panel.stacked ? 0.8 : 1.4,
    points: { show: panel.sparse ?? false, size: 4 },
    stroke: colour(name === "threshold" ? "muted" : "ink"),
    dash: name === "threshold" ? [5, 4] : undefined,
    spanGaps: panel.sparse ?? false,
    fill: panel.stacked ? colour(`mix-${name === "Exports" ? 0 : k % 8}`) : undefined,
  }));
  const bands = panel.stacked
    ? Array.from({ length: panel.groups - 1 }, (_, k) => ({
        series: [k + 2, k + 1],
        fill: colour(`mix-${(k + 1) % 8}`),
      }))
    : [];
  const options = {
    width,
    height: tall + (last ? 18 : 0),
    legend: { show: false },
    series: [{}, ...series],
    bands,
    cursor: { sync: { key: sync.key }, drag: { x: true, y: false, setScale: false }, points: { size: 6 }, y: false },
    tzDate: (ts) => uPlot.tzDate(new Date(ts * 1e3), "Etc/UTC"),
    scales: { x: { time: true }, y: { range: (_, min, max) => room(panel, min, max) } },
    axes: [
      {
        ...axis,
        show: last,
        size: 20,
        values: (_, ticks) => ticks.map((t, k) => label(t, ticks[1] - ticks[0], k === 0)),
      },
      { ...axis, size: 52, space: 20, values: (_, ticks) => ticks.map((v) => number(v, panel.digits)) },
    ],
    padding: [6, 8, last ? 0 : 4, 0],
    hooks: {
      setSelect: [(chart) => select(chart)],
      setCursor: [
        (chart) =>
          keyed(
            plots.find((one) => one.chart === chart),
            null,
            chart.cursor.idx,
          ),
      ],
      draw: [(chart) => overlay(chart, panel, colour)],
    },
  };
  const chart = new uPlot(options, [[], ...panel.names.map(() => [])], place);
  chart.over.addEventListener("dblclick", () => {
    zoomed = null;
    touch("history");
  });
  return { chart, panel, values, place, n };
}

function label(t, step, first) {
  const words = step < 60 ? clock(t * 1000) : clock(t * 1000).slice(0, 5);
  return first || words === "00:00" ? (words === "00:00" ? stamp(t * 1000).slice(5, 10) : words) : words;
}

function room(panel, min, max) {
  if (min === null || max === null) return [0, 1];
  if (panel.id === "frequency") return [Math.min(49.8, min - 0.02), Math.max(50.2, max + 0.02)];
  if (panel.stacked) return [Math.min(0, min * 1.1), max * 1.06];
  const spare = 0.12 * (max - min || Math.abs(max) || 1);
  return [min - spare, max + spare];
}

function select(chart) {
  const { left, width } = chart.select;
  if (width < 4) return;
  zoomed = [chart.posToVal(left, "x"), chart.posToVal(left + width, "x")];
  for (const { chart: one } of plots) one.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
  touch("history");
}

/** Flagged scans by their shapes, and the scan that is looked at. */
function overlay(chart, panel, colour) {
  const pen = chart.ctx;
  const dots = uPlot.pxRatio;
  pen.save();
  pen.beginPath();
  pen.rect(chart.bbox.left, chart.bbox.top, chart.bbox.width, chart.bbox.height);
  pen.clip();
  if (panel.id === "score") {
    for (const scan of state.history) {
      if (!abnormal(scan.verdict) || scan.score === null) continue;
      const x = chart.valToPos(scan.time_ms / 1000, "x", true);
      const y = chart.valToPos(scan.score, "y", true);
      const r = 3.4 * dots;
      pen.fillStyle = colour(scan.verdict);
      pen.beginPath();
      pen.moveTo(x, y - r);
      pen.lineTo(x + r, scan.verdict === "implausible" ? y : y + r);
      if (scan.verdict === "implausible") pen.lineTo(x, y + r);
      pen.lineTo(x - r, scan.verdict === "implausible" ? y : y + r);
      pen.fill();
    }
  }
  if (state.past) {
    const x = Math.round(chart.valToPos(state.past.time_ms / 1000, "x", true));
    pen.fillStyle = colour("text");
    pen.fillRect(x - dots / 2, chart.bbox.top, dots, chart.bbox.height);
  }
  pen.restore();
}

/** The numbers beside the title: of the scan under the cursor, else of the one looked at, else the newest. */
function keyed(plot, panel, at = null) {
  if (!plot) return;
  if (panel) plot.panel = panel;
  const { data, names, stacked, digits } = plot.panel;
  const last = state.past ? state.history.indexOf(state.past) : data[0].length - 1;
  let i = at ?? last;
  while (plot.panel.sparse && i > 0 && data[1][i] === null) i -= 1;
  const parts = names.map((name, k) => {
    const own = data[k + 1][i];
    const below = stacked && k > 0 && name !== "Exports" ? data[k][i] : 0;
    const key = el("span", { class: "key", "data-mix": stacked ? (name === "Exports" ? 0 : k % 8) : null });
    const word = names.length > 1 ? `${name} ` : "";
    return el(
      "span",
      {},
      stacked ? key : null,
      `${word}${number(own === null || own === undefined ? null : own - (below ?? 0), digits)}`,
    );
  });
  const text = parts.map((part) => part.textContent).join("  ") + (at === null ? "" : clock(data[0][i] * 1000));
  if (plot.text === text) return;
  plot.text = text;
  plot.values.replaceChildren(...parts);
  mark(
    plot.place,
    "aria-label",
    `${plot.panel.title}: ${parts.map((part) => part.textContent).join(", ")} ${plot.panel.unit}`,
  );
}
