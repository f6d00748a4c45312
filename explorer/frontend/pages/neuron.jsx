// One neuron: what it fires on, what it writes, how it is distributed, and what is like it.
import { useState } from "preact/hooks";
import { number, percent, plural, readable, signed } from "../format.js";
import { Excerpts, scaleOf } from "../excerpts.jsx";
import { Card, Empty, Legend, Loaded, NeuronLink, Table, TokenLink, useKeys } from "../parts.jsx";
import { addressOf, go, hashOf } from "../route.js";
import { useDocument, useImage } from "../source.js";

export function NeuronPage({ context, route }) {
  const { store, capture, site } = context;
  const name = route.parts[2];
  const state = useDocument(store.number, name ? addressOf("neuron", [capture, site, name]) : null);
  const to = (other) => other && hashOf(store.number, "neuron", [capture, site, other]);
  const current = state.address?.endsWith(`/${name}`) ? state.data : null;
  useKeys({ ArrowLeft: () => current?.before && go(to(current.before)), ArrowRight: () => current?.after && go(to(current.after)) });
  if (!name) return <Empty>Name a neuron: write L3.N17, or one of yours, into the field at the top.</Empty>;
  return (
    <>
      <div class="title">
        <h1>{name} <small>{capture} at {site}</small></h1>
        <span class="steps">
          {state.data?.before && <a href={to(state.data.before)} rel="prev" title="the neuron before (←)">← {state.data.before}</a>}
          {state.data?.after && <a href={to(state.data.after)} rel="next" title="the next neuron (→)">{state.data.after} →</a>}
        </span>
      </div>
      <Loaded state={state} lines={14}>{(data) => <Neuron key={data.neuron} {...{ context, data }} />}</Loaded>
    </>
  );
}

function Neuron({ context, data }) {
  const { held } = context;
  const statistics = data.statistics;
  const silent = !data.exemplars.length;
  return (
    <>
      <p class="facts">
        <span>mean <b>{signed(statistics.mean)}</b></span>
        <span>std <b>{number(statistics.std)}</b></span>
        <span>max <b>{signed(statistics.max)}</b></span>
        <span>min <b>{signed(statistics.min)}</b></span>
        <span>above zero at <b>{percent(statistics.positive)}</b> of {plural(statistics.count, "token")}</span>
        <span class="path">{data.module}</span>
      </p>
      {statistics.overflow > 0 && (
        <p class="notice">{plural(statistics.overflow, "activation")} of this neuron are too large for precision half and stored as infinite.</p>
      )}
      <div class="columns">
        <div>
          {data.explanations.length > 0 && (
            <Card title="In words">
              {data.explanations.map((one) => (
                <p key={one.set} class="words" dir="auto">{one.text} <small>{one.model}, {one.scores.map(({ method, value }) => `${method} ${percent(value)}`).join(", ") || "not scored"}</small></p>
              ))}
            </Card>
          )}
          {held.images && !silent && <Maps {...{ context, data }} />}
          <Exemplars {...{ context, data, silent }} />
        </div>
        <div>
          <Card title="Distribution">{data.histogram.length ? <Histogram bins={data.histogram} /> : <Empty>No finite activation at any counted token.</Empty>}</Card>
          <Writes {...{ context, data }} />
          <Labels data={data} />
          <Graph {...{ context, data }} />
          <Similar {...{ context, data }} />
          <Card title="Edits">
            {data.edits.length ? data.edits.map(({ name, form }) => <p key={name}>{name} <small>{form}</small></p>)
              : <Empty>No edit of this store changes this neuron.</Empty>}
          </Card>
        </div>
      </div>
    </>
  );
}

const KINDS = { highest: "Highest", lowest: "Lowest", random: "At random" };

