// A text and what neurons do at each of its tokens: a document of the capture, or a new one where the server runs the model.
import { Fragment } from "preact";
import { useState } from "preact/hooks";
import { number, parseNeuron, plural, readable, signed, visible } from "../format.js";
import { Card, Empty, Legend, Loaded, NeuronLink, Table, Token, code } from "../parts.jsx";
import { addressOf, go, hashOf } from "../route.js";
import { useDocument, useImage } from "../source.js";

const MOST = 8;

export function TextPage({ context, route }) {
  const { store, capture, site, pages, form } = context;
  if (!pages.includes("text")) return <><h1>Texts</h1><Empty>These files hold no texts but those around exemplars. `actstore serve STORE` shows all.</Empty></>;
  const isMade = form === "site"; // each text with its own neurons; nobody can ask for others
  const document = route.parts[2];
  const { search = "", first = "", neurons = "", text = "", start = "" } = route.options;
  const to = (part, changed) => hashOf(store.number, "text", [capture, site, ...(part == null ? [] : [part])], { neurons, ...changed });
  const isNew = text !== "" && document == null;
  return (
    <>
      <h1>Texts <small>{capture} at {site}</small></h1>
      {context.live && store.number === 0 && <NewText key={text} text={text} onRead={(value) => go(to(null, { text: value }))} />}
      {isNew && <Shown {...{ context, neurons }} address={addressOf("live", [capture, site], { text, neurons })} set={(value) => go(to(null, { text, neurons: value }), true)} />}
      {document != null && (
        <>
          <p><a href={to(null, { search, first })}>All texts</a></p>
          <Shown {...{ context, neurons, document }} address={addressOf("text", [capture, site, document], isMade ? { first: start } : { neurons, first: start })}
            set={(value) => go(to(document, { neurons: value, start }), true)} page={(n) => to(document, { start: n || "" })} />
        </>
      )}
      {document == null && !isNew && <Documents {...{ context, search, first, to }} />}
    </>
  );
}

function NewText({ text, onRead }) {
  const [value, setValue] = useState(text);
  return (
    <form class="new-text" onSubmit={(event) => { event.preventDefault(); if (value) onRead(value); }}>
      <label class="field grow"><span>new text</span><textarea rows={2} maxLength={8000} value={value} onInput={(event) => setValue(event.currentTarget.value)} /></label>
      <button type="submit">Read it</button>
    </form>
  );
}

function Documents({ context, search, first, to }) {
  const { store, capture, form } = context;
  const isMade = form === "site";
  const listed = useDocument(store.number, isMade ? addressOf("document-list", [capture]) : addressOf("documents", [capture], { search, first }));
  const state = isMade && listed.data ? { ...listed, data: among(listed.data, search, Number(first) || 0) } : listed;
  return (
    <>
      <div class="controls">
        <label class="field grow"><span>source contains</span><input type="search" value={search} onChange={(event) => go(to(null, { search: event.currentTarget.value }), true)} /></label>
      </div>
      <Loaded state={state} lines={10}>{({ documents, n, first: from, n_captured: nCaptured }) => (n === 0 ? <Empty>No document's source contains that.</Empty> : (
        <>
          {nCaptured > n && !search && <p class="about">{plural(n, "document")} of {number(nCaptured)}: those in which most neurons are highest.</p>}
          <Table caption="documents" rows={documents} columns={[
            { name: "document", right: true, of: (row) => <a href={to(row.document)}>{row.document}</a> },
            { name: "source", of: (row) => <a href={to(row.document)} dir="auto">{readable(String(row.source))}</a> },
            ...Object.keys(documents[0].labels).map((label) => ({ name: label, of: (row) => row.labels[label] })),
            { name: "tokens", right: true, of: (row) => number(row.n_tokens) },
          ]} />
          <p class="pager">
            {from > 0 && <a href={to(null, { search, first: Math.max(0, from - 100) || "" })}>before</a>}
            <span class="about">{number(from + 1)} to {number(from + documents.length)} of {number(n)}</span>
            {from + documents.length < n && <a href={to(null, { search, first: from + documents.length })}>after</a>}
          </p>
        </>
      ))}</Loaded>
    </>
  );
}

/** Of the documents of a site those whose source contains a text, a page of them. */
function among({ documents, n: nCaptured }, search, first) {
  const found = documents.filter(({ source }) => String(source).toLowerCase().includes(search.toLowerCase()));
  return { documents: found.slice(first, first + 100), n: found.length, first, n_captured: nCaptured };
}

function Picture({ context, document }) {
  const [missing, setMissing] = useState(false);
  const source = useImage(context.store.number, context.capture, document, !missing);
  return source && <img class="document-image" src={source} alt="the image of this text" onError={() => setMissing(true)} />;
}

