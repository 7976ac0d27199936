// Small pictures of shares: a stacked bar with its legend, a row's channel parts around zero, cells of attention.

import { el, svg } from "./dom.js";
import { fixed, percent } from "./format.js";

/** [{ name, value, kind }] as one bar of the whole width and a legend under it. write: how a value is told. */
export function shares(parts, write) {
  const total = parts.reduce((sum, part) => sum + part.value, 0) || 1;
  const bar = parts
    .filter((part) => part.value > 0)
    .map((part) =>
      el("i", {
        class: `fill ${part.kind}`,
        style: { width: `${(100 * part.value) / total}%` },
        title: `${part.name} ${write(part.value)}`,
      }),
    );
  const legend = parts.map((part) =>
    el(
      "li",
      { class: part.value ? null : "zero" },
      el("i", { class: `swatch ${part.kind}` }),
      part.name,
      " ",
      el("b", {}, write(part.value)),
    ),
  );
  return el(
    "div",
    { class: "shares" },
    el("div", { class: "bar", "aria-hidden": "true" }, bar),
    el("ul", { class: "legend" }, legend),
  );
}

/** Sum of positive and of negative parts over all rows: the common scale of `parts`. */
export function reach(rows) {
  const sums = rows.map((channels) =>
    Object.values(channels).reduce(([low, high], part) => [low + Math.min(0, part), high + Math.max(0, part)], [0, 0]),
  );
  return [Math.min(0, ...sums.map(([low]) => low)), Math.max(1e-9, ...sums.map(([, high]) => high))];
}

/** One row's channels: what helps to the right of zero, what hinders to the left. */
export function parts(channels, [low, high]) {
  const [width, height] = [100, 10];
  const x = (value) => ((value - low) / (high - low)) * width;
  let [left, right] = [0, 0];
  const boxes = Object.entries(channels).map(([name, part]) => {
    const start = part < 0 ? (left += part) : right;
    if (part >= 0) right += part;
    return svg("rect", {
      class: `fill ${name}`,
      x: x(start),
      y: 0,
      width: Math.max(0, x(start + Math.abs(part)) - x(start)),
      height,
    });
  });
  const zero = low < 0 ? svg("line", { class: "zero", x1: x(0), x2: x(0), y1: -2, y2: height + 2 }) : null;
  const told = Object.entries(channels)
    .map(([name, part]) => `${name} ${fixed(part)}`)
    .join(", ");
  return svg(
    "svg",
    {
      class: "parts",
      viewBox: `0 -2 ${width} ${height + 4}`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": `Parts of the relevance: ${told}`,
    },
    svg("title", {}, told),
    ...boxes,
    zero,
  );
}

/** One cell a head, darker with more attention; most_H: the attention that is darkest. */
export function heat(attention_H, most_H) {
  const cells = attention_H.map((weight, head) => {
    const share = most_H[head] ? weight / most_H[head] : 0;
    return el("i", { style: { "--heat": share.toFixed(3) }, title: `head ${head + 1}: ${percent(weight, 2)}` });
  });
  const told = attention_H.map((weight, head) => `head ${head + 1} ${percent(weight, 1)}`).join(", ");
  return el("span", { class: "heat", role: "img", "aria-label": `Attention: ${told}` }, cells);
}
