// The page: what people do, and what follows from it.

import { Api, Gone, Refused } from "./api.js";
import { $, capitalized, el, iconButton, number, say, tokens } from "./dom.js";
import { positionsPanel } from "./positions.js";
import * as store from "./store.js";
import { Run, documentsOf, exported, isBlank, newConversation, takeBack, titled, wire } from "./talk.js";
import { chip, following, showGauge, showMessages, showRun, toEnd } from "./view.js";

const SETTLE = 250; // milliseconds after the last key until the window is counted and the draft kept
const LOOK = 5000; // milliseconds between looks at the server,
const LOOK_FOR = 1200; // and while it is gone
const UNDO = 10000;

const api = new Api(() => store.settings().key);
const runs = new Map(); // conversation id -> Run
let kept = []; // conversations, the latest first
let current = newConversation();
let about = null;
let used = 0;

// ---- conversations -------------------------------------------------------------------------------

async function begin() {
  try {
    kept = await store.conversations();
  } catch {
    trouble("This browser keeps nothing for this page: conversations end with it.");
  }
  open(kept.find(({ id }) => id === store.lastOpen()) ?? current);
  showTheme();
  await connect();
  watch();
}

function open(conversation) {
  current = conversation;
  if (!runs.has(conversation.id)) takeBack(conversation);
  store.keepLastOpen(conversation.id);
  notice();
  show();
  showDraft();
  toEnd();
  measure();
  $("question").focus();
  document.body.classList.remove("with-side");
  $("menu").setAttribute("aria-expanded", "false");
}

const create = () => open(isBlank(current) ? current : newConversation());

async function keep(conversation = current) {
  if (isBlank(conversation)) return;
  if (!kept.includes(conversation)) kept.unshift(conversation);
  kept.sort((a, b) => b.updated - a.updated);
  showList();
  const run = runs.get(conversation.id);
  const messages = run?.answer.text ? [...conversation.messages, { ...run.answer, end: "broken" }] : conversation.messages;
  // A document that is still being read is a promise that no other page can keep.
  const documents = conversation.draft.documents.filter(({ tokens: count }) => count != null);
  try {
    await store.keep({ ...conversation, messages, draft: { ...conversation.draft, documents } });
  } catch (error) {
    trouble(`This conversation could not be kept: ${error.message}`);
  }
}

async function remove(conversation) {
  runs.get(conversation.id)?.stop();
  kept = kept.filter((other) => other !== conversation);
  if (conversation === current) open(kept[0] ?? newConversation());
  await store.forget(conversation.id);
  const undo = el("button", { type: "button", className: "link" }, "Undo");
  const line = el("li", { className: "undo" }, `“${titleOf(conversation)}” is deleted. `, undo);
  undo.onclick = () => {
    line.remove();
    keep(conversation);
    open(conversation);
  };
  showList();
  $("conversations").prepend(line);
  setTimeout(() => line.remove(), UNDO);
  say(`Deleted: ${titleOf(conversation)}`);
}