function Exemplars({ context, data, silent }) {
  const { store, capture, site, pages, held } = context;
  const [kind, setKind] = useState("highest");
  const offers = pages.includes("others") && held.keeps_values;
  const others = useDocument(store.number, kind === "highest" ? null : addressOf("others", [capture, site, data.neuron]));
  const scale = scaleOf(data.exemplars);
  if (silent) return <Card title="Exemplars"><Empty>This neuron has no finite activation at any counted token, so there is no exemplar.</Empty></Card>;
  const known = ["highest", ...(offers ? (held.precision === "sparse" ? ["random"] : ["lowest", "random"]) : [])];
  return (
    <Card title="Exemplars" note="one per window">
      {known.length > 1 && (
        <div class="tabs" role="group" aria-label="which excerpts">
          {known.map((name) => <button key={name} type="button" aria-pressed={kind === name} onClick={() => setKind(name)}>{KINDS[name]}</button>)}
        </div>
      )}
      {kind === "highest" ? <Excerpts {...{ context, scale }} excerpts={data.exemplars} neuron={data.neuron} />
        : <Loaded state={others} lines={8}>{(found) => <Excerpts {...{ context, scale }} excerpts={found[kind] ?? []} neuron={data.neuron} />}</Loaded>}
      {!held.keeps_values && <p class="about">This capture has precision none: activations of the tokens around are not stored.</p>}
    </Card>
  );
}

function Histogram({ bins }) {
  const total = bins.reduce((sum, { count }) => sum + count, 0);
  const most = Math.max(...bins.map(({ count }) => count));
  const [width, height, step] = [320, 110, 320 / bins.length];
  return (
    <>
      <svg class="histogram" viewBox={`0 0 ${width} ${height + 18}`} role="img" aria-label={`histogram of ${plural(total, "activation")}`}>
        {bins.map(({ count, low, high }, i) => {
          // As on the terminal, a bar is as long as its share; what is there at all can be seen.
          const tall = count ? Math.max(1.5, (height * count) / most) : 0;
          return (
            <rect key={i} x={i * step + 0.5} width={step - 1} y={height - tall} height={tall} class={low != null && low >= 0 ? "above" : "below"}>
              <title>{`${range(low, high)}: ${percent(count / total)} of tokens`}</title>
            </rect>
          );
        })}
        <text x="0" y={height + 14}>{bins[0].low == null ? "−∞" : number(bins[0].low)}</text>
        <text x={width} y={height + 14} text-anchor="end">{bins[bins.length - 1].high == null ? "∞" : number(bins[bins.length - 1].high)}</text>
        {bins.map(({ low }, i) => (low === 0 && i > 0 ? <g key={i}><line x1={i * step} x2={i * step} y1="0" y2={height} /><text x={i * step} y={height + 14} text-anchor="middle">0</text></g> : null))}
      </svg>
      <p class="about">Activation across, share of tokens up (at most {percent(most / total)}); ranges grow away from zero.</p>
    </>
  );
}

/** The bins at the ends are open. */
function range(low, high) {
  if (low == null) return `below ${number(high)}`;
  return high == null ? `from ${number(low)}` : `${number(low)} to ${number(high)}`;
}

/** Promoted and suppressed tokens, by the sign of the activation: below zero a neuron writes the opposite. */
function Writes({ context, data }) {
  const { writes, statistics } = data;
  if (writes.reason) return <Card title="Writes"><Empty>{writes.reason}</Empty></Card>;
  const above = statistics.positive;
  const side = (tokens) => <p class="token-list">{tokens.map(({ token, text }) => <TokenLink key={token} {...{ context, token, text }} />)}</p>;
  return (
    <Card title="Writes" note="tokens that it makes likelier, by the weights alone">
      <h3>when above zero <small>at {percent(above)} of tokens</small></h3>
      {side(writes.promoted)}
      <h3>when below zero <small>at {percent(above == null ? null : 1 - above)} of tokens, zero included</small></h3>
      {side(writes.suppressed)}
    </Card>
  );
}

function Labels({ data }) {
  if (!data.labels.length) return null;
  return data.labels.map(({ label, values }) => {
    const most = Math.max(...values.map(({ share }) => share ?? 0), 1e-9);
    const shown = [...values].sort((a, b) => (b.share ?? 0) - (a.share ?? 0)).slice(0, 20);
    return (
      <Card key={label} title={label} note="share of tokens above zero">
        <ul class="bars">
          {shown.map(({ value, share }) => (
            <li key={value}>
              <span dir="auto">{value}</span><span class="bar"><i style={{ width: `${(100 * (share ?? 0)) / most}%` }} /></span>
              <span class="value">{percent(share)}</span>
            </li>
          ))}
        </ul>
        {values.length > shown.length && <p class="about">The first {shown.length} of {plural(values.length, "value")}.</p>}
      </Card>
    );
  });
}

