// The answer in one look: the score, its target, what the search kept, the gate, and where the time went.

import { shares } from "./bars.js";
import { el } from "./dom.js";
import { calm, count, fixed, instant, millis, percent, plural } from "./format.js";

const TASKS = { ctr: "click-through, no query", psr: "search ranking, under a query" };
const STAGES = [
  ["history", "read"],
  ["retrieve", "search (GSU)"],
  ["rank", "rank (ESU)"],
  ["exact", "exact, for recall"],
];

/** at: the moment that was asked for, none for now. */
export function drawSummary(root, answer, at) {
  root.replaceChildren(score(answer, at), kept(answer), gate(answer), times(answer));
}

function score({ score, task, target, known_user: known }, at) {
  return el(
    "div",
    { class: "score" },
    el("p", { class: "big" }, fixed(score), el("span", { class: "task", title: TASKS[task] }, task.toUpperCase())),
    el("p", { class: "target" }, el("b", {}, target.text ?? `item ${target.item_id}`)),
    el(
      "p",
      { class: "facts" },
      [calm(target.category), target.query ? `under “${target.query}”` : "no query", at ? `as of ${instant(at)}` : "as of now"]
        .filter(Boolean)
        .join(" · "),
    ),
    known ? null : el("p", { class: "facts warn" }, "The store has never seen this user: scored with the learned null interest."),
  );
}

function kept({
  kept,
  history_used: used,
  history_length: stored,
  recall,
  next_best: next,
  retriever,
  retriever_reason: reason,
}) {
  const lowest = kept.length ? Math.min(...kept.map((one) => one.relevance)) : null;
  const unknown = stored - used;
  return block(
    "Kept by the search",
    el("p", { class: "medium" }, count(kept.length), el("span", {}, ` of ${plural(used, "behaviour")}`)),
    facts([
      ["Retriever", el("span", { title: reason }, retriever)],
      [
        "Recall of exact",
        recall === null ? "–" : el("span", { class: recall < 1 ? "warn" : null }, percent(recall, recall < 1 ? 1 : 0)),
      ],
      ["Last kept, first left out", `${fixed(lowest)}, ${fixed(next)}`],
      ...(unknown ? [["Unknown to the bundle", count(unknown)]] : []),
    ]),
  );
}

function gate({ gate: weights, heads, top_k: k }) {
  const list = Object.entries(weights).map(([name, value]) => ({ name, value, kind: name }));
  return block(
    "Gate: what the target is looked for by",
    shares(list, (value) => percent(value)),
    el("p", { class: "facts" }, `top-K ${count(k)} · ${plural(heads, "attention head")}`),
  );
}

function times({ timings_ms: timings, bundle_version: version }) {
  const list = STAGES.filter(([key]) => key in timings).map(([key, name], i) => ({
    name,
    value: timings[key],
    kind: `stage${i}`,
  }));
  return block(
    `Time: ${millis(timings.total)}`,
    shares(list, millis),
    el("p", { class: "facts" }, "bundle ", el("code", {}, version)),
  );
}

export function block(title, ...content) {
  return el("div", { class: "block" }, el("h3", {}, title), ...content);
}

export function facts(pairs) {
  return el(
    "dl",
    {},
    pairs.flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]),
  );
}
