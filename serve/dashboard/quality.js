// Readings of the scan shown: how many were heard, what is late or missing, where they come from.

import { byId, el, mark, say, svg } from "./dom.js";
import { number, percent } from "./format.js";
import { shown, state, view } from "./store.js";

const WORD = {
  live: "live",
  late: "late",
  missing: "missing",
  cached: "cached",
  cache: "cached",
  replayed: "replayed",
  replay: "replayed",
  simulated: "simulated",
  manual: "by hand",
};
const BAD = ["missing", "late"];
const SPARK = 48;

export function start() {
  view(["history", "past"], draw);
}

function draw() {
  const scan = shown();
  const facts = byId("quality-facts");
  if (!scan) {
    facts.replaceChildren();
    byId("streams").replaceChildren();
    return;
  }
  const { meters = 0, heard = 0, streams = {}, gap_scans: gap = 0 } = scan.quality;
  const held = state.history.slice(-SPARK);
  facts.replaceChildren(
    fact("Origin", WORD[scan.origin] ?? scan.origin),
    fact("Meters heard", `${percent(heard)} of ${number(meters)}`, heard < 0.8, spark(held)),
    fact("Gap before", gap ? `${gap} scan${gap === 1 ? "" : "s"} never came` : "none", gap > 0),
    fact("Gaps held", number(state.history.reduce((sum, one) => sum + (one.quality.gap_scans ?? 0), 0))),
    scan.note ? fact("Note", scan.note) : "",
  );
  const list = Object.entries(streams).sort(([a, x], [b, y]) => rank(x) - rank(y) || a.localeCompare(b));
  const host = byId("streams");
  list.forEach(([name, word], k) => {
    const node =
      host.children[k] ??
      host.appendChild(el("li", {}, el("span", { class: "name" }), " ", el("span", { class: "word" })));
    say(node.children[0], name);
    say(node.children[1], WORD[word] ?? word);
    mark(node, "data-word", WORD[word] ?? word);
    mark(node, "data-bad", BAD.includes(word));
  });
  while (host.children.length > list.length) host.lastChild.remove();
}

const rank = (word) => (BAD.includes(word) ? BAD.indexOf(word) : BAD.length);

function fact(name, value, bad = false, more = null) {
  return el("div", { "data-bad": bad }, el("dt", {}, name), el("dd", {}, value, more));
}

/** Share heard of the last scans as small bars; a scan after a gap has a hole before it. */
function spark(scans) {
  const node = svg("svg", { class: "spark", viewBox: `0 0 ${SPARK * 3} 16`, "aria-hidden": "true" });
  scans.forEach((scan, k) => {
    const tall = Math.max(1, 16 * (scan.quality.heard ?? 0));
    node.append(svg("rect", { x: 3 * k, y: 16 - tall, width: scan.quality.gap_scans ? 1 : 2.2, height: tall }));
  });
  return node;
}
