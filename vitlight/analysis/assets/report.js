// Runs the page: filters, switches, the sorting of tables, and paper. No library, no request.

const report = JSON.parse(document.getElementById("report-data").textContent);
const state = {
  hiddenFamilies: new Set(), hiddenSizes: new Set(), measure: "accuracy", scale: "log", front: "all",
  published: document.getElementById("published")?.value ?? "off", printing: false,
};
const sizes = [...new Set(report.points.map((point) => point.images))].filter((images) => report.sizes.includes(images)).sort((a, b) => a - b);
const figures = [...document.querySelectorAll("figure[data-chart]")];
const panels = [...document.querySelectorAll("figure[data-curves]")];
const laws = [...document.querySelectorAll("figure[data-law]")];

function refresh() {
  hideTip();
  figures.forEach(draw);
  panels.forEach(drawCurves);
  for (const word of document.querySelectorAll(".measure")) word.textContent = state.measure === "error" ? "Error" : "Accuracy";
  for (const row of document.querySelectorAll("tr[data-family]")) row.hidden = state.hiddenFamilies.has(row.dataset.family);
  for (const row of document.querySelectorAll("tr[data-group]")) row.hidden ||= state.published !== "all" && state.published !== row.dataset.group;
  for (const cell of document.querySelectorAll("[data-images]:not(g)")) cell.classList.toggle("is-out", state.hiddenSizes.has(Number(cell.dataset.images)));
  const present = new Set(report.points.filter(isInGroup).map((point) => point.family));
  for (const button of document.querySelectorAll("[data-filter-family]")) button.hidden = !present.has(button.dataset.filterFamily);
}

function redraw() {
  refresh();
  laws.forEach(drawLaw);
}

function toggle(button, hidden, value) {
  hidden.has(value) ? hidden.delete(value) : hidden.add(value);
  button.setAttribute("aria-pressed", String(!hidden.has(value)));
  refresh();
}

// Buttons of which one is pressed: `name` is the state's and the data attribute's.
function choose(name) {
  const buttons = document.querySelectorAll(`button[data-${name}]`);
  for (const button of buttons)
    button.addEventListener("click", () => {
      state[name] = button.dataset[name];
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      refresh();
    });
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
["measure", "scale", "front"].forEach(choose);
document.getElementById("published")?.addEventListener("change", (event) => {
  state.published = event.target.value;
  refresh();
});
document.getElementById("axis")?.addEventListener("change", (event) => {
  const figure = event.target.closest("figure");
  figure.dataset.chart = event.target.value;
  figure.querySelector(".against").textContent = report.charts.find((chart) => chart.key === event.target.value).title;
  refresh();
});
for (const button of document.querySelectorAll("th > button")) button.addEventListener("click", () => sortBy(button.parentElement));

for (const [event, printing] of [["beforeprint", true], ["afterprint", false]])
  window.addEventListener(event, () => {
    state.printing = printing;
    for (const details of document.querySelectorAll("details")) {
      if (printing) details.dataset.was = details.open;
      details.open = printing || details.dataset.was === "true";
    }
    redraw();
  });
let lastWidth = 0;
new ResizeObserver(() => {
  const width = document.documentElement.clientWidth;
  if (width !== lastWidth && lastWidth) requestAnimationFrame(redraw);
  lastWidth = width;
}).observe(document.body);
redraw();
