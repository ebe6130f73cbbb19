// A scene on a canvas, for grids of more than 2,000 elements; colours are those of page.css.

import { el } from "./dom.js";

export function canvasPainter(host) {
  const canvas = el("canvas", { class: "grid", "aria-hidden": "true" });
  host.replaceChildren(canvas);
  const pen = canvas.getContext("2d");

  function shape(one, size) {
    pen.beginPath();
    if (one.verdict === "disturbance") {
      pen.moveTo(one.x, one.y - size);
      pen.lineTo(one.x + size, one.y + 0.8 * size);
      pen.lineTo(one.x - size, one.y + 0.8 * size);
    } else {
      pen.moveTo(one.x, one.y - size);
      pen.lineTo(one.x + size, one.y);
      pen.lineTo(one.x, one.y + size);
      pen.lineTo(one.x - size, one.y);
    }
    pen.closePath();
  }

  return {
    paint(scene, width, height) {
      const css = getComputedStyle(host);
      const colour = (name) => css.getPropertyValue(`--${name}`).trim();
      const of = (verdict, otherwise) => (verdict ? colour(verdict) : colour(otherwise));
      const dots = window.devicePixelRatio || 1;
      if (canvas.width !== Math.round(width * dots) || canvas.height !== Math.round(height * dots)) {
        canvas.width = Math.round(width * dots);
        canvas.height = Math.round(height * dots);
        canvas.style.width = `${width}px`;
        canvas.style.height = `${height}px`;
      }
      pen.setTransform(dots, 0, 0, dots, 0, 0);
      pen.clearRect(0, 0, width, height);
      for (const line of scene.lines) {
        pen.strokeStyle = of(line.verdict, line.wide ? "process" : "process-weak");
        pen.lineWidth = line.verdict ? 4 : line.wide ? 1.3 : 0.8;
        pen.setLineDash(line.open ? [4, 3] : []);
        pen.beginPath();
        pen.moveTo(line.x1, line.y1);
        pen.lineTo(line.x2, line.y2);
        pen.stroke();
      }
      pen.setLineDash([]);
      for (const arrow of scene.arrows) {
        pen.save();
        pen.translate(arrow.x, arrow.y);
        pen.rotate(arrow.turn);
        pen.fillStyle = of(arrow.verdict, "process-strong");
        pen.beginPath();
        pen.moveTo(0.8 * arrow.size, 0);
        pen.lineTo(-0.7 * arrow.size, -0.75 * arrow.size);
        pen.lineTo(-0.7 * arrow.size, 0.75 * arrow.size);
        pen.fill();
        pen.restore();
      }
      for (const bus of scene.buses) {
        pen.beginPath();
        pen.arc(bus.x, bus.y, bus.cursor ? bus.radius + 2 : bus.radius, 0, 2 * Math.PI);
        pen.fillStyle = bus.silent ? colour("panel") : colour(bus.score > 0.5 ? "text" : "process");
        pen.fill();
        if (bus.silent || bus.cursor) {
          pen.strokeStyle = colour(bus.cursor ? "text" : "process");
          pen.lineWidth = bus.cursor ? 2 : 0.8;
          pen.stroke();
        }
      }
      for (const bus of scene.buses.filter((one) => one.verdict)) {
        shape(bus, bus.selected ? 10 : 8);
        pen.fillStyle = bus.acked ? colour("panel") : colour(bus.verdict);
        pen.fill();
        pen.strokeStyle = bus.acked ? colour(bus.verdict) : colour("panel");
        pen.lineWidth = 2;
        pen.stroke();
      }
      pen.font = `600 12px ${css.fontFamily}`;
      pen.lineWidth = 3;
      pen.strokeStyle = colour("panel");
      for (const label of scene.labels) {
        pen.textAlign = { start: "left", end: "right" }[label.anchor] ?? "center";
        pen.strokeText(label.text, label.x, label.y);
        pen.fillStyle = of(label.verdict, "text");
        pen.fillText(label.text, label.x, label.y);
      }
    },
  };
}
