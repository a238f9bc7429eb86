"use strict";
// Texts of models reach the page by textContent alone: `el` has no way to set HTML.
const el = (tag, properties = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "text") node.textContent = value;
    else if (name === "tip") { node.tip = value; node.dataset.tip = ""; }
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};
const dark = matchMedia("(prefers-color-scheme: dark)");
const state = { hidden: new Set(), kinds: new Set(), views: new Map() };
const plain = (value) => (value === null || value === undefined ? "\u2014" : typeof value !== "number" ? String(value)
  : value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e7) ? value.toExponential(1)
  : Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 }));

async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

// Tooltips: an element with a property `tip`, a function that returns lines: texts, or pairs of name and value.
const tip = document.getElementById("tip");
const showTip = (event) => {
  const owner = event.target.closest?.("[data-tip]");
  tip.hidden = !owner;
  if (!owner) return;
  shownAt = scrollY;  // the event of a scroll that is over comes after it
  tip.replaceChildren(...owner.tip().map((line) => Array.isArray(line)
    ? el("div", {}, el("span", { text: line[0] }), el("b", { text: plain(line[1]) })) : el("div", { text: line })));
  const at = owner.getBoundingClientRect(), left = event.clientX || at.left, top = event.clientY || at.bottom;
  tip.style.left = `${Math.max(8, Math.min(left + 14, innerWidth - tip.offsetWidth - 12))}px`;
  tip.style.top = `${top + 18 + tip.offsetHeight > innerHeight ? Math.max(8, top - tip.offsetHeight - 12) : top + 18}px`;
};
for (const kind of ["pointerover", "focusin"]) document.addEventListener(kind, showTip);
let shownAt = 0;
document.addEventListener("scroll", () => { if (Math.abs(scrollY - shownAt) > 4) tip.hidden = true; }, { passive: true });

// Arms: colours repeat after seven, with another dash.
const palette = () => content.palette[dark.matches ? "dark" : "light"];
const color = (arm) => palette()[arm % palette().length];
const dash = (arm) => Math.floor(arm / palette().length) % 4;
const strokes = ["solid", "dashed", "dotted", "dashed"];
const mark = (arm) => el("i", { class: "mark", style: `border-color:${color(arm)};border-top-style:${strokes[dash(arm)]}` });
const ofRun = (number) => {
  const run = content.runs[number], arm = content.arms[run.arm];
  return { run: number, name: run.name, arm: arm.name, color: color(run.arm), dash: dash(run.arm) };
};

