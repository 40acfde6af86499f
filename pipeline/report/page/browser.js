"use strict";
// The browser of samples. Texts that models wrote reach the page through textContent alone.
const byId = (id) => document.getElementById(id);
const CHOICES = ["family", "benchmark", "old", "new"];
let index = null, pairs = [], loading = 0, shownDoc = null;

// ---- what the page holds ----

async function unpack(id) {
  const stream = new Blob([decoded(byId(id).textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

function decoded(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

const remembered = new Map(); // the packs of the last comparisons
function packOf(number) {
  if (!remembered.has(number)) {
    if (remembered.size >= 8) remembered.delete(remembered.keys().next().value);
    remembered.set(number, unpack(`pack-${number}`));
  }
  return remembered.get(number);
}

const cellsOf = (family, benchmark) => index.cells.filter(([f, b]) => f === family && b === benchmark);

// Documents of two cells as pairs, in the order of the first: what both have, and have with the same target.
async function compared(old, now) {
  const [a, asked, b, askedNow] = await Promise.all([old[3], old[4], now[3], now[4]].map(packOf));
  const at = new Map(askedNow.name.map((name, i) => [name, i]));
  const side = (cell, i) => ({
    score: cell.score[i], tokens: cell.tokens[i], flags: cell.flags[i], output: cell.output[i],
    extracted: cell.extracted[i], options: cell.options?.[i] ?? null,
  });
  return asked.name.flatMap((name, i) => at.has(name) && asked.target[i] === askedNow.target[at.get(name)] ? [{
    name, target: asked.target[i], prompt: asked.prompt[i], promptNow: askedNow.prompt[at.get(name)],
    old: side(a, i), now: side(b, at.get(name)), order: i,
  }] : []);
}

// ---- choices ----

// Offer these options, with the first of `preferred` that is among them chosen; what was chosen comes after those.
function fill(select, options, ...preferred) {
  const chosen = [...preferred, select.value].find((name) => options.some(([value]) => value === name));
  select.replaceChildren(...options.map(([value, label]) => new Option(label, value)));
  if (chosen !== undefined) select.value = chosen;
}

// Each choice narrows the next, so that every combination on offer exists.
function choose(asked = {}) {
  const named = (names, labels) => [...new Set(names)].map((name) => [name, labels[name]]);
  fill(byId("family"), named(index.cells.map(([f]) => f), index.families), asked.family);
  const family = byId("family").value;
  fill(byId("benchmark"), named(index.cells.filter(([f]) => f === family).map(([, b]) => b), index.benchmarks), asked.benchmark);
  const cells = cellsOf(family, byId("benchmark").value);
  const conditions = named(cells.map(([, , name]) => name), index.conditions);
  fill(byId("old"), conditions, asked.old, byId("old").value, index.reference);
  const others = conditions.filter(([name]) => name !== byId("old").value);
  fill(byId("new"), others, asked.new, byId("new").value, index.opening);
}

// Show the chosen comparison; false where a later choice has overtaken this one.
async function load(doc = null) {
  const turn = ++loading;
  const cells = cellsOf(byId("family").value, byId("benchmark").value);
  const [old, now] = ["old", "new"].map((side) => cells.find(([, , name]) => name === byId(side).value));
  if (!old || !now) {
    pairs = [];
    filter();
    byId("count").textContent = "The run has no pair of conditions to compare.";
    return true;
  }
  const found = await compared(old, now);
  if (turn !== loading) return false;
  pairs = found;
  const asked = pairs.find(({ name }) => name === doc);
  if (asked && !SHOW[byId("show").value](asked)) byId("show").value = "all"; // a link's document is always listed
  filter(doc);
  if (doc && !asked) byId("count").textContent += ` There is no document ${doc}.`;
  return true;
}

// ---- filters and order ----

const has = (answer, flag) => answer.flags.includes(flag);
const SHOW = {
  all: () => true,
  changed: ({ old, now }) => now.score !== old.score,
  gained: ({ old, now }) => now.score > old.score,
  lost: ({ old, now }) => now.score < old.score,
  same: ({ old, now }) => now.score === old.score,
  right: ({ old, now }) => now.score === old.score && now.score > 0,
  wrong: ({ old, now }) => now.score === old.score && now.score === 0,
};
const FORM = {
  any: () => true,
  steps: ({ now }) => has(now, "s"),
  bare: ({ now }) => !has(now, "s"),
  new: ({ old, now }) => has(now, "s") && !has(old, "s"),
  dropped: ({ old, now }) => has(old, "s") && !has(now, "s"),
  cut: ({ old, now }) => has(now, "c") || has(old, "c"),
  unreadable: ({ old, now }) => has(now, "u") || has(old, "u"),
};
const margin = ({ options }) => {
  if (!options || options.length < 2) return 0;
  const [first, second] = [...options].sort((x, y) => y - x);
  return first - second;
};
const SORT = {
  document: (x, y) => x.order - y.order,
  change: (x, y) => (y.now.score - y.old.score) - (x.now.score - x.old.score),
  longer: (x, y) => (y.now.tokens - y.old.tokens) - (x.now.tokens - x.old.tokens),
  long: (x, y) => y.now.tokens - x.now.tokens,
  short: (x, y) => x.now.tokens - y.now.tokens,
  sure: (x, y) => margin(y.now) - margin(x.now),
};

// What a search looks through, made once for each pair: the texts of a large benchmark are many megabytes.
const haystack = (pair) => pair.haystack ??= [pair.name, pair.target, pair.prompt, pair.promptNow, pair.old.output, pair.now.output]
  .filter(Boolean).join("\n").toLowerCase();

function filter(doc = null) {
  const asked = byId("search").value.toLowerCase().trim();
  const show = SHOW[byId("show").value], form = FORM[byId("form").value];
  const isFound = (pair) => !asked || haystack(pair).includes(asked);
  const listed = pairs.filter((pair) => show(pair) && form(pair) && isFound(pair)).sort(SORT[byId("sort").value]);
  const gained = pairs.filter(SHOW.gained).length, lost = pairs.filter(SHOW.lost).length;
  byId("count").textContent =
    `${gained + lost} of ${pairs.length} documents changed: ${gained} gained, ${lost} lost. ${listed.length} listed.`;
  list.show(listed, listed.findIndex(({ name }) => name === (doc ?? shownDoc)));
}

// ---- what is shown ----

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const label = (side) => byId(side).selectedOptions[0]?.textContent ?? "";
const outcome = ({ old, now }) => now.score > old.score ? "gained" : now.score < old.score ? "lost"
  : now.score > 0 ? "both right" : "both wrong";
const number = (value) => Number.isInteger(value) ? String(value) : value.toFixed(3);
const minus = (text) => text.replace("-", "−");

function drawRow(pair, row) {
  const kind = outcome(pair);
  const head = element("div");
  head.append(element("span", kind, `tag ${kind.replace(" ", "-")}`), element("span", ` ${pair.name}`, "name"));
  const marks = [has(pair.now, "s") !== has(pair.old, "s") && (has(pair.now, "s") ? "+ steps" : "− steps"),
    has(pair.now, "c") && "cut", has(pair.now, "u") && "unreadable"].filter(Boolean).join(" · ");
  head.append(element("span", marks, "marks"));
  row.append(head, element("div", (pair.now.output ?? "").trim().slice(0, 160) || "–", "snippet"));
}

function showPair(pair, at) {
  const detail = byId("detail");
  detail.replaceChildren();
  if (!pair) {
    detail.append(element("p", pairs.length ? "No document matches." : "", "quiet"));
    return;
  }
  shownDoc = pair.name;
  detail.append(heading(pair, at));
  const question = element("details", undefined, "question");
  question.open = byId("detail").dataset.question !== "closed";
  question.addEventListener("toggle", () => { byId("detail").dataset.question = question.open ? "open" : "closed"; });
  question.append(element("summary", "Question and target"));
  if (pair.prompt === null) {
    question.append(element("p", `The page holds too many answers for this text. It is in ${fileOf("new")}.`, "quiet"));
  } else if (pair.prompt === pair.promptNow) {
    question.append(element("pre", pair.prompt));
  } else {
    const [before, after] = differences(pair.prompt, pair.promptNow);
    question.append(element("p", `${label("old")} was asked:`), marked(before), element("p", `${label("new")} was asked:`), marked(after));
  }
  if (pair.target !== null) question.append(element("p", "Target:"), element("pre", pair.target));
  detail.append(question);
  if (pair.old.options || pair.now.options) detail.append(likelihoods(pair));
  const isDiff = byId("diff").checked && pair.old.output !== null && pair.now.output !== null;
  const [before, after] = isDiff ? differences(pair.old.output, pair.now.output)
    : [pair.old, pair.now].map(({ output }) => [{ text: output ?? "", differs: false }]);
  const sides = element("div", undefined, "sides");
  sides.append(answer("old", pair.old, pair.now, before), answer("new", pair.now, pair.old, after));
  detail.append(sides);
  if (byId("browser").contains(document.activeElement)) history.replaceState(null, "", fragment(pair.name));
}

function heading(pair, at) {
  const head = element("div", undefined, "heading");
  const title = element("h3", `${outcome(pair)[0].toUpperCase()}${outcome(pair).slice(1)}: document ${pair.name}`);
  const to = element("a", "link");
  to.href = fragment(pair.name);
  const place = element("span", `${at + 1} of ${list.items.length}`, "quiet");
  const [before, after] = [["←", "Previous document", -1], ["→", "Next document", 1]].map(([sign, text, by]) => {
    const button = element("button", sign);
    button.type = "button";
    button.setAttribute("aria-label", text);
    button.addEventListener("click", () => list.move(by));
    return button;
  });
  head.append(title, to, before, place, after);
  return head;
}

function marked(pieces) {
  const box = element("pre");
  box.append(...pieces.map(({ text, differs }) => differs ? element("mark", text) : text));
  return box;
}

function answer(side, mine, other, pieces) {
  const box = element("div", undefined, mine.score > 0 ? "right" : "wrong");
  box.append(element("h4", `${label(side)}: score ${number(mine.score)}`));
  box.append(mine.output === null ? element("p", `The page holds too many answers for this text. It is in ${fileOf(side)}.`, "quiet")
    : marked(pieces));
  const words = [mine.extracted, mine.tokens ? `${number(mine.tokens)} tokens` : "", has(mine, "s") ? "with steps" : "",
    has(mine, "c") ? "cut at the token limit" : "", has(mine, "u") ? "unreadable" : ""];
  const facts = element("p", undefined, "quiet");
  // Each apart: a reading may hold characters that turn the direction of what follows.
  facts.append(...words.filter(Boolean).flatMap((word, i) => [i ? " · " : "", element("bdi", word)]));
  box.append(facts);
  return box;
}

// Log-likelihood of each option, the target's named and each condition's choice marked.
function likelihoods(pair) {
  const table = element("table", undefined, "options");
  const rows = Math.max(pair.old.options?.length ?? 0, pair.now.options?.length ?? 0);
  const head = table.createTHead().insertRow();
  for (const text of ["Option", label("old"), label("new")]) head.append(element("th", text));
  const best = [pair.old, pair.now].map(({ options }) => options ? options.indexOf(Math.max(...options)) : -1);
  const body = table.createTBody();
  for (let i = 0; i < rows; i++) {
    const row = body.insertRow();
    const names = [0, 1].filter((k) => best[k] === i).map((k) => [pair.old, pair.now][k].output);
    const isTarget = pair.target !== null && pair.target.trim() === String(i);
    row.append(element("th", [String(i), names[0], isTarget ? "(target)" : ""].filter(Boolean).join(" ")));
    [pair.old, pair.now].forEach(({ options }, k) => {
      const cell = row.insertCell();
      if (!options || options[i] === undefined) return;
      const share = Math.exp(options[i] - Math.max(...options)) / options.reduce((sum, x) => sum + Math.exp(x - Math.max(...options)), 0);
      const bar = element("meter");
      Object.assign(bar, { min: 0, max: 1, value: share });
      bar.setAttribute("aria-label", `${Math.round(100 * share)} % of the options' likelihood`);
      cell.append(bar, element(best[k] === i ? "b" : "span", ` ${minus(options[i].toFixed(2))}`));
    });
  }
  table.append(element("caption", "Log-likelihood of each option; bars: its share of their likelihood; bold: the likeliest."));
  return table;
}

const fileOf = (side) => {
  const cell = cellsOf(byId("family").value, byId("benchmark").value).find(([, , name]) => name === byId(side).value);
  return `results/cells/${cell[5]}/samples.jsonl`;
};

// ---- links: #sample=family/benchmark/reference/condition/document&show=changed ----

function fragment(doc) {
  const parts = CHOICES.map((name) => byId(name).value).concat(doc);
  return `#sample=${parts.map(encodeURIComponent).join("/")}&show=${byId("show").value}`;
}

function asked() {
  const given = new Map(location.hash.slice(1).split("&").map((part) => part.split("=")));
  if (!given.has("sample")) return null;
  let parts;
  try { parts = given.get("sample").split("/").map(decodeURIComponent); } catch { return null; }
  const [family, benchmark, old, now, doc] = parts;
  return { family, benchmark, old, new: now, doc: doc || null, show: given.get("show") };
}

function follow() {
  const given = asked();
  if (!given) return false;
  if (Object.hasOwn(SHOW, given.show)) byId("show").value = given.show;
  else if (given.doc) byId("show").value = "all";
  byId("form").value = "any";
  byId("search").value = "";
  choose(given);
  const isThere = CHOICES.every((name) => byId(name).value === given[name]);
  load(isThere ? given.doc : null).then((isShown) => {
    if (!isShown) return;
    if (!isThere) byId("count").textContent = `The page does not have what the link asks for. ${byId("count").textContent}`;
    byId("samples").scrollIntoView();
    byId("list").focus({ preventScroll: true });
  });
  return true;
}

// ---- start ----

const list = new ChoiceList(byId("list"), drawRow, showPair);
for (const name of CHOICES) byId(name).addEventListener("change", () => { choose(); load(); });
for (const name of ["show", "form", "sort"]) byId(name).addEventListener("change", () => filter());
byId("search").addEventListener("input", () => filter());
byId("diff").addEventListener("change", () => filter());
byId("swap").addEventListener("click", () => {
  const [old, now] = [byId("old").value, byId("new").value];
  choose({ old: now, new: old });
  load();
});
addEventListener("hashchange", follow);
addEventListener("keydown", (event) => {
  const isTyping = event.target.matches?.("input, select, textarea");
  if (event.key === "/" && !isTyping) { event.preventDefault(); byId("search").focus(); }
  if (["Escape", "Enter"].includes(event.key) && event.target === byId("search")) byId("list").focus();
});
byId("explorer").hidden = false;
unpack("index").then((found) => {
  index = found;
  if (!follow()) { choose(); load(); }
}, (error) => { byId("count").textContent = `This browser cannot unpack the samples (${error.message}). They are in results/cells.`; });
