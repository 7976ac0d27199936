// Time to pixels and back, and where a time axis has its ticks.

const DAY = 86_400_000;
const label = (options) => new Intl.DateTimeFormat("en-GB", { timeZone: "UTC", ...options });
const HOUR = label({ hour: "2-digit", minute: "2-digit" });
const DATE = label({ day: "numeric", month: "short" });
const MONTH = label({ month: "short" });
const YEAR = label({ year: "numeric" });

/** Step, its first tick at or after a moment, the next one, and how it is written. */
const STEPS = [
  ...[1, 3, 6, 12].map((hours) => even(hours * 3_600_000, (ms) => (ms % DAY ? HOUR : DATE).format(ms))),
  ...[1, 2].map((days) => even(days * DAY, (ms) => DATE.format(ms))),
  {
    size: 7 * DAY,
    first: (ms) => Math.ceil((ms - 4 * DAY) / (7 * DAY)) * 7 * DAY + 4 * DAY,
    next: (ms) => ms + 7 * DAY,
    write: (ms) => DATE.format(ms),
  },
  ...[1, 3, 6].map(months),
  ...[1, 2, 5, 10].map((years) => months(12 * years)),
];

function even(size, write) {
  return { size, first: (ms) => Math.ceil(ms / size) * size, next: (ms) => ms + size, write };
}

function months(many) {
  const at = (index) => Date.UTC(1970, index, 1);
  const index = (ms) => (new Date(ms).getUTCFullYear() - 1970) * 12 + new Date(ms).getUTCMonth();
  const first = (ms) => {
    const start = Math.floor(index(ms) / many) * many;
    return at(start) >= ms ? at(start) : at(start + many);
  };
  const write = (ms) => (new Date(ms).getUTCMonth() === 0 ? YEAR.format(ms) : MONTH.format(ms));
  return { size: many * 30 * DAY, first, next: (ms) => at(index(ms) + many), write };
}

export class TimeScale {
  constructor(from, to, left, right) {
    Object.assign(this, { from, to, left, right });
  }

  x(ms) {
    return this.left + ((ms - this.from) / (this.to - this.from)) * (this.right - this.left);
  }

  time(x) {
    return this.from + ((x - this.left) / (this.right - this.left)) * (this.to - this.from);
  }

  /** [{ x, text }], at least `gap` px apart. */
  ticks(gap = 76) {
    const perPixel = (this.to - this.from) / (this.right - this.left);
    const step = STEPS.find((one) => one.size >= perPixel * gap) ?? STEPS.at(-1);
    const ticks = [];
    for (let ms = step.first(this.from); ms <= this.to && ticks.length < 200; ms = step.next(ms)) {
      ticks.push({ x: this.x(ms), text: step.write(ms) });
    }
    return ticks;
  }
}

export const SHORTEST_MS = DAY / 2;

/** A window of time no longer than the whole, no shorter than half a day, and inside it. */
export function inside([from, to], [first, last]) {
  const length = Math.min(Math.max(to - from, SHORTEST_MS), last - first);
  const start = Math.min(Math.max((from + to - length) / 2, first), last - length);
  return [start, start + length];
}

/** Round values between two bounds, about `many` of them. */
export function roundValues(low, high, many = 3) {
  const rough = (high - low) / many || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
  const values = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) values.push(value);
  return { values, digits: Math.max(0, -Math.floor(Math.log10(step))) };
}
