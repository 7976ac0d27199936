// A list of any length that holds only the rows in sight. One tab stop; arrows move along it.

import { el, framed, freshId } from "./dom.js";

const SPARE = 6;

export class Rows {
  /** height(): of a row in px. make(index): the row's content. pick(index): the row under the list's own cursor. take(index): Enter. */
  constructor({ label, height, make, pick, take }) {
    Object.assign(this, { height, make, pick, take, count: 0, active: -1 });
    this.prefix = freshId("row");
    this.spacer = el("div", { class: "spacer", role: "presentation" });
    this.root = el("div", { class: "rows", role: "listbox", tabindex: "0", "aria-label": label }, this.spacer);
    this.draw = framed(() => this.#draw());
    this.root.addEventListener("scroll", this.draw, { passive: true });
    this.root.addEventListener("keydown", (event) => this.#key(event));
    this.root.addEventListener("click", (event) => this.#click(event, false));
    this.root.addEventListener("dblclick", (event) => this.#click(event, true));
    new ResizeObserver(this.draw).observe(this.root);
  }

  set(count, active = -1) {
    [this.count, this.active] = [count, active];
    this.spacer.style.height = `${count * this.height()}px`;
    this.draw();
  }

  /** Marks a row, and brings it into sight unless it is there. */
  mark(index, scroll = true) {
    this.active = index;
    if (index >= 0 && scroll) this.#show(index);
    this.draw();
  }

  top() {
    this.root.scrollTop = 0;
  }

  #show(index) {
    const [height, top, room] = [this.height(), this.root.scrollTop, this.root.clientHeight];
    if (index * height < top) this.root.scrollTop = index * height;
    else if ((index + 1) * height > top + room) this.root.scrollTop = (index + 1) * height - room;
  }

  #draw() {
    const height = this.height();
    this.spacer.style.height = `${this.count * height}px`;
    const first = Math.max(0, Math.floor(this.root.scrollTop / height) - SPARE);
    const last = Math.min(this.count, Math.ceil((this.root.scrollTop + this.root.clientHeight) / height) + SPARE);
    const rows = [];
    for (let index = first; index < last; index += 1) rows.push(this.#row(index, height));
    this.spacer.replaceChildren(...rows);
    const shown = this.active >= first && this.active < last;
    if (shown) this.root.setAttribute("aria-activedescendant", `${this.prefix}-${this.active}`);
    else this.root.removeAttribute("aria-activedescendant");
  }

  #row(index, height) {
    const props = {
      role: "option",
      id: `${this.prefix}-${index}`,
      class: "row",
      "data-index": index,
      "aria-posinset": index + 1,
      "aria-setsize": this.count,
      "aria-selected": String(index === this.active),
      style: { top: `${index * height}px`, height: `${height}px` },
    };
    return el("div", props, this.make(index));
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.root.clientHeight / this.height()) - 1);
    const last = this.count - 1;
    const to = {
      ArrowDown: this.active + 1,
      ArrowUp: this.active - 1,
      PageDown: this.active + page,
      PageUp: this.active - page,
      Home: 0,
      End: last,
    };
    if (event.key in to && this.count) {
      event.preventDefault();
      const index = Math.min(last, Math.max(0, to[event.key]));
      this.mark(index);
      this.pick(index);
    } else if (event.key === "Enter" && this.active >= 0) {
      event.preventDefault();
      this.take(this.active);
    }
  }

  #click(event, twice) {
    const row = event.target.closest("[role=option]");
    if (!row) return;
    const index = Number(row.dataset.index);
    this.mark(index, false);
    if (twice) this.take(index);
    else this.pick(index);
  }
}
