// Pointers on the timeline: drag to zoom (a finger pans instead), click for the nearest behaviour; move or resize the window of the strip.

import { inside } from "./scale.js";

const NEAR = 18;
const SLACK = 4;

/** Row drawn nearest to a point of the stage, or -1. */
function nearest(timeline, x, y) {
  const { seen } = timeline;
  let [best, found] = [NEAR * NEAR, -1];
  for (let i = 0; i < seen.rows.length; i += 1) {
    const dx = seen.x[i] - x;
    if (Math.abs(dx) > NEAR) continue;
    for (const at of [seen.y[i], seen.v[i]]) {
      const distance = dx * dx + (at - y) * (at - y);
      if (distance < best) [best, found] = [distance, seen.rows[i]];
    }
  }
  return found;
}

function placeIn(node, event) {
  const box = node.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

export function dragMain(timeline) {
  const { stage, band } = timeline;
  let start = null;
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !timeline.seen) return;
    const [x, y] = placeIn(stage, event);
    start = { x, y, finger: event.pointerType !== "mouse", shown: timeline.shown, moved: false };
  });
  stage.addEventListener("pointermove", (event) => {
    if (!timeline.seen) return;
    const [x, y] = placeIn(stage, event);
    if (!start) {
      if (event.pointerType === "mouse") hover(timeline, x, y);
      return;
    }
    if (!start.moved && Math.abs(x - start.x) < SLACK) return;
    if (!start.moved) stage.setPointerCapture(event.pointerId);
    start.moved = true;
    if (start.finger) pan(timeline, start, x);
    else
      (Object.assign(band.style, { left: `${Math.min(x, start.x)}px`, width: `${Math.abs(x - start.x)}px` }),
        (band.hidden = false));
  });
  stage.addEventListener("pointerup", (event) => {
    if (!start) return;
    const [x, y] = placeIn(stage, event);
    if (!start.moved) pick(timeline, x, y);
    else if (!start.finger)
      timeline.show(
        inside([timeline.scale.time(Math.min(x, start.x)), timeline.scale.time(Math.max(x, start.x))], timeline.past.span),
      );
    [start, band.hidden] = [null, true];
  });
  stage.addEventListener("pointercancel", () => ([start, band.hidden] = [null, true]));
  stage.addEventListener("dblclick", (event) => {
    const row = timeline.seen ? nearest(timeline, ...placeIn(stage, event)) : -1;
    if (row >= 0 && timeline.past.known[row]) timeline.take(row);
  });
  stage.addEventListener("wheel", (event) => wheel(timeline, event), { passive: false });
}

function pick(timeline, x, y) {
  const row = nearest(timeline, x, y);
  if (row >= 0) timeline.point(row);
}

function hover(timeline, x, y) {
  const row = nearest(timeline, x, y);
  timeline.stage.title = row >= 0 ? timeline.describe(row).join(" · ") : "";
  timeline.stage.classList.toggle("near", row >= 0);
}

function pan(timeline, start, x) {
  const [from, to] = start.shown;
  const shift = ((x - start.x) / (timeline.scale.right - timeline.scale.left)) * (to - from);
  if (timeline.window) timeline.show(inside([from - shift, to - shift], timeline.past.span));
}

/** With Ctrl it zooms, sideways it pans; a plain wheel scrolls the page. */
function wheel(timeline, event) {
  if (!timeline.seen) return;
  const [from, to] = timeline.shown;
  const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY);
  if (!event.ctrlKey && !(sideways && timeline.window)) return;
  event.preventDefault();
  if (event.ctrlKey) {
    const [x] = placeIn(timeline.stage, event);
    const [middle, factor] = [timeline.scale.time(x), 1.002 ** event.deltaY];
    timeline.show(inside([middle - (middle - from) * factor, middle + (to - middle) * factor], timeline.past.span));
  } else {
    const shift = (event.deltaX / (timeline.scale.right - timeline.scale.left)) * (to - from);
    timeline.show(inside([from + shift, to + shift], timeline.past.span));
  }
}

export function dragStrip(timeline) {
  const { overview, frame } = timeline;
  const [first, second] = frame.querySelectorAll(".grip");
  let start = null;
  overview.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !timeline.whole) return;
    const [x] = placeIn(overview, event);
    const part =
      event.target === first
        ? "from"
        : event.target === second
          ? "to"
          : event.target === frame && timeline.window
            ? "move"
            : "new";
    start = { x, part, shown: timeline.shown };
    overview.setPointerCapture(event.pointerId);
  });
  overview.addEventListener("pointermove", (event) => {
    if (!start) return;
    const [x] = placeIn(overview, event);
    if (Math.abs(x - start.x) >= SLACK) timeline.show(dragged(timeline, start, x));
  });
  const end = () => (start = null);
  overview.addEventListener("pointerup", end);
  overview.addEventListener("pointercancel", end);
  overview.addEventListener("dblclick", () => timeline.show(null));
}

function dragged({ whole, past }, { x: began, part, shown: [from, to] }, x) {
  const [time, shift] = [whole.time(x), whole.time(x) - whole.time(began)];
  if (part === "move") return inside([from + shift, to + shift], past.span);
  const [start, end] = { from: [time, to], to: [from, time], new: [whole.time(began), time] }[part];
  const [first, last] = past.span;
  return inside([Math.max(first, Math.min(start, end)), Math.min(last, Math.max(start, end))], past.span);
}
