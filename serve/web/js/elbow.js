// Relevance by rank, the most relevant first on a logarithmic axis: how sharp the cut at K is, and what a larger K would add.

import { svg } from "./dom.js";
import { count, fixed } from "./format.js";
import { roundValues } from "./scale.js";

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [420, 210, 38, 12, 16, 26];
const POINTS = 240;

export function elbow({ sorted, threshold, answer }) {
  const picture = svg("svg", {
    class: "elbow",
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    role: "img",
    "aria-label": `Relevance falls from ${fixed(sorted[0] ?? NaN)} at rank 1 to ${fixed(threshold)} at rank ${answer.kept.length} and ${fixed(sorted.at(-1) ?? NaN)} at rank ${sorted.length}`,
  });
  if (sorted.length < 2) return picture;
  const [high, low] = [sorted[0], sorted.at(-1)];
  const x = (rank) => LEFT + (Math.log(rank) / Math.log(sorted.length)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low || 1)) * (HEIGHT - TOP - BOTTOM);
  const ranks = [...new Set(Array.from({ length: POINTS }, (_, i) => Math.round(sorted.length ** (i / (POINTS - 1)))))];
  const path = (some) =>
    some.map((rank, i) => `${i ? "L" : "M"}${x(rank).toFixed(1)} ${y(sorted[rank - 1]).toFixed(1)}`).join("");
  const kept = Math.min(answer.kept.length, sorted.length);
  const inside = [...ranks.filter((rank) => rank < kept), kept];
  const floor = HEIGHT - BOTTOM;
  picture.append(
    ...axes(x, y, low, high, sorted.length, floor),
    svg("path", { class: "under", d: `${path(inside)}L${x(kept)} ${floor}L${x(1)} ${floor}Z` }),
    svg("path", { class: "curve", d: path(ranks) }),
    svg("path", { class: "curve kept", d: path(inside) }),
    svg("line", { class: "cut", x1: x(kept), x2: x(kept), y1: TOP - 4, y2: floor }),
    svg(
      "text",
      {
        class: "cut",
        x: x(kept) + (x(kept) > WIDTH * 0.7 ? -6 : 6),
        y: TOP + 4,
        "text-anchor": x(kept) > WIDTH * 0.7 ? "end" : "start",
      },
      `K = ${kept} at ${fixed(threshold, 2)}`,
    ),
  );
  return picture;
}

function axes(x, y, low, high, length, floor) {
  const { values, digits } = roundValues(low, high, 4);
  const across = values.map((value) => [
    svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
    svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, fixed(value, digits)),
  ]);
  const ranks = [1, 10, 100, 1000, 10_000].filter((rank) => rank <= length);
  const down = ranks.map((rank) => [
    svg("line", { class: "grid", x1: x(rank), x2: x(rank), y1: TOP, y2: floor }),
    svg(
      "text",
      { x: x(rank), y: HEIGHT - 8, "text-anchor": rank === 1 ? "start" : "middle" },
      rank === 1 ? "rank 1" : count(rank),
    ),
  ]);
  return [...across.flat(), ...down.flat()];
}
