// The sample browser: one span a token, coloured by a column; filters, order, and the samples of a group side by side.
const PAGE = 12;
const NAMES = { advantages: "advantage", log_ratio: "log policy \u2212 log reference", policy_logprobs: "log policy", reference_logprobs: "log reference", logprobs: "log sampler" };
const nameOf = (column) => NAMES[column] || column.replaceAll("_", " ");
const isMask = (column) => column.endsWith("mask") || column === "sampled";
const total = (values) => values.reduce((sum, value) => sum + (value ?? 0), 0);
const logRatio = (row) => (row.numbers?.log_ratio ? total(row.numbers.log_ratio) : null);

// The scale of a column: its 98th percentile without sign, and whether it goes below zero.
function scaleOf(column) {
  const values = samples.rows.flatMap((row) => row.numbers?.[column] ?? []).filter((value) => value !== null);
  const sizes = values.map(Math.abs).sort((a, b) => a - b);
  return { limit: sizes[Math.floor((sizes.length - 1) * 0.98)] || sizes.at(-1) || 0, signed: values.some((value) => value < 0) };
}
const tint = (value, limit) => (!value || !limit ? "" : `rgba(var(${value < 0 ? "--low" : "--high"}), ${(0.62 * Math.min(Math.abs(value) / limit, 1)).toFixed(3)})`);

function tokenSpans(row, view) {
  if (!row.ids) return [el("span", { text: row.text || "(empty)" })];
  const masks = Object.keys(row.numbers).filter(isMask);
  return row.ids.map((id, at) => {
    const value = row.numbers[view.column]?.[at];
    const off = isMask(view.column) ? value === 0 : masks.length > 0 && masks.every((mask) => row.numbers[mask][at] === 0);
    const text = samples.tokens[id];
    const span = el("span", { text: text === "" ? "\u2205" : text.replaceAll("\n", "\u23CE\n"), class: off ? "off" : null,
      tip: () => [["token", JSON.stringify(text)], ["position", at], ...Object.entries(row.numbers).map(([name, values]) => [nameOf(name), values[at]])] });
    if (view.column) span.style.background = tint(value, view.limit);
    return span;
  });
}
function sampleCard(row, view) {
  const rewards = Object.entries(row.rewards ?? {}), ratio = logRatio(row);
  const meta = [el("span", { class: "reward", text: plain(row.reward), tip: () => [["reward", row.reward], ...rewards, ["sample", row.index]] }),
    ratio === null ? null : el("span", { text: `log-ratio ${plain(Number(ratio.toPrecision(3)))}` }),
    row.finish === "length" ? el("span", { class: "flag", text: "cut off" }) : null,
    row.kind === "suspect" ? el("span", { class: "flag", text: `${row.signal} ${plain(row.suspicion)}` }) : null,
    row.failed ? el("span", { class: "flag", text: `failed: ${row.failed.join(", ")}` }) : null,
    row.tags ? el("span", { text: row.tags.join(", ") }) : null];
  return el("div", { class: "sample" }, el("div", { class: "meta" }, ...meta), el("div", { class: "tokens" }, ...tokenSpans(row, view)));
}
function pictureRow(pictures) {
  if (!pictures) return null;
  const figures = Object.entries(pictures).flatMap(([name, numbers]) => numbers.map((number) => el("figure", {},
    el("img", { src: samples.pictures[number], alt: "", loading: "lazy" }), el("figcaption", { text: name === "images" ? "prompt" : name.replace(/_images$/, "") }))));
  return el("div", { class: "pictures" }, ...figures);
}
function groupCard(rows, view) {
  const first = rows[0], run = content.runs[first.run], kinds = { step: "", eval: "held-out", suspect: "suspects" };
  const where = el("div", { class: "meta" }, el("span", {}, mark(run.arm), run.name), el("span", { text: `step ${first.step}` }), kinds[first.kind] ? el("span", { text: kinds[first.kind] }) : null);
  return el("div", { class: "group" }, el("div", { class: "card" }, where, el("div", { class: "prompt", text: samples.prompts[first.prompt] }),
    pictureRow(rows.find((row) => row.pictures)?.pictures), el("div", { class: rows.every((row) => row.text.length < 40) ? "side brief" : "side" }, ...rows.map((row) => sampleCard(row, view)))));
}
const ORDERS = {
  "step": null,
  "latest step first": (row) => row.step,
  "reward, high first": (row) => row.reward ?? -Infinity,
  "reward, low first": (row) => -(row.reward ?? Infinity),
  "|log-ratio|, high first": (row) => Math.abs(logRatio(row) ?? 0),
};
const option = (value, text, chosen) => el("option", { value, text, ...(chosen ? { selected: "" } : {}) });

