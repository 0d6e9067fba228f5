// One chart: lines over the step, their range as a band, marks where attempts began. All charts of a view share zoom
// and cursor. By pointer: drag to zoom, double-click for all. By keyboard it is a slider over the steps, with zoom.

const SIZE = { height: 210, left: 58, right: 10, top: 16, bottom: 24 };
const TABLE_ROWS = 1000;
let clipsMade = 0;

// group: {charts: [], cursor: step or null, all: [first, last]};
// spec: {key, title, lines: [{label, curve, colour, dashed}], marks: [[attempt, step]]}.
function chart(group, spec) {
  const lines = spec.lines.filter((line) => line.curve.first.length);
  const readout = el("div", { class: "readout" });
  const picture = svg("svg", { "aria-hidden": "true" });
  const plot = el("div", {
    class: "plot", id: `plot ${spec.key}`, tabindex: "0", role: "slider", "aria-label": `${spec.title}. ${describe(lines)}`,
    "aria-describedby": "chart-keys",
  }, picture);
  const clip = `clip-${++clipsMade}`;
  let width, toX, toStep, cursorLine, dragged = null;

  function range() {
    const [first, last] = state.zoom ?? group.all;
    return last > first ? [first, last] : [first - 0.5, first + 0.5];
  }

  function draw() {
    width = Math.max(160, plot.clientWidth);
    const [first, last] = range();
    const parts = lines.map((line) => visiblePart(line, first, last, state.log));
    const [low, high] = valueRange(parts, state.log);
    const bottom = SIZE.height - SIZE.bottom;
    const right = width - SIZE.right;
    toX = scale(first, last, SIZE.left, right);
    toStep = (x) => first + ((x - SIZE.left) / (right - SIZE.left)) * (last - first);
    const toY = scale(low, high, bottom, SIZE.top, state.log);
    picture.setAttribute("viewBox", `0 0 ${width} ${SIZE.height}`);
    picture.setAttribute("height", SIZE.height);
    const inside = { x: SIZE.left, y: SIZE.top, width: right - SIZE.left, height: bottom - SIZE.top };
    const yTicks = (state.log ? logTicks : ticks)(low, high, 4);
    const xTicks = ticks(first, last, Math.max(2, Math.floor(width / 90))).filter(Number.isInteger);
    cursorLine = svg("line", { class: "cursor", y1: SIZE.top, y2: bottom, visibility: "hidden" });
    picture.replaceChildren(
      svg("defs", {}, svg("clipPath", { id: clip }, svg("rect", inside))),
      ...yTicks.flatMap((value) => [
        svg("line", { class: "grid", x1: SIZE.left, x2: right, y1: toY(value), y2: toY(value) }),
        svg("text", { class: "tick", x: SIZE.left - 6, y: toY(value) + 4, "text-anchor": "end" }, number(value)),
      ]),
      ...xTicks.map((step) => svg("text", { class: "tick", x: toX(step), y: bottom + 16, "text-anchor": toX(step) > right - 16 ? "end" : "middle" }, number(step))),
      ...spec.marks.filter(([, step]) => step >= first && step <= last).flatMap(([attempt, step]) => [
        svg("line", { class: "attempt-mark", x1: toX(step), x2: toX(step), y1: SIZE.top, y2: bottom }),
        svg("text", { class: "tick", x: toX(step), y: SIZE.top - 4, "text-anchor": "middle" }, String(attempt)),
      ]),
      svg("g", { "clip-path": `url(#${clip})` }, parts.map((part, place) => paths(part, lines[place], toX, toY))),
      ...nonfinite(lines, first, last).map((step) => svg("text", { class: "bad", x: toX(step), y: bottom - 4, "text-anchor": "middle" }, "✕")),
      svg("rect", { class: "selection", ...inside, width: 0 }),
      cursorLine,
    );
    plot.setAttribute("aria-valuemin", String(Math.ceil(first)));
    plot.setAttribute("aria-valuemax", String(Math.floor(last)));
    point();
  }

  // Show what the lines say at the shared cursor, without one what they said last.
  function point() {
    const at = group.cursor;
    const [first, last] = range();
    const visible = at !== null && at >= first && at <= last;
    cursorLine.setAttribute("visibility", visible ? "visible" : "hidden");
    if (visible) {
      cursorLine.setAttribute("x1", toX(at));
      cursorLine.setAttribute("x2", toX(at));
    }
    const words = lines.map((line) => saidAt(line, visible ? at : Math.min(last, line.curve.last.at(-1))));
    readout.replaceChildren(...words.flatMap((word, place) => [place ? "  " : "", el("span", { class: `ink c${lines[place].colour}` }, "● "), word]));
    plot.setAttribute("aria-valuenow", String(Math.round(visible ? at : last)));
    plot.setAttribute("aria-valuetext", words.map((word, place) => `${lines[place].label}: ${word}`).join("; "));
  }

  function stepAt(event) {
    const box = picture.getBoundingClientRect();
    const [first, last] = range();
    return Math.min(last, Math.max(first, toStep(((event.clientX - box.left) / box.width) * width)));
  }

  function moveCursor(step) {
    group.cursor = step;
    for (const one of group.charts) one.point();
  }

  function zoomTo(first, last) {
    const [low, high] = group.all;
    const length = Math.min(high - low, Math.max(1, last - first));
    const start = Math.min(high - length, Math.max(low, first));
    state.zoom = length >= high - low ? null : [start, start + length];
    if (state.zoom && group.cursor !== null) group.cursor = Math.min(start + length, Math.max(start, group.cursor));
    for (const one of group.charts) one.draw();
    group.onzoom();
  }

  plot.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    plot.setPointerCapture(event.pointerId);
    dragged = stepAt(event);
  });
  plot.addEventListener("pointermove", (event) => {
    const step = stepAt(event);
    moveCursor(step);
    if (dragged === null) return;
    const selection = picture.querySelector(".selection");
    selection.setAttribute("x", Math.min(toX(dragged), toX(step)));
    selection.setAttribute("width", Math.abs(toX(dragged) - toX(step)));
  });
  plot.addEventListener("pointerup", (event) => {
    const from = dragged;
    dragged = null;
    const step = stepAt(event);
    if (from !== null && Math.abs(toX(from) - toX(step)) > 6) zoomTo(Math.min(from, step), Math.max(from, step));
  });
  plot.addEventListener("pointercancel", () => {
    dragged = null;
    draw();
  });
  plot.addEventListener("pointerleave", () => {
    if (dragged === null && document.activeElement !== plot) moveCursor(null);
  });
  plot.addEventListener("dblclick", () => zoomTo(...group.all));
  plot.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const [first, last] = range();
    const at = group.cursor ?? (first + last) / 2;
    const part = (last - first) / 2;
    const actions = {
      ArrowLeft: () => (event.shiftKey ? zoomTo(first - part / 2, last - part / 2) : moveCursor(neighbour(lines, at, -1, first, last))),
      ArrowRight: () => (event.shiftKey ? zoomTo(first + part / 2, last + part / 2) : moveCursor(neighbour(lines, at, 1, first, last))),
      Home: () => moveCursor(first),
      End: () => moveCursor(last),
      "+": () => zoomTo(at - part / 2, at + part / 2),
      "-": () => zoomTo(at - 2 * part, at + 2 * part),
      Escape: () => zoomTo(...group.all),
    };
    const action = actions[event.key === "=" ? "+" : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  group.charts.push({ draw, point, plot });
  return el("figure", { class: "chart" },
    el("figcaption", {}, el("strong", {}, spec.title), " ", el("span", { class: "legend" }, lines.map(legend))),
    readout, plot, ...notes(lines),
    details(`table ${spec.key}`, "As a table", () => curveTable(spec.title, lines, range())));
}

