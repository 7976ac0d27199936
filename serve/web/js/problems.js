// Errors as the service tells them, each with what to do; and the way in where a token is wanted.

import { Failure, hasToken, setToken } from "./api.js";
import { byId, el } from "./dom.js";

const TITLES = {
  0: "The service does not answer",
  401: "The service wants a token",
  403: "Not allowed",
  404: "Not found",
  409: "Not possible with this bundle",
  413: "Too much at once",
  422: "The service refuses this request",
  503: "The service is not ready",
  500: "A bug in the service",
};

/** retry(): what to do again once the person mended it. */
export function showProblem(error, retry) {
  if (error.name === "AbortError") return;
  const failure =
    error instanceof Failure
      ? error
      : new Failure(-1, [{ what: "page", got: error.message, expected: "no error", fix: "reload the page" }]);
  if (!(error instanceof Failure)) console.error(error);
  const again = el("button", { type: "button", onclick: () => (clearProblem(), retry()) }, "Try again");
  const request = failure.requestId ? el("p", { class: "faint" }, "Request ", el("code", {}, failure.requestId)) : null;
  const body = failure.status === 401 ? [tokenForm(retry)] : [...failure.problems.map(told), request, again];
  byId("problem").replaceChildren(
    el(
      "div",
      { class: "problem card", role: "alert" },
      el("h2", {}, TITLES[failure.status] ?? "Something went wrong"),
      ...body.filter(Boolean),
    ),
  );
  if (failure.status === 401) byId("token").focus();
}

export function clearProblem() {
  byId("problem").replaceChildren();
}

function told({ what, got, expected, fix }) {
  const rows = [
    ["What", el("code", {}, what)],
    ["Got", got],
    ["Expected", expected],
    ["Fix", el("b", {}, fix)],
  ];
  return el(
    "dl",
    {},
    rows.filter(([, value]) => value !== "").flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]),
  );
}

function tokenForm(retry) {
  const field = el("input", { id: "token", type: "password", autocomplete: "off", required: true });
  const submit = (event) => {
    event.preventDefault();
    setToken(field.value.trim());
    clearProblem();
    retry();
  };
  return el(
    "form",
    { class: "token", onsubmit: submit },
    el(
      "p",
      {},
      hasToken() ? "It did not take the one it got." : "It is kept in this tab until you close it, and sent nowhere else.",
    ),
    el("label", { for: "token" }, "Bearer token"),
    field,
    el("button", {}, "Go on"),
  );
}
