// Before anything is drawn: the theme that was chosen, if one was; else the system's.
const chosen = localStorage.getItem("pigguf.theme");
if (chosen) document.documentElement.dataset.theme = chosen;
