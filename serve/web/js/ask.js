// The fields that say what to explain. They show the state and change it, nothing else.

import * as api from "./api.js";
import { Combobox } from "./combobox.js";
import { byId, el, freshId } from "./dom.js";
import { calm, count, day, instant, plural } from "./format.js";
import { state, update } from "./state.js";
import { RETRIEVERS } from "./whatif.js";

const NEWEST = 12;
/** Everything about one target; forgotten when the user changes. */
export const FORGET = { item: null, query: null, qid: null, at: null, from: null, to: null, row: null };

export class Ask {
  constructor() {
    [this.past, this.recommends] = [null, false];
    this.user = new Combobox({
      label: "User",
      placeholder: "id, or its beginning",
      load: loadUsers,
      choose: ({ value }) => update({ ...FORGET, user: value }),
    });
    this.item = new Combobox({
      label: "Target",
      placeholder: "words of an item",
      load: (text, signal) => this.#loadItems(text, signal),
      choose: (option) => update(option.value),
    });
    this.query = new Combobox({
      label: "Query",
      placeholder: "none",
      free: true,
      load: loadQueries,
      choose: ({ value, label }) => update(value ? { qid: value, query: null } : { qid: null, query: label || null }),
    });
    this.moment = select("As of", (value) => update({ at: value === "now" ? null : Number(value) }));
    this.k = field(
      "Keep K",
      el("input", { type: "number", min: "1", max: "1000", inputmode: "numeric", placeholder: "model’s" }),
    );
    this.k.control.addEventListener(
      "change",
      () => this.k.control.checkValidity() && update({ k: Number(this.k.control.value) || null }),
    );
    this.by = select("Found by", (value) => update({ by: value || null }));
    this.bundle = select("Bundle", (value) => update({ bundle: value || null }));
    this.versus = select("Beside it", (value) => update({ versus: value || null }));
    byId("ask-what").replaceChildren(...[this.user, this.moment, this.item, this.query].map((one) => one.root));
    byId("ask-how").replaceChildren(...[this.k, this.by, this.bundle, this.versus].map((one) => one.root));
  }

  /** Shows the state. names: what is known of the target's item and query by now. */
  show(past, published, answer) {
    this.past = past;
    const now = state();
    this.user.show(now.user ?? "", past ? plural(past.total, "behaviour") : "");
    const target = now.item && answer?.target.item_id === now.item ? answer.target : null;
    this.item.show(
      now.item ? (target?.text ?? this.#nameOf(now.item)) : "",
      target ? [calm(target.category), `item ${now.item}`].filter(Boolean).join(" · ") : "",
    );
    this.query.show(
      now.query ?? (now.qid ? (target?.query ?? this.#queryOf(now.qid)) : ""),
      now.qid ? "of the catalogue" : now.query ? "as typed" : "",
    );
    this.k.control.value = now.k ?? "";
    this.k.under.textContent = answer ? `${count(answer.top_k)} in use` : "";
    options(this.by.control, [["", "as served"], ...RETRIEVERS.map((name) => [name, name])], now.by ?? "");
    this.by.under.textContent = answer ? `${answer.retriever} in use` : "";
    const versions = published.map(({ version, created, in_use: used }) => [
      version,
      `${version}${used ? ", in use" : ""} · ${created.slice(0, 10)}`,
    ]);
    options(this.bundle.control, [["", "the one in use"], ...versions], now.bundle ?? "");
    options(this.versus.control, [["", published.length > 1 ? "none" : "only one published"], ...versions], now.versus ?? "");
    this.#moments(now);
  }

  #moments(now) {
    const { past } = this;
    const known = [["now", "now, all of the history"]];
    if (past && now.row !== undefined && past.rowAt(now.row) >= 0) {
      const time = past.time[past.rowAt(now.row)] - 1;
      known.push([String(time), `before the cursor, ${day(time)}`]);
    }
    if (now.at && !known.some(([value]) => value === String(now.at))) known.push([String(now.at), `${instant(now.at)}`]);
    options(this.moment.control, known, now.at ? String(now.at) : "now");
  }

  #nameOf(item) {
    const row = this.past?.item.lastIndexOf(item) ?? -1;
    return row >= 0 ? this.past.name(row) : `item ${item}`;
  }

  #queryOf(id) {
    const row = this.past?.queryId.indexOf(id) ?? -1;
    return row >= 0 ? this.past.query[row] : id;
  }

