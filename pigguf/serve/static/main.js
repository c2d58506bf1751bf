// The page: handles the user's actions, and connects the other modules.

import { Api, RequestRefused, ServerUnavailable } from "./api.js";
import { $, announce, capitalized, el, iconButton, number, tokens } from "./dom.js";
import { ropeScalingPanel } from "./rope_scaling.js";
import * as storage from "./storage.js";
import { Generation, documentsOf, isBlank, newConversation, returnToDraft, titleFrom, toApiMessages, toMarkdown } from "./conversation.js";
import { chip, keepAtEnd, scrollToEnd, showGauge, showGeneration, showMessages } from "./view.js";

const DRAFT_DELAY = 250; // milliseconds after the last key until the draft is counted and saved
const HEALTH_INTERVAL = 5000; // milliseconds between health checks
const UNAVAILABLE_INTERVAL = 1200; // the same while the server is unavailable
const UNDO_TIME = 10000; // milliseconds

const api = new Api(() => storage.settings().key);
const generations = new Map(); // conversation id -> Generation
let saved = []; // conversations, the latest first
let current = newConversation();
let about = null;
let used = 0;

// ---- conversations -------------------------------------------------------------------------------

async function start() {
  try {
    saved = await storage.loadConversations();
  } catch {
    showTrouble("This browser stores nothing for this page: conversations are lost when it is closed.");
  }
  openConversation(saved.find(({ id }) => id === storage.lastOpen()) ?? current);
  showTheme();
  await connect();
  checkHealth();
}

function openConversation(conversation) {
  current = conversation;
  if (!generations.has(conversation.id)) returnToDraft(conversation);
  storage.saveLastOpen(conversation.id);
  showNotice();
  show();
  showDraft();
  scrollToEnd();
  countTokens();
  $("question").focus();
  document.body.classList.remove("with-side");
  $("menu").setAttribute("aria-expanded", "false");
}

const create = () => openConversation(isBlank(current) ? current : newConversation());

async function save(conversation = current) {
  if (isBlank(conversation)) return;
  if (!saved.includes(conversation)) saved.unshift(conversation);
  saved.sort((a, b) => b.updated - a.updated);
  showList();
  const generation = generations.get(conversation.id);
  const messages = generation?.answer.text ? [...conversation.messages, { ...generation.answer, end: "broken" }] : conversation.messages;
  // A document that is still being read could not be completed after the page is closed.
  const documents = conversation.draft.documents.filter(({ tokens: count }) => count != null);
  try {
    await storage.saveConversation({ ...conversation, messages, draft: { ...conversation.draft, documents } });
  } catch (error) {
    showTrouble(`This conversation could not be saved: ${error.message}`);
  }
}

async function deleteConversation(conversation) {
  generations.get(conversation.id)?.stop();
  saved = saved.filter((other) => other !== conversation);
  if (conversation === current) openConversation(saved[0] ?? newConversation());
  await storage.deleteConversation(conversation.id);
  const undo = el("button", { type: "button", className: "link" }, "Undo");
  const line = el("li", { className: "undo" }, `“${titleOf(conversation)}” is deleted. `, undo);
  undo.onclick = () => {
    line.remove();
    save(conversation);
    openConversation(conversation);
  };
  showList();
  $("conversations").prepend(line);
  setTimeout(() => line.remove(), UNDO_TIME);
  announce(`Deleted: ${titleOf(conversation)}`);
}

