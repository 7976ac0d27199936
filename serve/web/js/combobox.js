// A text field with a list of suggestions, as the ARIA combobox pattern has it.
//
// load(text, signal) gives groups: [{ title, note, options: [{ value, label, note }] }]; choose(option) is told the choice.
// free: what was typed may stand for itself and is given as { value: null, label: text }.

import { el, freshId } from "./dom.js";

const PAUSE_MS = 140;

export class Combobox {
  constructor({ label, placeholder, load, choose, free = false, hint = "" }) {
    Object.assign(this, { load, choose, free, options: [], active: -1, shown: "", turn: 0 });
    const [id, list] = [freshId("field"), freshId("list")];
    this.input = el("input", {
      id,
      type: "text",
      role: "combobox",
      autocomplete: "off",
      spellcheck: "false",
      placeholder,
      "aria-expanded": "false",
      "aria-controls": list,
      "aria-autocomplete": "list",
      autocapitalize: "none",
    });
    this.list = el("div", { id: list, role: "listbox", class: "options", "aria-label": label, hidden: true });
    this.under = el("span", { class: "under" }, hint);
    this.root = el(
      "div",
      { class: "field" },
      el("label", { for: id }, label),
      el("div", { class: "combo" }, this.input, this.list),
      this.under,
    );
    this.#listen();
  }

  /** What stands in the field while nobody types; hint: a small line under it. */
  show(text, hint = "") {
    this.shown = text ?? "";
    this.under.textContent = hint;
    this.under.title = hint;
    this.input.title = this.shown;
    if (document.activeElement !== this.input || this.list.hidden) this.input.value = this.shown;
  }

  #listen() {
    this.input.addEventListener("focus", () => this.input.select());
    this.input.addEventListener("click", () => this.#open(""));
    this.input.addEventListener("input", () => this.#open(this.input.value, PAUSE_MS));
    this.input.addEventListener("keydown", (event) => this.#key(event));
    this.input.addEventListener("blur", () => this.#leave());
    this.list.addEventListener("pointerdown", (event) => event.preventDefault());
    this.list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.#take(this.options[Number(option.dataset.index)]);
    });
  }

  async #open(text, pause = 0) {
    const turn = (this.turn += 1);
    this.loading?.abort();
    this.loading = new AbortController();
    if (pause) await new Promise((done) => setTimeout(done, pause));
    if (turn !== this.turn) return;
    let groups;
    try {
      groups = await this.load(text.trim(), this.loading.signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      groups = [{ note: error.message, options: [] }];
    }
    if (turn === this.turn && document.activeElement === this.input) this.#list(groups);
  }

  #list(groups) {
    this.options = groups.flatMap((group) => group.options);
    this.active = -1;
    let index = 0;
    const parts = groups.map((group) => {
      const title = group.title ? el("div", { class: "group", role: "presentation" }, group.title) : null;
      const note = group.note ? el("div", { class: "none", role: "presentation" }, group.note) : null;
      return [title, group.options.map((option) => this.#option(option, index++)), note];
    });
    this.list.replaceChildren(...parts.flat(2).filter(Boolean));
    this.list.scrollTop = 0;
    this.#expand(true);
  }

  #option(option, index) {
    const props = { role: "option", id: `${this.list.id}-${index}`, "data-index": index, "aria-selected": "false" };
    return el(
      "div",
      props,
      el("span", { class: "what" }, option.label),
      option.note ? el("span", { class: "note" }, option.note) : null,
    );
  }

  #key(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1 };
    if (event.key in steps) {
      event.preventDefault();
      if (this.list.hidden) this.#open("");
      else this.#move(steps[event.key]);
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (this.active >= 0 && !this.list.hidden) this.#take(this.options[this.active]);
      else if (this.free) this.#take({ value: null, label: this.input.value.trim() });
      else if (this.options.length && !this.list.hidden) this.#take(this.options[0]);
    } else if (event.key === "Escape" && !this.list.hidden) {
      event.preventDefault();
      this.#close();
      this.input.value = this.shown;
    }
  }

  #move(step) {
    const many = this.options.length;
    if (!many) return;
    this.#mark(false);
    this.active = this.active < 0 && step < 0 ? many - 1 : (this.active + step + many) % many;
    this.#mark(true);
  }

  #mark(on) {
    const node = this.list.querySelector(`[data-index="${this.active}"]`);
    node?.setAttribute("aria-selected", String(on));
    if (on && node) {
      this.input.setAttribute("aria-activedescendant", node.id);
      node.scrollIntoView({ block: "nearest" });
    }
  }

  #take(option) {
    this.show(option.label);
    this.input.value = option.label;
    this.#close();
    this.choose(option);
  }

  #leave() {
    const typed = this.input.value.trim();
    this.#close();
    if (this.free && typed !== this.shown) this.#take({ value: null, label: typed });
    else this.input.value = this.shown;
  }

  #close() {
    this.turn += 1;
    this.loading?.abort();
    this.#expand(false);
    this.input.removeAttribute("aria-activedescendant");
  }

  #expand(open) {
    this.list.hidden = !open;
    this.input.setAttribute("aria-expanded", String(open));
  }
}
