// What a run generated while it was trained: clips of its checkpoints by prompt and seed, a column a step.

const MOST_STEPS = 24;

// Samplings that used a run: `series`, of its checkpoints and of the finished run in the same way, a list for each way;
// `rest`; and `elsewhere`, ids of other runs whose checkpoints were sampled with it.
async function previewsOf(id) {
  const ways = new Map();
  const elsewhere = new Set();
  for (const row of childrenOf(id).filter((one) => one.stage === "sample")) {
    const watched = row.parents.find((parent) => parent.step !== null);
    if (watched && watched.id !== id) {
      elsewhere.add(watched.id);
      continue;
    }
    const value = await detail(row.id);
    const others = row.parents.filter((parent) => parent.id !== id).map((parent) => [parent.role, parent.id]);
    const way = JSON.stringify([value.config ?? null, others]);
    const { step } = row.parents.find((parent) => parent.id === id);
    ways.set(way, [...(ways.get(way) ?? []), { row, clips: value.clips, step: step ?? Infinity }]); // what is finished comes last
  }
  const isPreview = (made) => made.some(({ step }) => step < Infinity);
  const all = [...ways.values()];
  return { series: all.filter(isPreview).map((made) => made.sort((one, other) => one.step - other.step)), rest: all.filter((made) => !isPreview(made)).flat(), elsewhere };
}

function previewsView(made) {
  const shown = evenly(made, MOST_STEPS);
  const titles = shown.map(({ step }) => (step < Infinity ? `step ${number(step)}` : "finished"));
  const prompts = byPromptAndSeed(shown.map(({ clips }) => clips?.shown ?? [])).slice(0, PER_PAGE);
  const cell = (clip) => (clip ? clipView(clip, { short: true }) : "");
  const rows = prompts.map((row) => {
    const { prompt, facts } = row.find(Boolean);
    return [el("div", {}, prompt, el("span", { class: "muted" }, ` seed ${facts.seed ?? ""}${facts.repeat ? ` repeat ${facts.repeat}` : ""}`)), ...row.map(cell)];
  });
  const runsRow = ["made by", ...shown.map(({ row }) => el("span", {}, runLink(row.id), " ", row.state === "done" ? "" : stateLabel(row.state)))];
  const left = made.length - shown.length;
  return [
    scroller("Clips over training", table("Clips over training", ["Prompt", ...titles].map((title) => ({ title })), [...rows, runsRow], { class: "previews" })),
    left ? el("p", { class: "note" }, `${shown.length} of ${made.length} steps, evenly chosen; the others' clips are on the pages of their runs.`) : null,
  ].filter(Boolean);
}

// At most so many of a list, the first and the last among them.
function evenly(list, most) {
  if (list.length <= most) return list;
  return Array.from({ length: most }, (_, place) => list[Math.round((place * (list.length - 1)) / (most - 1))]);
}
