// Where documents come from: a server that answers addresses, or the files of a site, which are scripts because a page that is
// opened from a folder may load scripts and nothing else; or a notebook's kernel.
import { useEffect, useState } from "preact/hooks";
import { askHost, inNotebook } from "./host.js";

const site = window.actstoreSite ?? null;
const KEPT = 300;
const documents = new Map();

/** What a form of the explorer can do; `stores` are described as by `actstore info --json`. */
export function readStores() {
  if (site) return Promise.resolve({ form: "site", pages: site.pages, texts: site.texts, reasons: site.reasons, live: false, stores: [{ number: 0, ...site.store }] });
  return ask("stores");
}

function ask(address) {
  return inNotebook ? askHost(address) : fetchJson(`api/${address}`);
}

/** The document of an address of a store; a promise that fails with a sentence. */
export function readDocument(store, address) {
  const key = `${store}/${address}`;
  if (!documents.has(key)) {
    const promise = site ? readFile(address) : ask(key);
    promise.catch(() => documents.delete(key)); // what failed is asked for again
    documents.set(key, promise);
    if (documents.size > KEPT) documents.delete(documents.keys().next().value);
  }
  return documents.get(key);
}

/** Where the image of a document of a capture is, or null where it is not, or not yet. */
export function useImage(store, capture, document, isThere) {
  const path = `image/${encodeURIComponent(capture)}/${document}`;
  const state = useDocument(store, isThere && inNotebook ? path : null);
  if (!isThere) return null;
  if (inNotebook) return state.data?.image ?? null;
  return site ? `data/image/${fileName(capture)}/${document}.webp` : `api/${store}/${path}`;
}

async function fetchJson(url) {
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new Error("The server does not answer. Is `actstore serve` still running?");
  }
  const isJson = (response.headers.get("content-type") ?? "").includes("json");
  const body = isJson ? await response.json() : { error: (await response.text()).slice(0, 300) };
  if (!response.ok) throw new Error(body.error || `The server answers with status ${response.status}.`);
  return body;
}

/** The document of an address, and how far it is: {data, error, loading}. What was shown stays until the next is there. */
export function useDocument(store, address) {
  const [state, setState] = useState({ loading: true });
  useEffect(() => {
    if (address == null) {
      setState({ loading: false });
      return undefined;
    }
    let wanted = true;
    setState((before) => ({ ...before, loading: true, error: null }));
    readDocument(store, address).then(
      (data) => wanted && setState({ data, address, loading: false }),
      (error) => wanted && setState({ error: error.message, address, loading: false }),
    );
    return () => {
      wanted = false;
    };
  }, [store, address]);
  return state;
}

// Files of a site

const files = new Map();
const waiting = new Map();

/** Called by the script of each file: base64 of a compressed JSON document. */
window.actstoreData = (key, text) => waiting.get(key)?.resolve(text);

async function readFile(address) {
  const [path, query = ""] = address.split("?", 2);
  const parts = path.split("/").map(decodeURIComponent);
  if (!site.pages.includes(parts[0])) throw new Error("These files have no such page. `actstore serve STORE` answers it.");
  const options = new URLSearchParams(query);
  const kept = ["by", "first"].filter((option) => options.get(option)).map((option) => `${option}=${options.get(option)}`); // of others there are no files
  const { file, name } = fileOf([...parts, ...kept], site.shards);
  const document = await loadFile(file);
  if (name === null) return document;
  if (!Object.hasOwn(document, name)) throw new Error(`These files hold nothing of ${name}: the site was made of other neurons.`);
  return document[name];
}

/** The file that holds a document, and the name of the document in it; as `explorer.site.files` writes them. */
export function fileOf(parts, shards) {
  const last = parts[parts.length - 1];
  const folder = parts.slice(0, -1).map(fileName);
  const neuron = /^L(\d+)\.N(\d+)$/.exec(last);
  if (folder.length && neuron) {
    return { file: [...folder, `L${neuron[1]}`, Math.floor(Number(neuron[2]) / shards.neuron)].join("/"), name: last };
  }
  if (parts[0] === "token") return { file: [...folder, Math.floor(Number(last) / shards.token)].join("/"), name: last };
  return { file: parts.map(fileName).join("/"), name: null };
}

const MAX_NAME = 100;

/** A name that every file system takes: other bytes than letters, digits, dot, hyphen and underscore as ~ and two digits. */
export function fileName(part) {
  const bytes = new TextEncoder().encode(part);
  const name = Array.from(bytes, (byte) => {
    const sign = String.fromCharCode(byte);
    return /[A-Za-z0-9._-]/.test(sign) ? sign : `~${byte.toString(16).padStart(2, "0")}`;
  }).join("");
  if (name.length <= MAX_NAME) return name;
  let hash = 0x811c9dc5; // FNV-1a
  for (const byte of bytes) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return `${name.slice(0, MAX_NAME - 9)}~${hash.toString(16).padStart(8, "0")}`;
}

function loadFile(file) {
  if (!files.has(file)) {
    const promise = loadScript(file).then(unpack);
    promise.catch(() => files.delete(file));
    files.set(file, promise);
    if (files.size > KEPT) files.delete(files.keys().next().value);
  }
  return files.get(file);
}

function loadScript(file) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    const end = (settle, value) => {
      waiting.delete(file);
      script.remove();
      settle(value);
    };
    waiting.set(file, { resolve: (text) => end(resolve, text) });
    script.onerror = () => end(reject, new Error("These files hold no such page: the site was made of other neurons or captures."));
    script.onload = () => waiting.has(file) && end(reject, new Error(`The file ${file}.js holds something else.`));
    script.src = `data/${file}.js`;
    document.head.append(script);
  });
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

/** Numbers that came as base64 of float32, the least significant byte first. */
export function unpackNumbers(text) {
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}
