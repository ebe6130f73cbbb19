// Words and numbers as an operator reads them. Times are UTC; `ms` are Unix milliseconds.

export const VERDICT = {
  implausible: "Implausible",
  disturbance: "Disturbance",
  normal: "Normal",
  "cannot tell": "Cannot tell",
};

/** Families of gg_ray.records.FAMILIES in words. */
const TYPE = {
  S1: "sign, unit or clock error",
  S2: "bias or drift",
  S3: "wrong scale or swapped meters",
  S4: "frozen or erratic meter",
  T1: "wrong switch or tap state",
  T2: "undeclared outage",
  T3: "wrong line data",
  T4: "undeclared load or source",
  A1: "replayed or shifted readings",
  A2: "stealthy false data",
  A3: "partial false data",
  A4: "coordinated false data",
};
const CHANNEL = {
  v: "|V|",
  p: "P injected",
  q: "Q injected",
  va: "angle",
  pf: "P from",
  qf: "Q from",
  pt: "P to",
  qt: "Q to",
};
const FUEL = {
  NUCLEAR: "Nuclear",
  BIOMASS: "Biomass",
  CCGT: "Gas",
  OCGT: "Gas",
  WIND: "Wind",
  EMBEDDED_WIND: "Wind",
  EMBEDDED_SOLAR: "Solar",
  NPSHYD: "Hydro",
  PS: "Hydro",
  COAL: "Other",
  OIL: "Other",
  OTHER: "Other",
};
const two = (n) => String(n).padStart(2, "0");

export const abnormal = (verdict) => verdict === "implausible" || verdict === "disturbance";
export const typeWords = (code) => TYPE[code] ?? (code === "none" || !code ? "" : code);
export const meterWords = (name) => {
  const [channel, ...rest] = name.split(" of ");
  return rest.length ? `${CHANNEL[channel] ?? channel} · ${rest.join(" of ")}` : name;
};
/** Group of the generation mix that a value belongs to; null for what is no source. */
export const sourceOf = (name) => FUEL[name] ?? (name.startsWith("INT") ? "Imports" : null);

export function clock(ms) {
  const t = new Date(ms);
  return `${two(t.getUTCHours())}:${two(t.getUTCMinutes())}:${two(t.getUTCSeconds())}`;
}
export const day = (ms) => new Date(ms).toISOString().slice(0, 10);
export const stamp = (ms) => `${day(ms)} ${clock(ms)}`;
/** The time, with its day where that is another one than `now`. */
export const since = (ms, now) => (day(ms) === day(now) ? clock(ms) : stamp(ms));

export function lasted(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function number(value, digits = 0) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return value
    .toLocaleString("en-GB", { minimumFractionDigits: digits, maximumFractionDigits: digits })
    .replaceAll(",", "\u202f")
    .replace("-", "−");
}
export const percent = (share) => `${Math.round(100 * share)} %`;
export function pValue(p) {
  if (p === null || p === undefined) return "–";
  return p >= 0.01 ? number(p, 3) : number(p, Math.min(6, Math.max(4, Math.ceil(-Math.log10(Math.max(p, 1e-6))) + 1)));
}
export const probability = (logit) => 1 / (1 + Math.exp(-logit));

/** Places of an incident in a few words. */
export function where(places, most = 3) {
  const names = places.map(([name]) => name).filter(Boolean);
  if (!names.length) return "whole grid";
  return names.slice(0, most).join(", ") + (names.length > most ? ` +${names.length - most}` : "");
}

/** "7.v_pu": 1.013 as [place, quantity, value]. */
export function believed(key, value) {
  const at = key.lastIndexOf(".");
  const unit = { v_pu: ["|V|", "p.u.", 4], mw: ["power", "MW", 1], hz: ["frequency", "Hz", 3] }[key.slice(at + 1)];
  const [what, name, digits] = unit ?? [key.slice(at + 1), "", 4];
  return [key.slice(0, at), what, `${number(value, digits)} ${name}`.trim()];
}
