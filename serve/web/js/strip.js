// A barcode of moments: where in a life the kept behaviours lie.

import { colour, el, sharp } from "./dom.js";

export function barcode(times, [from, to], width, height, told) {
  const canvas = el("canvas", { class: "barcode", role: "img", "aria-label": told });
  const context = sharp(canvas, width, height);
  context.fillStyle = colour("--grid");
  context.fillRect(0, height - 1, width, 1);
  context.fillStyle = colour("--kept");
  context.globalAlpha = times.length > 60 ? 0.45 : 0.75;
  for (const time of times) context.fillRect(((time - from) / (to - from)) * (width - 1.5), 1, 1.5, height - 3);
  return canvas;
}
