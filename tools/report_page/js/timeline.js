// A run's attempts over time: a table with a bar a row, hatched where the job waited, so that it reads without the bars.

const ROWS_AT_FIRST = 30;
const KINDS = {
  done: "done", "at work": "running", preempted: "preempted", timeout: "preempted", stopped: "stopped", error: "failed", hang: "failed", "without a word": "failed",
};

function timelineView(found, now) {
  const { attempts, waits } = found;
  if (!attempts.length && !waits.length) return [el("p", {}, "It has not been launched yet.")];
  const starts = [...attempts.map((one) => one.began), ...waits.map((one) => one.from)];
  const ends = [...attempts.map((one) => one.ended ?? now), ...waits.map((one) => one.to ?? now)];
  const [first, last] = [least(starts), Math.max(greatest(ends), least(starts) + 1)];
  const rows = attempts.map((one) => attemptRow(one, waits.find((wait) => wait.before === one.number), first, last, now));
  for (const wait of waits.filter((one) => one.to === null)) {
    rows.push(["next", "", clock(wait.from), span(now - wait.from), stateLabel("queued"), "", bar([waitPart(wait, now)], first, last)]);
  }
  const columns = ["Attempt", "Nodes", "Began", "Lasted", "Ended", "Steps", `${clock(first, true)} to ${clock(last, true)}`].map((title, place) => ({ title, number: place === 3 }));
  const newest = rows.slice(-ROWS_AT_FIRST);
  const parts = [summary(attempts, waits, now), scroller("Attempts", table("Attempts of the run", columns, newest, { class: "timeline" }))];
  if (rows.length > newest.length) {
    parts.push(details("earlier attempts", `${plural(rows.length - newest.length, "earlier attempt")}`, () => scroller("Earlier attempts", table("Earlier attempts", columns, rows.slice(0, -ROWS_AT_FIRST), { class: "timeline" }))));
  }
  if (found.attempts_left_out) parts.push(el("p", { class: "note" }, `${plural(found.attempts_left_out, "attempt")} before these are not on this page.`));
  return parts;
}

function summary(attempts, waits, now) {
  const worked = attempts.reduce((sum, one) => sum + Math.max(0, (one.ended ?? now) - one.began), 0);
  const waited = waits.reduce((sum, one) => sum + (one.to ?? now) - one.from, 0);
  const lost = attempts.reduce((sum, one) => sum + one.lost, 0);
  const again = lost ? `, ${plural(lost, "step")} done again` : "";
  return el("p", {}, `${plural(attempts.length, "attempt")}: ${span(worked)} at work, ${span(waited)} waiting${again}.`);
}

function attemptRow(one, wait, first, last, now) {
  const message = one.message.trim();
  const firstLine = message.split("\n")[0];
  const words = [stateLabelOf(one.kind)];
  if (message.length > 120 || message.includes("\n")) words.push(": ", details(`message of ${one.number}`, firstLine.slice(0, 120), () => el("pre", {}, message)));
  else if (message) words.push(`: ${message}`);
  const name = [String(one.number), one.group ? `, group ${one.group}` : "", one.restart ? `, restart ${one.restart}` : ""].join("");
  const steps = one.to_step === null ? "" : `${number(one.from_step ?? 0)} to ${number(one.to_step)}${one.lost ? `, ${one.lost} lost` : ""}`;
  const parts = [{ from: one.began, to: one.ended ?? now, kind: KINDS[one.kind] ?? "unknown" }];
  if (wait) parts.unshift(waitPart(wait, now));
  return [name, nodeNames(one), clock(one.began), span((one.ended ?? now) - one.began), el("div", {}, words), steps, bar(parts, first, last)];
}

function waitPart(wait, now) {
  return { from: wait.from, to: wait.to ?? now, kind: "queued" };
}

function nodeNames(one) {
  const names = one.nodes.length > 4 ? `${one.nodes.slice(0, 3).join(", ")} and ${one.nodes.length - 3} more` : one.nodes.join(", ");
  return el("span", { title: one.nodes.slice(0, 100).join(", ") }, names, one.job ? el("span", { class: "muted" }, ` job ${one.job}`) : null);
}

function stateLabelOf(kind) {
  const marks = { preempted: "↻", running: "▶", failed: "✕", done: "✓", stopped: "■" };
  const shown = KINDS[kind] ?? "unknown";
  return el("span", { class: `state ${shown}` }, el("span", { "aria-hidden": "true" }, marks[shown] ?? "?"), " ", kind);
}

function bar(parts, first, last) {
  const x = (time) => ((time - first) / (last - first)) * 300;
  return svg("svg", { class: "bar", viewBox: "0 0 300 14", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("line", { class: "grid", x1: 0, x2: 300, y1: 7, y2: 7 }),
    parts.map((part) => svg("rect", { class: `part ${part.kind}`, x: x(part.from), y: part.kind === "queued" ? 5 : 1, width: Math.max(1.5, x(part.to) - x(part.from)), height: part.kind === "queued" ? 4 : 12 })));
}
