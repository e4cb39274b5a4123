// The charts of accuracy against an axis: own cells, and published results over them.

const radius = (images) => (sizes.length < 2 || images === null ? 6 : 4 + (3.5 * sizes.indexOf(images)) / (sizes.length - 1));
const shapeOf = (family) => report.families.find((entry) => entry.name === family).marker;
const colourOf = (family) => `var(--family-${report.families.findIndex((entry) => entry.name === family)})`;
const valueOf = (mean) => (state.measure === "accuracy" ? mean : 1 - mean);
const isPublished = (point) => point.group !== undefined;
const isInGroup = (point) => !isPublished(point) || state.published === "all" || state.published === point.group;
const isShown = (point) => isInGroup(point) && !state.hiddenFamilies.has(point.family) && !state.hiddenSizes.has(point.images);

function verticalScale(values, height, margin) {
  const isError = state.measure === "error";
  const smallest = 0.5 * Math.min(...values.map((value) => 1 - value).filter((value) => value > 0), 1);
  const ends = values.map((value) => (isError ? Math.max(1 - value, smallest) : Math.min(Math.max(value, 0), 1)));
  const map = scale(ends, height - margin.bottom, margin.top, isError, 0.06);
  const clamp = (value) => map(isError ? Math.max(value, map.low) : value);
  const rows = (height - margin.top - margin.bottom) / 34;
  return { map: clamp, ticks: (isError ? logTicks : linearTicks)(map.low, map.high, rows), format: percent };
}

function draw(figure) {
  const chart = report.charts.find((entry) => entry.key === figure.dataset.chart);
  const isWide = figure.classList.contains("wide");
  const plot = startPlot(figure.querySelector(".plot"), {
    isWide, aspect: isWide ? 0.46 : 0.8, least: isWide ? 320 : 280, most: isWide ? 470 : 330, printing: state.printing,
    right: isWide && figure.clientWidth > 700 ? 104 : 14,
    label: `Top-1 ${state.measure} against ${chart.axis}. Arrow keys step through the points, Enter shows their runs.`,
  });
  const { svg, width, height, margin } = plot;
  const present = report.points.filter(isInGroup); // the range stays when families and sizes are hidden
  const placeable = present.filter((point) => point.x[chart.key] !== null);
  const missing = figure.querySelector(".missing");
  const counted = present.filter((point) => !isPublished(point) || placeable.some(isPublished));
  missing.textContent = `Not here: ${counted.length - placeable.length} of ${counted.length} points, whose ${chart.title} nobody states.`;
  missing.hidden = placeable.length === counted.length;
  if (!placeable.length) {
    make("text", { x: width / 2, y: height / 2, "text-anchor": "middle", class: "empty" }, svg, "nothing to show");
    return;
  }
  const isLog = state.scale === "log";
  const xs = placeable.map((point) => point.x[chart.key]);
  const x = scale(isLog ? xs : [0, ...xs], margin.left, width - margin.right, isLog, isLog ? 0.06 : 0.03);
  const y = verticalScale(placeable.flatMap((point) => [point.mean, ...point.seeds, point.mean - (point.std ?? 0), point.mean + (point.std ?? 0)]), height, margin);
  const room = (width - margin.left - margin.right) / 52;
  const own = chart.key === "images" && isLog && sizes.length <= room && present.every((point) => !isPublished(point));
  const ticks = own ? sizes : (isLog ? logTicks : linearTicks)(isLog ? x.low : 0, x.high, room);
  drawAxes(plot, { map: x, ticks, format: shortNumber }, y, chart.axis);

  const shown = placeable.filter(isShown);
  const places = shown.map((point) => ({
    point, x: x(point.x[chart.key]), y: y.map(valueOf(point.mean)), title: point.label, colour: colourOf(point.family),
    details: point.details, links: point.runs,
  }));
  const where = new Map(places.map((place) => [place.point.id, place]));
  const edge = chart.is_gain ? margin.left : width - margin.right;
  for (const kind of [false, true]) {
    const members = shown.filter((point) => isPublished(point) === kind);
    const groups = state.front === "families" ? [...groupBy(members, (point) => point.family).values()] : [members];
    for (const group of groups) drawFront(svg, paretoFront(group, chart.key, chart.is_gain), where, edge);
  }
  drawLines(svg, places, chart.connects);
  const bySize = (a, b) => isPublished(b.point) - isPublished(a.point) || b.point.images - a.point.images;
  for (const place of [...places].sort(bySize)) place.mark = drawPoint(svg, place, y.map);
  if (isWide && width > 500) labelPoints(plot, places, chart);
  if (!shown.length) make("text", { x: width / 2, y: height / 2, "text-anchor": "middle", class: "empty" }, svg, "nothing to show");
  listen(svg, places, width);
}

