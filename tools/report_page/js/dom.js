// Elements without markup: texts become text nodes, so that nothing that a run is called or says is ever parsed.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// el("p", {class: "note", onclick: f}, "text", el("b", {}, "bold")); children may be nested lists and null.
function el(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

// A table; columns: [{title, number, sort}], rows: lists of cells, texts or elements. The first cell heads its row.
function table(caption, columns, rows, properties) {
  const cell = (content, place) =>
    el(place ? "td" : "th", { class: columns[place].number ? "number" : null, scope: place ? null : "row", "data-title": columns[place].title }, content);
  const head = columns.map((column) => el("th", { scope: "col", class: column.number ? "number" : null }, column.title));
  return el("table", properties,
    el("caption", { class: "unseen" }, caption),
    el("thead", {}, el("tr", {}, head)),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map(cell)))));
}

// What may be wider than a narrow screen scrolls by itself, also by keyboard.
function scroller(label, ...children) {
  return el("div", { class: "scroller", role: "region", "aria-label": label, tabindex: "0" }, ...children);
}

function section(title, id, ...children) {
  return el("section", { "aria-labelledby": id }, el("h2", { id }, title), ...children);
}

// Details whose content is made when they are first opened; key: under which a later drawing finds them open again.
const opened = new Set();
function details(key, title, make) {
  const body = el("div", { class: "folded" });
  const box = el("details", { id: key }, el("summary", {}, title), body);
  const show = () => {
    if (!body.childNodes.length) body.append(...[make()].flat());
  };
  box.addEventListener("toggle", () => {
    if (box.open) show();
    opened[box.open ? "add" : "delete"](key);
  });
  if (opened.has(key)) {
    show();
    box.open = true;
  }
  return box;
}

function say(text) {
  document.getElementById("said").textContent = text;
}
