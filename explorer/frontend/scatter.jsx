// Points by two numbers, on a canvas: as many as a model has neurons. A rectangle drawn over them selects.
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { number } from "./format.js";

const MARGIN = { left: 58, right: 12, top: 10, bottom: 34 };
const HEIGHT = 420;

/** The ends of an axis, a little beyond the values; of a logarithmic one, those above zero. */
export function extent(values, log) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (Number.isFinite(value) && (!log || value > 0)) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  if (low > high) return null;
  if (low === high) return log ? [low / 2, high * 2] : [low - 1, high + 1];
  if (log) return [low / 1.1, high * 1.1];
  const room = (high - low) * 0.02;
  return [low - room, high + room];
}

function axis([low, high], log, from, to) {
  const [a, b] = log ? [Math.log(low), Math.log(high)] : [low, high];
  return {
    place: (value) => from + ((to - from) * ((log ? Math.log(value) : value) - a)) / (b - a),
    value: (place) => {
      const at = a + ((b - a) * (place - from)) / (to - from);
      return log ? Math.exp(at) : at;
    },
  };
}

/** Round values along an axis. */
export function ticks([low, high], log, n = 6) {
  if (log) {
    const found = [];
    for (let power = Math.ceil(Math.log10(low)); power <= Math.log10(high); power += 1) found.push(10 ** power);
    if (found.length >= 2) return found.filter((_, i) => i % Math.ceil(found.length / n) === 0);
  }
  const rough = (high - low) / n;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i += 1) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/** A canvas of points; `brush` is [x0, x1, y0, y1] in values, or null. */
export function Scatter({ x, y, xName, yName, xLog, yLog, xTicks, brush, onBrush, onPick, nameOf, heat }) {
  const frame = useRef(null);
  const canvas = useRef(null);
  const [width, setWidth] = useState(0);
  const [theme, setTheme] = useState(0);
  const [drag, setDrag] = useState(null);
  const [near, setNear] = useState(null);
  useLayoutEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    observer.observe(frame.current);
    return () => observer.disconnect();
  }, []);
  useEffect(() => {
    const redraw = () => setTheme((n) => n + 1);
    const observer = new MutationObserver(redraw);
    observer.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", redraw);
    return () => {
      observer.disconnect();
      scheme.removeEventListener("change", redraw);
    };
  }, []);
  const plot = useMemo(() => {
    const ends = { x: extent(x, xLog), y: extent(y, yLog) };
    if (!width || !ends.x || !ends.y) return null;
    const across = axis(ends.x, xLog, MARGIN.left, width - MARGIN.right);
    const down = axis(ends.y, yLog, HEIGHT - MARGIN.bottom, MARGIN.top);
    const places = new Float32Array(2 * x.length);
    for (let i = 0; i < x.length; i += 1) {
      places[2 * i] = across.place(x[i]);
      places[2 * i + 1] = down.place(y[i]);
    }
    return { across, down, places, ends };
  }, [x, y, xLog, yLog, width]);
  useEffect(() => {
    if (plot) draw(canvas.current, frame.current, plot.places, width, heat);
  }, [plot, heat, theme]);

  const at = (event) => {
    const box = canvas.current.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const values = (a, b) => {
    const xs = [plot.across.value(a[0]), plot.across.value(b[0])].sort((p, q) => p - q);
    const ys = [plot.down.value(a[1]), plot.down.value(b[1])].sort((p, q) => p - q);
    return [...xs, ...ys];
  };
  const move = (event) => {
    if (!plot) return;
    const place = at(event);
    if (drag) setDrag({ ...drag, to: place });
    else setNear(nearest(plot.places, place));
  };
  const release = (event) => {
    if (!drag) return;
    const to = at(event);
    setDrag(null);
    if (Math.hypot(to[0] - drag.from[0], to[1] - drag.from[1]) > 4) onBrush(values(drag.from, to));
    else {
      const hit = nearest(plot.places, to);
      if (hit === null) onBrush(null);
      else onPick(hit);
    }
  };
  const shown = plot && (drag ? rectangle(drag.from, drag.to) : brush && rectangle(
    [plot.across.place(brush[0]), plot.down.place(brush[2])], [plot.across.place(brush[1]), plot.down.place(brush[3])],
  ));
  return (
    <div class="scatter" ref={frame} style={{ height: `${HEIGHT}px` }}>
      <canvas ref={canvas} role="img" aria-label={`${yName} by ${xName} of ${x.length} neurons; drag to select`}
        onPointerDown={(event) => {
          if (!plot) return;
          event.currentTarget.setPointerCapture(event.pointerId);
          setDrag({ from: at(event), to: at(event) });
        }}
        onPointerMove={move} onPointerUp={release} onPointerLeave={() => setNear(null)} />
      {plot && <Axes plot={plot} width={width} {...{ xName, yName, xLog, yLog, xTicks }} />}
      {shown && <div class="brush" style={shown} />}
      {plot && near !== null && !drag && (
        <div class="tip" style={tipPlace(plot.places, near, width)}>
          <b>{nameOf(near)}</b> {yName} {number(y[near])}{xTicks ? "" : `, ${xName} ${number(x[near])}`}
        </div>
      )}
      {width > 0 && !plot && <p class="empty">No neuron has both numbers{xLog || yLog ? " above zero" : ""}.</p>}
    </div>
  );
}

