// A query over the store's tables.
import { useState } from "preact/hooks";
import { number, parseNeuron, plural } from "../format.js";
import { Card, Empty, Loaded, NeuronLink, Table } from "../parts.jsx";
import { addressOf, go, hashOf } from "../route.js";
import { useDocument } from "../source.js";

const EXAMPLES = [
  "select name, max, std, positive from neurons order by (max - mean) / std desc limit 20",
  "select layer, count(*) as neurons, avg(positive) as positive from neurons group by layer order by layer",
  "select table_name, column_name, data_type from information_schema.columns where table_name not like '\\_arrow%' escape '\\'",
];

export function SqlPage({ context, route }) {
  const { store, capture, site, pages } = context;
  const { query = "" } = route.options;
  if (!pages.includes("sql")) return <><h1>SQL</h1><Empty>These files cannot be queried. `actstore serve STORE` and `actstore sql STORE QUERY` can.</Empty></>;
  const run = (text) => go(hashOf(store.number, "sql", [capture, site], { query: text }));
  return (
    <>
      <h1>SQL</h1>
      <Query key={query} query={query} onRun={run} />
      {!query && (
        <Card title="For example">
          {EXAMPLES.map((example) => <p key={example}><button type="button" class="code" onClick={() => run(example)}>{example}</button></p>)}
          <p class="about">Tables: neurons, documents, windows and tokens of the capture; vocabulary and model of the store. Queries read, and nothing else.</p>
        </Card>
      )}
      {query && <Result {...{ context, query, capture }} />}
    </>
  );
}

function Query({ query, onRun }) {
  const [text, setText] = useState(query);
  const submit = (event) => {
    event.preventDefault();
    if (text.trim()) onRun(text);
  };
  return (
    <form onSubmit={submit}>
      <label class="field grow">
        <span>query</span>
        <textarea class="code" rows={4} spellcheck={false} value={text} onInput={(event) => setText(event.currentTarget.value)}
          onKeyDown={(event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && submit(event)} />
      </label>
      <p><button type="submit">Run</button> <span class="about">or Ctrl + Enter</span></p>
    </form>
  );
}

const NUMBER = /^(u?int|float|double|decimal|halffloat)/;

function Result({ context, query, capture }) {
  const state = useDocument(context.store.number, addressOf("sql", [], { query, capture }));
  return (
    <Loaded state={state} lines={8}>{({ columns, types, rows, n }) => (
      <Card title="Result" note={n > rows.length ? `${plural(n, "row")}, the first ${number(rows.length)}` : plural(n, "row")} wide>
        {n === 0 ? <Empty>The query has no row.</Empty> : (
          <Table caption="result" rows={rows} columns={columns.map((name, i) => ({
            name, right: NUMBER.test(types[i]), of: (row) => <Cell {...{ context, name }} value={row[name]} />,
          }))} />
        )}
      </Card>
    )}</Loaded>
  );
}

function Cell({ context, name, value }) {
  if (value === null) return <i class="quiet">null</i>;
  if (typeof value === "number") return number(value);
  if (name.endsWith("name") && typeof value === "string" && parseNeuron(value)) return <NeuronLink context={context} name={value} />;
  return typeof value === "object" ? JSON.stringify(value).slice(0, 300) : String(value).slice(0, 500);
}
