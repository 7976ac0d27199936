// The timeline: a strip of the whole life with a window, category lanes and relevance in that window, and a cursor on a behaviour.

import { el, framed, tell } from "./dom.js";
import { calm, count, day, fixed, instant, plural } from "./format.js";
import { lanesOf } from "./lanes.js";
import { geometry, paintDensity, paintMain, relevanceAxis } from "./paint.js";
import { dragMain, dragStrip } from "./drags.js";
import { TimeScale, inside } from "./scale.js";

const STRIP = 46;
const SMALL = 640;

export class Timeline {
  /** show([from, to] | null), point(row), take(row): what the person wants. */
  constructor(root, { show, point, take }) {
    Object.assign(this, { root, show, point, take, past: null, explained: null, window: null, row: -1, until: null });
    this.draw = framed(() => this.#draw());
    this.#build();
    new ResizeObserver(this.draw).observe(this.stage);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", this.draw);
  }

  setPast(past) {
    [this.past, this.explained, this.row] = [past, null, -1];
    this.#arrange();
  }

  /** until: moment of the request, null for now. */
  setExplained(explained, until) {
    [this.explained, this.until] = [explained, until];
    this.#arrange();
  }

  setWindow(window) {
    this.window = window && this.past ? inside(window, this.past.span) : null;
    this.draw();
  }

  setRow(row) {
    this.row = row;
    this.#read();
    this.draw();
  }

  get shown() {
    return this.window ?? this.past.span;
  }

  #build() {
    const button = (text, label, act) =>
      el("button", { type: "button", class: "small", "aria-label": label, onclick: act }, text);
    this.note = el("p", { class: "note" });
    this.strip = el("canvas", { "aria-hidden": "true" });
    this.frame = el("div", { class: "window" }, el("i", { class: "grip" }), el("i", { class: "grip" }));
    this.overview = el("div", { class: "overview", "aria-hidden": "true" }, this.strip, this.frame);
    this.canvas = el("canvas", { "aria-hidden": "true" });
    this.labels = el("ol", { class: "lanes" });
    this.axis = el("div", { class: "axis", "aria-hidden": "true" });
    this.marks = ["line", "ring", "ring"].map((name) => el("i", { class: `cursor ${name}`, hidden: true }));
    this.band = el("i", { class: "band", hidden: true });
    this.stage = el(
      "div",
      {
        class: "stage",
        role: "slider",
        tabindex: "0",
        "aria-label": "Behaviours by time",
        "aria-valuemin": "1",
        "aria-describedby": "timeline-keys",
      },
      this.canvas,
      ...this.marks,
      this.band,
    );
    this.readout = el("p", { class: "readout" });
    this.root.replaceChildren(
      el(
        "div",
        { class: "head" },
        el("h2", { id: "timeline-title" }, "History"),
        this.note,
        el(
          "div",
          { class: "tools" },
          button("−", "Zoom out", () => this.zoom(2)),
          button("+", "Zoom in", () => this.zoom(0.5)),
          button("All", "Show the whole history", () => this.show(null)),
        ),
      ),
      this.overview,
      el("div", { class: "field-of-view" }, this.labels, this.axis, this.stage),
      this.readout,
      el(
        "p",
        { class: "keys", id: "timeline-keys" },
        "Arrows: one behaviour; with Shift: kept ones only. Page Up and Down: 50. + − 0: zoom. Enter: take it as the target. Drag to zoom.",
      ),
    );
    this.stage.addEventListener("keydown", (event) => this.#key(event));
    dragMain(this);
    dragStrip(this);
  }

  #arrange() {
    this.lanes = this.past ? lanesOf(this.past, this.explained, this.root.clientWidth < SMALL ? 7 : 10) : null;
    this.labels.replaceChildren(
      ...(this.lanes?.lanes ?? []).map(({ name, total, kept }) => {
        const numbers = this.explained && kept ? [el("b", {}, count(kept)), ` of ${count(total)}`] : [count(total)];
        return el("li", { title: name }, el("span", { class: "name" }, name), el("span", { class: "number" }, ...numbers));
      }),
    );
    this.#read();
    this.draw();
  }

