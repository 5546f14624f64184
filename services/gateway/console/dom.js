// Elements, figures and news. Text enters the page as text nodes alone, never as markup.

export const byId = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null && child !== false));
  return node;
}

export const el = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, tag), attributes, children);

/** A table with a caption, and how to change its rows. columns: {name, value(row), kind: "head" | "text" | "number"}. */
export function table(caption, columns, rows) {
  const head = columns.map((column) => el("th", { scope: "col", class: column.kind ?? "number" }, column.name));
  const body = el("tbody");
  const inner = el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, ...head)), body);
  const update = (now) => body.replaceChildren(...now.map((row) => el("tr", {}, ...columns.map((each) => cell(each, row)))));
  update(rows);
  return { node: el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, inner), update };
}

function cell({ value, kind = "number" }, row) {
  return el(kind === "head" ? "th" : "td", { scope: kind === "head" && "row", class: kind }, value(row));
}

/** Changes the page; if its end was in view, it is afterwards. */
export function keepingEnd(change) {
  const height = () => document.documentElement.scrollHeight;
  const wasAtEnd = height() - scrollY - innerHeight < 80;
  change();
  if (wasAtEnd) scrollTo(0, height());
}

// --- figures ---------------------------------------------------------------------------------------------------------

export const NONE = "–";

export const number = (value, digits = 0) =>
  value == null ? NONE : value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });

export const ms = (value) => (value == null ? NONE : `${number(value, value < 100 ? 1 : 0)} ms`);

export const seconds = (value) => (value == null ? NONE : value < 1000 ? ms(value) : `${number(value / 1000, 2)} s`);

export const percent = (value) => (value == null ? NONE : `${number(100 * value)} %`);

export const plural = (count, noun, many = `${noun}s`) => `${number(count)} ${count === 1 ? noun : many}`;

/** Right guesses / compared guesses, of an answer's counts. */
export function acceptance({ accepted, late, rejected }) {
  const judged = accepted + late + rejected;
  return judged ? (accepted + late) / judged : null;
}

// --- news ------------------------------------------------------------------------------------------------------------

/** Tells readers of screens what has changed. */
export function announce(text) {
  byId("news").textContent = text;
}
