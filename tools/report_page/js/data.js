// The report's data: the overview at once, a run's page when it is first looked at.

const state = {
  index: JSON.parse(document.getElementById("index").textContent),
  filter: { text: "", stage: "", state: "" },
  sort: { by: "created", down: true },
  chosen: new Set(), // ids of the runs to compare
  smoothing: 0,
  log: false,
  zoom: null, // [first, last] step of all curves, null: all
  other: null, // id of the run to which settings are compared
};

const known = new Map(); // id -> {version, value} of the runs that were looked at

function runs() {
  if (state.byId?.index !== state.index) {
    state.byId = { index: state.index, map: new Map(state.index.runs.map((row) => [row.id, row])) };
  }
  return state.byId.map;
}

// The whole of a run: in a file from its element, on a served page from the server.
async function detail(id) {
  const row = runs().get(id);
  const before = known.get(id);
  if (before && before.version === row.version) return before.value;
  let text;
  if (state.index.live) {
    const answer = await fetch(`run/${encodeURIComponent(id)}`);
    if (!answer.ok) throw new Error(`the server says ${answer.status} of run ${id}`);
    text = await answer.text();
  } else {
    text = document.querySelector(`script[data-run="${CSS.escape(id)}"]`).textContent;
  }
  const value = JSON.parse(text);
  for (const curves of Object.values(value.curves ?? {})) for (const curve of Object.values(curves)) unpack(curve);
  for (const clip of value.clips?.shown ?? []) clip.run = id;
  known.set(id, { version: row.version, value });
  return value;
}

// Undo the differences between steps; give each bucket its middle and, where it is one record, its range.
function unpack(curve) {
  let step = 0;
  curve.first = curve.x.map((difference) => (step += difference));
  curve.last = curve.w ? curve.first.map((first, place) => first + curve.w[place]) : curve.first;
  curve.middle = curve.first.map((first, place) => (first + curve.last[place]) / 2);
  curve.lo ??= curve.y;
  curve.hi ??= curve.y;
}

function parentsOf(id) {
  return (runs().get(id)?.parents ?? []).map((parent) => parent.id);
}

function childrenOf(id) {
  return state.index.runs.filter((row) => row.parents.some((parent) => parent.id === id));
}

// Ids of all that a run was made from.
function ancestors(id) {
  const found = new Set();
  const todo = [id];
  while (todo.length) {
    for (const parent of parentsOf(todo.pop())) {
      if (!found.has(parent)) {
        found.add(parent);
        todo.push(parent);
      }
    }
  }
  return found;
}