// Charts: drawn when they come into view, from the specifications in the page.
const config = () => {
  const style = getComputedStyle(document.documentElement), get = (name) => style.getPropertyValue(name).trim();
  const font = "system-ui, -apple-system, Segoe UI, Roboto, DejaVu Sans, sans-serif";
  const axis = { labelColor: get("--muted"), titleColor: get("--muted"), titleFontWeight: 400, titleFontSize: 11,
    labelFontSize: 11, gridColor: get("--grid"), domainColor: get("--line"), tickColor: get("--line"), labelFont: font,
    titleFont: font, labelFlush: false, labelPadding: 4, tickSize: 4 };
  return { background: "transparent", view: { stroke: null }, axis, text: { font }, axisX: { grid: false }, axisY: { domain: false, ticks: false } };
};
const signalNumber = (name) => [...new Set(content.events.filter((event) => event.kind === "watch").map((event) => event.name))].indexOf(name) + 1;
function filled(kind, rows, titles) {
  const spec = structuredClone(content.charts[kind]);
  const shown = new Set(rows.map((row) => row.run));
  const style = getComputedStyle(document.documentElement), ink = (kind) => style.getPropertyValue(kind).trim();
  const tones = { watch: ink("--ink"), alarm: ink("--ink"), failure: ink("--warn"), checkpoint: ink("--muted"), resume: ink("--muted") };
  const named = new Set(), longest = Math.max(...content.curves.steps.flat(), 1);
  let before = -Infinity, top = 1;
  const events = content.events.filter((event) => shown.has(event.run)).map((event) => {
    const label = event.kind === "watch" && !named.has(event.name) && named.add(event.name) ? signalNumber(event.name) : "";
    if (label) {  // numbers of neighbours stand below one another
      top = event.step - before < longest / 22 ? top + 11 : 1;
      before = event.step;
    }
    return { ...event, run: content.runs[event.run].name, color: tones[event.kind], label, top };
  });
  spec.datasets = { rows, events: kind === "frontier" ? [] : events };
  spec.layer = spec.layer.filter((layer) => layer.data?.name !== "events" || spec.datasets.events.length);
  for (const layer of spec.layer) {
    for (const channel of ["x", "y"]) {
      const found = layer.encoding?.[channel];
      if (found?.title && titles[found.title]) found.title = titles[found.title];
    }
  }
  for (const parameter of spec.params) {
    if (parameter.name === "hidden") parameter.value = [...state.hidden];
    if (parameter.name === "kinds") parameter.value = [...state.kinds];
  }
  return spec;
}
async function draw(plot) {
  state.views.get(plot)?.finalize();
  const options = { actions: false, ast: true, renderer: "canvas", logLevel: 1, config: config(), tooltip: { theme: dark.matches ? "dark" : "light" } };
  const result = await window.vegaEmbed(plot, plot.spec(), options);
  state.views.set(plot, result);
  plot.dataset.drawn = Math.round(performance.now());  // milliseconds since the page was opened
}
let drawing = Promise.resolve();  // one chart after the other, so that the first one is there at once
const watcher = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    watcher.unobserve(target);
    drawing = drawing.then(() => draw(target).catch((error) => console.error(error))).then(() => new Promise((next) => setTimeout(next)));
  }
}, { rootMargin: "300px" });
const signal = (name, values) => state.views.forEach(({ view }) => view.signal(name, [...values]).runAsync());
dark.addEventListener("change", () => { build(); });

const about = (key, { unit, formula, bad }) => () => [key, ...(formula ? [formula] : ["This metric has no definition in this version of rlkl."]),
  ...(unit ? [`Unit: ${unit}.`] : []), ...(bad ? [`Bad: ${bad}`] : [])];
const card = (key, definition, spec, tall) => {
  const plot = el("div", { class: tall ? "plot tall" : "plot" });
  plot.spec = spec;
  watcher.observe(plot);
  return el("div", { class: "card", "data-chart": key }, el("header", {}, el("span", { class: "metric", tabindex: 0, text: key, tip: about(key, definition) })), plot);
};
const curveRows = (key) => Object.entries(content.curves.metrics[key].values).flatMap(([run, values]) => values.map(
  (value, at) => ({ ...ofRun(Number(run)), step: content.curves.steps[run][at], value }))).filter((row) => row.value !== null);
const curveCard = (key) => {
  const definition = content.curves.metrics[key];
  return card(key, definition, () => filled("curve", curveRows(key), { value: definition.unit || key }));
};
const isConstant = (key) => {
  const values = new Set(Object.values(content.curves.metrics[key].values).flat().filter((value) => value !== null));
  return values.size <= 1 ? [...values][0] : undefined;
};
const curveCards = (keys) => {
  const constant = keys.filter((key) => isConstant(key) !== undefined), varying = keys.filter((key) => isConstant(key) === undefined);
  const facts = constant.map((key) => el("span", { "data-constant": key, text: `${key} = ${plain(isConstant(key))}`, tip: about(key, content.curves.metrics[key]) }));
  return [varying.length ? el("div", { class: "charts" }, ...varying.map(curveCard)) : null,
    facts.length ? el("div", { class: "constant" }, el("span", { text: "constant:" }), ...facts) : null];
};
const frontierCard = (one) => card(one.y, one, () => filled("frontier", (() => {
  const last = new Map(one.points.map(([run, step]) => [run, step]));
  return one.points.map(([run, step, kl, value]) => ({ ...ofRun(run), step, kl, value, end: last.get(run) === step }));
})(), { x: `${one.x} (${one.xunit || "nats per sequence"}, square-root scale)`, value: one.unit || one.y }), true);
const evaluationCard = ([key, one]) => card(key, one, () => filled("evaluation", Object.entries(one.values).flatMap(([run, points]) =>
  points.map(([step, value, error]) => ({ ...ofRun(Number(run)), step, value, error: error ?? 0 }))), { value: one.unit || key }));

