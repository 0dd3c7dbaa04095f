// Elements made of data. Texts become text nodes: what a user pastes is never read as markup.
"use strict";

const $ = (id) => document.getElementById(id);

/** An element: `make("td", {class: "number", onclick: f}, "text", child)`. */
function make(tag, attributes = {}, ...children) {
  const namespace = ["svg", "rect", "circle", "line", "path", "text", "g", "title"].includes(tag)
    ? "http://www.w3.org/2000/svg" : null;
  const element = namespace ? document.createElementNS(namespace, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A table with a row of headings; a cell is a text, an element, or {number: text}. */
function table(headings, rows) {
  const cell = (tag, value) =>
    value !== null && typeof value === "object" && "number" in value
      ? make(tag, { class: "number" }, value.number) : make(tag, {}, value);
  return make("table", {},
    make("thead", {}, make("tr", {}, headings.map((heading) => {
      const element = cell("th", heading);
      element.setAttribute("scope", "col");
      return element;
    }))),
    make("tbody", {}, rows.map((row) => make("tr", {}, row.map((value) => cell("td", value))))));
}

/** A text of a user's, whichever way its letters run. */
const userText = (text) => make("bdi", { class: "user" }, text);

/** While work runs, its button waits but keeps the focus, and a second one cancels. */
function showBusy(start, cancel, isBusy) {
  start.setAttribute("aria-disabled", String(isBusy));
  if (!isBusy && document.activeElement === cancel) start.focus();
  cancel.hidden = !isBusy;
}

function shown(number, digits = 4) {
  if (number === null || number === undefined || !Number.isFinite(number)) return "–";
  if (number !== 0 && (Math.abs(number) >= 1e6 || Math.abs(number) < 1e-4)) return number.toExponential(2);
  return number.toFixed(digits);
}

const counted = (number) => Math.round(number).toLocaleString("en");
const shortened = (text, length) => {
  const points = Array.from(text);
  return points.length <= length ? text : points.slice(0, length).join("") + " …";
};
