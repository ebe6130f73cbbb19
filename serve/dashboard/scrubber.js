// The slider over past verdicts: which scan the page shows, and a strip of what was said of each.

import { loadEarlier } from "./data.js";
import { byId, mark, say } from "./dom.js";
import { VERDICT, abnormal, stamp } from "./format.js";
import { state, touch, view } from "./store.js";

const slider = byId("scrub");
const TALL = { implausible: 1, disturbance: 0.8, normal: 0.28, "cannot tell": 0.16 };

export function start() {
  view(["history", "past", "scheme", "size"], draw);
  slider.addEventListener("input", () => look(Number(slider.value)));
  byId("live").addEventListener("click", live);
  byId("flag-back").addEventListener("click", () => flagged(-1));
  byId("flag-on").addEventListener("click", () => flagged(1));
  byId("earlier").addEventListener("click", async (event) => {
    const button = event.currentTarget;
    button.disabled = true;
    const count = await loadEarlier().catch(() => null);
    button.disabled = count === 0;
    say(button, count === 0 ? "No earlier" : "Earlier");
  });
}

/** Show the scan at a place in the history; the last one is live. */
function look(at) {
  state.past = at >= state.history.length - 1 ? null : state.history[at];
  touch("past");
}

export function live() {
  state.past = null;
  touch("past");
}

const place = () => (state.past ? state.history.indexOf(state.past) : state.history.length - 1);

function next(way) {
  for (let at = place() + way; at >= 0 && at < state.history.length; at += way) {
    if (abnormal(state.history[at].verdict)) return at;
  }
  return -1;
}

function flagged(way) {
  const at = next(way);
  if (at >= 0) look(at);
}

function draw() {
  const scans = state.history;
  if (state.past && !scans.includes(state.past)) state.past = null;
  mark(slider, "max", Math.max(0, scans.length - 1));
  slider.value = place();
  slider.disabled = scans.length < 2;
  const told = state.past ?? scans.at(-1);
  mark(
    slider,
    "aria-valuetext",
    told ? `${stamp(told.time_ms)}, ${VERDICT[told.verdict] ?? told.verdict}${state.past ? "" : ", live"}` : "no scans",
  );
  for (const [id, off] of [
    ["live", !state.past],
    ["flag-back", next(-1) < 0],
    ["flag-on", next(1) < 0],
  ]) {
    if (off && document.activeElement === byId(id)) slider.focus();
    byId(id).disabled = off;
  }
  byId("earlier").hidden = !state.oldest;
  strip(scans);
}

function strip(scans) {
  const canvas = byId("strip");
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width || !height) return;
  const dots = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * dots);
  canvas.height = Math.round(height * dots);
  const pen = canvas.getContext("2d");
  pen.scale(dots, dots);
  const css = getComputedStyle(canvas);
  const ink = (verdict) => css.getPropertyValue(abnormal(verdict) ? `--${verdict}` : "--process").trim();
  const wide = width / Math.max(scans.length, 1);
  // flagged scans are drawn last and at least two pixels wide: none disappears among thousands
  for (const flags of [false, true]) {
    scans.forEach((scan, i) => {
      if (abnormal(scan.verdict) !== flags) return;
      const tall = height * (TALL[scan.verdict] ?? 0.2);
      pen.fillStyle = ink(scan.verdict);
      const thick = flags ? Math.max(2, Math.min(wide - 1, 4)) : Math.max(wide - (wide > 3 ? 1 : 0), 0.5);
      pen.fillRect((i + 0.5) * wide - thick / 2, height - tall, thick, tall);
    });
  }
}
