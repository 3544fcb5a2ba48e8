// The few helpers the page is made of. Whatever comes from outside goes into the document as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element; `props` are attributes (null and false are left out), `children` nodes or text. */
export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Set a node's text, if it is another: what a reader has selected stays selected. */
export function say(node, text) {
  const words = String(text);
  if (node.textContent !== words) node.textContent = words;
}

export function attr(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, String(value));
}

/** Make `parent`'s children those of `items`, in their order: one each, made once and updated from then on. */
export function keyed(parent, items, keyOf, make, update) {
  const known = parent.nenyaRows ?? (parent.nenyaRows = new Map());
  const wanted = new Set();
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    wanted.add(key);
    let row = known.get(key);
    if (row === undefined) {
      row = make(item);
      known.set(key, row);
    }
    if (row === place) place = place.nextElementSibling;
    else parent.insertBefore(row, place);
    update(row, item);
  }
  for (const [key, row] of known) {
    if (!wanted.has(key)) {
      row.remove();
      known.delete(key);
    }
  }
}

/** A table's row with a cell for each of `columns`: [name, label on small screens, class]. Cells are in `row.cells`. */
export function row(columns) {
  const line = h("tr", { role: "row" });
  line.cell = {};
  for (const [name, label, kind] of columns) {
    const cell = h("td", { role: "cell", "data-label": label, class: kind ?? null });
    line.cell[name] = cell;
    line.append(cell);
  }
  return line;
}

/** Two lines of a cell: what it is about, and what is said besides. */
export function twoLines(cell, first, second) {
  if (cell.nenyaLines === undefined) {
    cell.nenyaLines = [h("span", { class: "first" }), h("span", { class: "second" })];
    cell.append(...cell.nenyaLines);
  }
  say(cell.nenyaLines[0], first);
  say(cell.nenyaLines[1], second);
  cell.nenyaLines[1].hidden = second === "";
}

/** How full something is: a bar, and words for it. */
export function bar(used, of, words) {
  const fill = h("span", { class: "fill" });
  const node = h("span", { class: "bar-line" }, h("span", { class: "track", "aria-hidden": "true" }, fill), h("span"));
  node.show = (nowUsed, nowOf, nowWords, tone = "") => {
    const share = nowOf > 0 ? Math.min(1, Math.max(0, nowUsed / nowOf)) : 0;
    fill.style.width = `${(share * 100).toFixed(1)}%`;
    attr(node, "data-tone", tone);
    say(node.lastElementChild, nowWords);
  };
  node.show(used, of, words);
  return node;
}

/** A line over the last `length` buckets, gaps where nothing was, and a mark under each bucket with errors. */
export function sparkline(length) {
  const svg = document.createElementNS(SVG, "svg");
  const parts = {};
  for (const name of ["base", "band", "line", "marks"]) {
    parts[name] = document.createElementNS(SVG, "path");
    parts[name].setAttribute("class", name);
    svg.append(parts[name]);
  }
  const height = 24;
  parts.base.setAttribute("d", `M0 ${height - 1}H${length}`);
  svg.setAttribute("viewBox", `0 0 ${length} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "spark");
  svg.setAttribute("role", "img");
  /** `points`: {ago, value, worst, bad}, the oldest first; value null is a gap. */
  svg.show = (points, label) => {
    const top = Math.max(...points.map((one) => Math.max(one.value ?? 0, one.worst ?? 0)), 1e-9);
    const x = (one) => length - 0.5 - one.ago;
    const y = (value) => height - 3 - (height - 5) * (value / top);
    let line = "", band = "", marks = "", before = null;
    for (const one of points) {
      if (one.value !== null) {
        const at = `${x(one)} ${y(one.value).toFixed(2)}`;
        line += before !== null && before.ago === one.ago + 1 ? `L${at}` : `M${at}h.01L${at}`;
        if (one.worst !== undefined && one.worst !== null) band += `M${x(one)} ${y(one.worst).toFixed(2)}V${y(one.value).toFixed(2)}`;
      }
      if (one.bad) marks += `M${x(one)} ${height - 1}h.01`;
      before = one.value === null ? null : one;
    }
    attr(parts.line, "d", line);
    attr(parts.band, "d", band);
    attr(parts.marks, "d", marks);
    attr(svg, "aria-label", label);
  };
  return svg;
}

// Numbers and times as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const three = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const two = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium", hour12: false });

export const NONE = "–";
export const count = (n) => (Math.abs(n) < 100000 ? whole.format(n) : short.format(n));
export const rate = (n) => (n === null ? NONE : n >= 1000 ? count(n) : (n < 10 ? two : three).format(n));
export const timeOf = (seconds) => clock.format(new Date(seconds * 1000));
export const momentOf = (seconds) => moment.format(new Date(seconds * 1000));
export const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many}`;

/** Seconds, as exactly as they matter. */
export function seconds(s) {
  if (s === null) return NONE;
  if (s < 0.0995) return `${three.format(Number((s * 1000).toPrecision(2)))} ms`;
  if (s < 0.9995) return `${Math.round(s * 1000)} ms`;
  if (s < 99.5) return `${three.format(s)} s`;
  return span(s);
}

/** A long time, in its two largest units. */
export function span(s) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  let rest = Math.max(0, Math.round(s));
  const first = units.findIndex(([, size]) => rest >= size);
  if (first === -1) return "0 s";
  const words = [];
  for (const [name, size] of units.slice(first, first + 2)) {
    const n = Math.floor(rest / size);
    rest -= n * size;
    if (n > 0) words.push(`${n} ${name}`);
  }
  return words.join(" ");
}

export function ago(s) {
  return s < 2 ? "just now" : `${s < 60 ? `${Math.round(s)} s` : span(s - (s % (s < 3600 ? 60 : 3600)))} ago`;
}
