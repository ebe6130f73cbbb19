// The list of incidents: open ones first, then what is shelved, then what is closed. Rows are kept and changed in
// place, so that the focus stays where it is while scans come in.

import { act, openAlarms, shelved } from "./data.js";
import { byId, el, icon, mark, say } from "./dom.js";
import { VERDICT, lasted, pValue, since, stamp, typeWords, where } from "./format.js";
import { dataNow, may, state, touch, view } from "./store.js";

const GROUP_MS = 15 * 60_000;
const WINDOW_MS = 10 * 60_000;
const FLOOD = 10;
const MOST_CLOSED = 100;
const rows = new Map();
let choose = () => {};
let askShelf = () => {};

export function start({ onChoose, onShelve }) {
  choose = onChoose;
  askShelf = onShelve;
  view(["alarms", "clock", "grids", "session", "selected"], draw);
}

function draw() {
  const all = [...state.alarms.values()];
  const open = openAlarms();
  const shelf = all.filter((one) => one.state === "open" && shelved(one)).sort((a, b) => b.first_ms - a.first_ms);
  const closed = all
    .filter((one) => one.state === "closed")
    .sort((a, b) => b.last_ms - a.last_ms)
    .slice(0, MOST_CLOSED);
  const first = firstOut(all.filter((one) => one.state === "open"));
  if (state.selected === null && open.length) state.selected = open[0].id;
  list(byId("open-incidents"), open, first);
  byId("no-incidents").hidden = open.length > 0;
  folded(byId("shelved"), "shelved", shelf, first);
  folded(byId("closed"), "closed", closed, first);
  const held = new Set([...open, ...shelf, ...closed].map((one) => one.id));
  for (const id of rows.keys()) if (!held.has(id)) rows.delete(id);
  load(all, open, shelf);
}

function folded(box, word, alarms, first) {
  box.hidden = alarms.length === 0;
  say(box.querySelector("summary"), `${alarms.length} ${word}`);
  list(box.querySelector("ul"), alarms, first);
}

/** Incidents of a grid whose onsets lie within a quarter of an hour of each other; the first of several leads them. */
function firstOut(open) {
  const out = new Map();
  for (const grid of new Set(open.map((one) => one.grid))) {
    let group = [];
    const own = open.filter((one) => one.grid === grid).sort((a, b) => Date.parse(a.onset) - Date.parse(b.onset));
    for (const one of [...own, null]) {
      const last = group.at(-1);
      if (one && (!last || Date.parse(one.onset) - Date.parse(last.onset) <= GROUP_MS)) group.push(one);
      else {
        if (group.length > 1) out.set(group[0].id, group.length);
        group = one ? [one] : [];
      }
    }
  }
  return out;
}

function list(host, alarms, first) {
  const focused = document.activeElement;
  alarms.forEach((alarm, at) => {
    const row = rows.get(alarm.id) ?? make(alarm.id);
    update(row, alarm, first.get(alarm.id));
    if (host.children[at] !== row.node) host.insertBefore(row.node, host.children[at] ?? null);
  });
  while (host.children.length > alarms.length) host.lastChild.remove();
  if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
}

function make(id) {
  const parts = Object.fromEntries(
    ["what", "kind", "when", "p", "first", "state", "error"].map((name) => [name, el("span", { class: name })]),
  );
  const sign = el("span", { class: "sign" });
  parts.state.id = `state-${id}`;
  const pick = el(
    "button",
    { type: "button", class: "pick", "aria-describedby": parts.state.id, onclick: () => choose(id) },
    sign,
    parts.what,
    parts.first,
    el("span", { class: "more" }, parts.when, parts.kind),
    parts.p,
  );
  const buttons = {
    ack: el("button", { type: "button", class: "main", onclick: () => run(id, "ack") }, "Acknowledge"),
    unack: el("button", { type: "button", onclick: () => run(id, "unack") }, "Take back"),
    shelve: el("button", { type: "button", "aria-haspopup": "dialog", onclick: () => askShelf(id) }, "Shelve"),
    unshelve: el("button", { type: "button", onclick: () => run(id, "unshelve") }, "Unshelve"),
  };
  parts.error.setAttribute("role", "alert");
  const acts = el("div", { class: "acts" }, parts.state, ...Object.values(buttons));
  const node = el("li", { class: "incident", "data-id": id }, pick, acts, parts.error);
  const row = { node, pick, parts, buttons, acts, sign, error: "" };
  rows.set(id, row);
  return row;
}

