// Where no user is chosen yet: some to begin with.

import { users } from "./api.js";
import { byId, el } from "./dom.js";
import { count, day, plural } from "./format.js";

const MANY = 12;

export async function drawStart(choose) {
  const [longest, newest] = await Promise.all([users("", "longest"), users("", "newest")]);
  const list = (title, answer) =>
    el(
      "div",
      {},
      el("h3", {}, title),
      el(
        "ul",
        {},
        answer.users.slice(0, MANY).map((one) => card(one, choose)),
      ),
    );
  const parts = longest.users.length
    ? [list("Longest histories", longest), list("Newest behaviour", newest)]
    : [el("p", { class: "lead" }, "The store has no users yet. POST /v1/events brings the first one.")];
  byId("start-users").replaceChildren(
    ...parts,
    el("p", { class: "faint" }, plural(longest.total, "user"), " in all; search by id above."),
  );
}

function card({ user_id: id, length, newest_ms: newest }, choose) {
  return el(
    "li",
    {},
    el(
      "button",
      { type: "button", class: "user", onclick: () => choose(id) },
      el("b", {}, id),
      el("span", {}, `${count(length)}`),
      el("small", {}, newest ? day(newest) : ""),
    ),
  );
}
