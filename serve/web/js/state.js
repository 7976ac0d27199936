// The whole state of the page lives behind the # of its address: it can be shared, and no server's log sees it.
//
//   user, item                who, and for which item
//   query | qid               its query, as text or by id
//   at                        moment of the request, Unix ms; none: now
//   k, by, bundle             how many are kept, found by which retriever, of which bundle; none: as the service does
//   versus                    the bundle beside it
//   from, to                  the part of the timeline that is shown, Unix ms; none: all
//   row                       the behaviour under the cursor: its place in the history, 0 is the oldest

const NUMBERS = new Set(["at", "k", "from", "to", "row"]);
const TEXTS = new Set(["user", "item", "query", "qid", "by", "bundle", "versus"]);
/** Changes of these are steps that the browser's back button undoes. */
const STEPS = new Set(["user", "item", "query", "qid", "at", "bundle", "versus"]);

const listeners = [];
let current = parse(location.hash);

export function state() {
  return current;
}

/** Changes some of it; null forgets. Listeners get the names of what really changed. */
export function update(patch) {
  const next = { ...current };
  for (const [name, value] of Object.entries(patch)) {
    if (value === null || value === undefined || value === "") delete next[name];
    else next[name] = value;
  }
  const changed = difference(current, next);
  if (!changed.size) return;
  current = next;
  const address = serialised(next);
  if ([...changed].some((name) => STEPS.has(name))) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
  listeners.forEach((listener) => listener(changed));
}

export function onChange(listener) {
  listeners.push(listener);
}

function parse(hash) {
  const found = {};
  for (const [name, value] of new URLSearchParams(hash.slice(1))) {
    if (TEXTS.has(name) && value) found[name] = value;
    else if (NUMBERS.has(name) && value !== "" && Number.isFinite(Number(value))) found[name] = Number(value);
  }
  return found;
}

function serialised(values) {
  const hash = new URLSearchParams(Object.entries(values).map(([name, value]) => [name, String(value)])).toString();
  return hash ? `#${hash}` : location.pathname + location.search;
}

function difference(before, after) {
  const names = new Set([...Object.keys(before), ...Object.keys(after)]);
  return new Set([...names].filter((name) => before[name] !== after[name]));
}

function follow() {
  const next = parse(location.hash);
  const changed = difference(current, next);
  current = next;
  if (changed.size) listeners.forEach((listener) => listener(changed));
}

window.addEventListener("popstate", follow);
window.addEventListener("hashchange", follow);
