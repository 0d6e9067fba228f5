// All runs: how they stand, with filter, order and choice for a comparison, and the lineage of those that are shown.

const COLUMNS = [
  { title: "Run", by: "name", text: (row) => runLink(row.id, shortName(row)), key: (row) => row.name },
  { title: "Stage", by: "stage", text: (row) => row.stage, key: (row) => state.index.stages.indexOf(row.stage) },
  { title: "State", by: "state", text: (row) => stateLabel(row.state), key: (row) => ["poisoned", "failed", "unknown", "running", "queued", "stopped", "done"].indexOf(row.state) },
  { title: "Progress", by: "share", text: (row) => progressWords(row), key: (row) => row.share, number: true },
  { title: "Loss", by: "loss", text: (row) => number(row.loss), key: (row) => row.loss, number: true },
  { title: "Val. loss", by: "val", text: (row) => number(row.val), key: (row) => row.val, number: true },
  { title: "Loss curve", text: (row) => sparkline(row.spark) },
  { title: "Attempts", by: "attempts", text: (row) => attemptWords(row), key: (row) => row.attempts, number: true },
  { title: "Created", by: "created", text: (row) => el("span", { title: `by ${row.creator}` }, clock(row.created)), key: (row) => row.created, number: true },
];

function progressWords(row) {
  const parts = row.of ? ` ${number(row.done)} / ${number(row.of)}` : "";
  const left = row.left_s ? `, ${span(row.left_s)} left` : "";
  return row.state === "done" ? "" : el("span", {}, `${Math.floor(100 * row.share)} %`, el("span", { class: "muted" }, `${parts}${left}`));
}

function attemptWords(row) {
  const bad = ["error", "hang", "silent"].reduce((sum, kind) => sum + (row.ends[kind] ?? 0), 0);
  const taken = (row.ends.preempted ?? 0) + (row.ends.timeout ?? 0);
  const more = [taken ? `${taken} preempted` : "", bad ? `${bad} failed` : ""].filter(Boolean).join(", ");
  return el("span", {}, number(row.attempts), more ? el("span", { class: "muted" }, ` (${more})`) : null);
}

function sparkline(values) {
  const finite = values.filter((value) => value !== null);
  if (finite.length < 2) return "";
  const x = scale(0, values.length - 1, 1, 99);
  const y = scale(least(finite), greatest(finite), 20, 2);
  let pen = "M";
  const path = values.map((value, place) => {
    const part = value === null ? "" : `${pen}${x(place).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = value === null ? "M" : "L";
    return part;
  }).join("");
  return svg("svg", { class: "spark", viewBox: "0 0 100 22", "aria-hidden": "true" }, svg("path", { class: "line c0", d: path }));
}

function matching() {
  const { text, stage, state: wanted } = state.filter;
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const column = COLUMNS.find((one) => one.by === state.sort.by);
  const found = state.index.runs.filter((row) => {
    const all = `${row.name} ${row.recipe} ${row.creator} ${row.nodes} ${row.parents.map((parent) => parent.id).join(" ")}`.toLowerCase();
    return (!stage || row.stage === stage) && (!wanted || row.state === wanted) && words.every((word) => all.includes(word));
  });
  const direction = state.sort.down ? -1 : 1;
  const compare = (one, other) => (typeof one === "string" && typeof other === "string" ? one.localeCompare(other) : one - other);
  const missing = (key) => (column.number ? typeof key !== "number" : key === undefined);
  return found.sort((one, other) => {
    const [a, b] = [column.key(one), column.key(other)];
    return missing(a) || missing(b) ? missing(a) - missing(b) : direction * compare(a, b);
  });
}

function overview() {
  const list = el("div", {});
  const graph = el("div", {});
  const count = el("span", { class: "muted", id: "count", role: "status" });
  const compare = el("button", { type: "button", id: "compare", onclick: () => (location.hash = `#/compare/${[...state.chosen].map(encodeURIComponent).join(",")}`) });
  const none = el("button", { type: "button", onclick: () => { state.chosen.clear(); draw(); } }, "Choose none");

  function chosenChanged() {
    compare.textContent = `Compare ${state.chosen.size || ""} chosen`.replace("  ", " ");
    compare.disabled = state.chosen.size < 2 || state.chosen.size > MOST_COMPARED;
    compare.title = state.chosen.size > MOST_COMPARED ? `at most ${MOST_COMPARED} runs` : "";
    none.hidden = !state.chosen.size;
  }

  function headCell(column) {
    if (!column.by) return el("th", { scope: "col" }, column.title);
    const sorted = state.sort.by === column.by;
    const turn = () => {
      state.sort = { by: column.by, down: sorted ? !state.sort.down : column.number ?? false };
      draw();
      document.getElementById(`sort ${column.by}`).focus();
    };
    return el("th", { scope: "col", class: column.number ? "number" : null, "aria-sort": sorted ? (state.sort.down ? "descending" : "ascending") : "none" },
      el("button", { type: "button", class: "head", id: `sort ${column.by}`, onclick: turn }, column.title, el("span", { "aria-hidden": "true" }, sorted ? (state.sort.down ? " ▾" : " ▴") : "")));
  }

  function line(row) {
    const choice = el("input", {
      type: "checkbox", id: `choose ${row.id}`, checked: state.chosen.has(row.id), "aria-label": `Choose ${row.name} for a comparison`,
      onchange: () => {
        state.chosen[choice.checked ? "add" : "delete"](row.id);
        chosenChanged();
      },
    });
    const cells = COLUMNS.map((column, place) => el(place ? "td" : "th", { scope: place ? null : "row", class: column.number ? "number" : null, "data-title": column.title }, column.text(row)));
    if (row.why || row.reason) cells[2].append(el("div", { class: "reason muted" }, row.why || row.reason));
    return el("tr", {}, el("td", { class: "choice" }, choice), cells);
  }

  function draw() {
    const found = matching();
    count.textContent = found.length === state.index.runs.length ? plural(found.length, "run") : `${number(found.length)} of ${plural(state.index.runs.length, "run")}`;
    list.replaceChildren(el("table", { class: "runs" }, el("caption", { class: "unseen" }, "Runs"),
      el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "choice" }, el("span", { class: "unseen" }, "Choose")), COLUMNS.map(headCell))),
      el("tbody", {}, found.map(line))));
    if (!found.length) list.replaceChildren(el("p", {}, "No run matches."));
    graph.replaceChildren(found.length ? lineageView(found.map((row) => row.id), null) : "");
    chosenChanged();
  }

  const text = el("input", { type: "search", id: "filter", placeholder: "name, recipe, creator, id", value: state.filter.text, oninput: () => { state.filter.text = text.value; draw(); } });
  const choice = (id, label, values) => {
    const select = el("select", { id, onchange: () => { state.filter[id] = select.value; draw(); } },
      el("option", { value: "" }, `any ${label}`), values.map((value) => el("option", { value, selected: state.filter[id] === value }, value)));
    return [el("label", { class: "unseen", for: id }, label), select];
  };
  const present = (name) => [...new Set(state.index.runs.map((row) => row[name]))];
  draw();
  const stages = state.index.stages.filter((stage) => present("stage").includes(stage));
  return [
    el("h1", { class: "unseen" }, "Runs"),
    el("div", { class: "controls" }, el("label", { for: "filter" }, "Filter"), text, choice("stage", "stage", stages), choice("state", "state", present("state").sort()), count, compare, none),
    list,
    section("Lineage", "lineage-title", graph),
  ];
}
