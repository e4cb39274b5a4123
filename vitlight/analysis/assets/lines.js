// Panels of lines: sample efficiency, and laws with their bands and the runs held out.

const strength = (rank, count) => (count < 2 ? 1 : 0.3 + (0.7 * rank) / (count - 1));

function startPanel(figure, label, right = 14) {
  return startPlot(figure.querySelector(".plot"), {
    isWide: figure.classList.contains("wide"), aspect: 0.72, least: 270, most: 380, right, printing: state.printing, label,
  });
}

const curveShown = (curve) => !state.hiddenSizes.has(curve.images) && (curve.group === null || state.published === "all" || state.published === curve.group);

function drawCurves(figure) {
  const family = figure.dataset.curves;
  const all = report.curves.filter(curveShown);
  const curves = all.filter((curve) => curve.family === family);
  figure.hidden = state.hiddenFamilies.has(family) || !curves.length;
  if (figure.hidden) return;
  const plot = startPanel(figure, `Top-1 ${state.measure} of ${family} against samples seen. Arrow keys step through the evaluations.`);
  const { svg, width, height, margin } = plot;
  const isLog = state.scale === "log";
  const seen = all.flatMap((curve) => curve.samples_seen);
  const x = scale(isLog ? seen : [0, ...seen], margin.left, width - margin.right, isLog, 0.04);
  const y = verticalScale(all.flatMap((curve) => curve.top1), height, margin);
  const ticks = (isLog ? logTicks : linearTicks)(isLog ? x.low : 0, x.high, (width - margin.left - margin.right) / 52);
  drawAxes(plot, { map: x, ticks, format: shortNumber }, y, "samples seen");
  const models = [...new Map(curves.map((curve) => [curve.arch, curve.params ?? 0]))].sort((a, b) => a[1] - b[1]).map(([arch]) => arch);
  const amounts = [...new Set(curves.map((curve) => curve.images))].sort((a, b) => b - a);
  const dashes = ["none", "6 3", "2 3", "8 3 2 3"];
  const places = [];
  for (const curve of curves) {
    const at = curve.samples_seen.map((value, i) => [x(value), y.map(valueOf(curve.top1[i]))]);
    const line = make("path", { d: at.map((spot, i) => `${i ? "L" : "M"}${spot}`).join(""), class: "curve", "data-arch": curve.arch }, svg);
    line.style.setProperty("--colour", colourOf(family));
    line.style.opacity = strength(models.indexOf(curve.arch), models.length);
    line.style.strokeDasharray = dashes[Math.min(amounts.indexOf(curve.images), dashes.length - 1)];
    at.forEach(([left, top], i) => places.push({
      x: left, y: top, mark: line, title: curve.arch, colour: colourOf(family), links: [],
      details: [[curve.measure, percent(curve.top1[i])], ["samples seen", curve.samples_seen[i].toLocaleString("en")],
        ["training images", curve.images?.toLocaleString("en") ?? "–"], ["runs", String(curve.n)]],
    }));
  }
  const ends = curves.filter((curve) => curve.images === amounts[0]).map((curve) => {
    const last = curve.samples_seen.length - 1;
    return { x: x(curve.samples_seen[last]), y: y.map(valueOf(curve.top1[last])), name: "name", words: curve.arch,
      spots: (wide) => [[-wide, -18], [-wide, 4], [-wide - 6, -32], [-wide - 6, 18]] };
  });
  writeLabels(plot, [], ends.sort((a, b) => a.y - b.y));
  listen(svg, places, width);
}

function drawLaw(figure) {
  const law = report.laws[Number(figure.dataset.law)];
  const plot = startPanel(figure, `Error against ${law.axis}, ${law.title}: runs, the fitted law and its band. Arrow keys step through the runs.`, law.num_ranks > 1 ? 76 : 14);
  const { svg, width, height, margin } = plot;
  const x = scale(law.points.map((point) => point.x), margin.left, width - margin.right, true, 0.05);
  const ends = [...law.points.flatMap((point) => [point.y, point.predicted ?? point.y]), ...law.curves.flatMap((curve) => curve.y)];
  const y = scale(ends.filter((value) => value > 0), height - margin.bottom, margin.top, true, 0.06);
  const clamp = (value) => y(Math.min(Math.max(value, y.low), y.high));
  const ticksOf = (axis, room) => logTicks(axis.low, axis.high, room);
  drawAxes(plot, { map: x, ticks: ticksOf(x, (width - margin.left - margin.right) / 52), format: shortNumber },
    { map: y, ticks: ticksOf(y, (height - margin.top - margin.bottom) / 34), format: percent }, law.axis);
  const colour = colourOf(law.family);
  for (const curve of law.curves) {
    const edge = (values) => values.map((value, i) => `${x(curve.x[i])},${clamp(value)}`);
    const band = make("path", { d: `M${[...edge(curve.low), ...edge(curve.high).reverse()].join("L")}Z`, class: "band" }, svg);
    const line = make("path", { d: `M${edge(curve.y).join("L")}`, class: "curve" }, svg);
    for (const element of [band, line]) element.style.setProperty("--colour", colour);
    line.style.opacity = strength(curve.rank, law.num_ranks);
  }
  const places = law.points.map((point) => {
    const held = point.predicted !== null;
    const place = { x: x(point.x), y: clamp(point.y), title: point.label, colour, links: [], details: [["error", percent(point.y)]] };
    if (held) {
      place.details.push(["held out; predicted", percent(point.predicted)]);
      make("path", { d: `M${place.x},${place.y}V${clamp(point.predicted)}m-5,0h10`, class: "predicted" }, svg);
    }
    place.mark = make("path", { d: marker(shapeOf(law.family), place.x, place.y, 4.5), class: held ? "point single held" : "point" }, svg);
    place.mark.style.setProperty("--colour", colour);
    return place;
  });
  const labels = law.curves.map((curve) => ({
    x: x(curve.x[curve.x.length - 1]), y: clamp(curve.y[curve.y.length - 1]), name: "name", words: curve.label,
    spots: () => [[10, -8], [10, -16], [10, 0]],
  }));
  writeLabels(plot, places, labels.filter((label) => label.words));
  listen(svg, places, width);
}
