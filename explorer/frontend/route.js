// Every state of the explorer is an address: `#/0/neuron/corpus/mlp.post/L3.N17?context=16`. A hash works over HTTP, below any
// path, and in files alike. In a notebook the address bar is the notebook's: the hash is kept here, and the widget is told of it.
import { useEffect, useState } from "preact/hooks";
import { inNotebook, tellHost, whenHostSays } from "./host.js";

const visited = inNotebook ? [document.documentElement.dataset.route || "#/0"] : [];

if (inNotebook) {
  addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href^='#/']");
    if (!link) return;
    event.preventDefault();
    go(link.getAttribute("href"));
  });
  whenHostSays("route", (route) => route !== currentHash() && go(route));
}

function currentHash() {
  return inNotebook ? visited[visited.length - 1] : location.hash;
}

function visit(hash) {
  if (hash != null) visited.push(hash);
  tellHost({ route: currentHash() });
  dispatchEvent(new HashChangeEvent("hashchange"));
  if (hash != null) scrollTo(0, 0);
}

/** Goes one step back, where there is no button of the browser for it; null where there is nothing before. */
export function backStep() {
  return visited.length < 2 ? null : () => {
    visited.pop();
    visit(null);
  };
}

/** The parts of a hash: number of the store, page, its parts, and options. */
export function parseHash(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const [store, page, ...parts] = path.split("/").filter(Boolean).map(decoded);
  const options = Object.fromEntries(new URLSearchParams(query));
  return { store: /^\d+$/.test(store ?? "") ? Number(store) : 0, page: page ?? "", parts, options };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** The hash of a page; options that are empty are left out. */
export function hashOf(store, page, parts = [], options = {}) {
  return `#/${store}/${addressOf(page, parts, options)}`;
}

/** The address of a page below its store, as the server and the files of a site know it. */
export function addressOf(page, parts = [], options = {}) {
  const path = [page, ...parts].map((part) => encodeURIComponent(part)).join("/");
  const query = Object.entries(options)
    .filter(([, value]) => value !== "" && value != null)
    .map(([name, value]) => `${encodeURIComponent(name)}=${encodeURIComponent(value)}`)
    .join("&");
  return query ? `${path}?${query}` : path;
}

/** The current route; the component is drawn again when it changes. */
export function useRoute() {
  const [hash, setHash] = useState(currentHash());
  useEffect(() => {
    const update = () => setHash(currentHash());
    addEventListener("hashchange", update);
    return () => removeEventListener("hashchange", update);
  }, []);
  return parseHash(hash);
}

/** Goes to a page; with `replace`, without a step for the browser's way back. */
export function go(hash, replace = false) {
  if (inNotebook) {
    if (replace) visited.pop();
    visit(hash);
  } else if (replace) {
    history.replaceState(null, "", hash);
    dispatchEvent(new HashChangeEvent("hashchange"));
  } else {
    location.hash = hash;
  }
}
