// Numbers, times and texts as people read them. Times are UTC, as they are stored.

const whole = new Intl.NumberFormat("en");
const date = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
const moment = new Intl.DateTimeFormat("en-GB", {
  weekday: "short",
  day: "numeric",
  month: "short",
  year: "numeric",
  hour: "2-digit",
  minute: "2-digit",
  timeZone: "UTC",
});

export const count = (value) => whole.format(value);
export const day = (ms) => date.format(ms);
const time = new Intl.DateTimeFormat("en-GB", { weekday: "short", hour: "2-digit", minute: "2-digit", timeZone: "UTC" });
export const clock = (ms) => time.format(ms).replace(",", "");
export const instant = (ms) => moment.format(ms);
export const fixed = (value, digits = 3) =>
  value === null || Number.isNaN(value) ? "–" : value.toFixed(digits).replace("-", "−");
export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)}\u00a0%`;
export const signed = (value, digits = 3) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
export const millis = (ms) => (ms >= 100 ? `${Math.round(ms)}\u00a0ms` : `${ms.toFixed(1)}\u00a0ms`);
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** Catalogues shout: "COLD CEREAL" is read as "Cold cereal", everything else as it is. */
export function calm(text) {
  if (text === null || text === undefined) return null;
  return text === text.toUpperCase() ? text.charAt(0) + text.slice(1).toLowerCase() : text;
}
