// Draws the timeline: density of the whole life, category lanes, relevance. Thousands of dots are one pass over typed arrays.

import { colour, sharp } from "./dom.js";
import { fixed } from "./format.js";
import { roundValues } from "./scale.js";

const TURN = 2 * Math.PI;
const BIN = 3;
const MARKS = 6;
const FONT = '11px ui-sans-serif, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif';

export function palette() {
  const names = ["ink", "ink-2", "ink-3", "line", "grid", "card", "kept", "dot", "later", "area"];
  return Object.fromEntries(names.map((name) => [name, colour(`--${name}`)]));
}

/** Where things stand, in px from the top of the canvas. */
export function geometry(width, lanes, small) {
  const [laneHeight, headroom, gutter, curveHeight] = small ? [32, 17, 34, 96] : [24, 6, 176, 124];
  const lanesTop = 6;
  const lanesBottom = lanesTop + lanes * laneHeight;
  const curveTop = lanesBottom + 26;
  const curveBottom = curveTop + curveHeight;
  return {
    width,
    gutter,
    right: width - 14,
    laneHeight,
    headroom,
    lanesTop,
    lanesBottom,
    curveTop,
    curveBottom,
    height: curveBottom + 24,
  };
}

/** The whole history as bars, and under them a mark wherever something was kept. */
export function paintDensity(canvas, width, height, scale, past, explained) {
  const [context, ink] = [sharp(canvas, width, height), palette()];
  const bins = Math.max(1, Math.ceil((scale.right - scale.left) / BIN));
  const [all, kept] = [new Float32Array(bins), new Float32Array(bins)];
  for (let row = 0; row < past.length; row += 1) {
    const bin = Math.min(bins - 1, Math.max(0, Math.floor((scale.x(past.time[row]) - scale.left) / BIN)));
    all[bin] += 1;
    if (explained?.isKept(row)) kept[bin] += 1;
  }
  const [most, ground] = [Math.max(...all, 1), height - MARKS - 2];
  all.forEach((number, bin) => {
    const tall = number && Math.max(2, Math.sqrt(number / most) * (ground - 2));
    context.fillStyle = ink.dot;
    context.fillRect(scale.left + bin * BIN, ground - tall, BIN - 1, tall);
    context.fillStyle = ink.kept;
    if (kept[bin]) context.fillRect(scale.left + bin * BIN, height - MARKS, BIN - 1, MARKS);
  });
}

/** Lanes and relevance; returns where each visible row was drawn, for the pointer. */
export function paintMain(canvas, at, scale, past, explained, { lanes, laneOf }, until) {
  const [context, ink] = [sharp(canvas, at.width, at.height), palette()];
  context.font = FONT;
  paintFrame(context, ink, at, scale, lanes.length);
  const seen = placed(at, scale, past, explained, laneOf);
  paintLater(context, ink, at, scale, until);
  context.save();
  context.beginPath();
  context.rect(at.gutter - 3, 0, at.right - at.gutter + 6, at.height);
  context.clip();
  if (explained) paintCurve(context, ink, at, seen, explained);
  paintDots(context, ink, seen, explained);
  context.restore();
  return seen;
}

function paintFrame(context, ink, at, scale, lanes) {
  context.lineWidth = 1;
  context.strokeStyle = ink.grid;
  for (let lane = 0; lane <= lanes; lane += 1) {
    const y = Math.round(at.lanesTop + lane * at.laneHeight) + 0.5;
    line(context, at.gutter, y, at.right, y);
  }
  context.fillStyle = ink["ink-2"];
  context.textAlign = "center";
  for (const { x, text } of scale.ticks()) {
    line(context, Math.round(x) + 0.5, at.lanesTop, Math.round(x) + 0.5, at.curveBottom);
    const half = context.measureText(text).width / 2;
    context.fillText(text, Math.min(Math.max(x, at.gutter + half), at.right - half), at.height - 6);
  }
}

function paintLater(context, ink, at, scale, until) {
  if (!until || until >= scale.to) return;
  const x = Math.max(at.gutter, scale.x(until));
  context.fillStyle = ink.later;
  context.fillRect(x, at.lanesTop, at.right - x, at.curveBottom - at.lanesTop);
  context.strokeStyle = ink.ink;
  context.setLineDash([2, 3]);
  line(context, x, at.lanesTop, x, at.curveBottom);
  context.setLineDash([]);
}

