// The page of one run.

async function runView(id) {
  const row = runs().get(id);
  if (!row) return [el("h1", {}, "No such run"), el("p", {}, `${id} is not in this report. `, el("a", { href: "#/" }, "All runs"))];
  const value = await detail(id);
  const parts = [heading(row, value)];
  const add = (title, name, content) => content && content.length && parts.push(section(title, name, ...content));
  if (value.damaged.length) add("What could not be read", "damage", [el("ul", { class: "failed" }, value.damaged.map((text) => el("li", {}, text)))]);
  if (value.curves && (Object.keys(value.curves).length || row.training)) add("Curves", "curves", curvesView([{ curves: value.curves, label: "" }], value.marks));
  if (value.clips) add("Clips", "clips", clipsView(id, value.clips));
  else {
    const { series, rest, elsewhere } = await previewsOf(id);
    add("Clips over training", "previews", series.flatMap(previewsView));
    const others = [...elsewhere].map((one) => el("p", {}, "Also over the training of ", runLink(one), "."));
    add("Clips made with it", "clips", [...clipsOfChildren(rest), ...others]);
  }
  if (value.evaluation) add("Evaluation", "evaluation", evaluationView(value.evaluation));
  const history = await evaluationHistory(id);
  if (history) add("Evaluations of this run", "evaluations", [history]);
  if (value.store) add("Data", "data", storeView(value.store));
  if (value.attempts) add("Attempts", "attempts", timelineView(value, state.index.made));
  if (value.story) add("What happened", "story", [el("ul", { class: "story" }, value.story.map((text) => el("li", {}, text.trim())))]);
  if (value.events?.of) add("Events", "events", eventsView(value.events));
  add("Lineage", "lineage", [lineageView(family(id), id), ...broken(row)]);
  if (value.config) add("Settings", "settings", settingsView(id, value));
  return [...parts.slice(0, 1), contents(parts.slice(1)), ...parts.slice(1)];
}

function heading(row, value) {
  const facts = [
    ["state", el("span", {}, stateLabel(row.state), row.reason || row.why ? `: ${row.reason || row.why}` : "")],
    ["progress", row.state === "done" ? "" : row.progress],
    ["throughput", row.rate ? `${number(row.rate)} a second, ${span(row.left_s)} left` : ""],
    ["nodes", row.nodes],
    ["loss", row.loss === null ? "" : `${number(row.loss, 5)}${row.val === null ? "" : `, validation ${number(row.val, 5)}`}`],
    ["created", `${clock(row.created)} by ${row.creator}, recipe ${row.recipe}`],
    ["digest", value.done?.digest ? el("code", {}, String(value.done.digest).slice(0, 16)) : ""],
    ["commits", value.commits?.length ? `${value.commits.length} kept, the newest at step ${number(value.commits.at(-1))}` : ""],
    ["folder", el("code", {}, value.folder ?? "")],
  ].filter(([, content]) => content);
  const chosen = () => state.chosen.has(row.id);
  const choose = el("button", {
    type: "button", id: "choose-this", "aria-pressed": String(chosen()),
    onclick: () => {
      state.chosen[chosen() ? "delete" : "add"](row.id);
      choose.setAttribute("aria-pressed", String(chosen()));
      choose.textContent = words();
    },
  });
  const words = () => (chosen() ? "✓ Chosen for comparison" : "Choose for comparison");
  choose.textContent = words();
  return el("div", { class: "heading" }, el("h1", {}, row.stage, " ", shortName(row)), choose,
    el("dl", {}, facts.map(([name, content]) => el("div", {}, el("dt", {}, name), el("dd", {}, content)))));
}

function contents(sections) {
  const links = sections.map((one) => {
    const title = one.querySelector("h2");
    const jump = (event) => {
      event.preventDefault();
      title.tabIndex = -1;
      title.focus();
      title.scrollIntoView();
    };
    return el("a", { href: location.hash, onclick: jump }, title.textContent);
  });
  return el("nav", { "aria-label": "Parts of this page", class: "contents" }, links);
}

// The clips of sampling runs that used a model: training itself writes none.
function clipsOfChildren(samplings) {
  return samplings.filter(({ clips }) => clips?.of).flatMap(({ row, clips }) => [el("h3", {}, runLink(row.id), " ", clock(row.created)), ...clipsView(row.id, clips)]);
}

function broken(row) {
  const words = { gone: "is not in the registry any more", unfinished: "is not finished any more", changed: "has another digest than it was pinned with" };
  return row.parents.filter((parent) => parent.pinned !== "ok").map((parent) => el("p", { class: "failed" }, `Its ${parent.role} `, runLink(parent.id), ` ${words[parent.pinned]}.`));
}

function eventsView(events) {
  const rows = events.shown.map((one) => [one.event ?? "", clock(one.time, true), one.step === null ? "" : number(one.step), number(one.attempt), one.message]);
  const cut = events.of > events.shown.length ? el("p", { class: "note" }, `The newest ${events.shown.length} of ${number(events.of)}.`) : null;
  return [scroller("Events", table("Events", [{ title: "Event" }, { title: "When" }, { title: "Step", number: true }, { title: "Attempt", number: true }, { title: "What" }], rows)), cut].filter(Boolean);
}
