// Ties the parts to the state: what changed decides what is asked of the service and what is drawn again.

import * as api from "./api.js";
import { Ask, FORGET, targetOf } from "./ask.js";
import { Behaviours } from "./behaviours.js";
import { byId, el, tell } from "./dom.js";
import { count, fixed, percent, plural } from "./format.js";
import { Kept } from "./kept.js";
import { Explained, Past } from "./past.js";
import { clearProblem, showProblem } from "./problems.js";
import { drawStart } from "./start.js";
import { onChange, state, update } from "./state.js";
import { drawSummary } from "./summary.js";
import { Timeline } from "./timeline.js";
import { drawVersus } from "./versus.js";
import { WhatIf } from "./whatif.js";

const SMALL = matchMedia("(max-width: 640px)");
const ASKED = ["user", "item", "query", "qid", "at", "k", "by", "bundle"];

let past = null;
let explained = null;
let second = null;
let published = [];
let asking = new AbortController();

const point = (row) => update({ row: past.offset + row });
const take = (row) => past.known[row] && update(targetOf(past, row));
const window_ = () => (state().from !== undefined && state().to !== undefined ? [state().from, state().to] : null);
const acts = { point, take, small: () => SMALL.matches };

const ask = new Ask();
const timeline = new Timeline(byId("timeline"), {
  point,
  take,
  show: (window) => update(window ? { from: Math.round(window[0]), to: Math.round(window[1]) } : { from: null, to: null }),
});
const kept = new Kept(byId("kept"), acts);
const behaviours = new Behaviours(byId("history"), acts);
const whatIf = new WhatIf(byId("whatif"), (patch) => update(patch));

onChange((changed) => {
  const has = (...names) => names.some((name) => changed.has(name));
  if (has("user")) begin();
  else if (has(...ASKED)) answer();
  else if (has("versus")) compare();
  if (past && !has("user")) follow(has("from", "to"));
});

/** The cursor and the window: nothing is asked. */
function follow(windowed) {
  const row = state().row === undefined ? -1 : past.rowAt(state().row);
  timeline.setRow(row);
  if (windowed) {
    timeline.setWindow(window_());
    behaviours.set(past, explained, window_());
  }
  behaviours.mark(row);
  kept.mark(row);
  showAsk();
}

function showAsk() {
  ask.show(past, published, explained?.answer ?? null);
}

/** Another user: the history, then the answer. */
async function begin() {
  reset();
  const { user } = state();
  byId("start").hidden = Boolean(user);
  byId("main").setAttribute("aria-busy", "true");
  try {
    if (!user) return await drawStart((id) => update({ ...FORGET, user: id }));
    past = new Past(await api.history(user, asking.signal));
    if (state().item) showHistory();
    await answer();
  } catch (error) {
    showProblem(error, begin);
  } finally {
    byId("main").removeAttribute("aria-busy");
    showAsk();
  }
}

function reset() {
  asking.abort();
  asking = new AbortController();
  [past, explained, second] = [null, null, null];
  clearProblem();
  for (const id of ["result", "timeline", "lists", "whatif", "versus"]) byId(id).hidden = true;
  showAsk();
}

function showHistory() {
  byId("timeline").hidden = byId("lists").hidden = false;
  timeline.setPast(past);
  timeline.setWindow(window_());
  behaviours.set(past, null, window_());
  byId("kept").hidden = true;
  byId("lists").classList.add("one");
  if (!past.length) byId("timeline").hidden = true;
  if (!state().item) showInvitation();
  tell(`${plural(past.total, "behaviour")} of user ${past.user}`);
}

function showInvitation() {
  const newest = past.known.lastIndexOf(true);
  const button = newest < 0 ? null : el("button", { type: "button", onclick: () => take(newest) }, "Take the newest behaviour");
  const lead = past.length
    ? "Choose a target: search an item above, or take any behaviour from the timeline (double-click, or Enter)."
    : "This user has no behaviours yet; choose a target to see the score without them.";
  byId("result").hidden = false;
  byId("result").replaceChildren(el("div", { class: "invitation" }, el("p", { class: "lead" }, lead), button));
}

/** The same user: the answer for the target. */
async function answer() {
  asking.abort();
  asking = new AbortController();
  clearProblem();
  if (!past) return begin();
  if (!state().item) return forget();
  byId("main").setAttribute("aria-busy", "true");
  try {
    const found = await api.explain(api.explainBody(state()), asking.signal);
    explained = new Explained(found, past);
    showAnswer();
    await compare();
  } catch (error) {
    if (error.name === "AbortError") return;
    forget();
    showProblem(error, answer);
  } finally {
    byId("main").removeAttribute("aria-busy");
    showAsk();
  }
}

/** No answer, or none any more: the history alone. */
function forget() {
  [explained, second] = [null, null];
  for (const id of ["result", "whatif", "versus"]) byId(id).hidden = true;
  showHistory();
  follow(false);
}

function showAnswer() {
  const { answer: found } = explained;
  byId("result").hidden = byId("kept").hidden = byId("whatif").hidden = byId("versus").hidden = false;
  byId("lists").classList.remove("one");
  drawSummary(byId("result"), found, state().at);
  timeline.setExplained(explained, state().at ?? null);
  behaviours.set(past, explained, window_());
  kept.set(explained);
  whatIf.set(state(), past, explained);
  follow(false);
  const recall = found.recall === null ? "" : `, recall ${percent(found.recall, 1)}`;
  tell(`Score ${fixed(found.score)}; kept ${count(found.kept.length)} of ${count(found.history_used)}${recall}`);
}

/** The bundle beside it, where one is chosen. */
async function compare() {
  second = null;
  const { versus } = state();
  const draw = () =>
    drawVersus(byId("versus"), { first: explained, second, published, choose: (version) => update({ versus: version }) });
  if (!explained) return;
  if (!versus) return draw();
  try {
    const moment = { time_ms: explained.answer.time_ms };
    second = new Explained(
      await api.explain({ ...api.explainBody({ ...state(), bundle: versus }), ...moment }, asking.signal),
      past,
    );
    draw();
    tell(`Bundle ${versus} scores ${fixed(second.answer.score)}`);
  } catch (error) {
    showProblem(error, compare);
  }
}

async function open() {
  try {
    const [served, all] = await Promise.all([api.service(), api.bundles()]);
    published = all.bundles;
    ask.recommends = served.recommends;
    byId("service").replaceChildren(
      el("span", {}, "bundle ", el("code", {}, served.version)),
      el("span", {}, plural(served.items, "item")),
      el("span", {}, plural(served.users, "user")),
      el("span", {}, `retriever ${served.retriever}`),
    );
  } catch (error) {
    return showProblem(error, open);
  }
  await begin();
}

api.watchRequests((busy) => (byId("progress").hidden = !busy));
open();
