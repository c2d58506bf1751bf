// Helpers for DOM elements, and formatting of numbers. Text is always inserted as text, never as markup.

export const $ = (id) => document.getElementById(id);

/** Create an element. A name with a dash, and `role`, is an attribute; others are properties, such as onclick. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "role" || name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const icon = (name) => svg("svg", { "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));

export const iconButton = (name, label, onclick) =>
  el("button", { type: "button", className: "icon", "aria-label": label, title: label, onclick }, icon(name));

export const number = (value) => Math.round(value).toLocaleString("en-US");
export const tokens = (count) => `${number(count)} token${count === 1 ? "" : "s"}`;

export const capitalized = (text) => text.charAt(0).toUpperCase() + text.slice(1);

export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/** Announce a text to screen readers. */
export function announce(text) {
  $("announcement").textContent = text;
}
