// The table of every row, sortable and searchable.
const SHOWN_AT_FIRST = 40;
const several = (axis) => new Set(rows.map((row) => sources[row.c][axis])).size > 1;
const ranged = (figure, low, high) => [figure, make("span", { class: "range" }, low === "–" ? "" : ` [${low}, ${high}]`)];

const COLUMNS = [
  { name: "scheme", title: "scheme", value: (row) => row.scheme, text: true },
  { name: "bits", title: "bits", value: (row) => row.bits, cell: (row) => FORMATS.bits(row.bits) },
  { name: "kl", title: "KL [95 %]", value: (row) => row.kl, cell: (row) => (row.lossless ? FORMATS.nats(row.kl) : ranged(FORMATS.nats(row.kl), FORMATS.nats(row.kl_low), FORMATS.nats(row.kl_high))) },
  { name: "delta_nll", title: "ΔNLL [95 %]", value: (row) => row.delta_nll, cell: (row) => (row.lossless ? "–" : ranged(signed(row.delta_nll), signed(row.delta_nll_low), signed(row.delta_nll_high))) },
  { name: "verdict", title: "ΔNLL shows", value: (row) => row.verdict, cell: tag, text: true },
  ...AXES.filter(([axis]) => several(axis)).map(([axis, title]) => (
    { name: axis, title: axis === "prefix" ? "cached" : title.toLowerCase(), value: (row) => sources[row.c][axis], cell: (row) => String(sources[row.c][axis]), text: axis !== "prefix" })),
  { name: "compression", title: "× smaller", value: (row) => row.compression, cell: (row) => FORMATS.bits(row.compression) },
  { name: "p_holm", title: "p (Holm)", value: (row) => row.p_holm, cell: (row) => FORMATS.chance(row.p_holm) },
  { name: "ppl", title: "perplexity", value: (row) => row.ppl, cell: (row) => (isNumber(row.ppl) ? row.ppl.toFixed(4) : "–") },
  { name: "delta_pct", title: "Δ%", value: (row) => row.delta_pct, cell: (row) => (row.lossless ? "–" : signed(row.delta_pct, 2)) },
  { name: "kl_999", title: "99.9 % of KL", value: (row) => row.kl_999, cell: (row) => FORMATS.nats(row.kl_999) },
  { name: "same", title: "same %", value: (row) => row.same, cell: (row) => FORMATS.percent(row.same) },
  { name: "top1", title: "top-1 %", value: (row) => row.top1, cell: (row) => FORMATS.percent(row.top1) },
  { name: "key_coverage", title: "read K", value: (row) => row.key_coverage, cell: (row) => (isNumber(row.key_coverage) ? row.key_coverage.toFixed(3) : "–") },
  { name: "value_coverage", title: "read V", value: (row) => row.value_coverage, cell: (row) => (isNumber(row.value_coverage) ? row.value_coverage.toFixed(3) : "–") },
  { name: "front", title: "front", value: (row) => (row.front ? 1 : 0), cell: (row) => (row.front ? "on it" : "") },
];

function tag(row) {
  const kind = { loses: "loses", gains: "gains", "within noise": "none", "not told apart": "none" }[row.verdict] || "plain";
  return make("span", { class: `tag ${kind}` }, row.verdict);
}

const MEASURED = 4; // columns in whose place a row that is refused says why
const KEPT = new Set(["scheme", "compression", "key_coverage", "value_coverage", ...AXES.map(([axis]) => axis)]); // what it has, which is no score
for (const column of COLUMNS.filter((one) => !KEPT.has(one.name) && one.name !== "verdict")) {
  const { value, cell } = column;
  column.value = (row) => (row.refused ? null : value(row));
  column.cell = (row) => (row.refused ? "–" : cell(row));
}
const order = { name: "", down: false };

function sorted(list) {
  const column = COLUMNS.find((one) => one.name === order.name);
  if (!column) return list;
  const missing = (value) => value === null || value === undefined || value === "";
  return [...list].sort((a, b) => {
    const [x, y] = [column.value(a), column.value(b)];
    if (missing(x) || missing(y)) return missing(x) - missing(y);
    const before = column.text ? String(x).localeCompare(String(y)) : x - y;
    return order.down ? -before : before;
  });
}

function table() {
  const section = document.getElementById("table");
  const heads = COLUMNS.map((column) => {
    const by = make("button", { type: "button" }, column.title);
    const head = make("th", { scope: "col", "aria-sort": "none", "data-column": column.name, class: `col-${column.name}${column.text ? " left" : ""}` }, by);
    by.addEventListener("click", () => {
      order.down = order.name === column.name ? !order.down : false;
      order.name = column.name;
      heads.forEach((one) => one.setAttribute("aria-sort", one === head ? (order.down ? "descending" : "ascending") : "none"));
      fill();
    });
    return head;
  });
  const body = make("tbody");
  const all = button("", () => { limit = limit ? 0 : SHOWN_AT_FIRST; fill(); });
  const said = make("span");
  let limit = SHOWN_AT_FIRST;
  const caption = "Every scheme of every run; headings sort.";
  const grid = make("table", { id: "rows", "aria-label": caption }, make("thead", {}, make("tr", {}, ...heads)), body);
  const more = make("div", { class: "more" }, all, said);
  section.append(make("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": "Table of rows, scrolls sideways" }, grid), more);
  function fill() {
    const list = sorted(rows.filter(shown));
    const cut = limit ? list.slice(0, limit) : list;
    body.replaceChildren(...cut.map(line));
    if (!list.length) body.append(make("tr", {}, make("td", { colspan: COLUMNS.length, class: "left" }, "No row is of what is chosen; widen the filters.")));
    all.hidden = list.length <= SHOWN_AT_FIRST;
    all.textContent = limit ? `Show all ${list.length} rows` : `Show the first ${SHOWN_AT_FIRST}`;
    said.textContent = cut.length < list.length ? `${cut.length} of ${list.length} rows are listed; the charts have all.` : "";
    mark();
  }
  function mark() {
    for (const element of document.querySelectorAll("[data-s]")) element.classList.toggle("hot", Number(element.dataset.s) === state.hover);
  }
  listeners.push(fill);
  highlighters.push(mark);
}

function line(row) {
  const box = make("input", { type: "checkbox", "aria-label": `choose ${row.scheme}` });
  box.checked = state.chosen.has(row.s);
  box.addEventListener("change", () => choose(row.s));
  const head = make("th", { scope: "row" }, make("label", {}, box, swatch(row.s), make("span", {}, row.scheme + (row.evicts ? " †" : ""))));
  const cells = COLUMNS.map((column) => make("td", { class: `col-${column.name} ${column.name === "model" || column.name === "text" ? "name" : column.text ? "left" : ""}` }, ...[column.cell ? column.cell(row) : ""].flat()));
  const why = make("td", { class: "wide", colspan: MEASURED }, make("span", { class: "tag loses" }, row.verdict), ` ${row.refused}`);
  const rest = row.refused ? [why, ...cells.slice(1 + MEASURED)] : cells.slice(1);
  const element = make("tr", { "data-s": row.s, tabindex: "-1" }, head, ...rest);
  element.addEventListener("mouseenter", () => hover(row.s));
  element.addEventListener("mouseleave", () => hover(-1));
  element.addEventListener("focusin", () => hover(row.s));
  element.addEventListener("focusout", () => hover(-1));
  return element;
}
