// What a model wrote, as elements. Two belts: HTML in it is shown as the text it is and pictures as their
// words, so that no markup is taken over; and DOMPurify lets nothing through that acts or loads. The page's
// Content-Security-Policy is the third.

import { Marked } from "./vendor/marked.js";
import DOMPurify from "./vendor/purify.js";
import { el, iconButton, say } from "./dom.js";

const escaped = (text) => text.replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  renderer: { html: ({ text }) => escaped(text), image: ({ text, href }) => escaped(text || href) },
});

const ALLOWED = {
  ALLOWED_TAGS: [
    ..."p br hr h1 h2 h3 h4 h5 h6 strong em del code pre blockquote ul ol li a".split(" "),
    ..."table thead tbody tr th td".split(" "),
  ],
  ALLOWED_ATTR: ["href", "title", "start", "align", "class"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

export function markdown(text) {
  const made = DOMPurify.sanitize(marked.parse(text), ALLOWED);
  for (const link of made.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const code of made.querySelectorAll("pre > code")) code.parentElement.replaceWith(block(code));
  for (const table of made.querySelectorAll("table")) {
    const frame = el("div", { className: "wide-table", tabIndex: 0, role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  return made;
}

/** Code with its language, and a way to copy it. */
function block(code) {
  const language = /language-([\w+#-]+)/.exec(code.className)?.[1] ?? "";
  code.className = "";
  return el(
    "div",
    { className: "code" },
    el("div", { className: "code-head" }, el("span", {}, language), copyButton(() => code.textContent, "Copy code")),
    el("pre", { tabIndex: 0 }, code),
  );
}

export function copyButton(text, label) {
  return iconButton("copy", label, async () => {
    await navigator.clipboard.writeText(text());
    say("Copied");
  });
}
