// Generated clips as playing videos. A clip becomes a file of the page's own when it comes into view, not before.

const PER_PAGE = 24;
const HEADING = ["seed", "repeat", "candidate"];
const blobs = new Map(); // base64 text -> its URL

function urlOf(clip) {
  if (!blobs.has(clip.data)) {
    const bytes = Uint8Array.from(atob(clip.data), (character) => character.charCodeAt(0));
    blobs.set(clip.data, URL.createObjectURL(new Blob([bytes], { type: clip.type })));
  }
  return blobs.get(clip.data);
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const { target } = entry;
    if (!target.isConnected) watcher.unobserve(target);
    else if (target.tagName === "VIDEO") {
      if (!entry.isIntersecting) target.pause();
      else {
        if (!target.src) target.src = urlOf(target.clip);
        if (!calm.matches && !target.stoppedByHand) target.play().catch(() => {}); // a browser may refuse to start by itself
      }
    } else if (entry.isIntersecting && !target.src) target.src = urlOf(target.clip);
  }
}, { rootMargin: "200px" });
const calm = matchMedia("(prefers-reduced-motion: reduce)");

// label: whose clip it is; short: without what heads its row anyway, or is on its own page.
function clipView(clip, { label = "", short = false } = {}) {
  const facts = Object.entries(clip.facts).filter(([name]) => !short || !HEADING.includes(name));
  const words = facts.map(([name, value]) => ` ${name.replaceAll("_", " ")} ${Number.isInteger(value) ? value : number(value)}`);
  const caption = el("figcaption", {}, short ? null : clip.prompt || el("i", {}, "without a prompt"),
    el("span", { class: "muted" }, ...words, short ? "" : ` ${clip.file}`),
    clip.made.length ? details(`made ${clip.run} ${clip.file} ${label}`, "how", () => factsList(clip.made)) : null,
    label ? el("b", { class: "muted" }, ` ${label}`) : null);
  if (clip.missing) return el("figure", { class: "clip" }, el("div", { class: "missing" }, clip.missing), caption);
  const name = `Clip ${clip.file}: ${clip.prompt}`;
  if (!clip.type.startsWith("video/")) {
    const picture = el("img", { alt: name });
    picture.clip = clip;
    watcher.observe(picture);
    return el("figure", { class: "clip" }, picture, caption);
  }
  const video = el("video", { controls: true, loop: true, muted: true, playsInline: true, preload: "metadata", "aria-label": name });
  video.clip = clip;
  video.addEventListener("click", () => (video.stoppedByHand = !video.paused));
  watcher.observe(video);
  return el("figure", { class: "clip" }, video, caption);
}

// The clips of a run, a part at a time, with a word filter over their prompts.
function clipsView(id, found) {
  if (!found.of) return [el("p", {}, "No clips.")];
  const grid = el("div", { class: "clips" });
  const rest = el("button", { type: "button", onclick: () => more() }, "Show more");
  const words = el("input", { type: "search", id: `prompts ${id}`, placeholder: "words of a prompt", oninput: () => restart() });
  const count = el("span", { class: "muted", role: "status" });
  let [chosen, shown] = [[], 0];
  function restart() {
    const text = words.value.toLowerCase();
    chosen = found.shown.filter((clip) => clip.prompt.toLowerCase().includes(text));
    shown = 0;
    grid.replaceChildren();
    more();
    count.textContent = chosen.length === found.shown.length ? "" : plural(chosen.length, "clip");
  }
  function more() {
    grid.append(...chosen.slice(shown, shown + PER_PAGE).map((clip) => clipView(clip)));
    shown += PER_PAGE;
    rest.hidden = shown >= chosen.length;
  }
  restart();
  const left = found.of - found.shown.length;
  return [
    el("div", { class: "controls" }, el("label", { for: words.id }, "Prompts with"), words, count),
    grid, rest,
    left > 0 ? el("p", { class: "note" }, `${plural(left, "clip")} more in the run's folder; --clips N puts more of them on the page.`) : null,
  ].filter(Boolean);
}

// A row for each prompt, seed and repeat: of each list of clips the first such one, or null.
function byPromptAndSeed(lists) {
  const rows = new Map();
  lists.forEach((clips, place) => {
    for (const clip of clips) {
      const key = JSON.stringify([clip.prompt, clip.facts.seed, clip.facts.repeat]);
      if (!rows.has(key)) rows.set(key, Array(lists.length).fill(null));
      rows.get(key)[place] ??= clip;
    }
  });
  return [...rows.values()];
}

// sources: [{label, clips}].
function clipsSideBySide(sources) {
  const [shared, alone] = [[], []];
  for (const row of byPromptAndSeed(sources.map(({ clips }) => clips))) (row.filter(Boolean).length > 1 ? shared : alone).push(row);
  const draw = (row) => el("div", { class: "clips beside" },
    row.map((clip, place) => (clip ? clipView(clip, { label: sources[place].label }) : el("figure", { class: "clip" }, el("div", { class: "missing" }, `not made by ${sources[place].label}`)))));
  return [
    ...shared.slice(0, PER_PAGE).map(draw),
    shared.length > PER_PAGE ? el("p", { class: "note" }, `The first ${PER_PAGE} of ${number(shared.length)} prompts that several of them have.`) : null,
    alone.length ? details("clips of one alone", `${plural(alone.length, "clip")} that only one of them made`, () => alone.slice(0, PER_PAGE).map(draw)) : null,
  ].filter(Boolean);
}
