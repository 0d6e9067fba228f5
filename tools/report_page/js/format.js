// Numbers and times as people read them.

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

function number(value, digits = 4) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return grouped.format(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e7)) return value.toExponential(digits - 2);
  return String(Number(value.toPrecision(digits)));
}

// 12 s, 3.5 min, 2.1 h, 4.2 days
function span(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const [size, unit] = seconds < 100 ? [1, "s"] : seconds < 6000 ? [60, "min"] : seconds < 172800 ? [3600, "h"] : [86400, "days"];
  const value = seconds / size;
  return `${value >= 99.5 || Number.isInteger(value) ? Math.round(value) : Number(value.toPrecision(2))} ${unit}`;
}

// 2026-11-25 14:40 in the reader's time zone
function clock(seconds, withSeconds = false) {
  if (seconds === null || seconds === undefined) return "";
  const date = new Date(seconds * 1000);
  const two = (value) => String(value).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}${withSeconds ? `:${two(date.getSeconds())}` : ""}`;
}

function percent(share) {
  return `${number(100 * share, 3)} %`;
}

function plural(count, word) {
  return `${grouped.format(count)} ${word}${count === 1 ? "" : "s"}`;
}

const MARKS = { done: "✓", running: "▶", queued: "⋯", stopped: "■", failed: "✕", poisoned: "✕✕", unknown: "?" };

function stateLabel(state) {
  return el("span", { class: `state ${state}` }, el("span", { "aria-hidden": "true" }, MARKS[state] ?? "?"), " ", state);
}

// tiny-0123456789 of clip/tiny-0123456789: the stage stands beside it.
function shortName(row) {
  return row.name.slice(row.name.indexOf("/") + 1);
}

function runLink(id, text) {
  const row = runs().get(id);
  return row ? el("a", { href: `#/run/${encodeURIComponent(id)}` }, text ?? row.name) : el("span", {}, text ?? id, " (not in this report)");
}
