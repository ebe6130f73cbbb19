// Single keys, where no field, dialog or menu has the focus; they can be turned off (WCAG 2.1.4).

import { focus, order, run } from "./alarms.js";
import { choose } from "./data.js";
import { byId } from "./dom.js";
import { live } from "./scrubber.js";
import { ask } from "./shelve.js";
import { may, state, touch } from "./store.js";

const KEPT = "gg-single-keys";

export function start() {
  const on = byId("keys-on");
  try {
    on.checked = localStorage.getItem(KEPT) !== "off";
    on.addEventListener("change", () => localStorage.setItem(KEPT, on.checked ? "on" : "off"));
  } catch {
    // storage is closed to this page: the choice lasts as long as the page
  }
  byId("help-open").addEventListener("click", () => byId("help-dialog").showModal());
  document.addEventListener("keydown", press);
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (document.querySelector("dialog[open]")) return;
  const typing = event.target.matches("input:not([type=range]), select, textarea");
  if (typing || !(byId("keys-on").checked || event.key === "?")) return;
  const does = keys[event.key];
  if (!does) return;
  event.preventDefault();
  does();
}

const keys = {
  j: () => walk(1),
  k: () => walk(-1),
  a: () => state.selected && may("operate") && open() && run(state.selected, "ack"),
  s: () => state.selected && may("operate") && open() && ask(state.selected),
  m: () => byId("drawing").focus(),
  t: () => byId("scrub").focus(),
  l: live,
  g: () => {
    const names = [...state.grids.keys()];
    if (names.length > 1)
      choose(names[(names.indexOf(state.grid) + 1) % names.length]).catch(() => touch("connection"));
  },
  "?": () => byId("help-dialog").showModal(),
};

const open = () => state.alarms.get(state.selected)?.state === "open";

/** Select the next incident in the list, from wherever one is. */
function walk(way) {
  const ids = order();
  if (!ids.length) return;
  const row = document.activeElement?.closest?.("li.incident");
  const at = ids.indexOf(row?.dataset.id ?? state.selected);
  const on = row || at < 0 ? at + way : at; // the first press goes to the selected one
  state.selected = ids[Math.max(0, Math.min(ids.length - 1, on))];
  touch("selected");
  focus(state.selected);
}
