// Draws the charts of the report, filters families and data sizes, sorts the run table. No library, no request.

const report = JSON.parse(document.getElementById("report-data").textContent);
const svgNamespace = new DOMParser().parseFromString("<svg>", "text/html").querySelector("svg").namespaceURI;
const state = { hiddenFamilies: new Set(), hiddenSizes: new Set(), measure: "accuracy" };
const sizes = [...new Set(report.points.map((point) => point.images))].sort((a, b) => a - b);
const figures = [...document.querySelectorAll("figure[data-chart]")];
const tip = document.getElementById("tip");

function make(tag, attributes, parent, text) {
  const element = document.createElementNS(svgNamespace, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

const radius = (images) => (sizes.length < 2 ? 6 : 4 + (3.5 * sizes.indexOf(images)) / (sizes.length - 1));
const shapeOf = (family) => report.families.find((entry) => entry.name === family).marker;
const colourOf = (family) => `var(--family-${report.families.findIndex((entry) => entry.name === family)})`;
const isShown = (point) => !state.hiddenFamilies.has(point.family) && !state.hiddenSizes.has(point.images);
const valueOf = (mean) => (state.measure === "accuracy" ? mean : 1 - mean);

function verticalScale(height, margin) {
  const isError = state.measure === "error";
  const smallest = 0.5 * Math.min(...report.points.map((point) => 1 - point.mean).filter((value) => value > 0), 1);
  const values = report.points.flatMap((point) => {
    const ends = [point.mean, ...point.seeds, point.mean - (point.std ?? 0), point.mean + (point.std ?? 0)];
    return ends.map((value) => (isError ? Math.max(1 - value, smallest) : Math.min(Math.max(value, 0), 1)));
  });
  const map = scale(values, height - margin.bottom, margin.top, isError, 0.06);
  const clamp = (value) => map(isError ? Math.max(value, map.low) : value);
  return Object.assign(clamp, { low: map.low, high: map.high });
}

function draw(figure) {
  const chart = report.charts.find((entry) => entry.key === figure.dataset.chart);
  const plot = figure.querySelector(".plot");
  const isWide = figure.classList.contains("wide");
  const width = Math.max(plot.clientWidth, 260);
  const height = isWide ? Math.min(Math.max(0.46 * width, 320), 470) : Math.min(Math.max(0.8 * width, 280), 330);
  const margin = { left: 50, right: isWide && width > 700 ? 104 : 14, top: 10, bottom: 44 };
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0 });
  svg.setAttribute("aria-label", `Top-1 ${state.measure} against ${chart.axis}. Arrow keys step through the points.`);
  plot.replaceChildren(svg); // first, so that text can be measured
  const x = scale(report.points.map((point) => point.x[chart.key]), margin.left, width - margin.right, true, 0.06);
  const y = verticalScale(height, margin);

  const room = (width - margin.left - margin.right) / 52;
  const own = chart.key === "images" && sizes.length <= room ? sizes : logTicks(x.low, x.high, room);
  const axes = make("g", { class: "axes" }, svg);
  for (const tick of own) {
    make("line", { x1: x(tick), x2: x(tick), y1: margin.top, y2: height - margin.bottom, class: "grid" }, axes);
    make("text", { x: x(tick), y: height - margin.bottom + 17, "text-anchor": "middle" }, axes, shortNumber(tick));
  }
  const rows = (height - margin.top - margin.bottom) / 34;
  for (const tick of state.measure === "error" ? logTicks(y.low, y.high, rows) : linearTicks(y.low, y.high, rows)) {
    make("line", { x1: margin.left, x2: width - margin.right, y1: y(tick), y2: y(tick), class: "grid" }, axes);
    make("text", { x: margin.left - 7, y: y(tick) + 4, "text-anchor": "end" }, axes, percent(tick));
  }
  make("text", { x: (margin.left + width - margin.right) / 2, y: height - 7, "text-anchor": "middle", class: "axis" }, axes, chart.axis);

  const shown = report.points.filter(isShown);
  const placed = shown.map((point) => ({ point, x: x(point.x[chart.key]), y: y(valueOf(point.mean)) }));
  const where = new Map(placed.map((place) => [place.point.id, place]));
  drawFront(svg, paretoFront(shown, chart.key), where, width - margin.right);
  drawLines(svg, placed, chart.connects);
  for (const place of [...placed].sort((a, b) => b.point.images - a.point.images)) drawPoint(svg, place, y);
  if (isWide && width > 700) labelPoints(svg, placed, paretoFront(shown, chart.key), width);
  if (!shown.length) make("text", { x: width / 2, y: height / 2, "text-anchor": "middle", class: "empty" }, svg, "nothing to show");
  listen(svg, placed, width);
}

