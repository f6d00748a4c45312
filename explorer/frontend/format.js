// How numbers and texts are written.

/** A number with four significant digits; a dash where there is none. */
export function number(value) {
  if (value == null || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e15) return minus(value.toLocaleString("en"));
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return minus(value.toExponential(2));
  return minus(String(Number(value.toPrecision(4))));
}

/** The same with its sign, so that the sign is not told by a colour alone. */
export function signed(value) {
  return value > 0 ? `+${number(value)}` : number(value);
}

function minus(text) {
  return text.replace("-", "−");
}

/** A share as per cent. */
export function percent(share) {
  if (share == null || Number.isNaN(share)) return "–";
  const value = 100 * share;
  return `${value === 0 || value >= 10 ? value.toFixed(0) : value.toPrecision(2)} %`;
}

/** A count with its noun. */
export function plural(n, noun) {
  return `${number(n)} ${noun}${n === 1 ? "" : "s"}`;
}

/** Bytes in a unit that people read. */
export function bytes(n) {
  if (n == null) return "size not known";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; n >= 1000 && unit < units.length - 1; unit += 1) n /= 1000;
  return `${unit === 0 || n >= 100 ? n.toFixed(0) : n.toPrecision(3)} ${units[unit]}`;
}

const SIGNS = { " ": "·", "\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽" };
// Signs that are not seen, or turn the direction of what follows.
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/;

/** A token's text in pieces: what is read, and what stands for spaces and signs that are not seen (`quiet`). */
export function pieces(text) {
  const found = [];
  for (const sign of text) {
    const shown = SIGNS[sign] ?? (HIDDEN.test(sign) ? `U+${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}` : null);
    const quiet = shown !== null;
    const last = found[found.length - 1];
    if (last && last.quiet === quiet) last.text += shown ?? sign;
    else found.push({ text: shown ?? sign, quiet });
  }
  return found;
}

/** A text that is no token: only signs that are not seen are shown by their names. */
export function readable(text) {
  return [...text].map((sign) => (HIDDEN.test(sign) ? visible(sign) : sign)).join("");
}

/** The same as plain text, for titles and lists. */
export function visible(text) {
  return pieces(text).map((piece) => piece.text).join("");
}

/** Layer and index of a neuron's name; null for another text. */
export function parseNeuron(text) {
  const match = /^\s*L?(\d+)\s*[./]\s*N?(\d+)\s*$/i.exec(text);
  return match ? { layer: Number(match[1]), index: Number(match[2]), name: `L${Number(match[1])}.N${Number(match[2])}` } : null;
}
