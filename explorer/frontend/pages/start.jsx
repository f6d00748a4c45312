// What the store holds.
import { bytes, number, plural } from "../format.js";
import { Card, Empty, Table } from "../parts.jsx";
import { hashOf } from "../route.js";

export function StartPage({ context }) {
  const { store } = context;
  const rows = Object.entries(store.captures).map(([name, held]) => ({ name, ...held })).filter((held) => !held.compared);
  const damaged = Object.entries(store.damaged ?? {});
  return (
    <>
      <h1>{store.model} <small>{store.model_type}</small></h1>
      <p class="facts">
        <span>{plural(store.layers, "layer")}</span><span>{plural(store.neurons, "neuron")}</span><span>{bytes(store.bytes)}</span>
        <span class="path">{store.store}</span>
      </p>
      <Card title="Captures" wide>
        <Table caption="captures" rows={rows} columns={[
          { name: "capture", of: (row) => <a href={hashOf(store.number, row.questions ? "question" : "overview", [row.name])}>{row.name}</a> },
          { name: "of", of: (row) => (row.questions ? "questions" : row.images ? "images" : "text") },
          { name: "tokens", right: true, of: (row) => number(row.tokens) },
          { name: "documents", right: true, of: (row) => number(row.documents) },
          { name: "sites", of: (row) => row.sites.join(", ") },
          { name: "precision", of: (row) => row.precision },
          { name: "labels", of: (row) => Object.entries(row.labels).map(([label, values]) => `${label} (${values.length})`).join(", ") || "–" },
          { name: "size", right: true, of: (row) => bytes(row.bytes) },
          { name: "state", of: stateOf },
        ]} />
        {rows.length > 0 && <p class="about">A capture's name leads to its neurons; the field at the top to a neuron by its name, or to a token.</p>}
        {damaged.map(([name, reason]) => <p key={name} class="error">{name} cannot be read: {reason}</p>)}
      </Card>
      <Card title="Neuron graphs">
        {store.graphs.length ? <p>{store.graphs.join(", ")}</p> : <Empty>None yet. `actstore graphs build STORE` makes them from the stored text.</Empty>}
      </Card>
      <Card title="Edits">
        {store.edits.length ? <p>{store.edits.join(", ")}</p> : <Empty>None yet. `actstore edit --help` says how they are made.</Empty>}
      </Card>
      <Card title="Explanations">
        {store.explanations.length ? <p>{store.explanations.join(", ")}</p> : <Empty>None yet. `actstore explain` asks a language model for them.</Empty>}
      </Card>
    </>
  );
}

function stateOf({ blocks }) {
  return blocks.planned === blocks.committed ? "complete" : `${number(blocks.committed)} of ${number(blocks.planned)} blocks`;
}
