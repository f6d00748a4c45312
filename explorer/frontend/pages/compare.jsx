// Two captures, or two models: one statistic of each neuron in both, and the change scores between them.
import { useMemo, useState } from "preact/hooks";
import { number, plural } from "../format.js";
import { Card, Empty, Loaded, NeuronLink, Select, Table } from "../parts.jsx";
import { addressOf, go, hashOf } from "../route.js";
import { Scatter } from "../scatter.jsx";
import { useDocument } from "../source.js";
import { Neurons, useColumn } from "./overview.jsx";

export function ComparePage({ context, route }) {
  const { store, stores, capture, site } = context;
  const others = stores.flatMap((one) => Object.entries(one.captures)
    .filter(([name, held]) => (one.number !== store.number || name !== capture) && held.sites.includes(site))
    .map(([name]) => ({ name: `${one.number}/${name}`, text: stores.length > 1 ? `${one.store.split("/").pop()}: ${name}` : name })));
  const { other = others[0]?.name ?? "", statistic = "" } = route.options;
  const set = (changed) => go(hashOf(store.number, "compare", [capture, site], { ...route.options, ...changed }), true);
  const here = useDocument(store.number, addressOf("overview", [capture, site]));
  const at = other.indexOf("/");
  const [number_, name] = [Number(other.slice(0, at)), other.slice(at + 1)];
  const there = useDocument(number_, other ? addressOf("overview", [name, site]) : null);
  if (!others.length && context.form === "site") return <><h1>Compare</h1><Empty>These files were made of one capture. `actstore site STORE FOLDER --compare CAPTURE` adds the statistics of another.</Empty></>;
  if (!others.length) return <><h1>Compare</h1><Empty>{`There is no other capture with the site ${site}. Capture the same texts with another model, and name both stores: \`actstore serve STORE OTHER\`.`}</Empty></>;
  return (
    <>
      <h1>Compare <small>{capture} at {site}</small></h1>
      <div class="controls">
        <Select label="with" value={other} options={others} onChange={(value) => set({ other: value })} />
      </div>
      <Loaded state={here} lines={10}>{(mine) => (
        <Loaded state={there} lines={10}>{(theirs) => {
          const isSame = JSON.stringify(mine.layers) === JSON.stringify(theirs.layers);
          if (!isSame) return <Empty>The two have other layers, or layers of another width: neurons of one are not neurons of the other.</Empty>;
          return <Compared {...{ context, mine, theirs, statistic, set }} other={{ number: number_, name }} />;
        }}</Loaded>
      )}</Loaded>
    </>
  );
}

function Compared({ context, mine, theirs, statistic, set, other }) {
  const { store, capture, site } = context;
  const shared = mine.statistics.map(({ name }) => name).filter((name) => theirs.statistics.some((one) => one.name === name));
  const chosen = shared.includes(statistic) ? statistic : shared.includes("positive") ? "positive" : shared[0];
  const neurons = useMemo(() => new Neurons(mine.layers), [mine]);
  const x = useColumn(store.number, capture, site, chosen);
  const y = useColumn(other.number, other.name, site, chosen);
  const farthest = useMemo(() => (x.values && y.values ? differing(x.values, y.values) : []), [x.values, y.values]);
  return (
    <>
      <div class="controls"><Select label="statistic" value={chosen} options={shared} onChange={(name) => set({ statistic: name })} /></div>
      {(x.error ?? y.error) && <p class="error" role="alert">{x.error ?? y.error}</p>}
      <div class="plot">
        {x.values && y.values ? (
          <Scatter x={x.values} y={y.values} xName={`${chosen}, here`} yName={`${chosen}, there`} brush={null} onBrush={() => {}}
            onPick={(i) => go(hashOf(store.number, "neuron", [capture, site, neurons.name(i)]))} nameOf={(i) => neurons.name(i)} />
        ) : <div class="loading" role="status" aria-label="loading"><div /><div /></div>}
      </div>
      <div class="grid">
        <Card title="Farthest apart" note={chosen}>
          <Table caption="neurons that differ most" rows={farthest} columns={[
            { name: "neuron", of: (i) => <NeuronLink context={context} name={neurons.name(i)} /> },
            { name: "here", right: true, of: (i) => number(x.values[i]) }, { name: "there", right: true, of: (i) => number(y.values[i]) },
          ]} />
        </Card>
        <Change {...{ context, other }} />
      </div>
    </>
  );
}

function differing(x, y) {
  const size = (i) => (Number.isFinite(x[i] - y[i]) ? Math.abs(x[i] - y[i]) : -1);
  return Array.from(x.keys()).sort((a, b) => size(b) - size(a)).slice(0, 30);
}

function Change({ context, other }) {
  const { store, capture, site, pages, reasons, form } = context;
  const [wanted, setWanted] = useState(false);
  const address = addressOf("change", [capture, site], { other: other.number, other_capture: other.name });
  const isMade = form === "site";
  const state = useDocument(store.number, pages.includes("change") && (wanted || isMade) ? address : null);
  if (!pages.includes("change")) return reasons.change ? <Card title="Change scores"><Empty>{reasons.change}</Empty></Card> : null;
  return (
    <Card title="Change scores" note="root mean square difference over the same tokens">
      {!wanted && !isMade ? <p><button type="button" onClick={() => setWanted(true)}>Read both captures</button> <span class="about">They must be of the same texts.</span></p> : (
        <Loaded state={state}>{({ neurons, n, warnings }) => (
          <>
            {warnings.map((warning) => <p key={warning} class="notice">{warning}</p>)}
            <Table caption="change scores" rows={neurons} columns={[
              { name: "neuron", of: (row) => <NeuronLink context={context} name={row.neuron} /> }, { name: "score", right: true, of: (row) => number(row.score) },
            ]} />
            {n > neurons.length && <p class="about">The first {neurons.length} of {plural(n, "neuron")}.</p>}
          </>
        )}</Loaded>
      )}
    </Card>
  );
}
