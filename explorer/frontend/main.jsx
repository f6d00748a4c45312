// The frame around every page: which store, capture and site, where to go, what to look for.
import { render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { parseNeuron } from "./format.js";
import { inNotebook, tellHost } from "./host.js";
import { Empty, Select, code, useKeys } from "./parts.jsx";
import { addressOf, backStep, go, hashOf, useRoute } from "./route.js";
import { readDocument, readStores } from "./source.js";
import { ComparePage } from "./pages/compare.jsx";
import { NeuronPage } from "./pages/neuron.jsx";
import { OverviewPage } from "./pages/overview.jsx";
import { QuestionPage } from "./pages/question.jsx";
import { SqlPage } from "./pages/sql.jsx";
import { StartPage } from "./pages/start.jsx";
import { TextPage } from "./pages/text.jsx";
import { TokenPage, TokensPage } from "./pages/token.jsx";

const PAGES = {
  overview: { title: "Neurons", show: OverviewPage },
  text: { title: "Texts", show: TextPage },
  tokens: { title: "Tokens", show: TokensPage },
  question: { title: "Questions", show: QuestionPage },
  compare: { title: "Compare", show: ComparePage },
  sql: { title: "SQL", show: SqlPage },
  neuron: { show: NeuronPage, below: "overview" },
  token: { show: TokenPage, below: "tokens" },
};

// A card is a page without what is around it: in a notebook, under the cell that asked for one neuron.
const isCard = "card" in document.documentElement.dataset;

/** Asks for the document of a link to a neuron beside the list of stores, which says what else the page has: its tokens stand sooner. */
function readAhead({ store, page, parts }) {
  if (page === "neuron" && parts.length === 3) readDocument(store, addressOf(page, parts)).catch(() => {}); // the page asks again, and says it
}

function Explorer() {
  const [found, setFound] = useState({ loading: true });
  const route = useRoute();
  useEffect(() => {
    readStores().then((form) => setFound({ form }), (error) => setFound({ error: error.message }));
    readAhead(route);
  }, []);
  if (found.error) return <main><p class="error" role="alert">{code(found.error)}</p></main>;
  if (!found.form) return <main><p role="status">Opening the store …</p></main>;
  return <Frame form={found.form} />;
}

function Frame({ form }) {
  const route = useRoute();
  const [help, setHelp] = useState(false);
  const search = useRef(null);
  const store = form.stores[route.store];
  useKeys({ "/": () => search.current?.focus(), "?": () => setHelp(!help), Escape: () => setHelp(false) });
  const page = PAGES[route.page] ? route.page : "";
  const context = store ? contextOf(form, store, route) : null;
  useEffect(() => {
    document.title = [route.parts[2], PAGES[page]?.title, store?.model, "actstore"].filter(Boolean).join(" · ");
  });
  if (!context) return <main><Empty>There is no store of this number. The address may be of another server.</Empty></main>;
  const Show = page ? PAGES[page].show : StartPage;
  return (
    <>
      {!isCard && <a class="skip" href="#content" onClick={(event) => { event.preventDefault(); document.getElementById("content").focus(); }}>To the page</a>}
      {(!isCard || backStep()) && <header>
        {backStep() && <button type="button" class="plain" onClick={backStep()} title="one step back">← back</button>}
        {!isCard && <><a class="brand" href={hashOf(store.number, "")} title={store.model}>actstore <b>{store.model.split("/").pop()}</b></a>
        <Where form={form} context={context} page={page} />
        <Search context={context} input={search} />
        {!inNotebook && <Theme />}
        <button type="button" class="plain" aria-expanded={help} onClick={() => setHelp(!help)} title="Keys">?</button></>}
      </header>}
      {!isCard && <nav aria-label="pages">
        {Object.entries(PAGES).filter(([name, { title }]) => title && isOffered(name, context)).map(([name, { title }]) => (
          <a key={name} href={hashOf(store.number, name, context.capture ? [context.capture, context.site] : [])}
            aria-current={name === page ? "page" : PAGES[page]?.below === name ? "true" : undefined}>{title}</a>
        ))}
      </nav>}
      {help && <Help />}
      <main id="content" tabIndex={-1}>
        {context.reason ? <Empty>{context.reason}</Empty> : <Show key={`${page}/${store.number}`} context={context} route={route} />}
      </main>
    </>
  );
}

/** What pages need to know: the store, and the capture and site that the address names, or else the first. */
function contextOf(form, store, route) {
  const names = Object.keys(store.captures);
  const capture = route.parts[0] ?? store.default ?? names[0];
  const held = store.captures[capture];
  const context = { form: form.form, pages: form.pages, texts: form.texts, reasons: form.reasons ?? {}, live: form.live, stores: form.stores, store, capture, held };
  if (store.error) return { ...context, site: "", reason: store.error };
  if (!names.length) return { ...context, reason: "This store holds no capture yet. `actstore capture MODEL CORPUS STORE` makes one." };
  if (!held) return { ...context, site: "", reason: `This store has no capture ${capture}. Its captures are: ${names.join(", ")}.` };
  const site = route.parts[1] ?? (held.sites.includes("mlp.post") ? "mlp.post" : held.sites[0]);
  return held.sites.includes(site)
    ? { ...context, site }
    : { ...context, site, reason: `Capture ${capture} has no site ${site}. Its sites are: ${held.sites.join(", ")}.` };
}

function isOffered(name, { store }) {
  if (name === "question") return Object.values(store.captures).some((held) => held.questions);
  return name !== "tokens" || store.has_vocabulary;
}

function Where({ form, context, page }) {
  const { store, capture, site, held } = context;
  const to = (number, name, place) => go(hashOf(number, page || "overview", name ? [name, place].filter(Boolean) : []));
  return (
    <div class="where">
      {form.stores.length > 1 && (
        <Select label="store" value={String(store.number)} onChange={(number) => to(number)}
          options={form.stores.map((one) => ({ name: String(one.number), text: one.store.split("/").pop() }))} />
      )}
      <Select label="capture" value={capture} onChange={(name) => to(store.number, name)} options={Object.keys(store.captures).filter((name) => !store.captures[name].compared)} />
      {held && <Select label="site" value={site} onChange={(place) => to(store.number, capture, place)} options={held.sites} />}
    </div>
  );
}

function Search({ context, input }) {
  const [text, setText] = useState("");
  const submit = (event) => {
    event.preventDefault();
    const neuron = parseNeuron(text);
    const { store, capture, site } = context;
    if (neuron) go(hashOf(store.number, "neuron", [capture, site, neuron.name]));
    else if (text) go(hashOf(store.number, "tokens", [capture, site], { search: text }));
    setText("");
    input.current.blur(); // keys are the page's again
  };
  return (
    <form class="search" role="search" onSubmit={submit}>
      <input ref={input} type="search" value={text} placeholder="L3.N17, or a token" aria-label="neuron or token"
        onInput={(event) => setText(event.currentTarget.value)} />
    </form>
  );
}

const THEMES = ["auto", "light", "dark"];

function Theme() {
  const [theme, setTheme] = useState(stored());
  useEffect(() => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("actstore-theme", theme);
    } catch { /* pages opened from a folder may have no storage */ }
  }, [theme]);
  const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  return <button type="button" class="plain" onClick={() => setTheme(next)} title={`Theme: ${theme}`}>{theme}</button>;
}

function stored() {
  try {
    const theme = localStorage.getItem("actstore-theme");
    return THEMES.includes(theme) ? theme : "auto";
  } catch {
    return "auto";
  }
}

function Help() {
  const keys = { "/": "look for a neuron or a token", "←  →": "the neuron before, the next one", "?": "these keys", "Ctrl + Enter": "run a query" };
  return (
    <dl class="help">
      {Object.entries(keys).map(([key, about]) => <div key={key}><dt><kbd>{key}</kbd></dt><dd>{about}</dd></div>)}
    </dl>
  );
}

if (inNotebook) {
  tellHost({ ready: true });
  const body = document.body;
  if (isCard) new ResizeObserver(() => tellHost({ height: body.scrollHeight })).observe(body);
}
render(<Explorer />, document.getElementById("explorer"));