function update(row, alarm, group) {
  const { parts, buttons } = row;
  const lead = `${alarm.grid} · ${where(alarm.places)}`;
  const on = alarm.state === "open";
  mark(row.node, "data-verdict", alarm.verdict);
  mark(row.node, "data-acked", alarm.ack !== null);
  mark(row.node, "data-state", alarm.state);
  mark(row.pick, "aria-current", alarm.id === state.selected ? "true" : null);
  const look = `${alarm.verdict} ${alarm.ack !== null}`;
  if (row.look !== look) row.sign.replaceChildren(icon(alarm.verdict, alarm.ack !== null));
  row.look = look;
  say(parts.what, `${VERDICT[alarm.verdict] ?? alarm.verdict} · ${lead}`);
  say(parts.kind, typeWords(alarm.type) || (alarm.verdict === "disturbance" ? "real event, needs attention" : ""));
  const until = on ? dataNow() : alarm.last_ms;
  say(parts.when, `${since(alarm.first_ms, dataNow())} · ${lasted(until - alarm.first_ms)}`);
  say(parts.p, `p ${pValue(alarm.p_value)}`);
  say(parts.first, group ? `first of ${group}` : "");
  say(parts.state, standing(alarm));
  say(parts.error, row.error);
  const can = may("operate");
  const hide = {
    ack: !can || alarm.ack !== null,
    unack: !can || alarm.ack === null || !on,
    shelve: !can || !on || shelved(alarm),
    unshelve: !can || !shelved(alarm) || !on,
  };
  const held = document.activeElement;
  const names = { ack: "Acknowledge", unack: "Take back acknowledgement", shelve: "Shelve", unshelve: "Unshelve" };
  for (const [name, button] of Object.entries(buttons)) {
    mark(button, "aria-label", `${names[name]}: ${alarm.verdict} at ${lead}`);
    if (hide[name] && button === held) row.pick.focus({ preventScroll: true });
    button.hidden = hide[name];
  }
}

function standing(alarm) {
  const said = [];
  if (alarm.state === "closed") said.push(`closed, last seen ${clockOf(alarm.last)}`);
  if (alarm.ack) said.push(`acknowledged by ${alarm.ack.by} ${clockOf(alarm.ack.at)}${noted(alarm.ack)}`);
  else if (alarm.state === "open") said.push("not acknowledged");
  if (shelved(alarm))
    said.push(`shelved by ${alarm.shelve.by} until ${clockOf(alarm.shelve.until)}${noted(alarm.shelve)}`);
  return said.join("; ");
}

const noted = (told) => (told.note ? `: ${told.note}` : "");
const clockOf = (iso) => since(Date.parse(iso), dataNow());

/** Do an action and tell in the row when it was not done. */
export async function run(id, action, body) {
  const row = rows.get(id);
  if (!row || row.busy) return false;
  row.busy = true;
  try {
    await act(id, action, body);
    row.error = "";
  } catch (error) {
    row.error = `Not done: ${error.message}`;
  }
  row.busy = false;
  touch("alarms");
  return row.error === "";
}

/** Put the focus on a row's own button. */
export function focus(id) {
  const row = rows.get(id);
  const box = row?.node.closest("details");
  if (box) box.open = true;
  row?.pick.focus();
  row?.node.scrollIntoView({ block: "nearest" });
}

/** Put the focus where the list goes on when a row has left it. */
export function focusNext() {
  const next = document.querySelector("#open-incidents .pick") ?? byId("shelved").querySelector("summary");
  next.focus();
}

/** Ids in the order of the list, shelved and closed ones only where they are unfolded. */
export function order() {
  return [...document.querySelectorAll("#incidents li.incident")]
    .filter((node) => node.closest("details")?.open ?? true)
    .map((node) => node.dataset.id);
}

function load(all, open, shelf) {
  const until = dataNow();
  const recent = all.filter((one) => one.first_ms > until - WINDOW_MS && one.first_ms <= until).length;
  const today = all.filter((one) => one.first_ms > until - 86_400_000 && one.first_ms <= until).length;
  const waiting = open.filter((one) => one.ack === null).length;
  const flood = recent > FLOOD;
  const node = byId("load");
  say(
    node,
    `${open.length} open, ${waiting} to acknowledge · ` +
      `${recent} in 10 min${flood ? ", flood" : ""} · ${today} in 24 h`,
  );
  mark(node, "data-flood", flood);
  node.title =
    `Opened in the last 10 minutes and 24 hours of scans up to ${stamp(until)} UTC; ` +
    `at most 1 in 10 minutes is meant, more than ${FLOOD} is a flood`;
  document.title = `${open.length ? `(${open.length}) ` : ""}Grid Guardian${state.grid ? ` – ${state.grid}` : ""}`;
  mark(byId("incidents"), "data-shelved", shelf.length);
}
