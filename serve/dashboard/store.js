// What the page knows, and who draws it: parts of the state are touched, views of them are drawn at most five times a
// second, all together.

const PAUSE_MS = 200;
const views = [];
const touched = new Set();
let drawnAt = -Infinity;
let timer = 0;

export const state = {
  session: { auth: false, name: "", scopes: [], csrf: "" },
  connection: "connecting", // connecting, live, lost, signed-out
  lostAt: 0,
  grids: new Map(), // name -> what GET /v1/grids says of it
  grid: null,
  layout: null,
  map: null,
  history: [], // VerdictRecords of the grid, oldest first
  oldest: null, // stream id before which earlier ones are asked for
  past: null, // the VerdictRecord that is looked at; null for the newest
  alarms: new Map(), // id -> AlarmRecord with its marks
  selected: null,
  status: null,
  offsetMs: 0, // server's clock minus this one's
  heardAt: 0, // when the grid's newest verdict came in, this machine's clock
};

export const now = () => Date.now() + state.offsetMs;
export const newest = () => state.history.at(-1) ?? null;
export const shown = () => state.past ?? newest();
export const may = (scope) => state.session.scopes.includes(scope);
/** Time of the grids' scans: what "ago" means when a day is replayed. */
export const dataNow = () => Math.max(0, ...[...state.grids.values()].map((g) => g.verdict?.time_ms ?? 0)) || now();

/** Draw a view whenever one of these parts was touched. */
export function view(parts, draw) {
  views.push({ parts, draw });
}

export function touch(...parts) {
  for (const part of parts) touched.add(part);
  if (!timer) timer = setTimeout(flush, Math.max(0, drawnAt + PAUSE_MS - performance.now()));
}

/** Draw what was touched without waiting for its turn. */
export function drawNow() {
  clearTimeout(timer);
  flush();
}

function flush() {
  timer = 0;
  const parts = new Set(touched);
  touched.clear();
  for (const { parts: own, draw } of views) if (own.some((part) => parts.has(part))) draw();
  drawnAt = performance.now(); // of the end: a slow machine gets its pause as well
}
