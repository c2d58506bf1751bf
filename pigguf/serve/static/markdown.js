// Renders a model's Markdown. Three layers of protection: HTML in it is shown as text, and images as their
// alternative text; DOMPurify removes everything that acts or loads; the page's Content-Security-Policy blocks it.

import { Marked } from "./vendor/marked.js";
import DOMPurify from "./vendor/purify.js";
import { announce, el, iconButton } from "./dom.js";

const escapeHtml = (text) => text.replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  renderer: { html: ({ text }) => escapeHtml(text), image: ({ text, href }) => escapeHtml(text || href) },
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
  const fragment = DOMPurify.sanitize(marked.parse(text), ALLOWED);
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const code of fragment.querySelectorAll("pre > code")) code.parentElement.replaceWith(codeBlock(code));
  for (const table of fragment.querySelectorAll("table")) {
    const wrapper = el("div", { className: "wide-table", tabIndex: 0, role: "region", "aria-label": "Table" });
    table.replaceWith(wrapper);
    wrapper.append(table);
  }
  return fragment;
}

/** Create a code block with its language and a copy button. */
function codeBlock(code) {
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
    announce("Copied");
  });
}
