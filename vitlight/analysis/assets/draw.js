// What all plots share: SVG elements, axes, labels that keep out of each other's way, and a point's numbers on demand.

const svgNamespace = new DOMParser().parseFromString("<svg>", "text/html").querySelector("svg").namespaceURI;
const tip = document.getElementById("tip");
let pinned = null; // the plot whose point stays shown, with its links

function make(tag, attributes, parent, text) {
  const element = document.createElementNS(svgNamespace, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function makeHtml(tag, text, attributes = {}) {
  const element = Object.assign(document.createElement(tag), { textContent: text });
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// An empty plot in place of the last one: { svg, width, height, margin }. On paper, widths are those of the paper.
function startPlot(plot, { isWide, aspect, least, most, right, label, printing }) {
  const width = printing ? (isWide ? 680 : 330) : Math.max(plot.clientWidth, 250);
  const height = printing && isWide ? 0.4 * width : Math.min(Math.max(aspect * width, least), most);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": label });
  plot.replaceChildren(svg); // first, so that text can be measured
  return { svg, width, height, margin: { left: 52, right, top: 10, bottom: 44 } };
}

// x and y: { map, ticks, format }. The title breaks into two lines where it is longer than the plot is wide.
function drawAxes({ svg, width, height, margin }, x, y, title) {
  const axes = make("g", { class: "axes" }, svg);
  const bottom = height - margin.bottom;
  for (const tick of x.ticks) {
    make("line", { x1: x.map(tick), x2: x.map(tick), y1: margin.top, y2: bottom, class: "grid" }, axes);
    make("text", { x: x.map(tick), y: bottom + 17, "text-anchor": "middle" }, axes, x.format(tick));
  }
  for (const tick of y.ticks) {
    make("line", { x1: margin.left, x2: width - margin.right, y1: y.map(tick), y2: y.map(tick), class: "grid" }, axes);
    make("text", { x: margin.left - 7, y: y.map(tick) + 4, "text-anchor": "end" }, axes, y.format(tick));
  }
  const text = make("text", { x: (margin.left + width - margin.right) / 2, y: height - 7, "text-anchor": "middle", class: "axis" }, axes, title);
  const box = text.getBBox();
  if (box.x < 2) text.setAttribute("x", 2 + box.width / 2);
  else if (box.x + box.width > width - 2) text.setAttribute("x", width - 2 - box.width / 2);
}

// Writes each label where it covers no mark and no other label, and leaves out what has no room. `spots(width)` are offsets
// from the place, the best one first.
function writeLabels({ svg, width, height, margin }, marks, labels) {
  const taken = marks.map((mark) => ({ x: mark.x - 8, y: mark.y - 8, width: 16, height: 16 }));
  const overlap = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;
  for (const { x, y, name, words, spots } of labels) {
    const text = make("text", { class: name }, svg, words);
    const wide = text.getBBox().width;
    const spot = spots(wide)
      .map(([dx, dy]) => ({ x: x + dx, y: y + dy, width: wide, height: 15 }))
      .find((area) => area.x > margin.left && area.x + wide < width - 2 && area.y > 2 && area.y + 15 < height - margin.bottom
        && !taken.some((other) => overlap(area, other)));
    if (!spot) { text.remove(); continue; }
    text.setAttribute("x", spot.x);
    text.setAttribute("y", spot.y + 12);
    taken.push(spot);
  }
}

// Pointer and keys on a plot. `places`: { x, y, mark, title, colour, details, links }, in pixels of the plot.
function listen(svg, places, width) {
  let current = -1;
  const ordered = [...places].sort((a, b) => a.x - b.x || a.y - b.y);
  const show = (place, pin = false) => {
    svg.querySelector(".is-current")?.classList.remove("is-current");
    pinned = pin && place ? svg : null;
    if (!place) { tip.hidden = true; current = -1; return; }
    current = ordered.indexOf(place);
    place.mark.classList.add("is-current");
    showTip(svg, place, width);
  };
  const find = (event) => {
    const box = svg.getBoundingClientRect();
    const [left, top] = [event.clientX - box.left, event.clientY - box.top].map((value) => (value * width) / box.width);
    const distance = (place) => Math.hypot(place.x - left, place.y - top);
    const nearest = places.reduce((best, place) => (!best || distance(place) < distance(best) ? place : best), null);
    return nearest && distance(nearest) < 26 ? nearest : null;
  };
  svg.addEventListener("pointermove", (event) => { if (!pinned) show(find(event)); });
  svg.addEventListener("click", (event) => show(find(event), true));
  svg.addEventListener("pointerleave", () => { if (!pinned) show(null); });
  svg.addEventListener("blur", (event) => { if (!tip.contains(event.relatedTarget)) show(null); });
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") show(null);
    if (event.key === "Enter" && current >= 0) { show(ordered[current], true); tip.querySelector("a")?.focus(); }
    if (!step || !ordered.length) return;
    event.preventDefault();
    show(ordered[current < 0 && step < 0 ? ordered.length - 1 : (current + step + ordered.length) % ordered.length]);
  });
}

function showTip(svg, { x, y, title, colour, details, links }, width) {
  const list = document.createElement("dl");
  for (const [label, text] of details) list.append(makeHtml("dt", label), makeHtml("dd", text));
  tip.replaceChildren(makeHtml("strong", title), list);
  tip.classList.toggle("pinned", pinned !== null);
  if (pinned && links.length) {
    const runs = makeHtml("p", "");
    for (const { text, href, url } of links) {
      if (href) runs.append(makeHtml("a", text, { href }));
      if (url) runs.append(makeHtml("a", href ? "W&B" : text, { href: url, rel: "noreferrer" }));
      if (!href && !url) runs.append(makeHtml("span", text));
    }
    tip.append(runs);
  } else if (links.length) tip.append(makeHtml("p", links.some((link) => link.href || link.url) ? "click or Enter: links" : ""));
  tip.style.setProperty("--colour", colour);
  tip.hidden = false;
  const box = svg.getBoundingClientRect();
  const [left, top] = [box.left + (x * box.width) / width, box.top + (y * box.width) / width];
  const beside = left + 16 + tip.offsetWidth < document.documentElement.clientWidth ? left + 16 : left - 16 - tip.offsetWidth;
  tip.style.left = `${Math.max(8, Math.min(beside, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(8, Math.min(top - tip.offsetHeight / 2, window.innerHeight - tip.offsetHeight - 8))}px`;
}

function hideTip() {
  pinned = null;
  tip.hidden = true;
}
document.addEventListener("click", (event) => {
  if (pinned && !pinned.contains(event.target) && !tip.contains(event.target)) hideTip();
});
tip.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  pinned?.focus();
  hideTip();
});
