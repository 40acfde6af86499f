"use strict";
// The browser of samples. Texts that models wrote reach the page through textContent alone.
const byId = (id) => document.getElementById(id);
const PAGE = 25;
let index = [], documents = [], matching = [], shown = 0, about = null;

async function unpack(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function fill(select, values) {
  const before = select.value;
  select.replaceChildren(...values.map((value) => new Option(value, value)));
  if (values.includes(before)) select.value = before;
}

// Each choice narrows the next, so that every combination on offer exists.
function choose() {
  let left = index;
  for (const name of ["family", "benchmark", "condition"]) {
    fill(byId(name), [...new Set(left.map((entry) => entry[name]))]);
    left = left.filter((entry) => entry[name] === byId(name).value);
  }
  return left[0];
}

async function load() {
  about = choose();
  if (!about) {
    byId("count").textContent = "The run has no pair of conditions to compare.";
    return;
  }
  const wanted = about;
  const unpacked = await unpack("pack-" + index.indexOf(about));
  if (wanted === about) { documents = unpacked; filter(); }
}

function filter() {
  const wanted = byId("search").value.toLowerCase().trim();
  const change = byId("change").value;
  matching = documents.filter(([name, target, prompt, other, old, now]) => {
    if (change !== "all" && (now[0] > old[0]) !== (change === "gained")) return false;
    return [target, prompt, other ?? "", old[1], now[1]].some((text) => text.toLowerCase().includes(wanted));
  });
  const gained = documents.filter(([, , , , old, now]) => now[0] > old[0]).length;
  const part = documents.length < about.changed ? `; the page holds ${documents.length} of them` : "";
  byId("count").textContent =
    `${about.changed} of ${about.of} documents changed${part}: ${gained} gained, ${documents.length - gained} lost. ` +
    `${matching.length} match.`;
  byId("documents").replaceChildren();
  shown = 0;
  more();
}

function more() {
  byId("documents").append(...matching.slice(shown, shown + PAGE).map(card));
  shown = Math.min(shown + PAGE, matching.length);
  byId("more").hidden = shown === matching.length;
}

function card([name, target, prompt, other, old, now]) {
  const article = element("article");
  article.append(element("h4", `Document ${name}: ${now[0] > old[0] ? "gained" : "lost"}`));
  const prompts = element("details", undefined, "prompts");
  prompts.append(element("summary", "Prompt and target"), element("pre", prompt));
  if (other !== null) prompts.append(element("p", about.condition + " was asked:"), element("pre", other));
  prompts.append(element("p", "Target:"), element("pre", target));
  const sides = element("div", undefined, "sides");
  sides.append(answer(about.reference, old, old[0] > now[0]), answer(about.condition, now, now[0] > old[0]));
  article.append(prompts, sides);
  return article;
}

function answer(label, [score, output, extracted, tokens, finish], better) {
  const side = element("div", undefined, better ? "right" : "wrong");
  side.append(element("h5", `${label}: score ${score}`), element("pre", output));
  side.append(element("p", [extracted, tokens ? `${tokens} tokens` : "", finish].filter(Boolean).join(" · "), "quiet"));
  return side;
}

for (const name of ["family", "benchmark", "condition"]) byId(name).addEventListener("change", load);
byId("change").addEventListener("change", filter);
byId("search").addEventListener("input", filter);
byId("more").addEventListener("click", more);
unpack("index").then((entries) => { index = entries; return load(); });