function Graph({ context, data }) {
  const { store, pages, form } = context;
  const sets = [...store.graphs].sort((a, b) => Number(b === "graphs") - Number(a === "graphs"));
  const [set, setSet] = useState(sets[0]);
  const [picture, setPicture] = useState(false);
  const isThere = sets.length > 0 && pages.includes("graph");
  const state = useDocument(store.number, isThere ? addressOf("graph", [set, data.neuron], picture ? { picture: 1 } : {}) : null);
  if (!sets.length) return <Card title="Graph"><Empty>The store has no neuron graphs. `actstore graphs build STORE` makes them from the stored text.</Empty></Card>;
  if (!isThere) return null;
  return (
    <Card title="Graph" note="contexts it fires in (N2G)">
      {sets.length > 1 && (
        <div class="tabs" role="group" aria-label="which graphs">
          {sets.map((name) => <button key={name} type="button" aria-pressed={set === name} onClick={() => setSet(name)}>{name}</button>)}
        </div>
      )}
      <Loaded state={state}>{(graph) => (
        <>
          {graph.lines.length ? <Paths graph={graph} /> : <Empty>{`An empty graph: ${graph.neuron} ${graph.status || "has no path"}.`}</Empty>}
          {graph.hidden > 0 && <p class="about">The {graph.lines.length} paths that matter most; {number(graph.hidden)} more.</p>}
          {graph.svg && <div class="scroll picture"><img src={`data:image/svg+xml;charset=utf-8,${encodeURIComponent(graph.svg)}`} alt={`graph of ${graph.neuron}`} /></div>}
          {form === "server" && graph.lines.length > 0 && <button type="button" onClick={() => setPicture(!picture)} aria-expanded={picture}>{picture ? "Without the picture" : "As a picture"}</button>}
        </>
      )}</Loaded>
    </Card>
  );
}

function Paths({ graph }) {
  return (
    <ul class="paths">
      <li class="about"><span>context, then the token it fires on</span><span>probability <small>fired / seen</small></span></li>
      {graph.lines.map((line, i) => {
        const [activating, ...before] = line.texts;
        return (
          <li key={i} title={`fired ${line.fires} of ${line.count} times; probability ${number(line.probability)}`}>
            <span class="path-tokens">
              {before.reverse().map((text, j) => <span key={j} class="context">{text}</span>)}
              <span class="token above" style={{ "--strength": line.probability.toFixed(3) }}>{activating}</span>
            </span>
            <span class="value">{percent(line.probability)} <small>{line.fires}/{line.count}</small></span>
          </li>
        );
      })}
    </ul>
  );
}

function Similar({ context, data }) {
  const { store, capture, site, pages, held, form, reasons } = context;
  const sets = store.graphs;
  const set = sets.includes("graphs") ? "graphs" : sets[0];
  const [wanted, setWanted] = useState(false);
  const hasGraphs = pages.includes("similar") && sets.length > 0;
  const canScan = pages.includes("coactive") && held.keeps_values;
  const similar = useDocument(store.number, hasGraphs ? addressOf("similar", [set, data.neuron]) : null);
  const isMade = form === "site"; // files hold the list already
  const coactive = useDocument(store.number, canScan && (wanted || isMade) ? addressOf("coactive", [capture, site, data.neuron]) : null);

  return (
    <>
      {hasGraphs && (
        <Card title="Similar graphs">
          <Loaded state={similar}>{({ neurons }) => (neurons.length === 0 ? <Empty>No other neuron has a graph to compare with.</Empty> : (
            <Table caption="neurons with similar graphs" rows={neurons} columns={[
              { name: "neuron", of: (row) => <NeuronLink {...{ context }} name={row.neuron} /> },
              { name: "overlap", right: true, of: (row) => percent(row.overlap), about: "activating and context tokens in common, of the larger set" },
              { name: "subset", right: true, of: (row) => percent(row.subset), about: "the same of the smaller set" },
              { name: "prediction", right: true, of: (row) => number(row.prediction), about: "cosine of the predicted probabilities" },
            ]} />
          ))}</Loaded>
        </Card>
      )}
      {!hasGraphs && reasons.similar && <Card title="Similar graphs"><Empty>{reasons.similar}</Empty></Card>}
      {!canScan && reasons.coactive && <Card title="Fires together with"><Empty>{reasons.coactive}</Empty></Card>}
      {canScan && (
        <Card title="Fires together with">
          {!wanted && !isMade ? <p><button type="button" onClick={() => setWanted(true)}>Look through all neurons</button> <span class="about">This reads the whole capture.</span></p> : (
            <Loaded state={coactive}>{({ neurons }) => (
              <Table caption="neurons that fire with this one" rows={neurons} columns={[
                { name: "neuron", of: (row) => <NeuronLink {...{ context }} name={row.neuron} /> },
                { name: "correlation", right: true, of: (row) => signed(row.correlation) },
                { name: "jaccard", right: true, of: (row) => number(row.jaccard), about: "tokens at which both are above zero, of those at which one is" },
              ]} />
            )}</Loaded>
          )}
        </Card>
      )}
    </>
  );
}

