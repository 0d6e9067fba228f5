// The lineage as a picture: a column a stage, from the data to what was made of it; every box leads to its run.

const BOX = { width: 136, height: 38, gap: 2, gapX: 34, gapY: 10 };
const MOST_BOXES = 120;

// ids: runs to show; current: the one to be marked, or null. Parents that the report does not hold are shown as gone.
function lineageView(ids, current) {
  if (ids.length > MOST_BOXES) {
    return el("p", { class: "note" }, `The graph of ${number(ids.length)} runs says little: filter down to ${MOST_BOXES} or fewer.`);
  }
  const nodes = new Map(ids.map((id) => [id, { id, row: runs().get(id), stage: runs().get(id).stage }]));
  const edges = [];
  for (const id of ids) {
    for (const parent of directParents(id)) {
      if (!nodes.has(parent.id) && !runs().has(parent.id)) nodes.set(parent.id, { id: parent.id, row: null, stage: parent.stage });
      if (nodes.has(parent.id)) edges.push({ from: parent.id, to: id, pinned: parent.pinned });
    }
  }
  const stages = state.index.stages.filter((stage) => [...nodes.values()].some((node) => node.stage === stage));
  const columns = stages.map((stage) => [...nodes.values()].filter((node) => node.stage === stage));
  const routes = edges.map((edge) => ({ ...edge, way: wayOf(edge, nodes, columns) }));
  place(columns, routes);
  const width = columns.length * (BOX.width + BOX.gapX) - BOX.gapX;
  const height = Math.max(...columns.map((column) => column.at(-1).y + column.at(-1).height)) + 4;
  const picture = svg("svg", { class: "lineage", viewBox: `-2 0 ${width + 4} ${height}`, width: width + 4, height, role: "group", "aria-label": "Lineage: each run with an arrow from what it was made from" },
    stages.map((stage, column) => svg("text", { class: "tick", x: column * (BOX.width + BOX.gapX), y: 12 }, stage)),
    routes.map(arrow),
    [...nodes.values()].map((node) => box(node, node.id === current)));
  return scroller("Lineage", picture);
}

// Parents from which none of the other parents was made: the rest follows from these.
function directParents(id) {
  const parents = runs().get(id).parents;
  const older = new Set(parents.flatMap((parent) => [...ancestors(parent.id)]));
  return parents.filter((parent) => !older.has(parent.id));
}

// What an arrow passes from its start to its end: a gap of its own in each column between, so that it crosses no box.
function wayOf(edge, nodes, columns) {
  const [from, to] = [nodes.get(edge.from), nodes.get(edge.to)];
  const columnOf = (node) => columns.findIndex((column) => column.includes(node));
  const between = columns.slice(columnOf(from) + 1, columnOf(to)).map((column) => {
    const gap = { height: BOX.gap };
    column.push(gap);
    return gap;
  });
  return [from, ...between, to];
}

// Each column in the order of the mean height of what its boxes come from, so that few arrows cross.
function place(columns, routes) {
  columns.forEach((column, number) => {
    const heights = new Map(column.map((node) => {
      const before = routes.filter(({ way }) => way.indexOf(node) > 0).map(({ way }) => middle(way[way.indexOf(node) - 1]));
      return [node, before.length ? before.reduce((sum, y) => sum + y, 0) / before.length : Infinity];
    }));
    column.sort((one, other) => heights.get(one) - heights.get(other) || (one.row?.created ?? 0) - (other.row?.created ?? 0));
    let y = 22;
    for (const node of column) {
      node.height ??= BOX.height;
      node.x = number * (BOX.width + BOX.gapX);
      node.y = y;
      y += node.height + BOX.gapY;
    }
  });
}

function middle(node) {
  return node.y + node.height / 2;
}

function arrow({ way, pinned }) {
  const last = way.at(-1);
  let path = "";
  way.slice(1).forEach((to, number) => {
    const from = way[number];
    const [x1, y1, x2, y2] = [from.x + BOX.width, middle(from), to.x - (to === last ? 4 : 0), middle(to)];
    const bend = (x2 - x1) / 2;
    path += `${path ? "" : `M${x1} ${y1}`}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}${to === last ? "" : `H${to.x + BOX.width}`}`;
  });
  return svg("g", { class: pinned === "ok" ? "edge" : "edge broken" },
    svg("path", { d: path }), svg("path", { class: "tip", d: `M${last.x} ${middle(last)}l-7 -3.5v7z` }));
}

function box(node, current) {
  const { id, row, x, y } = node;
  const title = row ? shortName(row) : id;
  const below = row ? `${MARKS[row.state] ?? "?"} ${row.state}${row.state === "running" ? ` ${percent(row.share)}` : ""}` : "not in this report";
  const shape = [
    svg("title", {}, row ? `${row.name}, ${row.state}` : `${node.stage} ${id}: not in this report`),
    svg("rect", { x, y, width: BOX.width, height: BOX.height, rx: 4 }),
    svg("text", { x: x + 8, y: y + 16 }, title.length > 19 ? `${title.slice(0, 7)}…${title.slice(-10)}` : title),
    svg("text", { class: `state ${row?.state ?? "unknown"}`, x: x + 8, y: y + 31 }, below),
  ];
  return row
    ? svg("a", { class: current ? "box current" : "box", href: `#/run/${encodeURIComponent(id)}`, "aria-current": current ? "true" : null }, shape)
    : svg("g", { class: "box gone" }, shape);
}

// A run with all that it was made from and all that was made from it.
function family(id) {
  const above = ancestors(id);
  return state.index.runs.map((row) => row.id).filter((one) => one === id || above.has(one) || ancestors(one).has(id));
}