function exportConversation(conversation) {
  const address = URL.createObjectURL(new Blob([toMarkdown(conversation)], { type: "text/markdown" }));
  const name = titleOf(conversation).replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  el("a", { href: address, download: `${name || "conversation"}.md` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

const titleOf = ({ title, draft }) => title || titleFrom(draft.text) || "New conversation";

function showList() {
  $("conversations").replaceChildren(...saved.map(row));
}

function row(conversation) {
  const title = titleOf(conversation);
  const opens = el("button", { type: "button", className: "title", title, onclick: () => openConversation(conversation) }, title);
  if (conversation === current) opens.setAttribute("aria-current", "true");
  const element = el("li", {}, opens);
  element.append(
    el(
      "span",
      { className: "acts" },
      iconButton("pen", `Rename ${title}`, () => rename(conversation, element)),
      iconButton("save", `Export ${title}`, () => exportConversation(conversation)),
      iconButton("bin", `Delete ${title}`, () => deleteConversation(conversation)),
    ),
  );
  return element;
}

function rename(conversation, element) {
  const field = el("input", { value: titleOf(conversation), "aria-label": "Name of the conversation" });
  const finish = async (accept) => {
    field.onblur = null;
    if (accept && field.value.trim()) conversation.title = field.value.trim();
    const saving = save(conversation);
    $("conversations").querySelector("[aria-current]")?.focus();
    await saving;
    if (accept) announce(`Renamed: ${titleOf(conversation)}`);
  };
  field.onblur = () => finish(true);
  field.onkeydown = (event) => {
    if (event.key === "Enter") finish(true);
    if (event.key === "Escape") finish(false);
    event.stopPropagation();
  };
  element.replaceChildren(field);
  field.select();
}

// ---- asking --------------------------------------------------------------------------------------

function ask() {
  const { draft, messages } = current;
  const generation = generations.get(current.id);
  if (generation) return generation.stop();
  if (draft.documents.some(({ tokens: count }) => count == null)) return announce("A document is still being read.");
  if (!draft.text.trim() && !draft.documents.length) return;
  messages.push({ role: "user", text: draft.text.trim(), documents: draft.documents });
  current.title ||= titleFrom(draft.text) || draft.documents[0].name;
  current.draft = { text: "", documents: [] };
  showDraft();
  generate();
}

function retry() {
  const last = current.messages.at(-1);
  if (generations.has(current.id) || last?.role !== "assistant") return;
  current.messages.pop();
  generate(last);
}

/** Generate an answer to the last question; `previous` is the answer to restore if there is none. */
async function generate(previous = null) {
  const conversation = current;
  const isShown = () => current === conversation;
  let isScheduled = false;
  const generation = new Generation(conversation, api, storage.settings, {
    change: () => {
      if (isScheduled || !isShown()) return;
      isScheduled = true; // at most once per frame
      requestAnimationFrame(() => {
        isScheduled = false;
        if (!isShown() || !generations.has(conversation.id)) return;
        keepAtEnd(() => showGeneration(generation));
        if (generation.progress) showTokens(generation.progress.total + generation.generated);
      });
    },
    save: () => save(conversation),
    unavailable: (reason) => {
      showUnavailable(reason);
      return availableAgain.promise;
    },
  });
  generations.set(conversation.id, generation);
  conversation.updated = Date.now();
  save(conversation);
  showNotice();
  show();
  scrollToEnd();
  announce("The model is reading.");
  const failed = await generation.run({ previous });
  generations.delete(conversation.id);
  conversation.updated = Date.now();
  if (saved.includes(conversation)) save(conversation); // it may have been deleted meanwhile
  if (!isShown()) return;
  keepAtEnd(show);
  showDraft();
  if (failed) showRefusal(failed);
  else announce(generation.answer.text ? `Answer: ${generation.answer.text.slice(0, 1000)}` : "Stopped.");
  countTokens();
}

function showRefusal(error) {
  if (error.status === 401) return askForKey();
  if (error.code === "context_length_exceeded") return showOverflow(error.counts.prompt_tokens);
  showNotice(el("p", {}, `The server refused it: ${error.message}`));
}

function show() {
  const generation = generations.get(current.id);
  showMessages(current, generation, { retry, removeDocument });
  showList();
  $("send").setAttribute("aria-label", generation ? "Stop" : "Send");
  $("send").title = generation ? "Stop (Esc)" : "Send (Enter)";
  $("send-icon").setAttribute("href", generation ? "#i-stop" : "#i-send");
  $("send").classList.toggle("stops", Boolean(generation));
}

// ---- the draft and its documents -----------------------------------------------------------------

let draftTimer;

function draftChanged() {
  clearTimeout(draftTimer);
  draftTimer = setTimeout(() => {
    countTokens();
    save();
  }, DRAFT_DELAY);
}

function showDraft() {
  const { draft } = current;
  if ($("question").value !== draft.text) $("question").value = draft.text;
  resizeQuestion();
  $("waiting").replaceChildren(
    ...draft.documents.map((document) => chip(document, "Remove", () => removeDocument(draft, document))),
  );
}

function resizeQuestion() {
  const field = $("question");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, innerHeight * 0.4)}px`;
}

async function addFiles(files) {
  const { draft } = current;
  showNotice();
  for (const file of files) {
    const document = { name: file.name, text: "", tokens: null };
    draft.documents.push(document);
    showDraft();
    try {
      if (about && file.size > about.most_document_bytes)
        throw new RequestRefused(413, { message: `${file.name} is over ${number(about.most_document_bytes)} bytes` });
      const { notes, ...read } = await api.document(file);
      Object.assign(document, read);
      if (notes.length) showNotice(...notes.map((note) => el("p", {}, note)));
      announce(`${document.name}: ${tokens(document.tokens)}`);
    } catch (error) {
      draft.documents.splice(draft.documents.indexOf(document), 1);
      if (error.status === 401) askForKey();
      else if (error instanceof ServerUnavailable) showUnavailable(error.reason);
      showNotice(el("p", {}, error instanceof ServerUnavailable ? `${file.name} was not read: the server is unavailable.` : error.message));
    }
    showDraft();
    draftChanged();
  }
}

function removeDocument(holder, document) {
  holder.documents = holder.documents.filter((other) => other !== document);
  announce(`Removed: ${document.name}`);
  show();
  showDraft();
  countTokens();
  save();
  $("question").focus();
}

// ---- the window ----------------------------------------------------------------------------------

let pendingCount = new AbortController();

/** Count the tokens of the conversation and the draft. */
async function countTokens() {
  pendingCount.abort();
  pendingCount = new AbortController();
  if (!about || generations.has(current.id)) return;
  const messages = toApiMessages(current, storage.settings().system, true);
  try {
    showTokens(messages.length ? await api.count(messages, pendingCount.signal) : 0);
    if (used > about.context_length) showOverflow(used);
    else if ($("notice").dataset.kind === "window") showNotice();
  } catch (error) {
    if (error instanceof ServerUnavailable) showUnavailable(error.reason);
    else if (error.status === 401) askForKey();
    else if (error instanceof RequestRefused) showRefusal(error);
  }
}

function showTokens(count) {
  used = count;
  if (about) showGauge(current, used, about.context_length);
}

function showOverflow(count) {
  showTokens(count);
  const window = about.context_length;
  const documents = documentsOf(current).filter(({ document }) => document.tokens);
  const remedies = documents.map(({ document, holder }) =>
    el(
      "button",
      { type: "button", onclick: () => removeDocument(holder, document) },
      `Remove ${document.name} (${tokens(document.tokens)})`,
    ),
  );
  if (current.messages.length) remedies.push(el("button", { type: "button", onclick: moveDraftToNewConversation }, "Ask it in a new conversation"));
  showNotice(
    el("p", {}, el("strong", {}, "The context window is full. "), `This is ${tokens(count)}; the window has ${number(window)}: ${number(count - window)} too many.`),
    remedies.length ? el("p", { className: "remedies" }, ...remedies) : el("p", {}, "Shorten the question."),
  );
  $("notice").dataset.kind = "window";
}

function moveDraftToNewConversation() {
  const { draft } = current;
  current.draft = { text: "", documents: [] };
  save(current);
  openConversation({ ...newConversation(), draft });
}

function showNotice(...children) {
  $("notice").replaceChildren(...children);
  $("notice").hidden = !children.length;
  $("notice").dataset.kind = "";
}

// ---- the server ----------------------------------------------------------------------------------

let isUnavailable = false;
let availableAgain = Promise.withResolvers();

async function connect() {
  try {
    about = await api.about();
  } catch (error) {
    if (error.status === 401) askForKey();
    else showUnavailable(error.reason);
    return;
  }
  $("model").textContent = about.name ?? about.model;
  $("model").title = about.model;
  document.title = `${about.name ?? about.model} · pigguf`;
  $("empty-text").textContent =
    `${about.name ?? about.model} runs on this server, with a context window of ${tokens(about.context_length)}: ` +
    `about ${number(about.context_length * 0.75)} English words, questions and answers together.`;
  showTokens(used);
  countTokens();
}

/** Show that the server does not answer, or why it is unavailable. */
function showUnavailable(reason) {
  showTrouble(`${reason ? capitalized(reason) : "The server does not answer"}. The page keeps trying; nothing you wrote is lost.`);
  if (isUnavailable) return;
  isUnavailable = true;
  availableAgain = Promise.withResolvers();
}

async function serverIsBack() {
  isUnavailable = false;
  showTrouble("");
  announce("The server is back.");
  await connect();
  availableAgain.resolve();
}

async function checkHealth() {
  if (!document.hidden || isUnavailable) {
    try {
      await api.health();
      if (isUnavailable) await serverIsBack();
    } catch (error) {
      showUnavailable(error.reason);
    }
  }
  setTimeout(checkHealth, isUnavailable ? UNAVAILABLE_INTERVAL : HEALTH_INTERVAL);
}

function showTrouble(text) {
  if ($("trouble").textContent === text) return; // a screen reader would read it again
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

// ---- panels --------------------------------------------------------------------------------------

function openSettings() {
  const now = storage.settings();
  $("system").value = now.system;
  $("temperature").value = now.temperature;
  $("max-tokens").value = now.maxTokens ?? "";
  $("key").value = now.key;
  $("key-trouble").hidden = true;
  if (!$("settings").open) $("settings").showModal();
}

function askForKey() {
  const isWrong = Boolean(storage.settings().key);
  openSettings();
  $("key-trouble").textContent = isWrong ? "The server does not take this API key." : "This server asks for an API key.";
  $("key-trouble").hidden = false;
  $("key").focus();
}

$("settings-form").onsubmit = () => {
  storage.saveSettings({
    system: $("system").value,
    temperature: $("temperature").valueAsNumber,
    maxTokens: $("max-tokens").valueAsNumber || null,
    key: $("key").value.trim(),
  });
  connect();
};

function openRopeScaling() {
  if (!about) return;
  $("positions-body").replaceChildren(...ropeScalingPanel(about, used));
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
  announce(`Theme: ${next}`);
}

function toggleSide() {
  const isOpen = document.body.classList.toggle("with-side");
  $("menu").setAttribute("aria-expanded", String(isOpen));
  if (isOpen) $("new").focus();
}

// ---- keys ----------------------------------------------------------------------------------------

// [key, description, action, whether it works while typing]
const KEYS = [
  ["Enter", "Send the question"],
  ["Shift+Enter", "A new line"],
  ["Escape", "Stop the answer, or close a panel", () => generations.get(current.id)?.stop(), true],
  ["/", "Focus the question", () => $("question").focus()],
  ["Alt+N", "New conversation", create, true],
  ["Alt+R", "Answer again", retry, true],
  ["Alt+U", "Add documents", () => $("file").click(), true],
  ["Alt+P", "Rope scaling of the file", openRopeScaling, true],
  ["Alt+S", "Settings", openSettings, true],
  ["Alt+T", "Theme: system, light, dark", nextTheme, true],
  ["?", "These shortcuts", () => $("keys").showModal()],
];

function keyName(event) {
  if (event.altKey && event.code.startsWith("Key")) return `Alt+${event.code.slice(3)}`; // Alt changes event.key on some systems
  return event.altKey || event.ctrlKey || event.metaKey ? "" : event.key;
}

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input, textarea");
  const [, , act, whileTyping] = KEYS.find(([key, , acts]) => acts && key === keyName(event)) ?? [];
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
  if (!generations.has(current.id)) ask();
};
$("question").oninput = () => {
  current.draft.text = $("question").value;
  resizeQuestion();
  draftChanged();
};
$("composer").onsubmit = (event) => {
  event.preventDefault();
  ask();
};

$("new").onclick = create;
$("menu").onclick = toggleSide;
$("gauge").onclick = openRopeScaling;
$("theme").onclick = nextTheme;
$("open-settings").onclick = openSettings;
$("open-keys").onclick = () => $("keys").showModal();
$("attach").onclick = $("empty-attach").onclick = () => $("file").click();
$("file").onchange = () => {
  addFiles([...$("file").files]);
  $("file").value = "";
};

// ---- drag and drop, paste ------------------------------------------------------------------------

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
addEventListener("pagehide", () => save());

start();
