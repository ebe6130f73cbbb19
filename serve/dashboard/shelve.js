// The dialog that shelves an incident: for how long, and why.

import { focusNext, run } from "./alarms.js";
import { byId, say } from "./dom.js";
import { VERDICT, where } from "./format.js";
import { drawNow, state } from "./store.js";

let asked = null;
let back = null;

export function start() {
  const dialog = byId("shelve-dialog");
  dialog.querySelector("form").addEventListener("submit", async (event) => {
    if (event.submitter?.value !== "shelve") return;
    event.preventDefault();
    const minutes = Math.round(Number(byId("shelve-minutes").value));
    const done = await run(asked, "shelve", { minutes, note: byId("shelve-note").value.trim() });
    say(byId("shelve-error"), done ? "" : "It was not shelved; see the row of the incident.");
    if (!done) return;
    drawNow(); // the row has left the list before the focus looks for a place
    dialog.close();
  });
  dialog.addEventListener("close", () => {
    if (back?.isConnected && !back.hidden) back.focus();
    else focusNext();
  });
}

export function ask(id) {
  const alarm = state.alarms.get(id);
  if (!alarm) return;
  asked = id;
  back = document.activeElement;
  say(byId("shelve-what"), `${VERDICT[alarm.verdict] ?? alarm.verdict} at ${alarm.grid} · ${where(alarm.places, 5)}`);
  byId("shelve-note").value = "";
  say(byId("shelve-error"), "");
  byId("shelve-dialog").showModal();
  byId("shelve-minutes").select();
}
