// Why the selected incident was flagged: what the score leans on, which meters and flows contradict the model, what is
// believed instead.

import { shelved } from "./data.js";
import { bar, byId, el, icon, mark, say } from "./dom.js";
import {
  VERDICT,
  believed,
  lasted,
  meterWords,
  number,
  pValue,
  percent,
  probability,
  since,
  typeWords,
  where,
} from "./format.js";
import { dataNow, newest, state, view } from "./store.js";

const PART = {
  residual: ["Residuals of the estimate", "readings that do not fit the state they are part of"],
  neighbour: ["What branches say", "flows and losses beside the place"],
  time: ["Course in time", "how the readings moved over the window"],
};
let told = "";

export function start() {
  view(["alarms", "selected", "history", "clock", "layout"], draw);
}

function draw() {
  const alarm = state.alarms.get(state.selected) ?? null;
  const host = byId("evidence");
  say(byId("why-note"), alarm ? (alarm.state === "open" ? "highest scan of the incident" : "closed") : "");
  const key = alarm ? JSON.stringify([alarm, shelved(alarm), state.layout?.grid === alarm.grid]) : "";
  if (told === key && host.childElementCount) return;
  told = key;
  mark(host, "data-verdict", alarm?.verdict ?? null);
  const top = host.dataset.id === alarm?.id ? host.scrollTop : 0;
  mark(host, "data-id", alarm?.id ?? null);
  if (!alarm) {
    host.replaceChildren(el("p", { class: "empty" }, "No incident is selected. Its evidence stands here."));
    return;
  }
  host.replaceChildren(...head(alarm), ...places(alarm), ...reasons(alarm), ...beliefs(alarm), foot(alarm));
  host.scrollTop = top;
}

function head(alarm) {
  const kind = typeWords(alarm.type);
  return [
    el(
      "h3",
      { class: "verdict", "data-verdict": alarm.verdict },
      icon(alarm.verdict, alarm.ack !== null),
      el("span", {}, `${VERDICT[alarm.verdict] ?? alarm.verdict}${kind ? ` – ${kind}` : ""}`),
    ),
    el("p", { class: "lead" }, `${alarm.grid} · ${where(alarm.places, 5)}`),
    facts([
      ["Onset", when(alarm.onset)],
      ["First flagged", when(alarm.first)],
      ["Last flagged", when(alarm.last)],
      ["Scans", alarm.scans > 1 ? `${number(alarm.scans)} in ${lasted(alarm.last_ms - alarm.first_ms)}` : "1"],
      ["p-value", pValue(alarm.p_value)],
      ["Score", scored(alarm)],
    ]),
  ];
}

const when = (iso) => since(Date.parse(iso), dataNow());

function scored(alarm) {
  const own =
    state.history.findLast((one) => one.alarms.includes(alarm.id)) ?? (newest()?.grid === alarm.grid ? newest() : null);
  return `${number(alarm.peak_score, 2)}${own && own.threshold !== null ? ` over ${number(own.threshold, 2)}` : ""}`;
}

function facts(pairs) {
  return el(
    "dl",
    { class: "facts" },
    ...pairs.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}

function table(caption, heads, rows) {
  return el(
    "table",
    {},
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
    el(
      "tbody",
      {},
      ...rows.map((cells) =>
        el("tr", {}, ...cells.map((cell, k) => (k ? el("td", {}, cell) : el("th", { scope: "row" }, cell)))),
      ),
    ),
  );
}

function places(alarm) {
  if (!alarm.places.length) return [el("p", {}, "It is of the grid as a whole: no bus stands out.")];
  return [
    table(
      "Places",
      ["Bus", "", "suspected"],
      alarm.places.map(([name, logit]) => [name, bar(probability(logit), alarm.verdict), percent(probability(logit))]),
    ),
  ];
}

function reasons(alarm) {
  const why = alarm.reasons;
  if (!why) return [el("p", {}, "No reasons were kept of this incident.")];
  const out = [];
  const parts = Object.entries(why.parts ?? {});
  if (parts.length) {
    const most = Math.max(...parts.map(([, value]) => Math.abs(value)), 1e-9);
    out.push(
      table(
        "What the score loses without",
        ["Evidence", "", "logit"],
        parts.map(([name, value]) => {
          const [word, more] = PART[name] ?? [name, ""];
          return [el("span", { title: more }, word), bar(value / most, null, value), number(value, 2)];
        }),
      ),
    );
  }
  if (why.patch) out.push(el("p", {}, `Scans ${why.patch[0] + 1} to ${why.patch[1] + 1} of the window weigh most.`));
  if (why.meters?.length) {
    const most = Math.max(...why.meters.map(([, value]) => Math.abs(value)));
    out.push(
      table(
        "Largest residuals",
        ["Meter", "", "σ", "scan"],
        why.meters.map(([name, value, scan]) => [
          meterWords(name),
          bar(value / most, null, value),
          number(value, 1),
          String(scan + 1),
        ]),
      ),
    );
  }
  if (why.flows?.length) {
    out.push(
      table(
        "Injection against neighbouring flows",
        ["Bus", "read MW", "flows say MW", "σ apart"],
        why.flows.map(([name, read, flows, apart]) => [name, number(read, 1), number(flows, 1), number(apart, 1)]),
      ),
    );
  }
  return out;
}

function beliefs(alarm) {
  const rows = Object.entries(alarm.corrected ?? {}).map(([key, value]) => believed(key, value));
  return rows.length ? [table("Believed instead", ["Place", "quantity", "value"], rows)] : [];
}

function foot(alarm) {
  return el("p", { class: "foot" }, `Model ${alarm.model || "–"} · incident ${alarm.id}`);
}
