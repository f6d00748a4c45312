// What several pages are made of.
import { useEffect, useRef } from "preact/hooks";
import { number, pieces, signed } from "./format.js";
import { hashOf } from "./route.js";

/** A heading and what stands below it. */
export function Card({ title, note, children, wide }) {
  return (
    <section class={wide ? "card wide" : "card"}>
      {title && <h2>{title}{note && <small>{note}</small>}</h2>}
      {children}
    </section>
  );
}

/** Why there is nothing, and what to do. */
export function Empty({ children }) {
  return <p class="empty">{code(children)}</p>;
}

/** A sentence in which `…` is code. */
export function code(text) {
  if (typeof text !== "string") return text;
  return text.split("`").map((part, i) => (i % 2 ? <code key={i}>{part}</code> : part));
}

/** A document that is loading, that failed, or its contents. */
export function Loaded({ state, children, lines = 4 }) {
  if (state.error) return <p class="error" role="alert">{code(state.error)}</p>;
  if (!state.data) {
    return (
      <div class="loading" role="status" aria-label="loading">
        {Array.from({ length: lines }, (_, i) => <div key={i} />)}
      </div>
    );
  }
  return <div class={state.loading ? "stale" : undefined} aria-busy={state.loading}>{children(state.data)}</div>;
}

/** A token's text, with its spaces visible but quiet. */
export function TokenText({ text }) {
  return pieces(text).map((piece, i) => (piece.quiet ? <i key={i} class="quiet">{piece.text}</i> : piece.text));
}

const PATCH = /^<image( \d+,\d+( of tile \d+)?)?>$|^\[patch \d+,\d+.*\]$/s;

/** A token on a background as strong as its value: orange above zero, blue and dotted below. */
export function Token({ text, value, scale, pivot, selected, onClick, ofImages }) {
  const share = value == null || !(scale > 0) ? 0 : Math.max(-1, Math.min(1, value / scale));
  const strength = Math.abs(share) < 0.08 ? 0 : Math.abs(share);
  const names = ["token", strength > 0 && (share > 0 ? "above" : "below"), pivot && "pivot", selected && "selected"];
  const patch = ofImages && PATCH.test(text); // a square: of thousands of patches nobody reads the names
  if (patch) names.push("patch");
  const title = `${patch ? `${text.slice(1, -1)}: ` : ""}${value == null ? "not stored" : signed(value)}`;
  const shown = { class: names.filter(Boolean).join(" "), title, style: { "--strength": strength.toFixed(3) } };
  return onClick ? (
    <button type="button" {...shown} aria-pressed={selected} aria-label={patch ? title : undefined} onClick={onClick}>{patch ? "\u2007" : <TokenText text={text} />}</button>
  ) : (
    <span {...shown}>{patch ? "\u2007" : <TokenText text={text} />}</span>
  );
}

/** What the colours of tokens mean. */
export function Legend({ scale, about = "point at a token for its value" }) {
  return (
    <p class="legend">
      <span class="token below" style={{ "--strength": "1" }}>−{number(scale)}</span>
      <span class="token">0</span>
      <span class="token above" style={{ "--strength": "1" }}>+{number(scale)}</span>
      <span>orange above zero, blue and dotted below; {about}</span>
    </p>
  );
}

/** A link to a neuron's page. */
export function NeuronLink({ context, name }) {
  return <a class="neuron" href={hashOf(context.store.number, "neuron", [context.capture, context.site, name])}>{name}</a>;
}

/** A link to a token's page; its text where the form has no such page. */
export function TokenLink({ context, token, text }) {
  const shown = <span class="token"><TokenText text={text} /></span>;
  if (!context.pages.includes("token")) return shown;
  return <a class="token-link" href={hashOf(context.store.number, "token", [context.capture, context.site, token])}>{shown}</a>;
}

/** A table; a column is {name, of, right, about}, where `of` gives the cell of a row. */
export function Table({ columns, rows, caption }) {
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={caption ?? "table"}>
      <table>
        <thead>
          <tr>{columns.map((c) => <th key={c.name} scope="col" title={c.about} class={c.right ? "right" : undefined}>{c.name}</th>)}</tr>
        </thead>
        <tbody>
          {rows.map((row, i) => (
            <tr key={i}>{columns.map((c) => <td key={c.name} class={c.right ? "right" : undefined}>{c.of(row, i)}</td>)}</tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** A choice among names. */
export function Select({ label, value, options, onChange }) {
  return (
    <label class="field">
      <span>{label}</span>
      <select value={value} onChange={(event) => onChange(event.currentTarget.value)}>
        {options.map((option) => {
          const { name, text } = typeof option === "string" ? { name: option, text: option } : option;
          return <option key={name} value={name} selected={name === value}>{text}</option>;
        })}
      </select>
    </label>
  );
}

/** Keys that do something on a page, unless something is being written. */
export function useKeys(keys) {
  const latest = useRef(keys);
  latest.current = keys;
  useEffect(() => {
    const press = (event) => {
      const writes = event.target.closest?.("input, textarea, select, [contenteditable]");
      if (writes || event.ctrlKey || event.metaKey || event.altKey) return;
      const act = latest.current[event.key];
      if (act) {
        event.preventDefault();
        act();
      }
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
}