function save(conversation) {
  const address = URL.createObjectURL(new Blob([exported(conversation)], { type: "text/markdown" }));
  const name = titleOf(conversation).replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  el("a", { href: address, download: `${name || "conversation"}.md` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

const titleOf = ({ title, draft }) => title || titled(draft.text) || "New conversation";

function showList() {
  $("conversations").replaceChildren(...kept.map(row));
}

function row(conversation) {
  const title = titleOf(conversation);
  const opens = el("button", { type: "button", className: "title", title, onclick: () => open(conversation) }, title);
  if (conversation === current) opens.setAttribute("aria-current", "true");
  const made = el("li", {}, opens);
  made.append(
    el(
      "span",
      { className: "acts" },
      iconButton("pen", `Rename ${title}`, () => rename(conversation, made)),
      iconButton("save", `Export ${title}`, () => save(conversation)),
      iconButton("bin", `Delete ${title}`, () => remove(conversation)),
    ),
  );
  return made;
}

function rename(conversation, made) {
  const field = el("input", { value: titleOf(conversation), "aria-label": "Name of the conversation" });
  const done = async (takes) => {
    field.onblur = null;
    if (takes && field.value.trim()) conversation.title = field.value.trim();
    const keeping = keep(conversation);
    $("conversations").querySelector("[aria-current]")?.focus();
    await keeping;
    if (takes) say(`Renamed: ${titleOf(conversation)}`);
  };
  field.onblur = () => done(true);
  field.onkeydown = (event) => {
    if (event.key === "Enter") done(true);
    if (event.key === "Escape") done(false);
    event.stopPropagation();
  };
  made.replaceChildren(field);
  field.select();
}

// ---- asking --------------------------------------------------------------------------------------

function ask() {
  const { draft, messages } = current;
  const run = runs.get(current.id);
  if (run) return run.stop();
  if (draft.documents.some(({ tokens: count }) => count == null)) return say("A document is still being read.");
  if (!draft.text.trim() && !draft.documents.length) return;
  messages.push({ role: "user", text: draft.text.trim(), documents: draft.documents });
  current.title ||= titled(draft.text) || draft.documents[0].name;
  current.draft = { text: "", documents: [] };
  showDraft();
  answer();
}

function retry() {
  const last = current.messages.at(-1);
  if (runs.has(current.id) || last?.role !== "assistant") return;
  current.messages.pop();
  answer(last);
}

/** Have the last question answered; `instead` is the answer to fall back on. */
async function answer(instead = null) {
  const conversation = current;
  const isShown = () => current === conversation;
  let isDrawing = false;
  const run = new Run(conversation, api, store.settings, {
    change: () => {
      if (isDrawing || !isShown()) return;
      isDrawing = true; // at most once a frame
      requestAnimationFrame(() => {
        isDrawing = false;
        if (!isShown() || !runs.has(conversation.id)) return;
        following(() => showRun(run));
        if (run.progress) gauge(run.progress.total + run.drawn);
      });
    },
    keep: () => keep(conversation),
    back: (reason) => {
      lost(reason);
      return returned.promise;
    },
  });
  runs.set(conversation.id, run);
  conversation.updated = Date.now();
  keep(conversation);
  notice();
  show();
  toEnd();
  say("The model is reading.");
  const failed = await run.go({ instead });
  runs.delete(conversation.id);
  conversation.updated = Date.now();
  if (kept.includes(conversation)) keep(conversation); // it may have been deleted meanwhile
  if (!isShown()) return;
  following(show);
  showDraft();
  if (failed) refused(failed);
  else say(run.answer.text ? `Answer: ${run.answer.text.slice(0, 1000)}` : "Stopped.");
  measure();
}

function refused(error) {
  if (error.status === 401) return askForKey();
  if (error.code === "context_length_exceeded") return tooMuch(error.counts.prompt_tokens);
  notice(el("p", {}, `The server did not take it: ${error.message}`));
}

function show() {
  const run = runs.get(current.id);
  showMessages(current, run, { retry, removeDocument });
  showList();
  $("send").setAttribute("aria-label", run ? "Stop" : "Send");
  $("send").title = run ? "Stop (Esc)" : "Send (Enter)";
  $("send-icon").setAttribute("href", run ? "#i-stop" : "#i-send");
  $("send").classList.toggle("stops", Boolean(run));
}

// ---- the draft and its documents -----------------------------------------------------------------

let settling;

function settle() {
  clearTimeout(settling);
  settling = setTimeout(() => {
    measure();
    keep();
  }, SETTLE);
}

function showDraft() {
  const { draft } = current;
  if ($("question").value !== draft.text) $("question").value = draft.text;
  grow();
  $("waiting").replaceChildren(
    ...draft.documents.map((document) => chip(document, "Remove", () => removeDocument(draft, document))),
  );
}

function grow() {
  const field = $("question");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, innerHeight * 0.4)}px`;
}

async function addFiles(files) {
  const { draft } = current;
  notice();
  for (const file of files) {
    const document = { name: file.name, text: "", tokens: null };
    draft.documents.push(document);
    showDraft();
    try {
      if (about && file.size > about.most_document_bytes)
        throw new Refused(413, { message: `${file.name} is over ${number(about.most_document_bytes)} bytes` });
      const { notes, ...read } = await api.document(file);
      Object.assign(document, read);
      if (notes.length) notice(...notes.map((note) => el("p", {}, note)));
      say(`${document.name}: ${tokens(document.tokens)}`);
    } catch (error) {
      draft.documents.splice(draft.documents.indexOf(document), 1);
      if (error.status === 401) askForKey();
      else if (error instanceof Gone) lost(error.reason);
      notice(el("p", {}, error instanceof Gone ? `${file.name} was not read: the server is gone.` : error.message));
    }
    showDraft();
    settle();
  }
}

function removeDocument(holder, document) {
  holder.documents = holder.documents.filter((other) => other !== document);
  say(`Removed: ${document.name}`);
  show();
  showDraft();
  measure();
  keep();
  $("question").focus();
}

// ---- the window ----------------------------------------------------------------------------------

let counting = new AbortController();

/** Have the conversation counted, with what is being typed. */
async function measure() {
  counting.abort();
  counting = new AbortController();
  if (!about || runs.has(current.id)) return;
  const messages = wire(current, store.settings().system, true);
  try {
    gauge(messages.length ? await api.count(messages, counting.signal) : 0);
    if (used > about.context_length) tooMuch(used);
    else if ($("notice").dataset.kind === "window") notice();
  } catch (error) {
    if (error instanceof Gone) lost(error.reason);
    else if (error.status === 401) askForKey();
    else if (error instanceof Refused) refused(error);
  }
}

function gauge(count) {
  used = count;
  if (about) showGauge(current, used, about.context_length);
}

function tooMuch(count) {
  gauge(count);
  const window = about.context_length;
  const documents = documentsOf(current).filter(({ document }) => document.tokens);
  const ways = documents.map(({ document, holder }) =>
    el(
      "button",
      { type: "button", onclick: () => removeDocument(holder, document) },
      `Remove ${document.name} (${tokens(document.tokens)})`,
    ),
  );
  if (current.messages.length) ways.push(el("button", { type: "button", onclick: startOver }, "Ask it in a new conversation"));
  notice(
    el("p", {}, el("strong", {}, "The window is full. "), `This is ${tokens(count)}; the window holds ${number(window)}: ${number(count - window)} too many.`),
    ways.length ? el("p", { className: "ways" }, ...ways) : el("p", {}, "Shorten the question."),
  );
  $("notice").dataset.kind = "window";
}

function startOver() {
  const { draft } = current;
  current.draft = { text: "", documents: [] };
  keep(current);
  open({ ...newConversation(), draft });
}

function notice(...children) {
  $("notice").replaceChildren(...children);
  $("notice").hidden = !children.length;
  $("notice").dataset.kind = "";
}

// ---- the server ----------------------------------------------------------------------------------

let isGone = false;
let returned = Promise.withResolvers();

async function connect() {
  try {
    about = await api.about();
  } catch (error) {
    if (error.status === 401) askForKey();
    else lost(error.reason);
    return;
  }
  $("model").textContent = about.name ?? about.model;
  $("model").title = about.model;
  document.title = `${about.name ?? about.model} · pigguf`;
  $("empty-text").textContent =
    `${about.name ?? about.model} runs on this server, with a window of ${tokens(about.context_length)}: ` +
    `about ${number(about.context_length * 0.75)} English words, questions and answers together.`;
  gauge(used);
  measure();
}

/** The server does not answer, or said why it cannot for a while. */
function lost(reason) {
  trouble(`${reason ? capitalized(reason) : "The server does not answer"}. It is asked until it does; nothing you wrote is lost.`);
  if (isGone) return;
  isGone = true;
  returned = Promise.withResolvers();
}

async function found() {
  isGone = false;
  trouble("");
  say("The server is back.");
  await connect();
  returned.resolve();
}

async function watch() {
  if (!document.hidden || isGone) {
    try {
      await api.health();
      if (isGone) await found();
    } catch (error) {
      lost(error.reason);
    }
  }
  setTimeout(watch, isGone ? LOOK_FOR : LOOK);
}

function trouble(text) {
  if ($("trouble").textContent === text) return; // a screen reader would hear it again
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

// ---- panels --------------------------------------------------------------------------------------

function openSettings() {
  const now = store.settings();
  $("system").value = now.system;
  $("temperature").value = now.temperature;
  $("max-tokens").value = now.maxTokens ?? "";
  $("key").value = now.key;
  $("key-trouble").hidden = true;
  if (!$("settings").open) $("settings").showModal();
}

function askForKey() {
  const isWrong = Boolean(store.settings().key);
  openSettings();
  $("key-trouble").textContent = isWrong ? "The server does not take this API key." : "This server asks for an API key.";
  $("key-trouble").hidden = false;
  $("key").focus();
}

$("settings-form").onsubmit = () => {
  store.keepSettings({
    system: $("system").value,
    temperature: $("temperature").valueAsNumber,
    maxTokens: $("max-tokens").valueAsNumber || null,
    key: $("key").value.trim(),
  });
  connect();
};

function openPositions() {
  if (!about) return;
  $("positions-body").replaceChildren(...positionsPanel(about, used));
  $("positions").showModal();
}

const THEMES = { system: "", light: "light", dark: "dark" };

function showTheme() {
  const theme = document.documentElement.dataset.theme || "system";
  $("theme-icon").setAttribute("href", `#i-${theme}`);
  $("theme").setAttribute("aria-label", `Theme: ${theme}`);
  $("theme").title = `Theme: ${theme} (Alt+T)`;
}

function nextTheme() {
  const names = Object.keys(THEMES);
  const now = document.documentElement.dataset.theme || "system";
  const next = names[(names.indexOf(now) + 1) % names.length];
  if (THEMES[next]) document.documentElement.dataset.theme = next;
  else delete document.documentElement.dataset.theme;
  localStorage.setItem("pigguf.theme", THEMES[next]);
  showTheme();
  say(`Theme: ${next}`);
}

function toggleSide() {
  const isOpen = document.body.classList.toggle("with-side");
  $("menu").setAttribute("aria-expanded", String(isOpen));
  if (isOpen) $("new").focus();
}

// ---- keys ----------------------------------------------------------------------------------------

// What is pressed -> what it is called, what it does, whether it acts while something is being typed.
const KEYS = [
  ["Enter", "Send the question"],
  ["Shift+Enter", "A new line"],
  ["Escape", "Stop the answer, or close a panel", () => runs.get(current.id)?.stop(), true],
  ["/", "To the question", () => $("question").focus()],
  ["Alt+N", "New conversation", create, true],
  ["Alt+R", "Answer again", retry, true],
  ["Alt+U", "Add documents", () => $("file").click(), true],
  ["Alt+P", "What the file says of positions", openPositions, true],
  ["Alt+S", "Settings", openSettings, true],
  ["Alt+T", "Theme: system, light, dark", nextTheme, true],
  ["?", "These shortcuts", () => $("keys").showModal()],
];

function pressed(event) {
  if (event.altKey && event.code.startsWith("Key")) return `Alt+${event.code.slice(3)}`; // whatever Alt makes of it
  return event.altKey || event.ctrlKey || event.metaKey ? "" : event.key;
}

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input, textarea");
  const [, , act, whileTyping] = KEYS.find(([key, , acts]) => acts && key === pressed(event)) ?? [];
  if (!act || event.isComposing || (isTyping && !whileTyping) || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  act();
});

