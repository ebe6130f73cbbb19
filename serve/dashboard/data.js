// Snapshot and events into the state: what is read anew, what an event changes, and in which order.

import * as api from "./api.js";
import { now, state, touch } from "./store.js";

const LONGEST_HISTORY = 3000;
const MAP_PAUSE_MS = 1000;
let waiting = []; // events that came in while a snapshot was read
let reading = 0;
let mapAt = -Infinity;
let mapTimer = 0;
let onNews = () => {};

/** Call back (incident, whether it was shelved before) for each one that opens while the page is watched. */
export function whenOpened(callback) {
  onNews = callback;
}

/** Read everything anew; events of the meantime are applied on top.  Raises: ApiError */
export async function load() {
  reading += 1;
  try {
    const [grids, alarms] = await Promise.all([api.getGrids(), api.getAlarms()]);
    state.grids = new Map(grids.grids.map((one) => [one.grid, one]));
    state.alarms = new Map(alarms.alarms.map((one) => [one.id, one]));
    if (!state.grids.has(state.grid)) state.grid = wanted();
    if (!state.alarms.has(state.selected)) state.selected = null;
    touch("grids", "alarms");
    if (state.grid) await loadGrid(state.grid);
  } finally {
    reading -= 1;
    if (!reading) {
      const kept = waiting;
      waiting = [];
      for (const [kind, record] of kept) apply(kind, record);
    }
  }
}

/** The grid that the address names, else the one with the newest open incident, else the first. */
function wanted() {
  const named = new URLSearchParams(location.hash.slice(1)).get("grid");
  if (state.grids.has(named)) return named;
  const open = openAlarms()[0]?.grid;
  return state.grids.has(open) ? open : ([...state.grids.keys()][0] ?? null);
}

/** Watch another grid. */
export async function choose(grid) {
  if (grid === state.grid) return;
  Object.assign(state, { grid, layout: null, map: null, history: [], oldest: null, past: null, heardAt: 0 });
  history.replaceState(null, "", `#grid=${encodeURIComponent(grid)}`);
  touch("grids", "layout", "map", "history", "past");
  await loadGrid(grid);
}

async function loadGrid(grid) {
  const gone = (error) => {
    if (error.status !== 404) throw error;
    return null;
  };
  const drawn = state.layout?.grid === grid && state.layout.case === state.grids.get(grid)?.case;
  const [layout, map, told] = await Promise.all([
    drawn ? state.layout : api.getLayout(grid).catch(gone),
    api.getMap(grid).catch(gone),
    api.getVerdicts(grid).catch(gone),
  ]);
  if (grid !== state.grid) return; // another one was chosen meanwhile
  state.layout = layout;
  state.map = map;
  const before = state.past?.version;
  state.history = told?.verdicts ?? [];
  state.oldest = told && told.ids.length === api.PAGE ? told.ids[0] : null;
  state.past = before ? (state.history.find((one) => one.version === before) ?? null) : null;
  state.heardAt = Date.now();
  touch("layout", "map", "history", "past");
}

/** Read the scans before those that are held.  Returns how many there were. */
export async function loadEarlier() {
  const grid = state.grid;
  if (!state.oldest || state.history.length >= LONGEST_HISTORY) return 0;
  const told = await api.getVerdicts(grid, state.oldest);
  if (grid !== state.grid || !told.verdicts.length) return 0;
  state.history = [...told.verdicts, ...state.history];
  state.oldest = told.ids.length === api.PAGE ? told.ids[0] : null;
  touch("history");
  return told.verdicts.length;
}

/** Take in one event of the stream; `reset` is the caller's. */
export function take(kind, record) {
  if (reading && kind !== "status") waiting.push([kind, record]);
  else apply(kind, record);
}

function apply(kind, record) {
  if (kind === "verdict") verdict(record);
  else if (kind === "alarm") alarm(record);
  else if (kind === "operator") operator(record);
  else if (kind === "status") {
    state.status = record;
    state.offsetMs = record.time_ms - Date.now();
    touch("status");
  }
}

function verdict(record) {
  const about = state.grids.get(record.grid);
  if (about) about.verdict = record;
  else {
    state.grids.set(record.grid, {
      grid: record.grid,
      case: record.case,
      step_s: record.step_s,
      origin: record.origin,
      verdict: record,
      open_alarms: 0,
    });
    if (!state.grid) choose(record.grid).catch(() => {});
  }
  touch("grids");
  if (record.grid !== state.grid) return;
  state.heardAt = Date.now();
  const held = state.history.findLastIndex((one) => one.version === record.version && one.kind === record.kind);
  if (held >= 0) state.history[held] = record;
  else state.history.push(record);
  if (state.history.length > LONGEST_HISTORY) state.history.splice(0, state.history.length - LONGEST_HISTORY);
  touch("history");
  refreshMap();
}

/** The map is asked for at most once a second, and once more after the last verdict of a burst. */
function refreshMap() {
  if (mapTimer) return;
  mapTimer = setTimeout(
    async () => {
      mapAt = performance.now();
      const grid = state.grid;
      const map = await api.getMap(grid).catch(() => null);
      mapTimer = 0;
      if (map && grid === state.grid) {
        state.map = map;
        touch("map");
      }
    },
    Math.max(0, mapAt + MAP_PAUSE_MS - performance.now()),
  );
}

function alarm(record) {
  const known = state.alarms.get(record.id);
  state.alarms.set(record.id, record);
  touch("alarms");
  if (!known && record.state === "open" && !shelved(record)) onNews(record);
}

function operator(told) {
  const record = state.alarms.get(told.id);
  if (!record) return;
  const field = { ack: "ack", unack: "ack", shelve: "shelve", unshelve: "shelve" }[told.action];
  state.alarms.set(told.id, { ...record, [field]: told.action.startsWith("un") ? null : told });
  touch("alarms");
}

/** Acknowledge, shelve or take either back.  Raises: ApiError */
export async function act(id, action, body) {
  const record = await api.act(id, action, body);
  state.alarms.set(id, record);
  touch("alarms");
  return record;
}

export const shelved = (one) => one.shelve !== null && Date.parse(one.shelve.until) > now();

/** Bring back incidents whose shelf is over. */
export function unshelveDue() {
  for (const [id, record] of state.alarms) {
    if (record.shelve === null || shelved(record)) continue;
    const back = { ...record, shelve: null };
    state.alarms.set(id, back);
    touch("alarms");
    if (back.state === "open") onNews(back, true);
  }
}

/** Open incidents that are not shelved: those that wait for an answer first, newest first. */
export function openAlarms() {
  return [...state.alarms.values()]
    .filter((one) => one.state === "open" && !shelved(one))
    .sort((a, b) => Number(a.ack !== null) - Number(b.ack !== null) || b.first_ms - a.first_ms);
}
