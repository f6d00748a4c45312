// Every neuron's place in any statistic; a rectangle drawn over them gives a list.
import { useMemo } from "preact/hooks";
import { number, plural } from "../format.js";
import { Card, Empty, Loaded, NeuronLink, Select, Table } from "../parts.jsx";
import { addressOf, go, hashOf } from "../route.js";
import { Scatter } from "../scatter.jsx";
import { unpackNumbers, useDocument } from "../source.js";

const LISTED = 100;
const LAYER = "layer";

export function OverviewPage({ context, route }) {
  const { store, capture, site } = context;
  const state = useDocument(store.number, addressOf("overview", [capture, site]));
  return (
    <>
      <h1>Neurons <small>{capture} at {site}</small></h1>
      <Loaded state={state} lines={12}>{(data) => <Overview {...{ context, route, data }} />}</Loaded>
    </>
  );
}

/** A statistic of every neuron as numbers; null while it is loading. */
export function useColumn(store, capture, site, name) {
  const state = useDocument(store, name ? addressOf("column", [capture, site, name]) : null);
  const values = useMemo(() => (state.data ? unpackNumbers(state.data.values) : null), [state.data]);
  return { values: state.loading ? null : values, error: state.error };
}

function Overview({ context, route, data }) {
  const { store, capture, site } = context;
  const names = data.statistics.map(({ name }) => name);
  const options = { y: names[0], x: LAYER, ...route.options };
  const set = (changed) => go(hashOf(store.number, "overview", [capture, site], { ...route.options, ...changed }), true);
  const neurons = useMemo(() => new Neurons(data.layers), [data]);
  const y = useColumn(store.number, capture, site, options.y);
  const other = useColumn(store.number, capture, site, options.x === LAYER ? null : options.x);
  const x = options.x === LAYER ? neurons.places : other.values;
  const brush = parseBrush(options.brush);
  const selected = useMemo(() => (x && y.values ? select(x, y.values, brush, LISTED) : null), [x, y.values, options.brush]);
  if (!names.length) return <Empty>This capture keeps no statistics of its neurons. Capture again to have them.</Empty>;
  const about = data.statistics.find(({ name }) => name === options.y)?.about;
  const error = y.error ?? other.error;
  return (
    <>
      {!data.finished && (
        <p class="notice">{`This capture is unfinished: ${data.blocks.committed} of ${data.blocks.planned} blocks are written, and the numbers are of these.`}</p>
      )}
      <div class="controls">
        <Select label="up" value={options.y} options={names} onChange={(name) => set({ y: name, brush: "" })} />
        <Select label="across" value={options.x} options={[LAYER, ...names]} onChange={(name) => set({ x: name, brush: "" })} />
        <Check label="logarithmic" checked={options.log === "1"} onChange={(on) => set({ log: on ? "1" : "", brush: "" })} />
        <Check label="heat map" checked={options.heat === "1"} onChange={(on) => set({ heat: on ? "1" : "" })} />
        {brush && <button type="button" onClick={() => set({ brush: "" })}>Select all</button>}
      </div>
      <p class="about">{about}. Drag over neurons to list them.</p>
      {error && <p class="error" role="alert">{error}</p>}
      <div class="plot">
        {x && y.values ? (
          <Scatter x={x} y={y.values} xName={options.x} yName={options.y} yLog={options.log === "1"}
            xTicks={options.x === LAYER ? neurons.ticks : null} brush={brush} heat={options.heat === "1"}
            onBrush={(box) => set({ brush: box ? box.map((value) => value.toPrecision(6)).join(",") : "" })}
            onPick={(i) => go(hashOf(store.number, "neuron", [capture, site, neurons.name(i)]))}
            nameOf={(i) => neurons.name(i)} />
        ) : <div class="loading" role="status" aria-label="loading"><div /><div /><div /></div>}
      </div>
      {selected && (
        <Card title={brush ? "Selected" : "Highest"} note={plural(selected.n, "neuron")} wide>
          {selected.n === 0 && <Empty>No neuron lies in the rectangle. Draw another, or select all.</Empty>}
          <Table caption="neurons" rows={selected.rows} columns={[
            { name: "neuron", of: (i) => <NeuronLink context={context} name={neurons.name(i)} /> },
            { name: options.y, right: true, of: (i) => number(y.values[i]) },
            ...(options.x === LAYER ? [] : [{ name: options.x, right: true, of: (i) => number(x[i]) }]),
          ]} />
          {selected.n > LISTED && <p class="about">The first {LISTED} of {number(selected.n)}.</p>}
        </Card>
      )}
    </>
  );
}

/** Names and places of neurons by their number over all layers. */
export class Neurons {
  constructor(layers) {
    this.layers = layers;
    this.starts = [0];
    for (const { neurons } of layers) this.starts.push(this.starts[this.starts.length - 1] + neurons);
    this.places = new Float32Array(this.starts[layers.length]);
    layers.forEach(({ neurons }, row) => {
      for (let i = 0; i < neurons; i += 1) this.places[this.starts[row] + i] = row + (0.9 * (i + 0.5)) / neurons;
    });
    const every = Math.ceil(layers.length / 24);
    this.ticks = layers.map(({ layer }, row) => ({ value: row + 0.45, text: String(layer) })).filter((_, row) => row % every === 0);
  }

  name(i) {
    let row = 0;
    while (i >= this.starts[row + 1]) row += 1;
    return `L${this.layers[row].layer}.N${i - this.starts[row]}`;
  }
}

function Check({ label, checked, onChange }) {
  return <label class="check"><input type="checkbox" checked={checked} onChange={(event) => onChange(event.currentTarget.checked)} />{label}</label>;
}

function parseBrush(text) {
  const values = (text ?? "").split(",").map(Number);
  return text && values.length === 4 && values.every(Number.isFinite) ? values : null;
}

/** How many points lie in a rectangle, and the `most` highest of them, highest first. */
export function select(x, y, brush, most) {
  const [x0, x1, y0, y1] = brush ?? [-Infinity, Infinity, -Infinity, Infinity];
  const rows = [];
  let n = 0;
  for (let i = 0; i < y.length; i += 1) {
    if (!(x[i] >= x0 && x[i] <= x1 && y[i] >= y0 && y[i] <= y1)) continue;
    n += 1;
    if (rows.length === most && !(y[i] > y[rows[most - 1]])) continue;
    let [low, high] = [0, rows.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (y[rows[middle]] >= y[i]) low = middle + 1;
      else high = middle;
    }
    rows.splice(low, 0, i);
    if (rows.length > most) rows.pop();
  }
  return { n, rows };
}
