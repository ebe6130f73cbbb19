// What is drawn of a grid, in pixels: lines of circuits, arrows of flow, buses, marks, labels. No drawing is done here.

const PAD = 26;
const APART = 3.4; // pixels between the circuits of a corridor
const CHARACTER = 7.2; // pixels of one in a name
const STRETCH = 2.4;
const LABELS = 64; // buses up to which each one is named
const ARROW_ROOM = 22;

/** The grid's corridors (all circuits between two buses) and neighbours; made once per layout. */
export function plan(layout) {
  const between = new Map();
  const neighbours = layout.buses.map(() => []);
  layout.branches.forEach((branch, e) => {
    const key = branch.from < branch.to ? `${branch.from}-${branch.to}` : `${branch.to}-${branch.from}`;
    if (!between.has(key))
      between.set(key, { a: Math.min(branch.from, branch.to), b: Math.max(branch.from, branch.to), branches: [] });
    between.get(key).branches.push(e);
  });
  const corridors = [...between.values()];
  for (const { a, b } of corridors) {
    neighbours[a].push(b);
    neighbours[b].push(a);
  }
  const index = new Map(layout.buses.map((bus, i) => [bus.name, i]));
  const branchIndex = new Map();
  layout.branches.forEach((branch, e) => {
    if (!branchIndex.has(branch.name)) branchIndex.set(branch.name, []);
    branchIndex.get(branch.name).push(e);
  });
  const tall = Math.max(...layout.buses.map((bus) => bus.y)) - Math.min(...layout.buses.map((bus) => bus.y));
  const wide = Math.max(...layout.buses.map((bus) => bus.x)) - Math.min(...layout.buses.map((bus) => bus.x));
  return { layout, corridors, neighbours, index, branchIndex, aspect: (wide || 1) / (tall || 1) };
}

/** Pixels of every bus: the whole grid with its names fitted to the box, then zoomed by view {k, x, y}. */
export function place(drawn, width, height, view) {
  const { buses } = drawn.layout;
  const xs = buses.map((bus) => bus.x);
  const ys = buses.map((bus) => bus.y);
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const room =
    buses.length <= LABELS ? buses.map((bus) => Math.max(PAD, 14 + CHARACTER * bus.name.length)) : buses.map(() => PAD);
  const down = (height - 2 * PAD) / (bottom - top || 1);
  const middle = (left + right) / 2;
  const outer = (right - left) / 4;
  // as wide as leaves room for every name that stands outwards of its bus
  let across = (width - 2 * PAD) / (right - left || 1);
  const fits = () =>
    buses.every(
      (bus, i) => width / 2 - across * Math.abs(bus.x - middle) >= (Math.abs(bus.x - middle) > outer ? room[i] : PAD),
    );
  for (let tries = 0; tries < 60 && !fits(); tries += 1) across *= 0.98;
  // what follows the land keeps its shape; other drawings may be stretched to the panel
  const most = drawn.layout.geographic ? 1 : STRETCH;
  const [sx, sy] = [Math.min(across, most * down), Math.min(down, most * across)];
  return buses.map((bus) => [
    width / 2 + view.k * (sx * (bus.x - middle)) + view.x,
    height / 2 + view.k * (sy * (bus.y - (top + bottom) / 2)) + view.y,
  ]);
}

/**
 * Everything to draw.
 * state: {map: MapRecord or null, marks: Map bus -> {verdict, acked, selected}, lines: Map branch -> {verdict}, cursor}
 */
