// Elements from data: attributes and text only, never markup, so that no name of a bus can become code.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element with attributes (`on…` are listeners, null leaves one out) and children (text or nodes). */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same in the namespace of SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Set the text of a node only where it changed: screen readers repeat what is written anew. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Set or remove an attribute where it changed. */
export function mark(node, name, value) {
  if (value === null || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** The sign of a verdict; filled by the colour of its `data-verdict` in page.css. */
export function icon(verdict, hollow = false) {
  const name = { implausible: "implausible", disturbance: "disturbance", normal: "normal" }[verdict] ?? "unknown";
  return svg(
    "svg",
    { class: "icon", "data-verdict": name, "data-hollow": hollow, "aria-hidden": "true" },
    svg("use", { href: `#i-${name}` }),
  );
}

/** A share 0 to 1 as a bar; its number stands beside it in text. */
export function bar(share, verdict = null, sign = 1) {
  const wide = Math.max(0, Math.min(1, Math.abs(share))) * 100;
  return svg(
    "svg",
    {
      class: "meter",
      "data-verdict": verdict,
      "data-sign": sign < 0 ? "minus" : null,
      viewBox: "0 0 100 8",
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    },
    svg("rect", { class: "whole", width: 100, height: 8 }),
    svg("rect", { class: "part", width: wide, height: 8 }),
  );
}