function drawFront(svg, front, where, right) {
  if (!front.length) return;
  const steps = front.map((point) => where.get(point.id));
  const path = steps.map((step, i) => (i ? `H${step.x}V${step.y}` : `M${step.x},${step.y}`)).join("");
  make("path", { d: `${path}H${right}`, class: "front", "data-cells": front.map((point) => point.id).join(" ") }, svg);
}

function drawLines(svg, placed, kind) {
  const lines = new Map();
  for (const place of placed) {
    const line = place.point.lines[kind];
    if (line !== null) lines.set(line, [...(lines.get(line) ?? []), place]);
  }
  for (const places of lines.values()) {
    places.sort((a, b) => a.x - b.x);
    const path = places.map((place, i) => `${i ? "L" : "M"}${place.x},${place.y}`).join("");
    const line = make("path", { d: path, class: "line", "data-family": places[0].point.family }, svg);
    line.style.setProperty("--colour", colourOf(places[0].point.family));
  }
}

function drawPoint(svg, { point, x, y: top }, y) {
  const group = make("g", { class: "cell", "data-family": point.family, "data-images": point.images }, svg);
  group.style.setProperty("--colour", colourOf(point.family));
  if (point.n > 1) for (const seed of point.seeds) make("circle", { cx: x, cy: y(valueOf(seed)), r: 2, class: "seed" }, group);
  if (point.std !== null) {
    const ends = [y(valueOf(point.mean - point.std)), y(valueOf(point.mean + point.std))];
    make("path", { d: `M${x},${ends[0]}V${ends[1]}M${x - 3},${ends[0]}h6M${x - 3},${ends[1]}h6`, class: "spread" }, group);
  }
  const name = point.n > 1 ? "point" : "point single";
  const shape = marker(shapeOf(point.family), x, top, radius(point.images));
  make("path", { d: shape, class: name, "data-cell": point.id, "data-family": point.family }, group);
}

// The data size at the end of its highest line, then the names of the front's models: each where it covers no point
// and no other text, and left out where there is no room.
function labelPoints(svg, placed, front, width) {
  const taken = placed.map((place) => ({ x: place.x - 9, y: place.y - 9, width: 18, height: 18 }));
  const overlap = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;
  const label = (place, name, words, offsets) => {
    const text = make("text", { class: name }, svg, words);
    const wide = text.getBBox().width;
    const spot = offsets(wide)
      .map(([dx, dy]) => ({ x: place.x + dx, y: place.y + dy, width: wide, height: 15 }))
      .find((area) => area.x > 52 && area.x + wide < width && area.y > 4 && !taken.some((other) => overlap(area, other)));
    if (!spot) return text.remove();
    text.setAttribute("x", spot.x);
    text.setAttribute("y", spot.y + 12);
    taken.push(spot);
  };
  for (const images of sizes) {
    const [last] = placed.filter((place) => place.point.images === images).sort((a, b) => b.x - a.x || a.y - b.y);
    if (last) label(last, "tier", `${images.toLocaleString("en")} images`, () => [[14, -8], [14, 4], [14, -20]]);
  }
  for (const point of front) {
    const place = placed.find((other) => other.point === point);
    label(place, "name", point.arch, (wide) => [[-wide / 2, -27], [-wide - 4, -24], [12, -9], [-wide - 12, -9], [4, -24]]);
  }
}

