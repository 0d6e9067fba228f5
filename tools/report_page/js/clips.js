// Generated clips as playing videos. A clip becomes a file of the page's own when it comes into view, not before.

const PER_PAGE = 24;
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

function clipView(clip, ...more) {
  const caption = el("figcaption", {}, clip.prompt || el("i", {}, "without a prompt"),
    el("span", { class: "muted" }, ...Object.entries(clip.facts).map(([name, value]) => ` ${name} ${value}`), ` ${clip.file}`), ...more);
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

// One row a prompt, seed and repeat; sources: [{label, clips}].
function clipsSideBySide(sources) {
  const rows = new Map();
  sources.forEach(({ clips }, place) => {
    for (const clip of clips) {
      const key = JSON.stringify([clip.prompt, clip.facts.seed, clip.facts.repeat]);
      if (!rows.has(key)) rows.set(key, Array(sources.length).fill(null));
      rows.get(key)[place] ??= clip;
    }
  });
  const [shared, alone] = [[], []];
  for (const row of rows.values()) (row.filter(Boolean).length > 1 ? shared : alone).push(row);
  const draw = (row) => el("div", { class: "clips beside" },
    row.map((clip, place) => (clip ? clipView(clip, el("b", { class: "muted" }, ` ${sources[place].label}`)) : el("figure", { class: "clip" }, el("div", { class: "missing" }, `not made by ${sources[place].label}`)))));
  return [
    ...shared.slice(0, PER_PAGE).map(draw),
    shared.length > PER_PAGE ? el("p", { class: "note" }, `The first ${PER_PAGE} of ${number(shared.length)} prompts that several of them have.`) : null,
    alone.length ? details("clips of one alone", `${plural(alone.length, "clip")} that only one of them made`, () => alone.slice(0, PER_PAGE).map(draw)) : null,
  ].filter(Boolean);
}
