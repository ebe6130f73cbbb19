// The bar: which grids there are, the newest verdict, the model, lag and health, the connection; and the band below it
// that says when what is shown is not the present.

import { choose, openAlarms } from "./data.js";
import { byId, el, icon, mark, say } from "./dom.js";
import { VERDICT, abnormal, clock, lasted, number, stamp } from "./format.js";
import { live } from "./scrubber.js";
import { newest, now, shown, state, touch, view } from "./store.js";

const LAG_S = 30;
const grids = new Map();

export function start() {
  view(["grids", "alarms", "clock"], drawGrids);
  view(["history", "status", "past", "clock", "connection"], drawFacts);
  view(["connection", "past", "history", "clock", "status"], drawBand);
}

function drawGrids() {
  const host = byId("grids");
  const open = openAlarms();
  [...state.grids.values()].forEach((one, at) => {
    if (!grids.has(one.grid)) {
      const parts = {
        sign: el("span", { class: "sign" }),
        name: el("span", {}, one.grid),
        count: el("span", { class: "count" }),
      };
      grids.set(one.grid, {
        ...parts,
        node: el(
          "button",
          { type: "button", onclick: () => choose(one.grid).catch(() => touch("connection")) },
          parts.sign,
          parts.name,
          parts.count,
        ),
        look: "",
      });
    }
    const row = grids.get(one.grid);
    const own = open.filter((alarm) => alarm.grid === one.grid);
    const worst = own.some((alarm) => alarm.verdict === "implausible") ? "implausible" : (own[0]?.verdict ?? "normal");
    const verdict = own.length ? worst : one.verdict && !abnormal(one.verdict.verdict) ? one.verdict.verdict : "normal";
    const hollow = own.length > 0 && own.every((alarm) => alarm.ack !== null);
    if (row.look !== `${verdict} ${hollow}`) row.sign.replaceChildren(icon(verdict, hollow));
    row.look = `${verdict} ${hollow}`;
    say(row.count, own.length ? String(own.length) : "");
    mark(row.node, "aria-current", one.grid === state.grid ? "true" : null);
    const told = own.length
      ? `${own.length} open incident${own.length > 1 ? "s" : ""}, ${verdict}`
      : `${(VERDICT[verdict] ?? verdict).toLowerCase()}, no open incidents`;
    mark(row.node, "aria-label", `${one.grid}: ${told}`);
    if (host.children[at] !== row.node) host.insertBefore(row.node, host.children[at] ?? null);
  });
  while (host.children.length > state.grids.size) host.lastChild.remove();
}

function drawFacts() {
  const scan = shown();
  const last = newest();
  const told = state.status;
  const lag = Math.max(0, ...(told?.consumers ?? []).map((one) => one.lag_s ?? 0));
  const rows = [
    ["Scan", scan ? `${stamp(scan.time_ms)} UTC` : "–", false],
    [
      "Verdict",
      scan
        ? el(
            "span",
            { class: "verdict", "data-verdict": scan.verdict },
            icon(scan.verdict),
            VERDICT[scan.verdict] ?? scan.verdict,
          )
        : "–",
      false,
    ],
    ["Model", last?.model || "–", false],
    [
      "Lag",
      told?.consumers.length
        ? `${number(lag, lag < 10 ? 1 : 0)} s${last?.latency_ms ? `, ${number(last.latency_ms)} ms` : ""}`
        : "–",
      lag > LAG_S,
    ],
    ["Health", ...health(told)],
  ];
  const host = byId("facts");
  rows.forEach(([name, value, bad], k) => {
    const node = host.children[k] ?? host.appendChild(el("div", {}, el("dt", {}, name), el("dd")));
    const dd = node.lastChild;
    const key = typeof value === "string" ? value : value.textContent + value.dataset.verdict;
    if (dd.dataset.key !== key) dd.replaceChildren(value);
    dd.dataset.key = key;
    mark(node, "data-bad", bad);
  });
}

/** What is wrong with the parts in words, or that all is well. */
function health(told) {
  if (!told) return ["–", false];
  const wrong = [];
  if (!told.redis) wrong.push("store down");
  else {
    if (!told.consumers.length) wrong.push("no consumer");
    if (told.consumers.some((one) => one.paused)) wrong.push("consumer paused");
    for (const one of told.verifiers) if (one.trouble) wrong.push(`verifier: ${one.trouble}`);
    for (const one of told.feeds) if (one.trouble) wrong.push(`feed: ${one.trouble}`);
    if (!told.feeds.length) wrong.push("no feed");
  }
  return wrong.length ? [wrong.join("; "), true] : ["all parts well", false];
}

function drawBand() {
  const word = { connecting: "Connecting", live: "Connected", lost: "No connection", "signed-out": "Signed out" }[
    state.connection
  ];
  const node = byId("connection");
  say(node, word);
  mark(node, "data-state", state.connection);
  mark(document.body, "data-connection", state.connection);
  const band = byId("band");
  const [kind, text] = message();
  mark(band, "data-kind", kind);
  if (band.dataset.text === text) return;
  band.dataset.text = text;
  band.replaceChildren(text);
  if (kind === "past") band.append(" ", el("button", { type: "button", onclick: live }, "Back to live"));
}

function message() {
  const last = newest();
  if (state.connection === "lost") {
    return [
      "lost",
      `No connection to the server since ${clock(state.lostAt)} UTC. ` +
        "What is shown is the last known state; it comes back by itself.",
    ];
  }
  if (state.connection !== "live") return ["", ""];
  if (state.past) {
    return [
      "past",
      `Past scan: ${stamp(state.past.time_ms)} UTC, ${lasted(last.time_ms - state.past.time_ms)} before the newest.`,
    ];
  }
  if (!state.grids.size) return ["stale", "No grid has reported yet."];
  const silent = (Date.now() - state.heardAt) / 1000;
  const limit = Math.max(10, 3 * (last?.step_s ?? 60));
  if (last && silent > limit)
    return [
      "stale",
      `No scan of ${state.grid} for ${lasted(1000 * silent)}. What is shown is of ${stamp(last.time_ms)} UTC.`,
    ];
  if (last && last.origin === "live" && now() - last.time_ms > 1000 * limit) {
    return ["stale", `The newest scan of ${state.grid} is ${lasted(now() - last.time_ms)} old.`];
  }
  const origin = {
    replay: "Replay of the past, not the present.",
    simulated: "Simulated grid, not a real one.",
    cache: "Readings from a cache, not the present.",
  }[last?.origin];
  return origin ? ["origin", origin] : ["", ""];
}
