// One token: the neurons that fire on it, that write it, and that have it in their graphs; and the search for one.
import { number, percent, plural, signed, visible } from "../format.js";
import { Card, Empty, Loaded, NeuronLink, Select, Table, TokenLink } from "../parts.jsx";
import { addressOf, go, hashOf } from "../route.js";
import { useDocument } from "../source.js";

const MATCHES = [
  { name: "contains", text: "a part of it" }, { name: "normalised", text: "but for case and spaces" },
  { name: "exact", text: "every character" }, { name: "regex", text: "a pattern" },
];

export function TokensPage({ context, route }) {
  const { store, capture, site, pages } = context;
  const { search = "", match = "contains" } = route.options;
  const isListed = pages.includes("token-list"); // files have a list instead of a search
  const isAsked = isListed || (search !== "" && pages.includes("tokens"));
  const state = useDocument(store.number, isAsked ? (isListed ? addressOf("token-list", [capture, site]) : addressOf("tokens", [], { search, match })) : null);
  const set = (changed) => go(hashOf(store.number, "tokens", [capture, site], { search, match, ...changed }), true);
  return (
    <>
      <h1>Tokens</h1>
      <div class="controls">
        <label class="field grow"><span>text</span><input type="search" value={search} onChange={(event) => set({ search: event.currentTarget.value })} /></label>
        {!isListed && <Select label="matches" value={match} options={MATCHES} onChange={(name) => set({ match: name })} />}
      </div>
      {!search && <Empty>Write a text to find the tokens of the vocabulary that contain it.</Empty>}
      {search && (
        <Loaded state={state}>{(data) => {
          const { tokens, n, reason } = isListed ? among(data.tokens, search) : data;
          return (n === 0 ? <Empty>{reason ?? "No token matches."}</Empty> : (
          <>
            <p class="about">{plural(n, "token")}{n > tokens.length ? `, the first ${tokens.length}` : ""}</p>
            <p class="token-list">{tokens.map(({ token, text }) => <TokenLink key={token} {...{ context, token, text }} />)}</p>
          </>
          ));
        }}</Loaded>
      )}
    </>
  );
}

/** The tokens of a list that contain a text, those that are all of it first. */
function among(tokens, search) {
  const wanted = search.toLowerCase();
  const found = tokens.filter(({ text }) => text.toLowerCase().includes(wanted));
  found.sort((a, b) => Number(b.text.trim() === search.trim()) - Number(a.text.trim() === search.trim()) || a.text.length - b.text.length);
  return { tokens: found.slice(0, 60), n: found.length, reason: "No token that a neuron is highest on, or writes, contains that." };
}

export function TokenPage({ context, route }) {
  const { store, capture, site } = context;
  const id = route.parts[2];
  const state = useDocument(store.number, id ? addressOf("token", [capture, site, id]) : null);
  if (!id) return <Empty>Choose a token: search for one.</Empty>;
  return <Loaded state={state} lines={12}>{(data) => <Token {...{ context, data }} />}</Loaded>;
}

function Token({ context, data }) {
  const { capture, site } = context;
  const { graphs } = data;
  const link = (row) => <NeuronLink context={context} name={row.neuron} />;
  const writing = (found, sign) => (found.n === 0 ? <Empty>No neuron has it among the ten tokens that it {sign} most.</Empty> : (
    <Table caption={`neurons that ${sign} it`} rows={found.neurons} columns={[{ name: "neuron", of: link }, { name: "product", right: true, of: (row) => signed(row.product), about: "change of its logit per unit of activation, before the final norm's scale" }]} />
  ));
  return (
    <>
      <h1><span class="token">{visible(data.text)}</span> <small>token {data.token}</small></h1>
      <div class="grid">
        <Card title="Highest on it" note={plural(data.peaks.n, "neuron")}>
          {data.peaks.n === 0 ? <Empty>{data.peaks.reason ?? `No neuron has its largest activation in ${capture} at ${site} on this token.`}</Empty> : (
            <Table caption="neurons that are highest on it" rows={data.peaks.neurons} columns={[
              { name: "neuron", of: link }, { name: "max", right: true, of: (row) => signed(row.max) },
              { name: "stands out", right: true, of: (row) => number(row.stands_out), about: "(max − mean) / std" },
            ]} />
          )}
        </Card>
        <Card title="Promoted by" note={plural(data.promoted.n, "neuron")}>{writing(data.promoted, "promotes")}</Card>
        <Card title="Suppressed by" note={plural(data.suppressed.n, "neuron")}>{writing(data.suppressed, "suppresses")}</Card>
        {graphs.reason ? <Card title="In graphs"><Empty>{graphs.reason}</Empty></Card> : ["activating", "context"].map((role) => (
          <Card key={role} title={role === "activating" ? "Fires on it" : "Needs it before"} note={plural(graphs[role].n, "graph")}>
            {graphs[role].n === 0 ? <Empty>No graph has it there.</Empty> : (
              <Table caption={`graphs with it as ${role} token`} rows={graphs[role].neurons} columns={[
                { name: "neuron", of: link },
                { name: "path", of: (row) => [...row.lines[0].texts].reverse().join(" ") },
                { name: "fires", right: true, of: (row) => percent(row.lines[0].probability) },
              ]} />
            )}
          </Card>
        ))}
      </div>
    </>
  );
}