function listen(svg, placed, width) {
  let current = -1;
  const ordered = [...placed].sort((a, b) => a.x - b.x || a.y - b.y);
  const show = (place) => {
    svg.querySelector(".is-current")?.classList.remove("is-current");
    if (!place) { tip.hidden = true; current = -1; return; }
    current = ordered.indexOf(place);
    svg.querySelector(`[data-cell="${place.point.id}"]`).classList.add("is-current");
    showTip(svg, place, width);
  };
  const find = (event) => {
    const box = svg.getBoundingClientRect();
    const [left, top] = [event.clientX - box.left, event.clientY - box.top].map((value) => (value * width) / box.width);
    const distance = (place) => Math.hypot(place.x - left, place.y - top);
    const nearest = placed.reduce((best, place) => (!best || distance(place) < distance(best) ? place : best), null);
    show(nearest && distance(nearest) < 26 ? nearest : null);
  };
  svg.addEventListener("pointermove", find);
  svg.addEventListener("pointerdown", find);
  svg.addEventListener("pointerleave", () => show(null));
  svg.addEventListener("blur", () => show(null));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") show(null);
    if (!step || !ordered.length) return;
    event.preventDefault();
    show(ordered[current < 0 && step < 0 ? ordered.length - 1 : (current + step + ordered.length) % ordered.length]);
  });
}

function showTip(svg, { point, x, y }, width) {
  const title = document.createElement("strong");
  title.textContent = point.arch;
  const list = document.createElement("dl");
  for (const [label, text] of point.details) {
    list.append(Object.assign(document.createElement("dt"), { textContent: label }));
    list.append(Object.assign(document.createElement("dd"), { textContent: text }));
  }
  tip.replaceChildren(title, list);
  tip.style.setProperty("--colour", colourOf(point.family));
  tip.hidden = false;
  const box = svg.getBoundingClientRect();
  const [left, top] = [box.left + (x * box.width) / width, box.top + (y * box.width) / width];
  const beside = left + 16 + tip.offsetWidth < document.documentElement.clientWidth ? left + 16 : left - 16 - tip.offsetWidth;
  tip.style.left = `${Math.max(8, beside)}px`;
  tip.style.top = `${Math.min(Math.max(8, top - tip.offsetHeight / 2), window.innerHeight - tip.offsetHeight - 8)}px`;
}

function refresh() {
  tip.hidden = true;
  figures.forEach(draw);
  for (const word of document.querySelectorAll(".measure")) word.textContent = state.measure === "error" ? "Error" : "Accuracy";
  for (const row of document.querySelectorAll("tr[data-family]")) row.hidden = state.hiddenFamilies.has(row.dataset.family);
  for (const cell of document.querySelectorAll("[data-images]:not(g)")) cell.classList.toggle("is-out", state.hiddenSizes.has(Number(cell.dataset.images)));
}

function toggle(button, hidden, value) {
  hidden.has(value) ? hidden.delete(value) : hidden.add(value);
  button.setAttribute("aria-pressed", String(!hidden.has(value)));
  refresh();
}

function sortBy(header) {
  const body = header.closest("table").tBodies[0];
  const column = header.cellIndex;
  const descending = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const compare = (a, b) => {
    const [first, second] = [key(a), key(b)];
    if (first === "" || second === "") return (first === "") - (second === "");
    const order = Number.isNaN(first - second) ? first.localeCompare(second) : first - second;
    return descending ? -order : order;
  };
  body.append(...[...body.rows].sort(compare));
}

for (const glyph of document.querySelectorAll("svg[data-family]"))
  make("path", { d: marker(shapeOf(glyph.dataset.family), 8, 8, 5.5) }, glyph);
for (const glyph of document.querySelectorAll("svg[data-size]"))
  make("path", { d: marker("circle", 9, 9, radius(Number(glyph.dataset.size))) }, glyph);
for (const button of document.querySelectorAll("button[data-filter-family]"))
  button.addEventListener("click", () => toggle(button, state.hiddenFamilies, button.dataset.filterFamily));
for (const button of document.querySelectorAll("button[data-filter-size]"))
  button.addEventListener("click", () => toggle(button, state.hiddenSizes, Number(button.dataset.filterSize)));
for (const button of document.querySelectorAll("button[data-measure]"))
  button.addEventListener("click", () => {
    state.measure = button.dataset.measure;
    for (const other of document.querySelectorAll("button[data-measure]"))
      other.setAttribute("aria-pressed", String(other === button));
    refresh();
  });
for (const button of document.querySelectorAll("th > button")) button.addEventListener("click", () => sortBy(button.parentElement));
let lastWidth = 0;
new ResizeObserver(() => {
  const width = document.documentElement.clientWidth;
  if (width !== lastWidth) requestAnimationFrame(refresh);
  lastWidth = width;
}).observe(document.body);
refresh();
