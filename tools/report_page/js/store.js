// What is in a data set's store: numbers, distributions, what was left out and why.

function storeView(found) {
  const parts = [];
  if (found.facts.length) parts.push(factsList(found.facts));
  const charts = Object.entries(found.histograms).filter(([, one]) => one.counts.length).map(([name, one]) => histogram(name, one));
  const counts = Object.entries(found.counts).map(([name, one]) => countsTable(name, one));
  parts.push(el("div", { class: "small-multiples" }, charts, counts));
  if (found.notes.length) parts.push(el("h3", {}, "Notes"), el("ul", {}, found.notes.slice(0, 50).map((note) => el("li", {}, String(note)))));
  parts.push(el("h3", { id: "bad-clips" }, `Bad clips: ${number(found.bad.of)}`), ...badClips(found.bad));
  return parts;
}

function histogram(name, { edges, counts }) {
  const [width, height] = [280, 90];
  const [low, high, most] = [edges[0], edges.at(-1), Math.max(...counts)];
  const x = scale(low, high, 0, width);
  const bars = counts.map((count, place) => count && svg("rect", { class: "fill c0", x: x(edges[place]), width: Math.max(1, x(edges[place + 1]) - x(edges[place]) - 1), y: height - Math.max(1, (count / most) * height), height: Math.max(1, (count / most) * height) }));
  const title = name.replaceAll("_", " ");
  const words = `${title}: ${number(counts.reduce((sum, count) => sum + count, 0))} from ${number(low)} to ${number(high)}, at most ${number(most)} in a bar`;
  return el("figure", { class: "histogram" }, el("figcaption", {}, title),
    svg("svg", { viewBox: `0 -2 ${width} ${height + 20}`, role: "img", "aria-label": words }, bars.filter(Boolean),
      ticks(low, high, 5).map((value) => svg("text", { class: "tick", x: Math.min(width - 12, Math.max(6, x(value))), y: height + 14, "text-anchor": "middle" }, number(value)))));
}

function countsTable(name, counts) {
  const title = name.replaceAll("_", " ");
  const rows = Object.entries(counts).map(([what, count]) => [what, number(count)]);
  return el("div", {}, el("h3", {}, title), table(title, [{ title: "" }, { title: "count", number: true }], rows.slice(0, 12)));
}

function badClips(bad) {
  if (!bad.of) return [el("p", {}, "None: every clip is in the store.")];
  const left = bad.of - bad.shown.length;
  return [
    scroller("Bad clips", table("Bad clips and why", [{ title: "Clip" }, { title: "Reason" }], bad.shown)),
    left ? el("p", { class: "note" }, `${plural(left, "bad clip")} more in the store's bad_clips.json.`) : null,
  ].filter(Boolean);
}
