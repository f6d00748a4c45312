// Excerpts of texts around a token, coloured by what a neuron does at each.
import { number, readable } from "./format.js";
import { Legend, Token } from "./parts.jsx";
import { hashOf } from "./route.js";

/** The largest absolute value of some excerpts: full colour. */
export function scaleOf(excerpts) {
  return Math.max(0, ...excerpts.map(({ value }) => Math.abs(value ?? 0)));
}

export function Excerpts({ context, excerpts, scale, neuron }) {
  return (
    <>
      {excerpts.some(({ activations }) => activations) && <Legend scale={scale} />}
      <ol class="excerpts">
        {excerpts.map((excerpt, i) => <Excerpt key={i} {...{ context, excerpt, scale, neuron }} />)}
      </ol>
    </>
  );
}

function Excerpt({ context, excerpt, scale, neuron }) {
  const { value, source, position, document, tokens, activations, pivot } = excerpt;
  const where = `${readable(source)}, token ${position}`;
  const canOpen = context.pages.includes("text") && (!context.texts || context.texts.includes(document));
  return (
    <li>
      <span class="value">{number(value)}</span>
      <span class="tokens">
        {tokens.map((text, i) => <Token key={i} text={text} value={activations?.[i] ?? (i === pivot ? value : null)} scale={scale} pivot={i === pivot} ofImages={context.held.images} />)}
      </span>
      {canOpen ? (
        <a class="where" href={hashOf(context.store.number, "text", [context.capture, context.site, document], { neurons: neuron })} dir="auto">{where}</a>
      ) : <span class="where" dir="auto">{where}</span>}
    </li>
  );
}
