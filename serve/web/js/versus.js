// Two bundles side by side, on the same user, target and moment: what each keeps, in which order, and what it makes of it.

import { el, svg } from "./dom.js";
import { count, day, fixed, millis, percent, signed } from "./format.js";

const SHOWN = 20;
const LINE = 26;

export function drawVersus(root, { first, second, published, choose }) {
  const head = el(
    "div",
    { class: "head" },
    el("h2", { id: "versus-title" }, "Two bundles"),
    el("p", { class: "note" }, note(first, second, published)),
  );
  root.replaceChildren(head, ...(second ? body(first, second) : [choices(first, published, choose)]));
}

function note(first, second, published) {
  if (!second)
    return published.length > 1
      ? "Put another published bundle beside this one."
      : "Only one bundle is published. After the next training there are two to compare.";
  const shared = sharedRows(first, second).length;
  return `${count(shared)} behaviours are kept by both, ${count(first.answer.kept.length - shared)} by the first alone, ${count(second.answer.kept.length - shared)} by the second alone.`;
}

function choices({ answer }, published, choose) {
  const others = published.filter((one) => one.version !== answer.bundle_version);
  return el(
    "p",
    { class: "choices" },
    others.map(({ version, created }) =>
      el("button", { type: "button", onclick: () => choose(version) }, el("code", {}, version), ` of ${created.slice(0, 10)}`),
    ),
  );
}

function body(first, second) {
  return [el("div", { class: "versus" }, table(first.answer, second.answer), slopes(first, second))];
}

function sharedRows(first, second) {
  return [...first.keptPlace.keys()].filter((row) => row !== undefined && second.keptPlace.has(row));
}

function table(a, b) {
  const row = (name, read, write, change = null) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, name),
      el("td", {}, write(read(a))),
      el("td", {}, write(read(b))),
      el("td", { class: "change" }, change ? signed(read(b) - read(a), change) : ""),
    );
  const channels = Object.keys(a.gate).map((name) =>
    row(
      `gate: ${name}`,
      (one) => one.gate[name] ?? 0,
      (value) => percent(value),
      2,
    ),
  );
  const versions = [a, b].map((one) => el("th", { scope: "col" }, el("code", {}, one.bundle_version)));
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": "Two bundles in figures" },
    el(
      "table",
      { class: "figures" },
      el("thead", {}, el("tr", {}, el("td"), versions, el("th", { scope: "col" }, "change"))),
      el(
        "tbody",
        {},
        row(
          "score",
          (one) => one.score,
          (value) => fixed(value),
          3,
        ),
        row("kept", (one) => one.kept.length, count),
        row(
          "recall of exact",
          (one) => one.recall ?? NaN,
          (value) => (Number.isNaN(value) ? "–" : percent(value, 1)),
        ),
        row(
          "retriever",
          (one) => one.retriever,
          (value) => value,
        ),
        row("search and rank", (one) => one.timings_ms.retrieve + one.timings_ms.rank, millis),
        ...channels,
      ),
    ),
  );
}

/** The most relevant of both, lines between the same behaviour. */
function slopes(first, second) {
  const place = ({ keptPlace }, row) => keptPlace.get(row) ?? Infinity;
  const list = (one, other) => {
    const kept = one.answer.kept.slice(0, SHOWN);
    return el(
      "ol",
      {},
      kept.map((behaviour, at) =>
        el(
          "li",
          { class: other.keptPlace.has(one.rowOfKept(at)) ? null : "alone", title: behaviour.text ?? behaviour.item_id },
          el("span", { class: "name" }, behaviour.text ?? `item ${behaviour.item_id}`),
          el("span", { class: "about" }, day(behaviour.time_ms)),
          el("span", { class: "number" }, fixed(behaviour.relevance, 2)),
        ),
      ),
    );
  };
  const lines = sharedRows(first, second).flatMap((row) => {
    const [left, right] = [place(first, row), place(second, row)];
    if (left >= SHOWN && right >= SHOWN) return [];
    const y = (at) => (Math.min(at, SHOWN - 0.5) + 0.5) * LINE;
    return [
      svg("path", {
        class: left < SHOWN && right < SHOWN ? "slope" : "slope out",
        d: `M0 ${y(left)}C50 ${y(left)} 50 ${y(right)} 100 ${y(right)}`,
      }),
    ];
  });
  const height = Math.min(SHOWN, Math.max(first.answer.kept.length, second.answer.kept.length)) * LINE;
  const picture = svg("svg", { viewBox: `0 0 100 ${height}`, height, preserveAspectRatio: "none", "aria-hidden": "true" }, lines);
  return el(
    "div",
    { class: "slopes" },
    el("div", {}, el("h3", {}, "Most relevant to ", el("code", {}, first.answer.bundle_version)), list(first, second)),
    el("div", { class: "middle" }, picture),
    el("div", {}, el("h3", {}, "Most relevant to ", el("code", {}, second.answer.bundle_version)), list(second, first)),
  );
}
