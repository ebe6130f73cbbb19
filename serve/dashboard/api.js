// Requests to the HTTP edge (docs/live.md). Addresses are relative, so the page works behind a path prefix.

import { state } from "./store.js";

const TIMEOUT_MS = 15_000;

/** An answer that is none: `status` 0 where the server did not answer at all; the message is one line for people. */
export class ApiError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, credentials: "same-origin", signal: AbortSignal.timeout(TIMEOUT_MS) });
  } catch (error) {
    throw new ApiError(0, error.name === "TimeoutError" ? "the server did not answer in time" : "no connection");
  }
  const body = await answer.json().catch(() => null);
  if (!answer.ok) throw new ApiError(answer.status, body?.detail ?? body?.title ?? `answer ${answer.status}`);
  return body;
}

export const get = (path) => ask(path);

export function post(path, body = {}) {
  const headers = { "Content-Type": "application/json" };
  if (state.session.csrf) headers["X-CSRF-Token"] = state.session.csrf;
  return ask(path, { method: "POST", headers, body: JSON.stringify(body) });
}

const grid = (name) => `v1/grids/${encodeURIComponent(name)}`;
export const getSession = () => get("v1/session");
export const getGrids = () => get("v1/grids");
export const getLayout = (name) => get(grid(name));
export const getMap = (name) => get(`${grid(name)}/map`);
/** Scans of one request for verdicts; fewer in an answer means that there are no earlier ones. */
export const PAGE = 480;
export const getVerdicts = (name, before = null) =>
  get(`${grid(name)}/verdicts?limit=${PAGE}${before ? `&before=${before}` : ""}`);
export const getAlarms = () => get("v1/alarms?state=all&limit=300");
export const act = (id, action, body = {}) => post(`v1/alarms/${encodeURIComponent(id)}/${action}`, body);
