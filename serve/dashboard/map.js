// The grid: which painter, zoom, what pointer and keys point at, and the line that says it in words.

import { openAlarms } from "./data.js";
import { byId, mark, say } from "./dom.js";
import { abnormal, clock, number, percent } from "./format.js";
import { canvasPainter } from "./paintcanvas.js";
import { svgPainter } from "./paintsvg.js";
import { pick, place, plan, scene, step } from "./scene.js";
import { newest, shown, state, view } from "./store.js";

const SVG_MOST = 2000;
const ZOOM_MOST = 40;
const here = { drawn: null, painter: null, at: [], scene: null, zoom: { k: 1, x: 0, y: 0 }, cursor: null, under: null };

export function start() {
  const host = byId("drawing");
  view(["layout", "map", "history", "alarms", "past", "selected", "scheme", "size"], draw);
  new ResizeObserver(draw).observe(host);
  byId("zoom-in").addEventListener("click", () => zoom(1.5));
  byId("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
  byId("zoom-fit").addEventListener("click", fit);
  host.addEventListener("keydown", keys);
  host.addEventListener("focus", () => {
    if (here.cursor === null) here.cursor = first();
    draw();
  });
  host.addEventListener("blur", () => draw());
  pointer(host);
}

/** The bus that is worth looking at first: a marked one, else the one with the highest score. */
function first() {
  const marked = here.scene?.buses.find((bus) => bus.verdict);
  if (marked) return marked.i;
  const node = state.map?.node ?? [];
  return node.length ? node.indexOf(Math.max(...node)) : 0;
}

function draw() {
  const host = byId("drawing");
  const layout = state.layout;
  notes();
  if (!layout) {
    host.replaceChildren();
    here.drawn = here.painter = null;
    say(byId("readout"), state.grid ? "No drawing of this grid." : "");
    return;
  }
  if (here.drawn?.layout !== layout) {
    here.drawn = plan(layout);
    const many = layout.buses.length + layout.branches.length + here.drawn.corridors.length > SVG_MOST;
    here.painter = (many ? canvasPainter : svgPainter)(host);
    Object.assign(here, { zoom: { k: 1, x: 0, y: 0 }, cursor: null, under: null });
    mark(
      document.querySelector("main"),
      "data-shape",
      here.drawn.aspect > 1.25 ? "wide" : here.drawn.aspect < 0.7 ? "tall" : "square",
    );
  }
  const { clientWidth: width, clientHeight: height } = host;
  if (!width || !height) return;
  here.at = place(here.drawn, width, height, here.zoom);
  const focused = document.activeElement === host ? here.cursor : null;
  here.scene = scene(here.drawn, here.at, { map: fits(state.map), ...flags(), cursor: here.under?.bus ?? focused });
  here.painter.paint(here.scene, width, height);
  say(byId("readout"), words(here.under ?? (focused !== null ? { bus: focused } : null)));
}

/** The map, where it belongs to this layout and to the scan that is shown. */
function fits(map) {
  const { buses, branches } = here.drawn.layout;
  const same = map && map.node.length === buses.length && map.edge.length === branches.length;
  return same && !state.past ? map : null;
}

/** Buses and branches to mark: of the scan that is looked at, or of what is open now. */
function flags() {
  const { index, branchIndex } = here.drawn;
  const marks = new Map();
  const lines = new Map();
  const put = (name, told) => {
    if (index.has(name)) marks.set(index.get(name), { ...marks.get(index.get(name)), ...told });
  };
  const told = shown();
  if (told && abnormal(told.verdict) && (state.past || !quiet(told))) {
    for (const name of told.buses) put(name, { verdict: told.verdict, acked: false, selected: false });
    for (const name of told.branches)
      for (const e of branchIndex.get(name) ?? []) lines.set(e, { verdict: told.verdict });
  }
  if (!state.past) {
    for (const alarm of openAlarms().reverse()) {
      if (alarm.grid !== state.grid) continue;
      const selected = alarm.id === state.selected;
      for (const [name] of alarm.places) put(name, { verdict: alarm.verdict, acked: alarm.ack !== null, selected });
    }
  }
  return { marks, lines };
}

/** Whether every incident of a scan is shelved: then the map stays quiet as well. */
function quiet(told) {
  const open = new Set(openAlarms().map((one) => one.id));
  return told.alarms.length > 0 && !told.alarms.some((id) => open.has(id));
}

function notes() {
  const map = state.map;
  const geographic = state.layout?.geographic ? "N ↑" : "";
  const when = state.past
    ? "places of a past scan, without flows"
    : map && newest()
      ? `scan ${clock(map.time_ms)}`
      : "";
  say(byId("map-head"), state.grid ? `Grid ${state.grid}` : "Grid");
  say(byId("map-note"), [when, geographic].filter(Boolean).join(" · "));
}

/** What a place is, in one line. */
function words(target) {
  const map = fits(state.map);
  const { buses, branches } = here.drawn.layout;
  if (!target) {
    if (!map) return state.past ? "" : "No scores yet.";
    const silent = map.heard.filter((one) => one === 0).length;
    const quiet = silent ? `, ${silent} silent in this scan` : "";
    return `${buses.length} buses, ${branches.length} branches${quiet}. Point at a place, or press m.`;
  }
  if (target.bus !== undefined) {
    const bus = buses[target.bus];
    const said = [`Bus ${bus.name}`];
    if (here.drawn.layout.case === "gb-balance") {
      if (!map) return said.concat(bus.kind).join(" · ");
      const tie = branches.findIndex((one) => one.to === target.bus);
      if (bus.kind === "hub") said.push(`${number(map.v_pu[target.bus] * here.drawn.layout.f0_hz, 3)} Hz`);
      else if (tie >= 0) said.push(bus.kind, `${number(-map.p_mw[tie])} MW into the hub`);
    } else {
      said.push(`${number(bus.kv)} kV`, bus.kind);
      if (map) said.push(`${number(map.v_pu[target.bus], 3)} p.u.`);
    }
    if (map) said.push(`${percent(map.node[target.bus])} suspected`, map.heard[target.bus] ? "reported" : "silent");
    return said.join(" · ");
  }
  const branch = branches[target.branch];
  const said = [`${branch.transformer ? "Transformer" : "Line"} ${branch.name}`];
  if (map) {
    const mw = map.p_mw[target.branch];
    const [from, to] = [buses[branch.from].name, buses[branch.to].name];
    if (!map.status[target.branch]) said.push("out of service");
    else said.push(`${number(Math.abs(mw))} MW ${mw >= 0 ? `${from} → ${to}` : `${to} → ${from}`}`);
    if (branch.rate_mva) said.push(`${percent(Math.abs(mw) / branch.rate_mva)} of ${number(branch.rate_mva)} MVA`);
    said.push(`${percent(map.edge[target.branch])} suspected`);
  }
  return said.join(" · ");
}

function zoom(by, x = null, y = null) {
  const host = byId("drawing");
  const [cx, cy] = [
    (x ?? host.clientWidth / 2) - host.clientWidth / 2,
    (y ?? host.clientHeight / 2) - host.clientHeight / 2,
  ];
  const k = Math.max(1, Math.min(ZOOM_MOST, here.zoom.k * by));
  const grown = k / here.zoom.k;
  here.zoom =
    k === 1 ? { k, x: 0, y: 0 } : { k, x: cx - grown * (cx - here.zoom.x), y: cy - grown * (cy - here.zoom.y) };
  draw();
}

function fit() {
  here.zoom = { k: 1, x: 0, y: 0 };
  draw();
}

function keys(event) {
  if (!here.drawn || event.ctrlKey || event.metaKey || event.altKey) return;
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (way) {
    here.under = null;
    here.cursor = here.cursor === null ? first() : step(here.drawn, here.at, here.cursor, ...way);
    follow();
  } else if (event.key === "+" || event.key === "=") zoom(1.5);
  else if (event.key === "-") zoom(1 / 1.5);
  else if (event.key === "0") fit();
  else if (event.key === "Escape") event.currentTarget.blur();
  else return;
  event.preventDefault();
  draw();
}

/** Move the view so that the cursor is inside. */
function follow() {
  const host = byId("drawing");
  const [x, y] = place(here.drawn, host.clientWidth, host.clientHeight, here.zoom)[here.cursor];
  if (x < 10 || x > host.clientWidth - 10) here.zoom.x += host.clientWidth / 2 - x;
  if (y < 10 || y > host.clientHeight - 10) here.zoom.y += host.clientHeight / 2 - y;
}

function pointer(host) {
  const spot = (event) => [
    event.clientX - host.getBoundingClientRect().left,
    event.clientY - host.getBoundingClientRect().top,
  ];
  let held = null;
  host.addEventListener("pointermove", (event) => {
    const [x, y] = spot(event);
    if (held && here.zoom.k > 1 && event.buttons) {
      here.zoom.x += x - held[0];
      here.zoom.y += y - held[1];
      held = [x, y];
    } else here.under = here.drawn && here.scene ? pick(here.drawn, here.at, here.scene.lines, x, y) : null;
    draw();
  });
  host.addEventListener("pointerdown", (event) => {
    held = spot(event);
    here.under = here.drawn && here.scene ? pick(here.drawn, here.at, here.scene.lines, ...held) : null;
    if (here.under?.bus !== undefined) here.cursor = here.under.bus;
    draw();
  });
  host.addEventListener("pointerup", () => (held = null));
  host.addEventListener("pointerleave", () => {
    held = here.under = null;
    draw();
  });
  host.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && document.activeElement !== host) return; // the page scrolls
      event.preventDefault();
      zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, ...spot(event));
    },
    { passive: false },
  );
}