export function scene(drawn, at, state) {
  const { layout, corridors, neighbours } = drawn;
  const { map, marks, lines: flagged, cursor } = state;
  const small = layout.buses.length <= LABELS;
  const lines = [];
  const arrows = [];
  const flow = (e) => (map ? map.p_mw[e] : 0);
  const largest = map ? Math.max(1, ...corridors.map((c) => Math.abs(net(c)))) : 1;
  function net(corridor) {
    return corridor.branches.reduce((sum, e) => sum + (layout.branches[e].from === corridor.a ? flow(e) : -flow(e)), 0);
  }
  for (const corridor of corridors) {
    const [[x1, y1], [x2, y2]] = [at[corridor.a], at[corridor.b]];
    const long = Math.hypot(x2 - x1, y2 - y1) || 1;
    const [nx, ny] = [-(y2 - y1) / long, (x2 - x1) / long];
    const near = corridor.branches.some((e) => flagged.has(e));
    const shown = small || near ? corridor.branches : corridor.branches.slice(0, 1);
    shown.forEach((e, k) => {
      const off = APART * (k - (shown.length - 1) / 2);
      const branch = layout.branches[e];
      const kv = Math.max(layout.buses[branch.from].kv, layout.buses[branch.to].kv);
      lines.push({
        e,
        x1: x1 + off * nx,
        y1: y1 + off * ny,
        x2: x2 + off * nx,
        y2: y2 + off * ny,
        wide: !branch.transformer && kv >= 200,
        open: map ? map.status[e] === 0 : false,
        verdict: flagged.get(e)?.verdict ?? null,
      });
    });
    const mw = net(corridor);
    if (map && long > (small ? ARROW_ROOM : 1.6 * ARROW_ROOM) && Math.abs(mw) > (small ? 0.01 : 0.04) * largest) {
      const turn = Math.atan2(y2 - y1, x2 - x1) + (mw < 0 ? Math.PI : 0);
      const size = 3.2 + 2.6 * Math.sqrt(Math.abs(mw) / largest) + (APART / 2) * (shown.length - 1);
      arrows.push({
        x: (x1 + x2) / 2,
        y: (y1 + y2) / 2,
        turn,
        size,
        verdict: near ? flagged.get(corridor.branches.find((e) => flagged.has(e))).verdict : null,
      });
    }
  }
  const buses = layout.buses.map((bus, i) => {
    const [x, y] = at[i];
    const marked = marks.get(i) ?? null;
    return {
      i,
      x,
      y,
      score: map?.node[i] ?? 0,
      silent: map ? map.heard[i] === 0 : false,
      verdict: marked?.verdict ?? null,
      acked: marked?.acked ?? false,
      selected: marked?.selected ?? false,
      radius: small ? 4.2 : 1.5,
      cursor: i === cursor,
    };
  });
  return { lines, arrows, buses, labels: labels(drawn, at, buses, small, neighbours) };
}

/** A name beside its bus, in the widest gap between the lines that meet there. */
function labels(drawn, at, buses, small, neighbours) {
  const out = [];
  for (const bus of buses) {
    if (!small && !bus.verdict && !bus.cursor) continue;
    const turns = neighbours[bus.i].map((j) => Math.atan2(at[j][1] - bus.y, at[j][0] - bus.x)).sort((a, b) => a - b);
    let [best, turn] = [-1, 0];
    turns.forEach((start, k) => {
      const gap = (k + 1 < turns.length ? turns[k + 1] : turns[0] + 2 * Math.PI) - start;
      if (gap > best + 1e-6) [best, turn] = [gap, start + gap / 2];
    });
    const strong = bus.verdict !== null || bus.cursor;
    const far = strong ? 13 : 9;
    const [cx, cy] = [Math.cos(turn), Math.sin(turn)];
    const share = bus.verdict && bus.score > 0 ? ` · ${Math.round(100 * bus.score)} %` : "";
    out.push({
      x: bus.x + far * cx,
      y: bus.y + far * cy + 3.5 + 2 * cy,
      text: drawn.layout.buses[bus.i].name + share,
      anchor: cx > 0.03 ? "start" : cx < -0.03 ? "end" : "middle",
      strong,
      verdict: bus.verdict,
    });
  }
  return out;
}

/** The bus within reach of a point, else the circuit, else null. */
export function pick(drawn, at, lines, x, y) {
  let [bus, nearest] = [-1, 14];
  at.forEach(([bx, by], i) => {
    const far = Math.hypot(bx - x, by - y);
    if (far < nearest) [bus, nearest] = [i, far];
  });
  if (bus >= 0) return { bus };
  let [branch, close] = [-1, 6];
  for (const line of lines) {
    const [dx, dy] = [line.x2 - line.x1, line.y2 - line.y1];
    const t = Math.max(0, Math.min(1, ((x - line.x1) * dx + (y - line.y1) * dy) / (dx * dx + dy * dy || 1)));
    const far = Math.hypot(line.x1 + t * dx - x, line.y1 + t * dy - y);
    if (far < close) [branch, close] = [line.e, far];
  }
  return branch >= 0 ? { branch } : null;
}

/** The bus that an arrow key leads to from another one: nearest in that direction, neighbours before others. */
export function step(drawn, at, from, dx, dy) {
  const rank = (i, plus) => {
    const [x, y] = [at[i][0] - at[from][0], at[i][1] - at[from][1]];
    const along = x * dx + y * dy;
    const across = Math.abs(x * dy - y * dx);
    return along > 0.5 && across <= 1.8 * along ? along + 2 * across + plus : Infinity;
  };
  let [best, found] = [Infinity, from];
  const joined = new Set(drawn.neighbours[from]);
  at.forEach((_, i) => {
    if (i === from) return;
    const far = rank(i, joined.has(i) ? 0 : 40);
    if (far < best) [best, found] = [far, i];
  });
  return found;
}
