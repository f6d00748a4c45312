// A notebook's page around the explorer: `widget.js` of it passes on what is said here to the kernel, and back. The explorer lies in a
// frame without an origin, so that texts of a store are as far from the notebook as from any other page.
const root = document.documentElement;

export const inNotebook = root.dataset.form === "notebook";

const asked = new Map();
const listeners = new Map();
let last = 0;

/** Says something to the notebook's page. */
export function tellHost(message) {
  if (inNotebook) parent.postMessage(message, "*"); // to the page that made this frame, whatever its address; it holds the store
}

/** Calls a function with what the notebook's page says under a name. */
export function whenHostSays(name, listener) {
  listeners.set(name, listener);
}

/** The document of an address, from the kernel; a promise that fails with a sentence. */
export function askHost(address) {
  last += 1;
  const id = last;
  return new Promise((resolve, reject) => {
    asked.set(id, { resolve, reject });
    tellHost({ id, address });
  });
}

if (inNotebook) {
  addEventListener("message", ({ source, data }) => {
    if (source !== parent || !data || typeof data !== "object") return;
    for (const [name, value] of Object.entries(data)) listeners.get(name)?.(value);
    const waiting = asked.get(data.id);
    if (!waiting) return;
    asked.delete(data.id);
    if (data.error) waiting.reject(new Error(data.error));
    else waiting.resolve(JSON.parse(data.document));
  });
  whenHostSays("theme", (theme) => {
    root.dataset.theme = theme;
  });
}
