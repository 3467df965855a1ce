// Charts: small ones side by side, a Vega view each, all fed with what is shown and linked by two signals.
const views = [];
const tip = document.getElementById("tip");

function dressed(datum) {
  const look = datum.s === null || datum.s === undefined ? { hue: "blue", shape: "circle", hollow: false } : schemes[datum.s];
  const color = `var(--hue-${look.hue})`;
  const scheme = datum.s === null || datum.s === undefined ? datum.scheme : look.label;
  const low = datum.kl_low > 0 ? datum.kl_low : datum.kl / 3; // a log axis has no 0
  const short = datum.s === null || datum.s === undefined ? datum.scheme : look.short;
  return { low, high: datum.kl_high, ...datum, scheme, short, color, shape: look.shape, fill: look.hollow ? "var(--paper)" : color };
}

function limited(data, most) {
  if (!most) return data;
  const best = new Map();
  for (const datum of data) {
    const worth = [state.chosen.has(datum.s) ? 0 : 1, -Number(datum.front || 0), datum.kl];
    const other = best.get(datum.s);
    if (!other || compare(worth, other) < 0) best.set(datum.s, worth);
  }
  const kept = new Set([...best].sort((a, b) => compare(a[1], b[1])).slice(0, most).map(([s]) => s));
  return data.filter((datum) => kept.has(datum.s));
}

function compare(a, b) {
  const at = a.findIndex((value, i) => value !== b[i]);
  return at < 0 ? 0 : a[at] - b[at];
}

async function chart(one, place, data) {
  const facets = [...new Set(data.map((datum) => datum.facet || ""))];
  const grid = make("div", { class: facets.length > 1 ? "charts" : "chart-alone" });
  const empty = make("p", { class: "empty", hidden: true }, "Nothing here is of what is chosen; widen the filters.");
  const said = make("p", { class: "status" });
  const body = make("div");
  const details = make("details", { class: "data" }, make("summary", {}, "These figures as a table"), body);
  const key = make("ul", { class: "key", "aria-hidden": "true" });
  place.append(grid, key, empty, said, details);
  const parts = facets.map((facet) => {
    const holder = make("div", { class: "chart", role: "img", "aria-label": (facet ? `${facet}. ` : "") + one.summary });
    const figure = make("figure", {}, facet ? make("figcaption", {}, facet) : null, holder);
    grid.append(figure);
    return { facet, figure, holder, data: data.filter((datum) => (datum.facet || "") === facet) };
  });
  for (const part of parts) {
    const made = await vegaEmbed(part.holder, fitted(one.spec, part.holder), { mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false, tooltip: false, logLevel: 1 });
    part.view = made.view;
    views.push(part.view);
    part.view.addEventListener("mousemove", (event, item) => { point(event, item && item.datum, one); });
    part.view.addEventListener("mouseout", () => point(null, null, one));
    part.view.addEventListener("click", (event, item) => { if (item && item.datum && isNumber(item.datum.s)) choose(item.datum.s); });
  }
  async function feed() {
    const all = data.filter(shown);
    const few = limited(all, one.most);
    const left = new Set(all.map((datum) => datum.s)).size - new Set(few.map((datum) => datum.s)).size;
    said.textContent = left > 0 ? `${left} more schemes are not drawn here; choose some in the table, or search, to see them.` : "";
    for (const part of parts) {
      const own = few.filter((datum) => (datum.facet || "") === part.facet).map(dressed);
      part.figure.hidden = !own.length;
      part.own = own;
      part.view.data("d", own).signal("chosen", [...state.chosen]);
      if (one.line) part.view.height(one.line[1] * Math.max(1, new Set(own.map((datum) => datum[one.line[0]])).size));
      await part.view.resize().runAsync();
      if (one.labels && own.length) await label(part);
    }
    if (one.key) {
      key.replaceChildren(...[...new Set(few.map((datum) => datum.s))].map((s) => {
        const item = make("li", { "data-s": s }, swatch(s), schemes[s].short);
        item.addEventListener("mouseenter", () => hover(s));
        item.addEventListener("mouseleave", () => hover(-1));
        return item;
      }));
    }
    empty.hidden = few.length > 0;
    if (details.open) tabulate(body, one, few);
  }
  details.addEventListener("toggle", () => { if (details.open) tabulate(body, one, limited(data.filter(shown), one.most)); });
  listeners.push(feed);
  if (one.labels) addEventListener("resize", later(() => parts.forEach((part) => part.own.length && label(part))));
  await feed();
}