function Shown({ context, neurons, address, set, page, document }) {
  const state = useDocument(context.store.number, address);
  const isMade = context.form === "site";
  const wanted = neurons.split(",").filter(Boolean);
  const names = isMade ? (state.data?.neurons ?? []).map((one) => one.neuron) : wanted;
  const [active, setActive] = useState(wanted[0]);
  const [place, setPlace] = useState(null);
  const add = (name) => names.length < MOST && !names.includes(name) && set([...names, name].join(","));
  return (
    <>
      {isMade ? <Held {...{ names, active: names.includes(active) ? active : names[0], setActive, wanted }} /> : <Chosen {...{ names, active, setActive, set, add }} />}
      <Loaded state={state} lines={10}>{(data) => {
        const neuron = data.neurons.find((one) => one.neuron === active) ?? data.neurons[0];
        const scale = neuron ? Math.max(...neuron.values.map((value) => Math.abs(value ?? 0)), Math.abs(neuron.max ?? 0)) : 0;
        const peaks = data.peaks.map((one) => (typeof one === "string" ? { neuron: one } : one));
        return (
          <>
            {data.n_cut > 0 && <p class="notice">{plural(data.n_cut, "token")} at the end are left out: the model reads no more at once.</p>}
            {data.source && <p class="about path" dir="auto">{readable(data.source)}, {plural(data.n_tokens, "token")}</p>}
            {data.image && <Picture {...{ context, document }} />}
            {neuron && <Legend scale={scale} />}
            <p class="text">
              {data.tokens.map((token, i) => token.text.split(/(?<=\n)/).map((line, j) => ( // an indentation in the same token belongs to the next line
                <Fragment key={`${i}/${j}`}>
                  <Token text={line} value={neuron?.values[i]} scale={scale} selected={place === i} ofImages={context.held.images} onClick={() => setPlace(place === i ? null : i)} />
                  {line.endsWith("\n") && <br />}
                </Fragment>
              )))}
            </p>
            {page && data.n_tokens > data.tokens.length && (
              <p class="pager">
                {data.first > 0 && <a href={page(Math.max(0, data.first - 1000))}>before</a>}
                <span class="about">tokens {number(data.first + 1)} to {number(data.first + data.tokens.length)} of {number(data.n_tokens)}</span>
                {data.first + data.tokens.length < data.n_tokens && <a href={page(data.first + data.tokens.length)}>after</a>}
              </p>
            )}
            {place !== null && data.tokens[place] && data.neurons.length > 0 && (
              <Card title={<>At <span class="token">{visible(data.tokens[place].text)}</span></>} note={`token ${data.tokens[place].token}, the ${place + 1}.`}>
                <Table caption="activations at the token" rows={data.neurons} columns={[
                  { name: "neuron", of: (one) => <NeuronLink {...{ context }} name={one.neuron} /> },
                  { name: "activation", right: true, of: (one) => signed(one.values[place]) },
                  { name: "largest of the capture", right: true, of: (one) => signed(one.max) },
                ]} />
              </Card>
            )}
            {peaks.length > 0 && !isMade && (
              <Card title="Neurons of this text" note={typeof data.peaks[0] === "string" ? "highest here of the whole capture" : "those that stand out most"}>
                <p class="token-list">
                  {peaks.map((one) => <button key={one.neuron} type="button" disabled={names.includes(one.neuron)} title={one.stands_out == null ? undefined : `stands out by ${number(one.stands_out)} standard deviations`} onClick={() => { add(one.neuron); setActive(one.neuron); }}>{one.neuron}</button>)}
                </p>
              </Card>
            )}
            {!names.length && peaks.length === 0 && !isMade && <Empty>Name a neuron above to see what it does at each token.</Empty>}
          </>
        );
      }}</Loaded>
    </>
  );
}

/** The neurons that files hold the activations of, of one text. */
function Held({ names, active, setActive, wanted }) {
  const missing = wanted.filter((name) => names.length && !names.includes(name));
  return (
    <>
      <div class="tabs" role="group" aria-label="which neuron">
        {names.map((name) => <button key={name} type="button" aria-pressed={name === active} onClick={() => setActive(name)}>{name}</button>)}
      </div>
      {missing.length > 0 && <p class="notice">{code(`These files do not hold what ${missing.join(", ")} does in the whole of this text. \`actstore serve STORE\` shows it.`)}</p>}
      <p class="about">{names.length ? "The neurons that are highest here of the whole capture; activations have three digits." : "No neuron of these files is highest in this text."}</p>
    </>
  );
}

function Chosen({ names, active, setActive, set, add }) {
  const [written, setWritten] = useState("");
  const submit = (event) => {
    event.preventDefault();
    const found = parseNeuron(written);
    if (found) {
      add(found.name);
      setActive(found.name);
      setWritten("");
    }
  };
  return (
    <form class="controls" onSubmit={submit}>
      {names.map((name) => (
        <span key={name} class="chip" aria-current={name === active ? "true" : undefined}>
          <button type="button" onClick={() => setActive(name)} aria-pressed={name === active}>{name}</button>
          <button type="button" aria-label={`without ${name}`} onClick={() => set(names.filter((one) => one !== name).join(","))}>×</button>
        </span>
      ))}
      {names.length < MOST && <label class="field"><span>neuron</span><input value={written} placeholder="L3.N17" onInput={(event) => setWritten(event.currentTarget.value)} /></label>}
    </form>
  );
}
