// Which categories get a lane of their own, and which rows lie in it.

import { calm } from "./format.js";

const REST = "Everything else";
const NAMELESS = "No category";

/** At most `most` lanes: those with the most kept behaviours first, then the longest; what is left shares the last one. */
export function lanesOf(past, explained, most) {
  const groups = new Map();
  for (let row = 0; row < past.length; row += 1) {
    const name = past.category[row] ?? past.query[row] ?? NAMELESS;
    const group = groups.get(name) ?? { name: calm(name), total: 0, kept: 0, rows: [] };
    group.total += 1;
    group.kept += explained?.isKept(row) ? 1 : 0;
    group.rows.push(row);
    groups.set(name, group);
  }
  const sorted = [...groups.values()].sort((a, b) => b.kept - a.kept || b.total - a.total || a.name.localeCompare(b.name));
  const own = sorted.length <= most ? sorted : sorted.slice(0, most - 1);
  const rest = sorted.slice(own.length);
  const lanes = own.map(({ name, total, kept }) => ({ name, total, kept }));
  const laneOf = new Uint8Array(past.length);
  own.forEach((group, lane) => group.rows.forEach((row) => (laneOf[row] = lane)));
  if (rest.length) {
    const sum = (key) => rest.reduce((total, group) => total + group[key], 0);
    rest.forEach((group) => group.rows.forEach((row) => (laneOf[row] = own.length)));
    lanes.push({ name: `${REST} (${rest.length})`, total: sum("total"), kept: sum("kept") });
  }
  return { lanes, laneOf };
}
