// The effect of K and codec: the same target asked again for each, one request at a time, once a person looks.

import { explain, explainBody } from "./api.js";
import { el, tell } from "./dom.js";
import { elbow } from "./elbow.js";
import { count, fixed, percent, signed } from "./format.js";
import { barcode } from "./strip.js";

export const RETRIEVERS = ["exact", "merged", "int8", "pq"];
const SIZES = [10, 25, 50, 100, 200, 400];
const MOST = 1000;
const NOTES = { exact: "every channel, float", merged: "one key, float", int8: "8-bit, re-scored", pq: "codes, re-scored" };

export class WhatIf {
  /** choose({ k, by }): makes one cell the answer above. */
  constructor(root, choose) {
    Object.assign(this, { root, choose, answers: new Map(), seen: false, past: null });
    this.curve = el("div");
    this.slider = el("input", { type: "range", id: "k-slider", min: "0", max: "100", step: "1", "aria-describedby": "k-told" });
    this.told = el("output", { id: "k-told", for: "k-slider" });
    this.slider.addEventListener("input", () => this.#tellK());
    this.slider.addEventListener("change", () => this.choose({ k: fromSlider(this.slider.value) }));
    this.table = el("table", { class: "sweep" });
    root.replaceChildren(
      el(
        "div",
        { class: "head" },
        el("h2", { id: "whatif-title" }, "What if"),
        el(
          "p",
          { class: "note" },
          "Other K, other codecs: what is kept (over the whole history), the score, and the share of the exact top K. Choose a cell to look closer.",
        ),
      ),
      el(
        "div",
        { class: "whatif" },
        el(
          "div",
          { class: "cut" },
          el("h3", {}, "Relevance by rank"),
          this.curve,
          el("div", { class: "slide" }, el("label", { for: "k-slider" }, "Keep"), this.slider, this.told),
        ),
        el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "K by codec" }, this.table),
      ),
    );
    new IntersectionObserver(([entry]) => entry.isIntersecting && ((this.seen = true), this.#run())).observe(root);
  }

  set(state, past, explained) {
    Object.assign(this, { state, past, explained, seen: false });
    this.running?.abort();
    this.curve.replaceChildren(elbow(explained));
    this.slider.value = toSlider(explained.answer.top_k);
    this.told.textContent = count(explained.answer.top_k);
    const { k: _, by: __, ...rest } = explainBody(state, 0);
    this.base = { ...rest, time_ms: explained.answer.time_ms };
    const key = JSON.stringify([
      { ...this.base, time_ms: state.at, top_k: 0, retriever: "" },
      explained.answer.bundle_version,
      explained.answer.history_length,
    ]);
    if (key !== this.key) [this.key, this.answers] = [key, new Map()];
    const top = explained.answer.top_k;
    this.sizes = [...new Set([...SIZES, top])].sort((a, b) => a - b);
    this.#draw();
    const box = this.root.getBoundingClientRect();
    if (box.top < innerHeight && box.bottom > 0) ((this.seen = true), this.#run());
  }

  async #run() {
    if (!this.seen || this.root.hidden) return;
    this.running?.abort();
    const running = (this.running = new AbortController());
    for (const by of RETRIEVERS) {
      for (const k of this.sizes) {
        if (this.answers.has(`${by} ${k}`)) continue;
        const answer = await explain({ ...this.base, top_k: k, retriever: by }, running.signal).catch((error) => error);
        if (running.signal.aborted) return;
        this.answers.set(`${by} ${k}`, answer);
        this.#draw();
      }
    }
    tell("All of K by codec is there");
  }

  #tellK() {
    this.told.textContent = count(fromSlider(this.slider.value));
  }

  #draw() {
    const focused = this.table.contains(document.activeElement) ? document.activeElement.dataset.cell : null;
    const heads = this.sizes.map((k) => el("th", { scope: "col" }, `K ${k}`));
    const rows = RETRIEVERS.map((by) =>
      el(
        "tr",
        {},
        el("th", { scope: "row" }, by, el("small", {}, NOTES[by])),
        this.sizes.map((k) => el("td", {}, this.#cell(by, k))),
      ),
    );
    this.table.replaceChildren(
      el("caption", { class: "unseen" }, "Score and recall by K and codec"),
      el("thead", {}, el("tr", {}, el("td"), heads)),
      el("tbody", {}, rows),
    );
    if (focused) this.table.querySelector(`[data-cell="${focused}"]`)?.focus();
  }

  #cell(by, k) {
    const [answer, now] = [this.answers.get(`${by} ${k}`), this.explained.answer];
    if (!answer) return el("span", { class: "waiting", "aria-label": "not asked yet" });
    if (answer instanceof Error) return el("span", { class: "faint", title: answer.message }, "refused");
    const here = now.retriever === by && now.top_k === k;
    const change = answer.score - now.score;
    const told = `${by}, K ${k}: score ${fixed(answer.score)}, recall ${percent(answer.recall ?? 1, 1)}`;
    return el(
      "button",
      {
        type: "button",
        class: "cell",
        "data-cell": `${by} ${k}`,
        "aria-pressed": String(here),
        "aria-label": told,
        onclick: () => this.choose({ k, by }),
      },
      barcode(
        answer.kept.map((one) => one.time_ms),
        this.past.span,
        92,
        16,
        told,
      ),
      el("span", { class: "score" }, fixed(answer.score), Math.abs(change) >= 0.0005 ? el("small", {}, signed(change)) : null),
      el(
        "span",
        { class: answer.recall < 1 ? "recall warn" : "recall" },
        answer.recall === null ? "–" : percent(answer.recall, answer.recall < 1 ? 1 : 0),
      ),
    );
  }
}

const fromSlider = (value) => Math.max(1, Math.round(MOST ** (value / 100)));
const toSlider = (k) => String(Math.round((100 * Math.log(k)) / Math.log(MOST)));
