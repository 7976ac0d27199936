// Elements without strings of HTML: nothing that a history holds can become markup.

const SVG = "http://www.w3.org/2000/svg";

export function el(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([key, one]) => node.style.setProperty(key, one));
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function byId(id) {
  return document.getElementById(id);
}

let numbered = 0;

export function freshId(prefix) {
  numbered += 1;
  return `${prefix}-${numbered}`;
}

/** Told to screen readers, once it has been quiet for a moment. */
let telling = 0;

export function tell(sentence) {
  clearTimeout(telling);
  telling = setTimeout(() => (byId("live").textContent = sentence), 250);
}

/** Calls `draw` at most once a frame, with the newest wish. */
export function framed(draw) {
  let waiting = 0;
  return () => {
    if (!waiting) waiting = requestAnimationFrame(() => ((waiting = 0), draw()));
  };
}

/** A canvas sized in CSS pixels, sharp on any screen; returns its context, cleared. */
export function sharp(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** A custom property of the page's style, e.g. `--ink`. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