$("keys-list").append(
  ...KEYS.flatMap(([key, name]) => [
    el("dt", {}, ...key.split("+").flatMap((part, at) => [at ? "+" : null, el("kbd", {}, part)])),
    el("dd", {}, name),
  ]),
);

$("question").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!runs.has(current.id)) ask();
};
$("question").oninput = () => {
  current.draft.text = $("question").value;
  grow();
  settle();
};
$("composer").onsubmit = (event) => {
  event.preventDefault();
  ask();
};

$("new").onclick = create;
$("menu").onclick = toggleSide;
$("gauge").onclick = openPositions;
$("theme").onclick = nextTheme;
$("open-settings").onclick = openSettings;
$("open-keys").onclick = () => $("keys").showModal();
$("attach").onclick = $("empty-attach").onclick = () => $("file").click();
$("file").onchange = () => {
  addFiles([...$("file").files]);
  $("file").value = "";
};

// ---- what is dropped or pasted -------------------------------------------------------------------

const hasFiles = (event) => event.dataTransfer?.types.includes("Files");

addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  $("drop").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").hidden = true;
});
addEventListener("drop", (event) => {
  $("drop").hidden = true;
  if (!hasFiles(event)) return;
  event.preventDefault();
  addFiles([...event.dataTransfer.files]);
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) addFiles([...event.clipboardData.files]);
});
addEventListener("pagehide", () => keep());

begin();
