// Geometry of the charts: markers, ticks, scales, the Pareto front. Pure functions of numbers.
"use strict";

// Markers of equal area, as path data around (x, y). `r` is the circle's radius.
function marker(shape, x, y, r) {
  if (shape === "circle") return `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`;
  const [corners, turn] = { square: [4, 45], triangle: [3, -90], diamond: [4, 0], pentagon: [5, -90], wedge: [3, 90] }[shape];
  const reach = r * Math.sqrt((2 * Math.PI) / (corners * Math.sin((2 * Math.PI) / corners)));
  const at = (i) => {
    const angle = ((turn + (360 * i) / corners) * Math.PI) / 180;
    return `${(x + reach * Math.cos(angle)).toFixed(2)},${(y + reach * Math.sin(angle)).toFixed(2)}`;
  };
  return `M${Array.from({ length: corners }, (_, i) => at(i)).join("L")}Z`;
}

function shortNumber(value) {
  if (value === 0) return "0";
  const prefixes = ["", "k", "M", "G", "T", "P", "E", "Z", "Y", "R", "Q"];
  const thousands = Math.min(prefixes.length - 1, Math.max(0, Math.floor(Math.log10(value) / 3 + 1e-9)));
  return `${Number((value / 1000 ** thousands).toPrecision(3))}${prefixes[thousands]}`;
}
const percent = (value) => `${Number((100 * value).toPrecision(3))} %`;

// Round numbers in [low, high], at most `most`: 1-2-5 or 1-3 steps, whole decades on long axes, finer ones on short.
function logTicks(low, high, most) {
  const first = Math.floor(Math.log10(low));
  const last = Math.ceil(Math.log10(high));
  const pick = (mantissas, stride = 1) => {
    const ticks = [];
    for (let power = first; power <= last; power += stride)
      for (const mantissa of mantissas) ticks.push(Number(`${mantissa}e${power}`));
    return ticks.filter((tick) => tick >= low && tick <= high);
  };
  const choices = [pick([1, 2, 5]), pick([1, 3])];
  for (let stride = 1; stride <= last - first; stride++) choices.push(pick([1], stride));
  const found = choices.find((ticks) => ticks.length >= 3 && ticks.length <= most);
  return found ?? linearTicks(low, high, Math.min(most, 7));
}

function linearTicks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high * (1 + 1e-12); i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

// A scale from data to pixels; `values` in data units, `from` and `to` in pixels.
function scale(values, from, to, logarithmic, padding) {
  const forward = logarithmic ? Math.log10 : (value) => value;
  const back = logarithmic ? (value) => 10 ** value : (value) => value;
  let low = Math.min(...values.map(forward));
  let high = Math.max(...values.map(forward));
  const room = high > low ? padding * (high - low) : logarithmic ? 0.3 : 0.05;
  low -= room;
  high += room;
  const map = (value) => from + ((forward(value) - low) / (high - low)) * (to - from);
  return Object.assign(map, { low: back(low), high: back(high) });
}

// The points that none beats, from the cheapest on (of a rate, from the fastest); the same rule as pareto_front in summary.py.
function paretoFront(points, key, isGain) {
  const cost = (point) => (isGain ? -point.x[key] : point.x[key]);
  const order = [...points].sort((a, b) => cost(a) - cost(b) || b.mean - a.mean || a.id - b.id);
  let best = -Infinity;
  return order.filter((point) => point.mean > best && ((best = point.mean), true));
}

function groupBy(items, keyOf) {
  const groups = new Map();
  for (const item of items) groups.set(keyOf(item), [...(groups.get(keyOf(item)) ?? []), item]);
  return groups;
}
