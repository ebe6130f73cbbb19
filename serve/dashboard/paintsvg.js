// A scene as SVG: elements are kept and only what changed is written. For grids of up to 2,000 elements.

import { mark, svg } from "./dom.js";

const DIAMOND = "M0-9 9 0 0 9-9 0Z";
const TRIANGLE = "M0-9 9 7H-9Z";
const SHAPE = { implausible: DIAMOND, disturbance: TRIANGLE };

export function svgPainter(host) {
  const layers = {
    lines: svg("g", { class: "lines" }),
    arrows: svg("g", { class: "arrows" }),
    buses: svg("g", { class: "buses" }),
    marks: svg("g", { class: "marks" }),
    labels: svg("g", { class: "labels" }),
  };
  const root = svg("svg", { class: "grid", "aria-hidden": "true", focusable: "false" }, ...Object.values(layers));
  host.replaceChildren(root);

  function each(layer, items, tag, write) {
    items.forEach((item, k) => {
      const node = layer.children[k] ?? layer.appendChild(svg(tag));
      write(node, item);
    });
    while (layer.children.length > items.length) layer.lastChild.remove();
  }

  return {
    paint(scene, width, height) {
      mark(root, "viewBox", `0 0 ${width} ${height}`);
      mark(root, "width", width);
      mark(root, "height", height);
      each(layers.lines, scene.lines, "line", (node, one) => {
        for (const name of ["x1", "y1", "x2", "y2"]) mark(node, name, one[name].toFixed(1));
        mark(node, "class", `line${one.wide ? " wide" : ""}${one.open ? " open" : ""}`);
        mark(node, "data-verdict", one.verdict);
      });
      each(layers.arrows, scene.arrows, "path", (node, one) => {
        mark(
          node,
          "d",
          `M${-one.size * 0.7} ${-one.size * 0.75} ${one.size * 0.8} 0 ${-one.size * 0.7} ${one.size * 0.75}Z`,
        );
        mark(
          node,
          "transform",
          `translate(${one.x.toFixed(1)} ${one.y.toFixed(1)}) rotate(${((one.turn * 180) / Math.PI).toFixed(1)})`,
        );
        mark(node, "data-verdict", one.verdict);
      });
      each(layers.buses, scene.buses, "circle", (node, one) => {
        mark(node, "cx", one.x.toFixed(1));
        mark(node, "cy", one.y.toFixed(1));
        mark(node, "r", one.cursor ? one.radius + (one.verdict ? 11 : 2) : one.radius);
        mark(node, "class", `bus${one.silent ? " silent" : ""}${one.cursor ? " cursor" : ""}`);
        mark(node, "data-score", Math.min(4, Math.floor(one.score * 5)));
      });
      const marked = scene.buses.filter((one) => one.verdict);
      each(layers.marks, marked, "path", (node, one) => {
        mark(node, "d", SHAPE[one.verdict] ?? DIAMOND);
        mark(
          node,
          "transform",
          `translate(${one.x.toFixed(1)} ${one.y.toFixed(1)})${one.selected ? " scale(1.25)" : ""}`,
        );
        mark(node, "class", `flag${one.acked ? " acked" : ""}${one.selected ? " selected" : ""}`);
        mark(node, "data-verdict", one.verdict);
      });
      each(layers.labels, scene.labels, "text", (node, one) => {
        mark(node, "x", one.x.toFixed(1));
        mark(node, "y", one.y.toFixed(1));
        mark(node, "text-anchor", one.anchor);
        mark(node, "class", one.strong ? "strong" : null);
        mark(node, "data-verdict", one.verdict);
        if (node.textContent !== one.text) node.textContent = one.text;
      });
    },
  };
}
