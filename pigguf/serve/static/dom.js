// Elements, and words for numbers. Text only ever becomes text.

export const $ = (id) => document.getElementById(id);

/** An element: properties by name, attributes where the name has a dash or is `role`, listeners as onclick. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "role" || name.includes("-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
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

/** Tell a screen reader, in its own time. */
export function say(text) {
  $("said").textContent = text;
}