function Axes({ plot, width, xName, yName, xLog, yLog, xTicks }) {
  const across = xTicks ?? ticks(plot.ends.x, xLog, Math.max(2, width / 110)).map((value) => ({ value, text: number(value) }));
  return (
    <svg class="axes" width={width} height={HEIGHT} aria-hidden="true">
      {ticks(plot.ends.y, yLog).map((value) => (
        <g key={value}>
          <line x1={MARGIN.left} x2={width - MARGIN.right} y1={plot.down.place(value)} y2={plot.down.place(value)} />
          <text x={MARGIN.left - 6} y={plot.down.place(value) + 4} text-anchor="end">{number(value)}</text>
        </g>
      ))}
      {across.map(({ value, text }) => (
        <text key={value} x={plot.across.place(value)} y={HEIGHT - MARGIN.bottom + 16} text-anchor="middle">{text}</text>
      ))}
      <text x={width - MARGIN.right} y={HEIGHT - 3} text-anchor="end" class="name">{xName}</text>
      <text x={MARGIN.left + 4} y={MARGIN.top + 10} class="name">{yName}</text>
    </svg>
  );
}

function rectangle(a, b) {
  return {
    left: `${Math.min(a[0], b[0])}px`, top: `${Math.min(a[1], b[1])}px`,
    width: `${Math.abs(a[0] - b[0])}px`, height: `${Math.abs(a[1] - b[1])}px`,
  };
}

function tipPlace(places, i, width) {
  const [x, y] = [places[2 * i], places[2 * i + 1]];
  const side = x > width / 2 ? { right: `${width - x + 10}px` } : { left: `${x + 10}px` };
  return { ...side, top: `${Math.max(0, y - 14)}px` };
}

/** The point within 9 pixels of a place, or null. */
function nearest(places, [px, py]) {
  let best = 81;
  let found = null;
  for (let i = 0; i < places.length; i += 2) {
    const distance = (places[i] - px) ** 2 + (places[i + 1] - py) ** 2;
    if (distance < best) {
      best = distance;
      found = i / 2;
    }
  }
  return found;
}

/** Draws by density: a pixel's colour is that of the number of points on it, so that many do not hide many more. */
function draw(canvas, frame, places, width, heat) {
  const scale = devicePixelRatio || 1;
  const [w, h] = [Math.floor(width * scale), Math.floor(HEIGHT * scale)];
  canvas.width = w;
  canvas.height = h;
  const context = canvas.getContext("2d");
  const style = getComputedStyle(frame);
  const ink = rgb(style.getPropertyValue("--point"));
  const cell = heat ? Math.round(12 * scale) : 1;
  const size = heat ? 1 : Math.max(1, Math.round((places.length > 40000 ? 1.5 : places.length > 8000 ? 2 : places.length > 1000 ? 4 : 6) * scale));
  const [columns, rows] = [Math.ceil(w / cell), Math.ceil(h / cell)];
  const counts = new Uint32Array(columns * rows);
  let most = 0;
  for (let i = 0; i < places.length; i += 2) {
    if (!(Number.isFinite(places[i]) && Number.isFinite(places[i + 1]))) continue;
    const x0 = Math.floor((places[i] * scale) / cell - (size - 1) / 2);
    const y0 = Math.floor((places[i + 1] * scale) / cell - (size - 1) / 2);
    for (let y = Math.max(0, y0); y < Math.min(rows, y0 + size); y += 1) {
      for (let x = Math.max(0, x0); x < Math.min(columns, x0 + size); x += 1) {
        const n = (counts[y * columns + x] += 1);
        if (n > most) most = n;
      }
    }
  }
  const image = context.createImageData(w, h);
  const top = Math.log1p(most);
  for (let y = 0; y < h; y += 1) {
    const row = Math.floor(y / cell) * columns;
    for (let x = 0; x < w; x += 1) {
      const n = counts[row + Math.floor(x / cell)];
      if (n === 0) continue;
      const at = 4 * (y * w + x);
      [image.data[at], image.data[at + 1], image.data[at + 2]] = ink;
      image.data[at + 3] = heat ? 30 + (225 * Math.log1p(n)) / top : 110 + (145 * Math.log1p(n)) / Math.max(top, 1);
    }
  }
  context.putImageData(image, 0, 0);
}

function rgb(text) {
  return text.split(",").map((part) => Number.parseInt(part, 10));
}