// What of a line lies between two steps, one bucket more on either side, with the lowest and highest to be seen.
function visiblePart({ curve }, first, last, log) {
  let [from, to] = [nearest(curve, first), nearest(curve, last)];
  from = Math.max(0, from - 1);
  to = Math.min(curve.first.length - 1, to + 1);
  const usable = (value) => value !== null && (!log || value > 0);
  const smoothed = state.smoothing ? smooth(curve.y, state.smoothing) : curve.y;
  let [low, high] = [Infinity, -Infinity];
  for (let place = from; place <= to; place++) {
    if (curve.last[place] < first || curve.first[place] > last) continue;
    for (const value of [curve.lo[place], curve.hi[place]]) {
      if (!usable(value)) continue;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  }
  return { curve, smoothed, from, to, usable, low, high };
}

function valueRange(parts, log) {
  const [low, high] = [Math.min(...parts.map((part) => part.low)), Math.max(...parts.map((part) => part.high))];
  if (!(low <= high)) return log ? [0.1, 1] : [0, 1];
  if (low === high) return log ? [low / 2, low * 2] : [low - (Math.abs(low) || 1) / 20, low + (Math.abs(low) || 1) / 20];
  return log ? [low / 1.05, high * 1.05] : [low - (high - low) / 25, high + (high - low) / 25];
}

// The band from lowest to highest, the values as they are where the line is smoothed, the line.
function paths({ curve, smoothed, from, to, usable }, line, toX, toY) {
  const along = (values) => {
    let path = "";
    let alone = "";
    let pen = false;
    for (let place = from; place <= to; place++) {
      if (!usable(values[place])) {
        pen = false;
        continue;
      }
      const at = `${toX(curve.middle[place]).toFixed(1)} ${toY(values[place]).toFixed(1)}`;
      path += `${pen ? "L" : "M"}${at}`;
      if (!pen && (place === to || !usable(values[place + 1]))) alone += `M${at}h0`; // a point without neighbours is seen too
      pen = true;
    }
    return path + alone;
  };
  const found = [];
  if (curve.per > 1) {
    const places = [];
    for (let place = from; place <= to; place++) if (usable(curve.lo[place])) places.push(place);
    const corner = (values) => (place) => `${toX(curve.middle[place]).toFixed(1)} ${toY(values[place]).toFixed(1)}`;
    const outline = [...places.map(corner(curve.hi)), ...places.reverse().map(corner(curve.lo))];
    found.push(svg("path", { class: `band c${line.colour}`, d: outline.length ? `M${outline.join("L")}Z` : "" }));
  }
  if (state.smoothing) found.push(svg("path", { class: `line faint c${line.colour}`, d: along(curve.y) }));
  found.push(svg("path", { class: `line c${line.colour}${line.dashed ? " dashed" : ""}`, d: along(smoothed) }));
  return found;
}

function nonfinite(lines, first, last) {
  return lines.flatMap((line) => line.curve.bad?.steps ?? []).filter((step) => step >= first && step <= last);
}

function saidAt(line, step) {
  const { curve } = line;
  const place = nearest(curve, step);
  const steps = curve.first[place] === curve.last[place] ? `step ${number(curve.first[place])}` : `steps ${number(curve.first[place])} to ${number(curve.last[place])}`;
  if (curve.y[place] === null) return `${steps}: no finite value`;
  const spread = curve.first[place] === curve.last[place] ? "" : ` (${number(curve.lo[place])} to ${number(curve.hi[place])})`;
  return `${number(curve.y[place])}${spread} at ${steps}`;
}

// The cursor's next place: the middle of the next bucket of the line with the most of them.
function neighbour(lines, at, direction, first, last) {
  const { curve } = lines.reduce((one, other) => (other.curve.first.length > one.curve.first.length ? other : one));
  const place = Math.min(curve.first.length - 1, Math.max(0, nearest(curve, at) + direction));
  return Math.min(last, Math.max(first, curve.middle[place]));
}

function legend(line) {
  const sample = svg("svg", { class: "sample", viewBox: "0 0 22 8", "aria-hidden": "true" }, svg("path", { class: `line c${line.colour}${line.dashed ? " dashed" : ""}`, d: "M0 4H22" }));
  return el("span", {}, sample, " ", line.label, " ");
}

function describe(lines) {
  return lines.map(({ label, curve }) => {
    const values = curve.lo.filter((value) => value !== null);
    const highest = curve.hi.filter((value) => value !== null);
    const newest = curve.y.findLast((value) => value !== null);
    const range = values.length ? `from ${number(curve.y.find((value) => value !== null))} to ${number(newest)}, lowest ${number(least(values))}, highest ${number(greatest(highest))}` : "no finite value";
    return `${label}: ${plural(curve.n, "record")}, steps ${number(curve.first[0])} to ${number(curve.last.at(-1))}, ${range}`;
  }).join(". ");
}

function least(values) {
  return values.reduce((one, other) => Math.min(one, other));
}

function greatest(values) {
  return values.reduce((one, other) => Math.max(one, other));
}

// What a reader must know of how the curve was made small, and of what it cannot show.
function notes(lines) {
  const words = [];
  const packed = lines.filter((line) => line.curve.per > 1);
  if (packed.length) {
    const sizes = packed.map((line) => line.curve.per);
    const each = least(sizes) === greatest(sizes) ? least(sizes) : `${least(sizes)} to ${greatest(sizes)}`;
    words.push(`${number(packed.reduce((sum, line) => sum + line.curve.n, 0))} records: the line is the mean of ${each} each, the band their lowest to highest.`);
  }
  const bad = lines.reduce((sum, line) => sum + (line.curve.bad?.count ?? 0), 0);
  if (bad) words.push(`${plural(bad, "value")} not finite (✕).`);
  return words.length ? [el("p", { class: "note" }, words.join(" "))] : [];
}

function curveTable(title, lines, [first, last]) {
  const rows = lines.flatMap(({ label, curve }) => curve.first.map((step, place) => ({ label, curve, place }))
    .filter(({ place }) => curve.last[place] >= first && curve.first[place] <= last)
    .map(({ place }) => [
      label, curve.first[place] === curve.last[place] ? number(curve.first[place]) : `${number(curve.first[place])} to ${number(curve.last[place])}`,
      number(curve.y[place], 6), number(curve.lo[place], 6), number(curve.hi[place], 6),
    ]));
  const columns = ["Curve", "Steps", "Mean", "Lowest", "Highest"].map((name, place) => ({ title: name, number: place > 0 }));
  const cut = rows.length > TABLE_ROWS ? el("p", { class: "note" }, `The first ${number(TABLE_ROWS)} of ${number(rows.length)} rows; zoom in for the others, then open the table again.`) : null;
  return [cut, scroller(`${title} as a table`, table(title, columns, rows.slice(0, TABLE_ROWS)))].filter(Boolean);
}
