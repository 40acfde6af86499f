"use strict";
// The playground. Texts that models wrote reach the page through textContent alone.
const byId = (id) => document.getElementById(id);
let loaded = null; // the document in the question, while it is as it was loaded
let asking = false, again = false;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

async function fetched(path, body) {
  const options = body && {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the playground does not answer; is it still running?");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

const signed = (number) => `α = ${String(number).replace("-", "−")}`;

async function begin() {
  const state = await fetched("state");
  byId("title").textContent = `${state.experiment}: ${state.family}`;
  document.title = `${state.experiment}: playground`;
  for (const task of state.tasks) byId("task").append(new Option(task, task));
  byId("steering").hidden = !state.has_vector;
  for (const [position, row] of state.rows.entries()) {
    const label = element("label", undefined, "check"), box = element("input");
    Object.assign(box, { type: "checkbox", name: "row", value: row.name, checked: position === 0 });
    label.append(box, row.label);
    byId("rows").append(label);
  }
}

async function load() {
  const task = byId("task").value, number = byId("number").value;
  byId("number").disabled = !task;
  if (!task) return forget();
  const { question, target } = await fetched(`document?${new URLSearchParams({ task, number })}`);
  if (byId("task").value !== task || byId("number").value !== number) return; // another was chosen meanwhile
  byId("prompt").value = question;
  byId("expected").textContent = `Expected: ${target}`;
  byId("expected").hidden = false;
  loaded = { task, document: Number(number) };
}

function forget() {
  loaded = null;
  byId("expected").hidden = true;
}

// What is asked of every column, and the columns.
function question() {
  const asked = loaded ? { ...loaded } : { prompt: byId("prompt").value };
  asked.temperature = Number(byId("temperature").value);
  asked.seed = Number(byId("seed").value);
  if (byId("max_tokens").value) asked.max_tokens = Number(byId("max_tokens").value);
  const columns = [...document.querySelectorAll("input[name=row]:checked")].map((box) => ({
    label: box.parentElement.textContent, which: { row: box.value },
  }));
  if (!byId("steering").hidden) {
    const alpha = Number(byId("alpha").value);
    columns.push({ label: signed(alpha), which: { alpha } });
  }
  return { asked, columns };
}

async function ask() {
  if (asking) { again = true; return; }
  const { asked, columns } = question();
  if (!columns.length) throw new Error("choose a row to ask");
  asking = byId("ask").disabled = true;
  const section = element("section"), sides = element("div", undefined, "sides");
  const head = loaded ? `${loaded.task} · document ${loaded.document}` : asked.prompt;
  section.append(element("p", head), sides);
  byId("answers").prepend(section);
  const waiting = columns.map(({ label, which }) => {
    const column = element("article"), text = element("pre", "…"), facts = element("p", "waiting", "quiet");
    column.append(element("h2", label), text, facts);
    sides.append(column);
    return async () => {
      const answer = await fetched("ask", { ...asked, ...which });
      text.textContent = answer.text;
      const known = [answer.score === null ? "" : `score ${answer.score}`,
                     answer.finish === "scored" ? "" : `${answer.tokens} tokens`,
                     answer.finish === "length" ? "cut at the limit" : "", `${answer.seconds} s`];
      facts.textContent = known.filter(Boolean).join(" · ");
      if (answer.score !== null) column.classList.add(answer.score > 0 ? "right" : "wrong");
    };
  });
  try {
    for (const answer of waiting) await answer();
  } catch (error) {
    for (const facts of sides.querySelectorAll("p")) if (facts.textContent === "waiting") facts.textContent = "not asked";
    throw error;
  } finally {
    asking = byId("ask").disabled = false;
  }
  if (again) { again = false; await ask(); }
}

// Runs what a control asks for, and shows what went wrong.
const doing = (work) => async (event) => {
  event?.preventDefault?.();
  byId("error").textContent = "";
  try {
    await work(event);
  } catch (error) {
    again = false;
    byId("error").textContent = error.message;
  }
};

byId("form").addEventListener("submit", doing(ask));
byId("task").addEventListener("change", doing(load));
byId("number").addEventListener("change", doing(load));
byId("prompt").addEventListener("input", forget);
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) doing(ask)(event);
});
byId("slider").addEventListener("input", () => { byId("alpha").value = byId("slider").value; });
byId("alpha").addEventListener("input", () => { byId("slider").value = byId("alpha").value; });
for (const id of ["slider", "alpha"]) {
  byId(id).addEventListener("change", () => { if (byId("live").checked) doing(ask)(); });
}
doing(begin)();