// Sections.
const section = (id, title, note, ...children) => el("section", { id }, el("h2", { text: title }), note ? el("p", { class: "note", text: note }) : null, ...children);
const table = (columns, rows, kind = "") => el("div", { class: "scroll" }, el("table", { class: kind }, el("thead", {}, el("tr", {}, ...columns)), el("tbody", {}, ...rows)));
function header() {
  const names = content.arms.length > 1 ? `${content.arms.length} arms, ${content.runs.length} runs` : [...new Set(content.runs.map((run) => run.name))].slice(0, 3).join(", ");
  const { columns, titles, rows } = content.table;
  const body = rows.map((cells, arm) => el("tr", {}, ...cells.map((cell, at) => at === 0 ? el("td", {}, mark(arm), cell)
    : el("td", { class: columns[at] === "watch" && cell !== "quiet" ? "alert" : null, text: cell }))));
  return [el("div", { class: "eyebrow", text: "rlkl report" }), el("h1", { text: names }),
    el("dl", { class: "facts" }, ...content.facts.map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", { text: value })))),
    table(columns.map((name, at) => el("th", { text: name, title: titles[at] || null })), body)];
}
function bar(sections) {
  const chips = content.arms.length < 2 ? [] : content.arms.map((arm, number) => el("button", { class: "chip", "aria-pressed": "true", title: arm.label, "data-arm": arm.name,
    onclick: (event) => { toggle(state.hidden, arm.name, event.currentTarget, true); signal("hidden", state.hidden); } }, mark(number), arm.name));
  const names = { watch: "hacking watch", alarm: "rule's warnings", failure: "failures", checkpoint: "checkpoints", resume: "resumes" };
  const kinds = [...new Set(content.events.map((event) => event.kind))].map((kind) => el("button", { class: "chip", "aria-pressed": String(state.kinds.has(kind)), text: names[kind],
    onclick: (event) => { toggle(state.kinds, kind, event.currentTarget, false); signal("kinds", state.kinds); } }));
  const links = el("nav", {}, ...sections.map((one) => el("a", { href: `#${one.id}`, text: one.querySelector("h2").textContent })));
  return [links, chips.length + kinds.length ? el("div", { class: "bar" }, ...chips, el("span", { class: "gap" }), ...kinds) : null];
}
function toggle(set, name, chip, hides) {
  if (!set.delete(name)) set.add(name);
  chip.setAttribute("aria-pressed", String(set.has(name) !== hides));
}
function eventTable() {
  const rows = content.events.filter((event) => event.kind !== "checkpoint").map((event) => el("tr", {}, el("td", { text: event.kind === "watch" ? signalNumber(event.name) : "" }), el("td", { text: event.step }),
    el("td", {}, mark(content.runs[event.run].arm), content.runs[event.run].name), el("td", { class: event.kind === "resume" ? null : "alert", text: event.name }), el("td", { class: "text", text: event.text })));
  return rows.length ? table(["", "step", "run", "event", ""].map((text) => el("th", { text })), rows, "left") : el("p", { class: "empty", text: "No alarm, no failure, no resume." });
}
function failures() {
  return content.failures.map((one) => el("details", {}, el("summary", { text: `step ${one.step}, ${one.reward} (${one.kind})` }, el("span", { text: one.error.slice(0, 160) })),
    el("h3", { text: "prompt" }), el("pre", { text: one.prompt }), el("h3", { text: "completion" }), el("pre", { text: one.completion }), el("h3", { text: "traceback" }), el("pre", { text: one.traceback || one.error })));
}
function recipes() {
  const keys = Object.entries(content.differences);
  const rows = keys.map(([key, values]) => el("tr", {}, el("td", { class: "metric", text: key }), ...values.map((value) => el("td", { text: value }))));
  const heads = [el("th", { text: "key" }), ...content.runs.map((run) => el("th", {}, mark(run.arm), run.name))];
  return [rows.length ? table(heads, rows, "left") : null, ...content.recipes.map((text, arm) => el("details", {}, el("summary", {}, mark(arm), content.arms[arm].name), el("pre", { text })))];
}
const lazily = (title, note, fill) => el("details", { ontoggle: (event) => {
  if (event.currentTarget.open && !event.currentTarget.dataset.filled) { event.currentTarget.dataset.filled = "yes"; event.currentTarget.append(...fill().filter(Boolean)); }
} }, el("summary", { text: title }, el("span", { text: note })));

let content, samples;
function build() {
  state.views.forEach((result) => result.finalize());
  state.views.clear();
  const width = content.curves.width, seeds = content.runs.length > content.arms.length;
  const spread = (seeds ? "Thick lines are means over seeds, bands one standard deviation, thin lines single runs. " : "") + (width > 1 ? `Each point is the mean of ${width} steps. ` : "");
  const rest = Object.entries(content.families).map(([family, keys]) => lazily(family, `${keys.length}`, () => curveCards(keys)));
  const sections = [
    content.frontiers.length ? section("frontier", "Reward over KL", "Distance from the reference is the price of reward. Dots are the ends of runs. In runs of ten steps or more, each point is the mean of the last five.", el("div", { class: "charts wide" }, ...content.frontiers.map(frontierCard))) : null,
    content.headlines.length ? section("curves", "Curves", `${spread}Point at a name for its definition.`, ...curveCards(content.headlines)) : section("curves", "Curves", "No step is finished yet."),
    Object.keys(content.evaluations).length ? section("evaluation", "Held-out evaluation", "Bars are standard errors; samples of it are among the samples below.", el("div", { class: "charts" }, ...Object.entries(content.evaluations).map(evaluationCard))) : null,
    content.rules.keys.length ? section("rule", `${content.rules.names.length > 1 ? "Rules" : "Rule"}: ${content.rules.names.join(", ")}`, null, ...curveCards(content.rules.keys)) : null,
    section("events", "Events", "A signal of the hacking watch sets in at 1, and again only after it fell below 0.8. Its number stands beside its line in the charts.", eventTable()),
    sampleSection(samples),
    content.failures.length ? section("failures", "Failures", "Samples on which a reward failed.", ...failures()) : null,
    rest.length ? section("everything", "Everything logged", null, ...rest) : null,
    section("recipe", "Recipe", content.runs.length > 1 ? "The keys in which the runs differ, and the recipe of the first run of each arm." : "Every key, defaults included.", ...recipes()),
  ].filter(Boolean);
  const folders = content.runs.map((run) => run.path).slice(0, 6).join(" · ");
  document.getElementById("page").replaceChildren(...[...header(), ...bar(sections), ...sections, el("footer", { text: `rlkl ${content.version} · ${folders}` })].filter(Boolean));
}
// A page that is written anew while a run goes on keeps its place.
const PLACE = "rlkl-report-place";
addEventListener("pagehide", () => { if (document.querySelector('meta[http-equiv="refresh"]')) sessionStorage.setItem(PLACE, String(scrollY)); });
(async () => {
  [content, samples] = await Promise.all([unpack("content"), unpack("samples-data")]);
  state.kinds = new Set(["watch", "alarm", "failure", "resume", ...(content.runs.length < 4 ? ["checkpoint"] : [])]);
  build();
  if (document.querySelector('meta[http-equiv="refresh"]')) scrollTo(0, Number(sessionStorage.getItem(PLACE) || 0));
  document.documentElement.dataset.ready = "yes";
})();
