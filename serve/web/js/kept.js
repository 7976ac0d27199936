// What the GSU kept: relevance, each channel's part of it, and how much attention each head of the ESU gives it.

import { heat, parts, reach } from "./bars.js";
import { el } from "./dom.js";
import { calm, day, fixed, percent, plural } from "./format.js";
import { Rows } from "./rows.js";

const ORDERS = { relevance: "relevance", attention: "attention", time: "newest" };

export class Kept {
  /** point(row), take(row): rows of the history; small(): whether the page is narrow. */
  constructor(root, { point, take, small }) {
    Object.assign(this, { root, point, order: "relevance", explained: null, places: [] });
    const go = (act) => (index) => {
      const row = this.explained.rowOfKept(this.places[index]);
      if (row >= 0) act(row);
    };
    this.rows = new Rows({
      label: "Kept behaviours",
      height: () => (small() ? 74 : 48),
      make: (index) => this.#row(index),
      pick: go(point),
      take: go(take),
    });
    this.note = el("p", { class: "note" });
    this.legend = el("ul", { class: "legend" });
    this.head = el(
      "div",
      { class: "columns", "aria-hidden": "true" },
      el("span", {}, "#"),
      el("span", {}, "Behaviour"),
      el("span", {}, "Relevance, by channel"),
      el("span", {}, "Heads"),
    );
    const select = el(
      "select",
      { id: "kept-order", onchange: () => ((this.order = select.value), this.#sort()) },
      Object.entries(ORDERS).map(([value, label]) => el("option", { value }, label)),
    );
    root.replaceChildren(
      el(
        "div",
        { class: "head" },
        el("h2", { id: "kept-title" }, "Kept"),
        this.note,
        el("div", { class: "tools" }, el("label", { for: "kept-order" }, "by "), select),
      ),
      this.legend,
      this.head,
      this.rows.root,
    );
  }

  set(explained) {
    this.explained = explained;
    if (!explained) return this.rows.set(0);
    const { kept, heads } = explained.answer;
    this.reach = reach(kept.map((one) => one.channels));
    this.most_H = Array.from({ length: heads }, (_, head) => Math.max(...kept.map((one) => one.attention_H[head]), 0));
    this.rows.root.style.setProperty("--heads", heads);
    this.head.style.setProperty("--heads", heads);
    const most = Math.max(...this.most_H);
    this.note.textContent = kept.length
      ? `${plural(kept.length, "behaviour")}; a head’s largest weight is ${percent(most, 1)}, even would be ${percent(1 / kept.length, 1)}`
      : "Nothing: there is no history to search.";
    this.legend.replaceChildren(...explained.channels.map((name) => el("li", {}, el("i", { class: `swatch ${name}` }), name)));
    this.#sort();
  }

  /** Follows the cursor of the page. */
  mark(row) {
    const place = this.explained?.keptPlace.get(row);
    this.rows.mark(place === undefined ? -1 : this.places.indexOf(place));
  }

  #sort() {
    const { kept } = this.explained.answer;
    const mean = kept.map((one) => one.attention_H.reduce((sum, weight) => sum + weight, 0));
    const by = {
      relevance: () => 0,
      attention: (a, b) => mean[b] - mean[a],
      time: (a, b) => kept[b].position - kept[a].position,
    }[this.order];
    this.places = kept.map((_, place) => place).sort((a, b) => by(a, b) || a - b);
    this.rows.set(kept.length);
    this.rows.top();
  }

  #row(index) {
    const place = this.places[index];
    const one = this.explained.answer.kept[place];
    const about = [day(one.time_ms), one.query ? `“${one.query}”` : calm(one.category)].filter(Boolean).join(" · ");
    return el(
      "div",
      { class: "kept-row" },
      el("span", { class: "rank" }, String(place + 1)),
      el(
        "span",
        { class: "what" },
        el("span", { class: "name", title: one.text ?? one.item_id }, one.text ?? `item ${one.item_id}`),
        el("span", { class: "about" }, about),
      ),
      el("span", { class: "relevance" }, el("span", { class: "number" }, fixed(one.relevance)), parts(one.channels, this.reach)),
      heat(one.attention_H, this.most_H),
    );
  }
}