function sampleSection() {
  const rows = samples.rows;
  if (!rows.length) return section("samples", "Samples", "The runs have no sample files yet.");
  const columns = samples.columns.filter((column) => rows.some((row) => row.numbers?.[column]?.some((value) => value)));
  const chosen = ["advantages", ...columns.filter(isMask), "log_ratio", ...columns].find((column) => columns.includes(column)) ?? "";
  const view = { run: "", step: "", kind: "", text: "", low: "", high: "", order: "step", layout: "groups", column: chosen, count: PAGE };
  const list = el("div", { id: "sample-list" }), scale = el("div", { class: "scale" }), found = el("p", { class: "note", id: "sample-count" });
  const refresh = (reset = true) => { if (reset) view.count = PAGE; paint(view, list, scale, found, () => { view.count += PAGE; refresh(false); }); };
  const choose = (name, label, options) => el("label", { text: label }, el("select", { "data-control": name, onchange: (event) => { view[name] = event.target.value; refresh(); } }, ...options));
  const type = (name, label, kind) => el("label", { text: label }, el("input", { type: kind, step: "any", "data-control": name, oninput: (event) => { view[name] = event.target.value; refresh(); } }));
  const several = (values) => new Set(values).size > 1;
  const kinds = { step: "training", eval: "held-out", suspect: "suspects" }, used = [...new Set(rows.map((row) => row.kind))];
  const steps = [...new Set(rows.map((row) => row.step))].sort((a, b) => a - b);
  const controls = el("div", { class: "controls" },
    choose("column", "colour of tokens", [...columns.map((column) => option(column, nameOf(column), column === chosen)), option("", "none", !chosen)]),
    several(rows.map((row) => row.run)) ? choose("run", "run", [option("", "all"), ...content.runs.map((run, number) => option(number, run.name))]) : null,
    several(steps) ? choose("step", "step", [option("", "all"), ...steps.map((step) => option(step, step))]) : null,
    used.length > 1 ? choose("kind", "samples", [option("", "all"), ...used.map((kind) => option(kind, kinds[kind]))]) : null,
    type("text", "prompt or answer has", "text"), type("low", "reward from", "number"), type("high", "to", "number"),
    choose("order", "order", Object.keys(ORDERS).map((order) => option(order, order))),
    choose("layout", "show", [option("groups", "groups side by side"), option("single", "single samples")]));
  refresh();
  return section("samples", "Samples", null, found, controls, scale, list);
}
function paint(view, list, scale, found, more) {
  const wanted = view.text.toLowerCase();
  const matching = samples.rows.filter((row) => (view.run === "" || row.run === Number(view.run)) && (view.step === "" || row.step === Number(view.step))
    && (view.kind === "" || row.kind === view.kind) && (view.low === "" || (row.reward ?? -Infinity) >= Number(view.low)) && (view.high === "" || (row.reward ?? Infinity) <= Number(view.high))
    && (!wanted || samples.prompts[row.prompt].toLowerCase().includes(wanted) || row.text.toLowerCase().includes(wanted)));
  const grouped = view.layout === "groups" ? [...Map.groupBy(matching, (row) => row.group).values()] : matching.map((row) => [row]);
  const order = ORDERS[view.order];
  if (order) {
    for (const group of grouped) group.sort((a, b) => order(b) - order(a));
    grouped.sort((a, b) => order(b[0]) - order(a[0]));
  }
  const { limit, signed } = view.column ? scaleOf(view.column) : { limit: 0, signed: false };
  const shown = { ...view, limit };
  const bar = el("i", {});
  bar.style.background = `linear-gradient(90deg, ${signed ? `${tint(-limit, limit)}, ` : ""}transparent, ${tint(limit, limit)})`;
  scale.replaceChildren(...(view.column && limit ? [el("span", { text: plain(signed ? -limit : 0) }), bar, el("span", { text: plain(limit) }), el("span", { text: nameOf(view.column) })] : []));
  const whole = samples.total > samples.rows.length ? ` The run folders hold ${samples.total.toLocaleString("en")}; --samples sets how many come here.` : "";
  found.textContent = `${matching.length.toLocaleString("en")} of ${samples.rows.length.toLocaleString("en")} samples.${whole} Point at a token or a reward for its numbers.`;
  const rest = grouped.length - view.count;
  list.replaceChildren(...grouped.slice(0, view.count).map((rows) => groupCard(rows, shown)),
    ...(rest > 0 ? [el("button", { class: "chip more", text: `show more (${rest} left)`, onclick: more })] : []), ...(grouped.length ? [] : [el("p", { class: "empty", text: "No sample matches." })]));
}