/** Behaviours of one basket share a moment, so dots of a lane stack up. */
function placed(at, scale, past, explained, laneOf) {
  const rows = [];
  for (let row = 0; row < past.length; row += 1) if (past.time[row] >= scale.from && past.time[row] <= scale.to) rows.push(row);
  const [x, y, v] = [new Float32Array(rows.length), new Float32Array(rows.length), new Float32Array(rows.length).fill(NaN)];
  const [radius, levels] = [rows.length < 500 ? 2 : 1.5, new Map()];
  const step = radius * 2 + 0.6;
  const room = Math.max(1, Math.floor((at.laneHeight - at.headroom) / step));
  const [low, high] = bounds(explained);
  const height = at.curveBottom - at.curveTop;
  // Kept ones first: they lie on the ground of their lane.
  const order = [...rows.keys()].sort(
    (a, b) => Number(explained?.isKept(rows[b]) ?? 0) - Number(explained?.isKept(rows[a]) ?? 0) || a - b,
  );
  for (const i of order) {
    const row = rows[i];
    x[i] = scale.x(past.time[row]);
    const key = laneOf[row] * 10_000 + Math.round(x[i] / step);
    const level = levels.get(key) ?? 0;
    levels.set(key, level + 1);
    y[i] = at.lanesTop + (laneOf[row] + 1) * at.laneHeight - 4 - radius - (level % room) * step;
    const relevance = explained?.relevance[row] ?? NaN;
    if (!Number.isNaN(relevance)) v[i] = at.curveBottom - ((relevance - low) / (high - low)) * height;
  }
  return { rows, x, y, v, radius };
}

function paintDots(context, ink, { rows, x, y, v, radius }, explained) {
  for (const kept of [false, true]) {
    context.fillStyle = kept ? ink.kept : ink.dot;
    const [lane, curve] = kept ? [radius + 1.2, 2.6] : [radius, 1.2];
    context.beginPath();
    rows.forEach((row, i) => {
      if ((explained?.isKept(row) ?? false) !== kept) return;
      dot(context, x[i], y[i], lane);
      if (!Number.isNaN(v[i])) dot(context, x[i], v[i], curve);
    });
    context.fill();
  }
}

function paintCurve(context, ink, at, { x, v }, explained) {
  const [low, high] = bounds(explained);
  const height = at.curveBottom - at.curveTop;
  const level = (value) => at.curveBottom - ((value - low) / (high - low)) * height;
  const tops = new Map();
  v.forEach((value, i) => {
    const column = Math.round(x[i] / 2) * 2;
    if (!Number.isNaN(value)) tops.set(column, Math.min(value, tops.get(column) ?? Infinity));
  });
  context.fillStyle = ink.area;
  for (const [column, top] of tops) context.fillRect(column - 1, top, 2, at.curveBottom - top);
  if (explained.threshold === null) return;
  const y = level(explained.threshold);
  context.strokeStyle = ink.kept;
  context.setLineDash([4, 3]);
  line(context, at.gutter, y, at.right, y);
  context.setLineDash([]);
}

/** Values of the relevance axis: [{ y, text }], and where the threshold lies. */
export function relevanceAxis(at, explained) {
  const [low, high] = bounds(explained);
  const y = (value) => at.curveBottom - ((value - low) / (high - low)) * (at.curveBottom - at.curveTop);
  const { values, digits } = roundValues(low, high, 5);
  return {
    ticks: values.map((value) => ({ y: y(value), text: fixed(value, digits) })),
    threshold: explained.threshold === null ? null : y(explained.threshold),
  };
}

function bounds(explained) {
  const sorted = explained?.sorted;
  if (!sorted?.length) return [0, 1];
  const [high, low] = [sorted[0], sorted[sorted.length - 1]];
  const margin = (high - low) * 0.06 || 0.5;
  return [low - margin, high + margin];
}

function dot(context, x, y, radius) {
  context.moveTo(x + radius, y);
  context.arc(x, y, radius, 0, TURN);
}

function line(context, x1, y1, x2, y2) {
  context.beginPath();
  context.moveTo(x1, y1);
  context.lineTo(x2, y2);
  context.stroke();
}
