// What evaluations measured: figures with their intervals, whatever they are, and how they went over time.

function figureText(name, value, low, high) {
  const isShare = /^top\d+$/.test(name) && value >= 0 && value <= 1;
  const shown = (one) => (isShare ? number(100 * one, 3) : number(one));
  const interval = low === null || high === null ? "" : ` (${shown(low)} to ${shown(high)})`;
  return `${shown(value)}${isShare ? " %" : ""}${interval}`;
}

// A row for what the paths begin with, a column for what they end with: `text_to_video / top1`.
function figuresTable(caption, entries) {
  const begins = new Map();
  for (const [path, ...numbers] of entries) {
    const begin = path.slice(0, -1).join(" / ") || "figure";
    if (!begins.has(begin)) begins.set(begin, new Map());
    begins.get(begin).set(path.at(-1), numbers);
  }
  const isRow = ([begin, cells]) => cells.size > 1 && begin !== "figure";
  const several = [...begins].filter(isRow);
  const ends = [...new Set(several.flatMap(([, cells]) => [...cells.keys()]))];
  const rows = several.map(([begin, cells]) => [begin.replaceAll("_", " "), ...ends.map((end) => (cells.has(end) ? figureText(end, ...cells.get(end)) : ""))]);
  const columns = [{ title: "" }, ...ends.map((end) => ({ title: end.replaceAll("_", " "), number: true }))];
  const single = [...begins].filter((one) => !isRow(one)).flatMap(([begin, cells]) =>
    [...cells].map(([end, numbers]) => [`${begin === "figure" ? "" : `${begin} / `}${end}`.replaceAll("_", " "), figureText(end, ...numbers)]));
  return el("div", {},
    rows.length ? scroller(caption, table(caption, columns, rows)) : null,
    single.length ? scroller(`${caption}, one by one`, table(caption, [{ title: "Figure" }, { title: "Value" }], single)) : null);
}

function evaluationView(found) {
  const judged = Object.entries(found.judged).map(([stage, one]) => el("span", {}, `${stage} `, runLink(one.id), Number.isInteger(one.step) ? ` at step ${number(one.step)}` : ""));
  const parts = [el("p", {}, "Judged: ", judged.flatMap((one, place) => (place ? [", ", one] : [one])), ".")];
  if (found.figures.length) parts.push(figuresTable("Figures with their intervals", found.figures));
  parts.push(el("h3", {}, "What it was measured on"), factsList(found.facts));
  if (found.ranks) parts.push(...ranksView(found.ranks));
  return parts;
}

function ranksView(ranks) {
  const rows = ranks.shown.map((one) => [one.text ?? "", ...one.ranks.map((rank) => number(rank)), one.clip ?? ""]);
  const title = ranks.of > ranks.shown.length ? `Best and worst of ${number(ranks.of)} clips` : "All clips, the best first";
  return [el("h3", {}, title), scroller(title, table(title, [{ title: "Text" }, { title: "Rank of its video", number: true }, { title: "Rank of the text", number: true }, { title: "Clip" }], rows))];
}

function factsList(facts) {
  return el("dl", { class: "facts" }, facts.map(([name, value]) => el("div", {}, el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, typeof value === "number" ? number(value, 6) : String(value ?? "")))));
}

// All evaluations that judged a run, by its step.
async function evaluationHistory(id) {
  const rows = state.index.runs.filter((row) => row.stage === "evaluate" && row.parents.some((parent) => parent.id === id));
  const found = [];
  for (const row of rows) {
    const { evaluation } = await detail(row.id);
    if (evaluation?.judged && Object.values(evaluation.judged).some((one) => one.id === id)) found.push({ row, evaluation, step: Object.values(evaluation.judged).find((one) => one.id === id).step });
  }
  const at = (one) => (Number.isInteger(one.step) ? one.step : Number.MAX_SAFE_INTEGER); // what is finished comes last
  found.sort((one, other) => at(one) - at(other) || one.row.created - other.row.created);
  if (!found.length) return null;
  const paths = [...new Set(found.flatMap(({ evaluation }) => evaluation.figures.map(([path]) => path.join(" / "))))];
  const split = (evaluation) => String(evaluation.facts.find(([name]) => name === "split")?.[1] ?? "");
  const columns = [{ title: "Evaluation" }, { title: "Made" }, { title: "Step", number: true }, { title: "Split" }, ...paths.map((path) => ({ title: path.replaceAll("_", " "), number: true }))];
  const cells = found.map(({ row, evaluation, step }) => {
    const figures = new Map(evaluation.figures.map(([path, ...numbers]) => [path.join(" / "), figureText(path.at(-1), ...numbers)]));
    return [runLink(row.id, shortName(row)), clock(row.created), Number.isInteger(step) ? number(step) : "final", split(evaluation), ...paths.map((path) => figures.get(path) ?? "")];
  });
  return scroller("Evaluations of this run", table("Evaluations of this run", columns, cells, { class: "history" }));
}
