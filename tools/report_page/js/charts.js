// All curves of a view: which metrics share a chart, in which order, and the controls over them.

const TITLES = {
  loss: "Loss", grad_norm: "Gradient norm", lr: "Learning rate", skipped: "Skipped steps", samples_per_second: "Throughput (samples/s)",
  step_s: "Time of a step (s, median)", data_s: "Of it waiting for data (s)", checkpoint_s: "Time lost to saves (s)", memory_gib: "Peak of memory, rank 0 (GiB)",
};
const FIRST = ["loss", "grad_norm", "samples_per_second", "memory_gib", "lr"];
const LAST = ["step_s", "data_s", "checkpoint_s", "skipped"];
const SPLITS = { train: "training", val: "validation" };

function orderOf(name) {
  if (FIRST.includes(name)) return FIRST.indexOf(name);
  return LAST.includes(name) ? 200 + LAST.indexOf(name) : 100;
}

// sources: [{curves: {split: {metric: curve}}, label, colour or null: one colour a split}]; marks: [[attempt, step]].
function curvesView(sources, marks) {
  const names = [...new Set(sources.flatMap(({ curves }) => Object.values(curves).flatMap(Object.keys)))];
  names.sort((one, other) => orderOf(one) - orderOf(other) || one.localeCompare(other));
  if (!names.length) return [el("p", {}, "No metrics yet.")];
  const group = { charts: [], cursor: null, all: [Infinity, -Infinity], onzoom: () => {} };
  const specs = names.map((name) => ({
    key: name, title: TITLES[name] ?? name, marks,
    lines: sources.flatMap(({ curves, label, colour }) => Object.keys(curves).sort().filter((split) => curves[split][name]?.first.length).map((split) => ({
      curve: curves[split][name], dashed: split !== "train",
      colour: colour ?? (split === "train" ? 0 : 1),
      label: [label, SPLITS[split] ?? split].filter(Boolean).join(", "),
    }))),
  })).filter((spec) => spec.lines.length);
  const [flat, varying] = [specs.filter(isFlat), specs.filter((spec) => !isFlat(spec))];
  for (const { curve } of specs.flatMap((spec) => spec.lines)) {
    group.all = [Math.min(group.all[0], curve.first[0]), Math.max(group.all[1], curve.last.at(-1))];
  }
  const grid = el("div", { class: "charts" }, varying.map((spec) => chart(group, spec)));
  new ResizeObserver(() => group.charts.forEach((one) => one.draw())).observe(grid);
  return [controls(group, marks), grid, flat.length ? el("p", { class: "flat" }, "The same at every step: ", flat.map(flatWords).join("; "), ".") : null].filter(Boolean);
}

// A chart of a value that never changes would say no more than the value.
function isFlat(spec) {
  const values = spec.lines.flatMap(({ curve }) => [...curve.lo, ...curve.hi]);
  return values[0] !== null && values.every((value) => value === values[0]) && spec.lines.some(({ curve }) => curve.n > 1);
}

function flatWords(spec) {
  return `${spec.title.charAt(0).toLowerCase()}${spec.title.slice(1)} ${number(spec.lines[0].curve.y[0])}`;
}

function controls(group, marks) {
  const redraw = () => group.charts.forEach((one) => one.draw());
  const amount = el("output", { for: "smoothing" }, state.smoothing.toFixed(2));
  const slider = el("input", {
    type: "range", id: "smoothing", min: "0", max: "0.99", step: "0.01", value: String(state.smoothing),
    oninput: () => {
      state.smoothing = Number(slider.value);
      amount.textContent = state.smoothing.toFixed(2);
      redraw();
    },
  });
  const log = el("input", {
    type: "checkbox", id: "log", checked: state.log,
    onchange: () => {
      state.log = log.checked;
      redraw();
    },
  });
  const all = el("button", {
    type: "button", id: "zoom-out", disabled: !state.zoom,
    onclick: () => {
      state.zoom = null;
      redraw();
      group.onzoom();
    },
  }, "All steps");
  const range = el("span", { class: "muted" });
  group.onzoom = () => {
    all.disabled = !state.zoom;
    range.textContent = state.zoom ? `steps ${number(Math.ceil(state.zoom[0]))} to ${number(Math.floor(state.zoom[1]))}` : "";
    say(state.zoom ? `Zoomed to ${range.textContent}` : "All steps");
  };
  return el("div", { class: "controls" },
    el("label", { for: "smoothing" }, "Smoothing"), slider, amount,
    el("label", {}, log, " Logarithmic"), all, range,
    el("p", { class: "note", id: "chart-keys" },
      "Drag over a chart to zoom all of them, double-click for all steps. Keys: ← → move along, + and − zoom, shift with ← → moves the range, Esc shows all.",
      marks.length ? " Dashed lines mark where a later attempt went on." : ""));
}