function drawFront(svg, front, where, edge) {
  if (!front.length) return;
  const steps = front.map((point) => where.get(point.id));
  const path = steps.map((step, i) => (i ? `H${step.x}V${step.y}` : `M${step.x},${step.y}`)).join("");
  const kind = isPublished(front[0]) ? "front published" : "front";
  const line = make("path", { d: `${path}H${edge}`, class: kind, "data-cells": front.map((point) => point.id).join(" ") }, svg);
  if (state.front !== "families") return;
  line.dataset.of = front[0].family;
  line.style.setProperty("--colour", colourOf(front[0].family));
}

function drawLines(svg, places, kind) {
  const lines = groupBy(places.filter((place) => place.point.lines[kind] !== null), (place) => place.point.lines[kind]);
  for (const members of lines.values()) {
    members.sort((a, b) => a.x - b.x);
    const path = members.map((place, i) => `${i ? "L" : "M"}${place.x},${place.y}`).join("");
    const line = make("path", { d: path, class: "line", "data-family": members[0].point.family }, svg);
    line.style.setProperty("--colour", members[0].colour);
  }
}

function drawPoint(svg, { point, x, y: top, colour }, y) {
  const group = make("g", { class: "cell", "data-family": point.family, "data-images": point.images ?? "" }, svg);
  group.style.setProperty("--colour", colour);
  if (point.n > 1) for (const seed of point.seeds) make("circle", { cx: x, cy: y(valueOf(seed)), r: 2, class: "seed" }, group);
  if (point.std !== null) {
    const ends = [y(valueOf(point.mean - point.std)), y(valueOf(point.mean + point.std))];
    make("path", { d: `M${x},${ends[0]}V${ends[1]}M${x - 3},${ends[0]}h6M${x - 3},${ends[1]}h6`, class: "spread" }, group);
  }
  const name = isPublished(point) ? "point published" : point.n > 1 ? "point" : "point single";
  const shape = marker(shapeOf(point.family), x, top, isPublished(point) ? 4.5 : radius(point.images));
  return make("path", { d: shape, class: name, "data-cell": point.id, "data-family": point.family }, group);
}

// The data size at the end of its highest line, then the names of the front's models.
function labelPoints(plot, places, chart) {
  const labels = [];
  const own = places.filter((place) => !isPublished(place.point));
  if (sizes.length < 12)
    for (const images of sizes) {
      const [last] = own.filter((place) => place.point.images === images).sort((a, b) => b.x - a.x || a.y - b.y);
      if (last) labels.push({ ...last, name: "tier", words: `${shortNumber(images)} images`, spots: () => [[14, -8], [14, 4], [14, -20]] });
    }
  const named = new Set();
  for (const members of [own, places.filter((place) => isPublished(place.point))])
    for (const point of paretoFront(members.map((place) => place.point), chart.key, chart.is_gain)) {
      const place = members.find((other) => other.point === point);
      if (named.has(point.label)) continue;
      named.add(point.label);
      labels.push({ ...place, name: "name", words: point.label, spots: (wide) => [[-wide / 2, -27], [-wide - 4, -24], [12, -9], [-wide - 12, -9], [4, -24], [8, 8]] });
    }
  writeLabels(plot, places, labels);
}
