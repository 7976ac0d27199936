// A user's history as columns, and what an explanation says of it, row by row.

const NONE = -1;

export class Past {
  /** Of a HistoryResponse. Row r is place `offset + r` of the history; rows are in the order of the store, oldest first. */
  constructor(answer) {
    const list = answer.behaviours;
    this.user = answer.user_id;
    this.total = answer.length;
    this.offset = answer.length - list.length;
    this.item = list.map((one) => one.item_id);
    this.text = list.map((one) => one.text);
    this.category = list.map((one) => one.category ?? null);
    this.query = list.map((one) => one.query);
    this.queryId = list.map((one) => one.query_id);
    this.time = Float64Array.from(list, (one) => one.time_ms);
    this.request = Int32Array.from(list, (one) => one.request);
    this.known = list.map((one) => one.in_bundle);
  }

  get length() {
    return this.item.length;
  }

  get span() {
    if (!this.length) return [0, 1];
    let [first, last] = [Infinity, -Infinity];
    for (const time of this.time) [first, last] = [Math.min(first, time), Math.max(last, time)];
    const margin = Math.max((last - first) * 0.01, 3_600_000);
    return [first - margin, last + margin];
  }

  /** What a person calls a row. */
  name(row) {
    return this.text[row] ?? `item ${this.item[row]}`;
  }

  /** Row of a place in the whole history, or -1. */
  rowAt(place) {
    const row = place - this.offset;
    return row >= 0 && row < this.length ? row : NONE;
  }
}

/** Rows of a Past that an explanation's positions mean. The two may know different behaviours: a later moment, another bundle. */
function aligned(past, columns) {
  const rows = new Map();
  let row = 0;
  for (let i = 0; i < columns.position.length; i += 1) {
    let at = row;
    while (at < past.length && !(past.time[at] === columns.time_ms[i] && past.item[at] === columns.item_id[i])) at += 1;
    if (at === past.length) continue;
    rows.set(columns.position[i], at);
    row = at + 1;
  }
  return rows;
}

export class Explained {
  /** Of an ExplainResponse about the user of `past`. */
  constructor(answer, past) {
    this.answer = answer;
    this.rowOf = aligned(past, answer.history);
    this.relevance = new Float32Array(past.length).fill(NaN);
    answer.history.position.forEach((position, i) => {
      const row = this.rowOf.get(position);
      if (row !== undefined) this.relevance[row] = answer.history.relevance[i];
    });
    this.sorted = Float32Array.from(answer.history.relevance).sort().reverse();
    this.rank = ranks(this.relevance);
    this.keptPlace = new Map(answer.kept.map((one, place) => [this.rowOf.get(one.position), place]));
    this.threshold = answer.kept.length ? Math.min(...answer.kept.map((one) => one.relevance)) : null;
  }

  /** Row of the i-th kept behaviour, -1 where the history shown does not reach back to it. */
  rowOfKept(place) {
    return this.rowOf.get(this.answer.kept[place].position) ?? NONE;
  }

  isKept(row) {
    return this.keptPlace.has(row);
  }

  get channels() {
    return Object.keys(this.answer.gate);
  }
}

/** 1 for the most relevant row; 0 where a row has no relevance. */
function ranks(relevance) {
  const rows = Array.from(relevance.keys()).filter((row) => !Number.isNaN(relevance[row]));
  rows.sort((a, b) => relevance[b] - relevance[a] || a - b);
  const rank = new Int32Array(relevance.length);
  rows.forEach((row, place) => (rank[row] = place + 1));
  return rank;
}