  async #loadItems(text, signal) {
    if (text) return [itemGroup(await api.items(text, signal))];
    const recommended = this.recommends ? await recommendations(signal) : null;
    return [recommended, this.#newest()].filter(Boolean);
  }

  /** The newest behaviours, each as of the moment before it: would it have been foretold? */
  #newest() {
    const { past } = this;
    if (!past?.length) return null;
    const rows = Array.from({ length: Math.min(NEWEST, past.length) }, (_, i) => past.length - 1 - i).filter(
      (row) => past.known[row],
    );
    return {
      title: "Newest behaviours, as of the moment before",
      options: rows.map((row) => ({
        value: targetOf(past, row),
        label: past.name(row),
        note: [day(past.time[row]), past.query[row]].filter(Boolean).join(" · "),
      })),
    };
  }
}

/** A behaviour as the target of the request that came before it. */
export function targetOf(past, row) {
  const queried = past.queryId[row] ? { qid: past.queryId[row], query: null } : { qid: null, query: past.query[row] };
  return { item: past.item[row], ...queried, at: past.time[row] - 1, row: past.offset + row };
}

async function recommendations(signal) {
  const { user, query, qid, at } = state();
  if (!user) return null;
  const title = query || qid ? "Recommended under this query" : "Recommended";
  const body = {
    user_id: user,
    n: 10,
    because: 0,
    ...(qid ? { query_id: qid } : query ? { query } : {}),
    ...(at ? { time_ms: at } : {}),
  };
  try {
    const { items } = await api.recommend(body, signal);
    return {
      title,
      options: items.map((one) => ({
        value: { item: one.item_id },
        label: one.text ?? one.item_id,
        note: `${one.score.toFixed(3)} · ${one.sources.join(", ")}`,
      })),
    };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return { title, note: error.message, options: [] };
  }
}

function itemGroup({ items }) {
  const found = items.map((one) => ({
    value: { item: one.item_id },
    label: one.text ?? one.item_id,
    note: [calm(one.category), one.item_id].filter(Boolean).join(" · "),
  }));
  return found.length ? { options: found } : { note: "No item has all these words.", options: [] };
}

async function loadUsers(prefix, signal) {
  const answer = await api.users(prefix, prefix ? "id" : "longest", signal);
  const found = answer.users.map(({ user_id: id, length, newest_ms: newest }) => ({
    value: id,
    label: id,
    note: `${count(length)}${newest ? ` · ${day(newest)}` : ""}`,
  }));
  const title = prefix ? null : `The longest of ${plural(answer.total, "history", "histories")}`;
  return [{ title, options: found, note: found.length ? null : "No user's id begins so." }];
}

async function loadQueries(text, signal) {
  const { queries } = await api.queries(text, signal);
  const found = queries.filter((one) => one.text).map((one) => ({ value: one.query_id, label: one.text }));
  return [{ options: found, note: found.length ? null : "Not in the catalogue: Enter asks with it as typed." }];
}

function field(label, control) {
  const [id, under] = [freshId("field"), el("span", { class: "under" })];
  control.id = id;
  return { control, under, root: el("div", { class: "field" }, el("label", { for: id }, label), control, under) };
}

function select(label, choose) {
  const made = field(label, el("select"));
  made.control.addEventListener("change", () => choose(made.control.value));
  return made;
}

function options(control, pairs, chosen) {
  const known = pairs.some(([value]) => value === chosen) ? pairs : [...pairs, [chosen, chosen]];
  control.replaceChildren(...known.map(([value, label]) => el("option", { value, selected: value === chosen }, label)));
}
