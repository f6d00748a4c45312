// A capture of questions: the neurons relevant to each label by layer, and what the model answered.
import { number, percent, plural } from "../format.js";
import { Card, Empty, Loaded, NeuronLink, Select, Table } from "../parts.jsx";
import { addressOf, go, hashOf } from "../route.js";
import { useDocument } from "../source.js";

export function QuestionPage({ context, route }) {
  const { store, capture, held } = context;
  const captures = Object.keys(store.captures).filter((name) => store.captures[name].questions);
  const { by = Object.keys(held.labels)[0] ?? "", method = "", query = "" } = route.options;
  const isQuestions = held.questions;
  const state = useDocument(store.number, isQuestions ? addressOf("questions", [capture], { by, method }) : null);
  const set = (changed) => go(hashOf(store.number, "question", [capture, "mlp.post"], { by, method, query, ...changed }), true);
  if (!isQuestions) {
    return (
      <>
        <h1>Questions</h1>
        {captures.length
          ? <Empty>{`Capture ${capture} is none of questions.`}</Empty>
          : <Empty>The store has no capture of questions. `actstore attribute MODEL QUESTIONS STORE` makes one.</Empty>}
        {captures.map((name) => <p key={name}><a href={hashOf(store.number, "question", [name, "mlp.post"])}>{name}</a></p>)}
      </>
    );
  }
  return (
    <>
      <h1>Questions <small>{capture}</small></h1>
      <Loaded state={state} lines={12}>{(data) => (
        <>
          <div class="controls">
            <Select label="by" value={by} onChange={(value) => set({ by: value })} options={[{ name: "", text: "all questions" }, ...data.labels_known]} />
            {context.form === "server" && <Select label="method" value={data.method} onChange={(value) => set({ method: value })} options={data.methods} />}
          </div>
          {data.warnings.map((warning) => <p key={warning} class="notice">{warning}</p>)}
          <Card title="Relevant neurons by layer" note="share of each row's neurons" wide>
            {data.counts.flat().some((count) => count > 0) ? <HeatMap data={data} />
              : <Empty>No neuron is relevant to some of the queries and not to all; another method above may keep some.</Empty>}
          </Card>
          <div class="grid">
            {Object.entries(data.neurons).slice(0, 24).map(([label, neurons]) => (
              <Card key={label} title={label}>
                {neurons.length === 0 ? <Empty>No neuron is left: all are common to the queries.</Empty> : (
                  <Table caption={`neurons of ${label}`} rows={neurons} columns={[
                    { name: "neuron", of: (row) => <NeuronLink context={{ ...context, site: "mlp.post" }} name={row.neuron} /> },
                    { name: "score", right: true, of: (row) => number(row.score) },
                  ]} />
                )}
              </Card>
            ))}
          </div>
          <Card title="Queries" note={plural(data.n, "query").replace("querys", "queries")} wide>
            <Table caption="queries" rows={data.queries.map((row, i) => ({ ...row, i }))} columns={[
              { name: "query", of: (row) => <button type="button" class="link" onClick={() => set({ query: String(row.i) })} aria-pressed={query === String(row.i)}>{row.query}</button> },
              ...data.labels_known.map((label) => ({ name: label, of: (row) => row[label] })),
              { name: "right", right: true, of: (row) => `${number(row.n_correct)} of ${number(row.n_prompts)}` },
              { name: "probability", right: true, of: (row) => percent(row.probability), about: "of the right answer, mean over its prompts" },
            ]} />
          </Card>
          {query !== "" && <Prompts {...{ context, query }} />}
        </>
      )}</Loaded>
    </>
  );
}

function HeatMap({ data }) {
  const most = Math.max(...data.shares.flat(), 1e-9);
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="heat map">
      <table class="heat">
        <thead><tr><th scope="col">{data.by || ""}</th>{data.layers.map((layer) => <th key={layer} scope="col">{layer}</th>)}</tr></thead>
        <tbody>
          {data.labels.map((label, i) => (
            <tr key={label}>
              <th scope="row" dir="auto">{label}</th>
              {data.shares[i].map((share, j) => (
                <td key={j} style={{ "--strength": (share / most).toFixed(3) }} title={`${plural(data.counts[i][j], "neuron")} of layer ${data.layers[j]}`}>{share > 0 ? percent(share) : ""}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Prompts({ context, query }) {
  const state = useDocument(context.store.number, addressOf("prompts", [context.capture, query]));
  return (
    <Loaded state={state}>{({ query: name, prompts }) => (
      <Card title={name} note={plural(prompts.length, "prompt")} wide>
        {prompts.map((prompt) => (
          <article key={prompt.prompt} class="prompt">
            <pre dir="auto">{prompt.text}</pre>
            <p>{prompt.options.map((option, i) => (
              <span key={option} class={option === prompt.answer ? "option right-answer" : "option"}>{option} {percent(prompt.probabilities[i])}{option === prompt.answer ? " (right)" : ""}</span>
            ))}</p>
          </article>
        ))}
      </Card>
    )}</Loaded>
  );
}
