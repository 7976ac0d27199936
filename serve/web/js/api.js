// The service's HTTP interface. Every failure becomes a Failure with the service's own what, got, expected and fix.

const ROOT = new URL("../v1/", document.baseURI);
const TOKEN = "seminar-token";
export const MAX_HISTORY = 10_000;

export class Failure extends Error {
  constructor(status, problems, requestId = null) {
    super(problems.map((problem) => `${problem.what}: ${problem.got}`).join("; "));
    this.status = status;
    this.problems = problems;
    this.requestId = requestId;
  }
}

export function setToken(token) {
  if (token) sessionStorage.setItem(TOKEN, token);
  else sessionStorage.removeItem(TOKEN);
}

export function hasToken() {
  return sessionStorage.getItem(TOKEN) !== null;
}

let underway = 0;
let onBusy = () => {};

/** `listener` is told whether any request is under way. */
export function watchRequests(listener) {
  onBusy = listener;
}

async function call(path, { body, signal } = {}) {
  underway += 1;
  onBusy(true);
  try {
    const response = await send(path, body, signal);
    const content = await read(response);
    if (!response.ok) throw new Failure(response.status, problemsOf(response, content), response.headers.get("x-request-id"));
    return content;
  } finally {
    underway -= 1;
    onBusy(underway > 0);
  }
}

async function send(path, body, signal) {
  const headers = { accept: "application/json" };
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.authorization = `Bearer ${token}`;
  if (body) headers["content-type"] = "application/json";
  const options = {
    headers,
    signal,
    method: body ? "POST" : "GET",
    body: body ? JSON.stringify(body) : undefined,
    cache: "no-store",
  };
  try {
    return await fetch(new URL(path, ROOT), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const what = new URL(path, ROOT).host;
    throw new Failure(0, [{ what, got: "no answer", expected: "the service", fix: "is it running? try again in a moment" }]);
  }
}

async function read(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return null;
  }
}

function problemsOf(response, content) {
  if (Array.isArray(content?.errors) && content.errors.length) {
    const { errors, omitted } = content;
    const more = { what: "more", got: `${omitted} further problems`, expected: "none", fix: "mend these first" };
    return omitted ? [...errors, more] : errors;
  }
  const fix = response.status === 503 ? "the service is starting or overloaded: try again in a moment" : "see the service's log";
  return [{ what: "answer", got: `status ${response.status}`, expected: "JSON of this service", fix }];
}

const ask = (path, values) => `${path}?${new URLSearchParams(values)}`;
const user = (id) => `users/${encodeURIComponent(id)}/history`;

export const service = (signal) => call("bundle", { signal });
export const bundles = (signal) => call("bundles", { signal });
export const users = (prefix, order, signal) => call(ask("users", { prefix, order, limit: 50 }), { signal });
export const items = (text, signal) => call(ask("items", { text, limit: 20 }), { signal });
export const queries = (text, signal) => call(ask("queries", { text, limit: 20 }), { signal });
export const history = (id, signal) => call(ask(user(id), { limit: MAX_HISTORY }), { signal });
export const recommend = (body, signal) => call("recommend", { body, signal });
export const explain = (body, signal) => call("explain", { body, signal });

/** What an explain request of this state says. newest: behaviours whose relevance is wanted. */
export function explainBody(state, newest = MAX_HISTORY) {
  const target = { item_id: state.item };
  if (state.qid) target.query_id = state.qid;
  else if (state.query) target.query = state.query;
  const body = { user_id: state.user, target, newest };
  if (state.at) body.time_ms = state.at;
  if (state.k) body.top_k = state.k;
  if (state.by) body.retriever = state.by;
  if (state.bundle) body.bundle = state.bundle;
  return body;
}
