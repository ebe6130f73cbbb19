// Scans into the series of each timeline: score, frequency, demand, and the generation mix stacked by source.

import { sourceOf } from "./format.js";

const HELD_SCANS = 7; // a source that says nothing is drawn where it was for so long
const ORDER = ["Nuclear", "Biomass", "Gas", "Hydro", "Other", "Wind", "Solar", "Imports"];

/** Times and numbers of each panel that there is something for. */
export function panels(scans) {
  const xs = scans.map((one) => one.time_ms / 1000);
  const value = (name) => scans.map((one) => one.values[name] ?? null);
  const names = new Set(scans.flatMap((one) => Object.keys(one.values)));
  const out = [
    {
      id: "score",
      title: "Score",
      unit: "",
      digits: 1,
      data: [xs, scans.map((one) => one.score), scans.map((one) => one.threshold)],
      names: ["score", "threshold"],
    },
  ];
  if (names.has("FREQ"))
    out.push({ id: "frequency", title: "Frequency", unit: "Hz", digits: 2, data: [xs, value("FREQ")], names: ["Hz"] });
  for (const name of ["DEMAND", "INDO"]) {
    if (!names.has(name)) continue;
    const told = value(name);
    // half-hourly values among five-minute scans: joined, and each one shown as a point
    out.push({
      id: name,
      title: "Demand",
      unit: "MW",
      digits: 0,
      data: [xs, told],
      names: ["MW"],
      sparse: told.filter((mw) => mw !== null).length < told.length / 2,
    });
  }
  const mix = sources(scans, names);
  if (mix.names.length)
    out.push({
      id: "mix",
      title: mix.names.length > 1 ? "Generation" : mix.names[0],
      unit: "MW",
      digits: 0,
      stacked: mix.names.length > 1,
      ...mix,
      data: [xs, ...mix.data],
    });
  return out;
}

/** Sources stacked from below, exports (and pumping) apart below zero. */
function sources(scans, names) {
  const groups = new Map();
  for (const name of names) {
    const group = sourceOf(name);
    if (group) groups.set(group, [...(groups.get(group) ?? []), name]);
  }
  const order = ORDER.filter((group) => groups.has(group));
  const held = carried(scans, [...groups.values()].flat());
  const sum = (i, keys, sign) => keys.reduce((total, key) => total + Math.max(0, sign * (held.get(key)[i] ?? 0)), 0);
  const has = (i) => [...held.values()].some((values) => values[i] !== null);
  let below = scans.map(() => 0);
  const data = order.map(
    (group) => (below = scans.map((_, i) => (has(i) ? below[i] + sum(i, groups.get(group), 1) : null))),
  );
  const exported = scans.map((_, i) => (has(i) ? -sum(i, [...groups.values()].flat(), -1) : null));
  const sends = exported.some((mw) => mw < 0);
  return {
    names: sends ? [...order, "Exports"] : order,
    data: sends ? [...data, exported] : data,
    groups: order.length,
  };
}

/** Values of sources with short silences filled by what was last said. */
function carried(scans, names) {
  return new Map(
    names.map((name) => {
      let [last, age] = [null, 0];
      return [
        name,
        scans.map((one) => {
          const value = one.values[name];
          age = value === undefined ? age + 1 : 0;
          last = value ?? (age > HELD_SCANS ? null : last);
          return last;
        }),
      ];
    }),
  );
}