function Maps({ context, data }) {
  const { store, capture, site, pages, reasons } = context;
  const state = useDocument(store.number, pages.includes("maps") ? addressOf("maps", [capture, site, data.neuron]) : null);
  if (!pages.includes("maps")) return reasons.maps ? <Card title="On images"><Empty>{reasons.maps}</Empty></Card> : null;
  return (
    <Card title="On images" note="where it is highest">
      <Loaded state={state}>{({ maps, grids }) => {
        const scale = Math.max(...maps.flatMap(({ values }) => values.map((value) => Math.abs(value ?? 0))), 1e-30);
        return (
          <>
            <Legend scale={scale} about="point at a patch for its value; beside each image the patch where it is highest" />
            <div class="maps">{maps.map((map) => <ImageMap key={map.document} {...{ context, map, scale }} boxes={grids[map.grid]} />)}</div>
          </>
        );
      }}</Loaded>
    </Card>
  );
}

function ImageMap({ context, map, boxes, scale }) {
  const { document, width, height, values } = map;
  const [missing, setMissing] = useState(false);
  const source = useImage(context.store.number, context.capture, document, map.image && !missing);
  const name = readable(map.caption || map.source);
  const highest = values.reduce((best, value, i) => ((value ?? -Infinity) > (values[best] ?? -Infinity) ? i : best), 0);
  const picture = source && <image href={source} width={width} height={height} preserveAspectRatio="none" onError={() => setMissing(true)} />;
  return (
    <figure>
      <div class="map-pair">
        <svg viewBox={`0 0 ${width} ${height}`} role="img" aria-label={`activations over ${name}`}>
          {picture}
          {boxes.map(([left, top, right, bottom], i) => (
            <rect key={i} x={left * width} y={top * height} width={(right - left) * width} height={(bottom - top) * height}
              class={values[i] >= 0 ? "above" : "below"} style={{ "--strength": (Math.abs(values[i] ?? 0) / scale).toFixed(3) }}><title>{signed(values[i])}</title></rect>
          ))}
        </svg>
        {source && <Crop {...{ picture, width, height }} box={boxes[highest]} name={name} />}
      </div>
      <figcaption dir="auto"><b>{signed(values[highest])}</b> {name}{!map.image || missing ? <small>the image's file is not here; the map alone</small> : null}</figcaption>
    </figure>
  );
}

/** What a patch shows, and as much around it on each side: a patch alone is too little to tell what it is of. */
function Crop({ picture, width, height, box: [left, top, right, bottom], name }) {
  const [across, down] = [(right - left) * width, (bottom - top) * height];
  const [x, y] = [left * width, top * height];
  return (
    <svg class="crop" viewBox={`${x - across} ${y - down} ${3 * across} ${3 * down}`} role="img" aria-label={`the patch where it is highest, of ${name}`}>
      {picture}
      <rect class="frame" x={x} y={y} width={across} height={down} vector-effect="non-scaling-stroke" />
    </svg>
  );
}
