// Several runs beside each other: how they stand, where their settings differ, their curves, figures and clips.

const MOST_COMPARED = 8;

async function compareView(ids) {
  const rows = ids.map((id) => runs().get(id)).filter(Boolean).slice(0, MOST_COMPARED);
  if (rows.length < 2) return [el("h1", {}, "Comparison"), el("p", {}, "Choose two to eight runs in the list first. ", el("a", { href: "#/" }, "All runs"))];
  const values = [];
  for (const row of rows) values.push(await detail(row.id));
  const parts = [el("h1", {}, `Comparison of ${rows.length} runs`)];
  const colour = (place) => el("span", { class: `ink c${place}`, "aria-hidden": "true" }, "● ");
  const facts = rows.map((row, place) => [
    el("span", {}, colour(place), runLink(row.id)), stateLabel(row.state), progressWords(row), number(row.loss, 5), number(row.val, 5), attemptWords(row), clock(row.created),
  ]);
  parts.push(section("Runs", "runs", scroller("Runs", table("Runs compared", ["Run", "State", "Progress", "Loss", "Val. loss", "Attempts", "Created"].map((title, place) => ({ title, number: place > 2 && place < 6 })), facts))));
  const sources = rows.map((row, place) => ({ label: shortName(row), curves: values[place].curves ?? {}, colour: place }));
  if (sources.some(({ curves }) => Object.keys(curves).length)) parts.push(section("Curves", "curves", ...curvesView(sources, [])));
  const figures = rows.flatMap((row, place) => (values[place].evaluation?.figures ?? []).map(([path, ...numbers]) => [[shortName(row), ...path], ...numbers]));
  if (figures.length) parts.push(section("Evaluation", "evaluation", figuresTable("Figures with their intervals", figures)));
  const clips = [];
  for (const [place, row] of rows.entries()) clips.push({ label: shortName(row), clips: await allClips(row, values[place]) });
  if (clips.some((one) => one.clips.length)) parts.push(section("Clips by prompt and seed", "clips", ...clipsSideBySide(clips)));
  parts.push(section("Settings that differ", "settings", settingsTable(rows.map((row, place) => ({ label: shortName(row), leaves: told(row.id, values[place]) })), true)));
  return parts;
}

// A run's own clips, or those of the sampling runs that used it: of the finished run first, then of its last steps.
async function allClips(row, value) {
  if (value.clips) return value.clips.shown;
  const { series, rest } = await previewsOf(row.id);
  return [...rest, ...series.flatMap((made) => made.toReversed())].flatMap(({ clips }) => clips?.shown ?? []);
}
