// The page: puts its parts together and keeps them fed.

import * as alarms from "./alarms.js";
import { choose, load, take, unshelveDue, whenOpened } from "./data.js";
import { byId, say } from "./dom.js";
import { VERDICT, clock, where } from "./format.js";
import * as keyboard from "./keyboard.js";
import * as map from "./map.js";
import * as quality from "./quality.js";
import * as scrubber from "./scrubber.js";
import * as session from "./session.js";
import * as shelve from "./shelve.js";
import * as status from "./status.js";
import { now, state, touch } from "./store.js";
import { follow } from "./stream.js";
import * as timelines from "./timelines.js";
import * as why from "./why.js";

const RETRY_MS = 3000;
let stream = null;
let loaded = false;

function connect() {
  stream?.close();
  loaded = false;
  stream = follow({
    onEvent(kind, record) {
      if (kind === "reset") refresh();
      else take(kind, record);
    },
    onOpen() {
      state.connection = "live";
      touch("connection");
      if (!loaded) refresh();
    },
    onLost() {
      if (state.connection === "lost" || state.connection === "signed-out") return;
      state.connection = "lost";
      state.lostAt = now();
      touch("connection");
    },
    onRefused() {
      session
        .check()
        .then((allowed) => allowed || stream.close())
        .catch(() => {});
    },
  });
}

/** Read everything anew, and again when that fails: the events alone would not be the whole. */
async function refresh() {
  try {
    await load();
    loaded = true;
  } catch (error) {
    if (error.status === 401 || error.status === 403) {
      if (!(await session.check().catch(() => true))) return;
    }
    setTimeout(refresh, RETRY_MS);
  }
}

/** Who we are, as soon as the server says it; then the events. */
async function begin() {
  try {
    if (await session.check()) connect();
  } catch {
    state.connection = "lost";
    state.lostAt ||= now();
    touch("connection");
    setTimeout(begin, RETRY_MS);
  }
}

function select(id) {
  const alarm = state.alarms.get(id);
  state.selected = id;
  touch("selected");
  if (alarm && alarm.grid !== state.grid && state.grids.has(alarm.grid))
    choose(alarm.grid).catch(() => touch("connection"));
}

session.start(connect);
status.start();
map.start();
why.start();
timelines.start();
scrubber.start();
quality.start();
shelve.start();
keyboard.start();
alarms.start({ onChoose: select, onShelve: shelve.ask });
whenOpened((alarm, again) => {
  say(
    byId("announce"),
    `${again ? "Back from the shelf" : "New incident"}: ${VERDICT[alarm.verdict] ?? alarm.verdict} at ` +
      `${alarm.grid}, ${where(alarm.places)}, ${clock(alarm.first_ms)}`,
  );
});
setInterval(() => {
  unshelveDue();
  touch("clock");
}, 1000);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => touch("scheme"));
window.addEventListener("resize", () => touch("size"));
begin();
