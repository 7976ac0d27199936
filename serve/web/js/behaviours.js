// The behaviours in the timeline's window as a list, newest first, grouped by request.

import { el } from "./dom.js";
import { calm, clock, count, day, fixed, plural } from "./format.js";
import { Rows } from "./rows.js";

export class Behaviours {
  constructor(root, { point, take, small }) {
    Object.assign(this, { past: null, explained: null, shown: [], words: [] });
    const row = (index) => this.shown[index];
    this.rows = new Rows({
      label: "Behaviours, newest first",
      height: () => (small() ? 54 : 42),
      make: (index) => this.#row(index),
      pick: (index) => point(row(index)),
      take: (index) => take(row(index)),
    });
    this.note = el("p", { class: "note" });
    this.none = el("p", { class: "faint none" });
    const filter = el("input", {
      type: "search",
      id: "filter",
      placeholder: "filter by words",
      autocomplete: "off",
      oninput: () => ((this.words = filter.value.toLowerCase().split(/\s+/).filter(Boolean)), this.#choose()),
    });
    root.replaceChildren(
      el(
        "div",
        { class: "head" },
        el("h2", { id: "history-title" }, "Behaviours"),
        this.note,
        el("div", { class: "tools" }, el("label", { for: "filter", class: "unseen" }, "Filter by words"), filter),
      ),
      this.none,
      this.rows.root,
    );
  }

  set(past, explained, window) {
    Object.assign(this, { past, explained, window });
    this.rows.root.classList.toggle("bare", !explained);
    this.#choose();
  }

  mark(row) {
    this.rows.mark(row < 0 ? -1 : this.shown.indexOf(row));
  }

  #choose() {
    const { past, words, window } = this;
    if (!past) return;
    this.shown = [];
    for (let row = past.length - 1; row >= 0; row -= 1) {
      if (window && (past.time[row] < window[0] || past.time[row] > window[1])) continue;
      if (words.length && !this.#says(row)) continue;
      this.shown.push(row);
    }
    this.note.textContent =
      this.shown.length === past.length
        ? `${plural(past.length, "behaviour")}, newest first`
        : `${count(this.shown.length)} of ${plural(past.length, "behaviour")}`;
    this.none.textContent = this.shown.length ? "" : "Nothing here. Zoom out or clear the filter.";
    this.rows.set(this.shown.length);
    this.rows.top();
  }

  #says(row) {
    const { past } = this;
    const said = `${past.text[row] ?? ""} ${past.category[row] ?? ""} ${past.query[row] ?? ""} ${past.item[row]}`.toLowerCase();
    return this.words.every((word) => said.includes(word));
  }

  #row(index) {
    const { past, explained } = this;
    const row = this.shown[index];
    const above = index ? this.shown[index - 1] : -1;
    const opens = above < 0 || past.request[above] !== past.request[row];
    const kept = explained?.isKept(row) ?? false;
    const about = [
      past.query[row] ? `“${past.query[row]}”` : calm(past.category[row]),
      past.known[row] ? null : "unknown to this bundle",
    ]
      .filter(Boolean)
      .join(" · ");
    const ranked = explained && explained.rank[row];
    return el(
      "div",
      { class: `behaviour-row${opens ? " opens" : ""}` },
      el(
        "span",
        { class: "when" },
        opens ? [el("span", {}, day(past.time[row])), el("span", { class: "faint" }, clock(past.time[row]))] : null,
      ),
      el(
        "span",
        { class: "what" },
        el("span", { class: "name", title: past.name(row) }, past.name(row)),
        el("span", { class: "about" }, about),
      ),
      el("span", { class: `number${kept ? " kept" : ""}` }, ranked ? fixed(explained.relevance[row]) : ""),
      el("span", { class: `place${kept ? " kept" : ""}` }, ranked ? count(explained.rank[row]) : ""),
    );
  }
}
