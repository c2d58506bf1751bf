// Storage in the browser: conversations in IndexedDB, as they contain documents; settings in localStorage.

const OPEN = new Promise((resolve, reject) => {
  const request = indexedDB.open("pigguf", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

async function transact(mode, operation) {
  const transaction = (await OPEN).transaction("conversations", mode);
  return new Promise((resolve, reject) => {
    const request = operation(transaction.objectStore("conversations"));
    transaction.oncomplete = () => resolve(request.result); // only once it is stored
    transaction.onabort = () => reject(transaction.error);
  });
}

/** Load all conversations, the latest first. */
export async function loadConversations() {
  return (await transact("readonly", (store) => store.getAll())).sort((a, b) => b.updated - a.updated);
}

export const saveConversation = (conversation) => transact("readwrite", (store) => store.put(conversation));
export const deleteConversation = (id) => transact("readwrite", (store) => store.delete(id));

const SETTINGS = "pigguf.settings";
const DEFAULTS = { system: "", temperature: 0.7, maxTokens: 2048, key: "" };

export function settings() {
  return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(SETTINGS) || "{}") };
}

export function saveSettings(changed) {
  localStorage.setItem(SETTINGS, JSON.stringify({ ...settings(), ...changed }));
}

export const lastOpen = () => localStorage.getItem("pigguf.open");
export const saveLastOpen = (id) => localStorage.setItem("pigguf.open", id);