// Names of schemes take no more than half of a narrow chart.
function fitted(spec, holder) {
  const limit = Math.min(210, Math.round(holder.clientWidth * 0.4));
  return { ...spec, config: { ...spec.config, axisY: { labelLimit: limit } } };
}

function later(act) {
  let waiting = 0;
  return () => { clearTimeout(waiting); waiting = setTimeout(act, 250); };
}

function highlightViews() {
  for (const view of views) view.signal("hover", state.hover).runAsync();
}
highlighters.push(highlightViews);

function point(event, datum, one) {
  const known = datum && one.columns.some(([name]) => datum[name] !== undefined);
  hover(known && isNumber(datum.s) ? datum.s : -1);
  tip.hidden = !known;
  if (!known) return;
  const lines = one.columns.filter(([name]) => datum[name] !== undefined && datum[name] !== null).map(([name, title, format]) => `${title ? `${title}: ` : ""}${FORMATS[format](datum[name])}`);
  if (datum.beaten_by) lines.push(`loses more than ${datum.beaten_by}, of no more bits`);
  tip.textContent = lines.join("\n");
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
}

// Names beside the points of the front, where there is room for them.
const ruler = document.createElement("canvas").getContext("2d");
const LONGEST = 28;
const NAMED = 14;

async function label({ view, own }) {
  ruler.font = `10.5px ${getComputedStyle(document.body).fontFamily}`;
  const [x, y, width, height] = [view.scale("x"), view.scale("y"), view.width(), view.height()];
  const points = own.filter((datum) => datum.front && datum.kl > 0).map((datum) => ({ datum, x: x(datum.bits), y: y(datum.kl) }));
  const taken = own.filter((datum) => datum.kl > 0).map((datum) => {
    const half = datum.front ? 5 : 2;
    return [x(datum.bits) - half, y(datum.kl) - half, x(datum.bits) + half, y(datum.kl) + half];
  });
  const beaten = (one) => points.some((other) => other !== one && other.x <= one.x && other.y >= one.y);
  points.forEach((one) => { one.rank = (state.chosen.has(one.datum.s) ? 0 : 2) + (beaten(one) ? 1 : 0); });
  const labels = [];
  for (const one of points.sort((a, b) => a.rank - b.rank || a.x - b.x)) {
    if (labels.length >= NAMED && one.rank > 1) break;
    const name = one.datum.short.length > LONGEST ? `${one.datum.short.slice(0, LONGEST - 1)}…` : one.datum.short;
    const wide = ruler.measureText(name).width + 2;
    const corners = [[8, 0], [8, -9], [8, 9], [-wide - 8, 0], [-wide - 8, -9], [-wide - 8, 9], [-wide / 2, -13], [-wide / 2, 13]];
    for (const [dx, dy] of corners) {
      const box = [one.x + dx, one.y + dy - 6, one.x + dx + wide, one.y + dy + 6];
      const inside = box[0] >= 0 && box[2] <= width + 4 && box[1] >= 0 && box[3] <= height;
      if (inside && !taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) {
        taken.push(box);
        labels.push({ px: box[0], py: one.y + dy, text: name, s: one.datum.s });
        break;
      }
    }
  }
  await view.data("labels", labels).runAsync();
}

function tabulate(place, one, data) {
  const facets = data.some((datum) => datum.facet);
  const columns = [...(facets ? [["facet", "of", "text"]] : []), ...one.columns];
  const lines = data.map(dressed).map((datum) => columns.map(([name, , format]) => FORMATS[format](datum[name] === undefined ? null : datum[name])));
  place.replaceChildren(plainTable(columns.map(([name, title]) => title || name), lines));
}

function plainTable(header, lines, kind = "") {
  const heads = header.length ? [make("thead", {}, make("tr", {}, ...header.map((text) => make("th", { scope: "col" }, text))))] : [];
  const kindOf = (text, i) => (text.length > (i ? 30 : 64) ? "long" : null);
  const body = make("tbody", {}, ...lines.map((cells) => make("tr", {}, ...cells.map((text, i) => make("td", { class: kindOf(text, i) }, text)))));
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Figures, scroll sideways" }, make("table", { class: `plain ${kind}` }, ...heads, body));
}