  #draw() {
    if (!this.past?.length || !this.stage.clientWidth) return;
    const small = this.root.clientWidth < SMALL;
    const width = this.stage.clientWidth;
    this.at = geometry(width, this.lanes.lanes.length, small);
    this.root.style.setProperty("--gutter", `${this.at.gutter}px`);
    this.root.style.setProperty("--lane", `${this.at.laneHeight}px`);
    this.whole = new TimeScale(...this.past.span, this.at.gutter, this.at.right);
    this.scale = new TimeScale(...this.shown, this.at.gutter, this.at.right);
    paintDensity(this.strip, width, STRIP, this.whole, this.past, this.explained);
    this.seen = paintMain(this.canvas, this.at, this.scale, this.past, this.explained, this.lanes, this.until);
    const [left, right] = this.shown.map((ms) => this.whole.x(ms));
    Object.assign(this.frame.style, { left: `${left}px`, width: `${Math.max(6, right - left)}px` });
    this.frame.classList.toggle("all", !this.window);
    this.note.textContent = this.#summary();
    this.#drawAxis();
    this.#drawCursor();
  }

  #summary() {
    const [from, to] = this.shown;
    const dates = `${day(Math.max(from, this.past.time[0]))} – ${day(Math.min(to, this.past.time.at(-1)))}`;
    const cut = this.past.offset ? `, the newest of ${count(this.past.total)}` : "";
    return this.window
      ? `${count(this.seen.rows.length)} of ${plural(this.past.length, "behaviour")}, ${dates}${cut}`
      : `${plural(this.past.length, "behaviour")}, ${dates}${cut}`;
  }

  #drawAxis() {
    const top = (y) => ({ top: `${y}px` });
    if (!this.explained) {
      const text = "Choose a target, and its relevance to every behaviour is drawn here.";
      this.axis.replaceChildren(el("span", { class: "hint", style: top((this.at.curveTop + this.at.curveBottom) / 2) }, text));
      return;
    }
    const { ticks, threshold } = relevanceAxis(this.at, this.explained);
    const near = (tick) => threshold !== null && Math.abs(tick.y - threshold) < 13;
    const parts = ticks.filter((tick) => !near(tick)).map((tick) => el("span", { class: "tick", style: top(tick.y) }, tick.text));
    const title = el("span", { class: "title", style: top(this.at.curveTop - 14) }, "Relevance");
    const kept =
      threshold === null
        ? null
        : el(
            "span",
            { class: "tick kept", style: top(threshold) },
            el("span", { class: "word" }, `top ${this.explained.answer.kept.length}`),
            fixed(this.explained.threshold, 2),
          );
    this.axis.replaceChildren(title, ...parts, ...(kept ? [kept] : []));
  }

  #drawCursor() {
    const i = this.row < 0 ? -1 : this.seen.rows.indexOf(this.row);
    const [bar, lane, curve] = this.marks;
    this.marks.forEach((mark) => (mark.hidden = i < 0));
    if (i < 0) return;
    const { x, y, v } = this.seen;
    Object.assign(bar.style, {
      left: `${x[i]}px`,
      top: `${this.at.lanesTop}px`,
      height: `${this.at.curveBottom - this.at.lanesTop}px`,
    });
    Object.assign(lane.style, { left: `${x[i]}px`, top: `${y[i]}px` });
    curve.hidden = Number.isNaN(v[i]);
    Object.assign(curve.style, { left: `${x[i]}px`, top: `${v[i]}px` });
  }

  /** What stands under the cursor, in words. */
  describe(row) {
    const { past, explained } = this;
    const parts = [past.name(row), calm(past.category[row]), instant(past.time[row])];
    if (past.query[row]) parts.push(`under “${past.query[row]}”`);
    if (!past.known[row]) parts.push("unknown to this bundle");
    if (explained && explained.rank[row]) {
      parts.push(
        `relevance ${fixed(explained.relevance[row])}, number ${count(explained.rank[row])}${explained.isKept(row) ? ", kept" : ""}`,
      );
    }
    return parts.filter(Boolean);
  }

  #read() {
    const { past, row } = this;
    this.stage.setAttribute("aria-valuemax", String(past?.length ?? 1));
    this.stage.setAttribute("aria-valuenow", String(Math.max(1, row + 1)));
    if (!past || row < 0) {
      this.stage.setAttribute("aria-valuetext", past ? plural(past.length, "behaviour") : "nothing");
      this.readout.replaceChildren(
        el("span", { class: "faint" }, "Point at a behaviour, or walk along them with the arrow keys."),
      );
      return;
    }
    const [name, ...rest] = this.describe(row);
    this.stage.setAttribute("aria-valuetext", `${[name, ...rest].join(", ")}; ${row + 1} of ${past.length}`);
    const take = el(
      "button",
      { type: "button", class: "small", onclick: () => this.take(row), disabled: !past.known[row] },
      "Take as target",
    );
    this.readout.replaceChildren(el("b", {}, name), ...rest.map((part) => el("span", {}, part)), take);
  }

  zoom(factor) {
    if (!this.past) return;
    const [from, to] = this.shown;
    const cursor = this.row >= 0 ? this.past.time[this.row] : NaN;
    const middle = cursor >= from && cursor <= to ? cursor : (from + to) / 2;
    const share = (middle - from) / (to - from);
    const length = (to - from) * factor;
    const [first, last] = this.past.span;
    this.show(length >= last - first ? null : inside([middle - share * length, middle + (1 - share) * length], [first, last]));
  }

  #key(event) {
    const zooms = { "+": 0.5, "=": 0.5, "-": 2 };
    const moves = {
      ArrowRight: 1,
      ArrowUp: 1,
      ArrowLeft: -1,
      ArrowDown: -1,
      PageUp: 50,
      PageDown: -50,
      Home: -Infinity,
      End: Infinity,
    };
    if (!this.past?.length || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key in moves) this.#step(moves[event.key], event.shiftKey);
    else if (event.key in zooms) this.zoom(zooms[event.key]);
    else if (event.key === "0" || event.key === "Escape") this.show(null);
    else if (event.key === "Enter" && this.row >= 0) this.take(this.row);
    else return;
    event.preventDefault();
  }

  #step(step, keptOnly) {
    const last = this.past.length - 1;
    let row = this.row < 0 ? (step > 0 ? -1 : last + 1) : this.row;
    if (keptOnly && this.explained) {
      const way = Math.sign(step);
      for (row += way; row >= 0 && row <= last && !this.explained.isKept(row);) row += way;
      if (row < 0 || row > last) return tell("No further kept behaviour");
    } else row = Math.min(last, Math.max(0, row + step));
    this.point(row);
    const time = this.past.time[row];
    const [from, to] = this.shown;
    if (time < from || time > to) this.show(inside([time - (to - from) / 2, time + (to - from) / 2], this.past.span));
  }
}
