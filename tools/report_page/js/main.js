// Which view the address asks for, and news on a page that is served.

let drawing = 0;

async function view(hash) {
  const [, name, rest] = hash.match(/^#\/(\w*)\/?(.*)$/) ?? [null, "", ""];
  if (name === "run") return runView(decodeURIComponent(rest));
  if (name === "compare") return compareView(rest.split(",").map(decodeURIComponent));
  return overview();
}

async function draw({ keepPlace }) {
  const turn = ++drawing;
  const { hash } = location;
  const main = document.getElementById("main");
  let parts;
  try {
    parts = await view(hash);
  } catch (error) {
    parts = [el("h1", {}, "This part of the report cannot be shown"), el("p", {}, String(error))];
    console.error(error);
  }
  if (turn !== drawing) return; // the reader went elsewhere meanwhile
  const [focused, top] = [document.activeElement?.id, window.scrollY];
  header();
  main.replaceChildren(...parts);
  main.dataset.view = hash;
  document.title = `${main.querySelector("h1")?.textContent ?? ""} - ${state.index.title}`;
  if (keepPlace) {
    window.scrollTo(0, top);
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  } else {
    window.scrollTo(0, 0);
    if (drawing > 1) main.focus({ preventScroll: true });
  }
}

function header() {
  const counts = new Map();
  for (const row of state.index.runs) counts.set(row.state, (counts.get(row.state) ?? 0) + 1);
  document.getElementById("top").replaceChildren(
    el("a", { href: "#/", class: "home", "aria-current": location.hash.length < 3 ? "page" : null }, "All runs"),
    el("span", { class: "title" }, state.index.title),
    el("span", { class: "counts" }, [...counts].map(([name, count]) => [stateLabel(name), ` ${count} `])),
    el("span", { class: "muted", id: "age" }, state.index.live ? `live, as of ${clock(state.index.made, true)}` : `as of ${clock(state.index.made)}`));
  const left = state.index.left_out;
  document.getElementById("foot").replaceChildren(
    el("p", {}, left ? `The newest ${plural(state.index.runs.length, "run")} of ${state.index.home}; ${number(left)} older ones are left out. ` : "",
      "Made by tools/report.py; this file needs no network. Long curves are made small by putting records in a row together: mean, lowest and highest of each; no value beyond these is lost. Numbers have six digits. Clips are those of sampling runs, of finished stages or of checkpoints."));
}

async function news() {
  const age = document.getElementById("age");
  try {
    const answer = await fetch("index");
    if (!answer.ok) throw new Error(`the server says ${answer.status}`);
    const before = state.index;
    const index = await answer.json();
    state.index = { ...index, live: before.live };
    const versions = (one) => JSON.stringify(one.runs.map((row) => [row.id, row.version, row.state, row.share]));
    if (versions(before) !== versions(index)) await draw({ keepPlace: true });
    else header();
  } catch (error) {
    age.textContent = `no news: ${error.message}; as of ${clock(state.index.made, true)}`;
  }
  setTimeout(news, state.index.live * 1000);
}

addEventListener("hashchange", () => {
  state.zoom = null;
  draw({ keepPlace: false });
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the view
  document.getElementById("main").focus();
});
if (!location.hash && state.index.named.length === 1) history.replaceState(null, "", `#/run/${encodeURIComponent(state.index.named[0])}`);
draw({ keepPlace: false });
if (state.index.live) setTimeout(news, state.index.live * 1000);
