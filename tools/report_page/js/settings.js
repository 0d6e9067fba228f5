// A run's settings, and how they differ from another's.

function leaves(value, path = "", found = new Map()) {
  const isTree = value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length;
  if (isTree) for (const [name, item] of Object.entries(value)) leaves(item, path ? `${path}.${name}` : name, found);
  else found.set(path, JSON.stringify(value));
  return found;
}

// All that a run was told: settings, inputs, what it was made from.
function told(id, value) {
  const parents = Object.fromEntries(runs().get(id).parents.map((parent) => [parent.role, parent.step === null ? parent.id : `${parent.id} at step ${parent.step}`]));
  return leaves({ ...value.config, input: value.inputs, parent: parents, source: value.source ?? undefined });
}

// sources: [{label, leaves}]; only: leave out what all have in common. Of one run all settings, by name.
function settingsTable(sources, only) {
  const paths = [...new Set(sources.flatMap((source) => [...source.leaves.keys()]))].sort();
  const differs = (path) => new Set(sources.map((source) => source.leaves.get(path))).size > 1;
  const chosen = paths.filter((path) => !only || differs(path));
  if (!chosen.length) return el("p", {}, "The settings are the same.");
  const shown = (text) => (text === undefined ? el("i", { class: "muted" }, "absent") : text);
  const rows = chosen.map((path) => [path, ...sources.map((source) => el("code", { class: only || !differs(path) || sources.length < 2 ? "" : "differs" }, shown(source.leaves.get(path))))]);
  return scroller("Settings", table("Settings", [{ title: "Setting" }, ...sources.map((source) => ({ title: source.label }))], rows, { class: "settings" }));
}

// The settings of a run with a choice of another run to compare them with.
function settingsView(id, value) {
  const row = runs().get(id);
  const others = state.index.runs.filter((one) => one.stage === row.stage && one.id !== id);
  const place = el("div", {});
  async function draw() {
    const mine = { label: shortName(row), leaves: told(id, value) };
    const other = others.find((one) => one.id === state.other);
    place.replaceChildren(other
      ? settingsTable([mine, { label: shortName(other), leaves: told(other.id, await detail(other.id)) }], true)
      : settingsTable([{ ...mine, label: "Value" }], false));
  }
  const choice = el("select", {
    id: "difference",
    onchange: () => {
      state.other = choice.value || null;
      draw();
    },
  }, el("option", { value: "" }, "no other run: all settings"), others.map((one) => el("option", { value: one.id, selected: one.id === state.other }, shortName(one))));
  draw();
  return [others.length ? el("div", { class: "controls" }, el("label", { for: "difference" }, "Difference to"), choice) : null, place].filter(Boolean);
}
