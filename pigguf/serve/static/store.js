// What the browser keeps: conversations in IndexedDB, for they hold documents; settings in localStorage.

const OPEN = new Promise((resolve, reject) => {
  const asked = indexedDB.open("pigguf", 1);
  asked.onupgradeneeded = () => asked.result.createObjectStore("conversations", { keyPath: "id" });
  asked.onsuccess = () => resolve(asked.result);
  asked.onerror = () => reject(asked.error);
});

async function within(mode, act) {
  const transaction = (await OPEN).transaction("conversations", mode);
  return new Promise((resolve, reject) => {
    const asked = act(transaction.objectStore("conversations"));
    transaction.oncomplete = () => resolve(asked.result); // not before it is kept for good
    transaction.onabort = () => reject(transaction.error);
  });
}

/** All conversations, the latest first. */
export async function conversations() {
  return (await within("readonly", (store) => store.getAll())).sort((a, b) => b.updated - a.updated);
}

export const keep = (conversation) => within("readwrite", (store) => store.put(conversation));
export const forget = (id) => within("readwrite", (store) => store.delete(id));

const SETTINGS = "pigguf.settings";
const DEFAULTS = { system: "", temperature: 0.7, maxTokens: 2048, key: "" };

export function settings() {
  return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(SETTINGS) || "{}") };
}

export function keepSettings(changed) {
  localStorage.setItem(SETTINGS, JSON.stringify({ ...settings(), ...changed }));
}

export const lastOpen = () => localStorage.getItem("pigguf.open");
export const keepLastOpen = (id) => localStorage.setItem("pigguf.open", id);
