"use strict";
// A list of any length with one choice: only the rows in view are elements. Arrow keys, j and k move the choice.
const ROW = 46; // px, as .row in page.css

class ChoiceList {
  // draw(item, element) fills a row; choose(item, at) is called when the choice moves.
  constructor(box, draw, choose) {
    Object.assign(this, { box, draw, choose, items: [], at: -1, rows: new Map() });
    this.inner = box.appendChild(document.createElement("div"));
    this.inner.className = "rows";
    this.inner.setAttribute("role", "presentation");
    box.addEventListener("scroll", () => this.fill());
    box.addEventListener("keydown", (event) => this.key(event));
    this.inner.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) this.select(Number(row.dataset.at));
    });
    new ResizeObserver(() => this.fill()).observe(box);
  }

  show(items, at) {
    this.items = items;
    this.rows.forEach((row) => row.remove());
    this.rows.clear();
    this.inner.style.height = `${items.length * ROW}px`;
    this.select(items.length ? Math.max(at, 0) : -1);
    this.fill();
  }

  fill() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - 3);
    const last = Math.min(this.items.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / ROW) + 3);
    for (const [at, row] of this.rows) {
      if (at < first || at >= last) { row.remove(); this.rows.delete(at); }
    }
    for (let at = first; at < last; at++) {
      if (!this.rows.has(at)) this.rows.set(at, this.inner.appendChild(this.row(at)));
    }
  }

  row(at) {
    const row = document.createElement("div");
    Object.assign(row, { className: "row", id: `row-${at}` });
    row.dataset.at = at;
    row.style.top = `${at * ROW}px`;
    for (const [name, value] of [["role", "option"], ["aria-posinset", at + 1],
      ["aria-setsize", this.items.length], ["aria-selected", at === this.at]]) row.setAttribute(name, value);
    this.draw(this.items[at], row);
    return row;
  }

  select(at) {
    this.rows.get(this.at)?.setAttribute("aria-selected", "false");
    this.at = at;
    if (at >= 0) {
      const top = at * ROW, { scrollTop, clientHeight } = this.box;
      if (top < scrollTop) this.box.scrollTop = top;
      else if (top + ROW > scrollTop + clientHeight) this.box.scrollTop = top + ROW - clientHeight;
      this.fill();
      this.rows.get(at)?.setAttribute("aria-selected", "true");
      this.box.setAttribute("aria-activedescendant", `row-${at}`);
    } else {
      this.box.removeAttribute("aria-activedescendant");
    }
    this.choose(this.items[at] ?? null, at);
  }

  move(by) {
    if (this.items.length) this.select(Math.min(Math.max(this.at + by, 0), this.items.length - 1));
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.box.clientHeight / ROW) - 1);
    const by = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page,
      Home: -this.items.length, End: this.items.length }[event.key];
    if (by === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.move(by);
  }
}
