// Runs before the first paint: the chosen theme, or else the system's.
const chosen = localStorage.getItem("pigguf.theme");
if (chosen) document.documentElement.dataset.theme = chosen;
