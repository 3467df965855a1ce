// From the top of the page to its end.
function top_() {
  const main = document.getElementById("main");
  main.append(make("h1", {}, page.title));
  const glance = page.glance;
  if (!glance) return;
  main.append(make("p", { class: "lead", id: "answer" }, glance.sentence), make("p", { class: "evidence" }, glance.evidence));
  if (glance.cautions.length) main.append(make("ul", { class: "cautions" }, ...glance.cautions.map((text) => make("li", {}, ...rich(text)))));
  main.append(make("ul", { class: "cards", "aria-label": "The least loss at each size" }, ...glance.cards.map(card)));
}

function card(one) {
  const where = (text) => (text ? make("span", { class: "where" }, text) : null);
  const pairs = [["size", [`${one.bits}, ${one.times}`]], ["KL", [one.kl, where(one.kl_where)]], ["ΔNLL", [one.delta, where(one.delta_where)]], ["perplexity", [one.ppl]], ["least of", [`${one.candidates} scheme${one.candidates > 1 ? "s" : ""} that fit`]]];
  const alike = one.alike.length ? `Not told from ${one.alike.join(", ")}${one.alike_more ? ` and ${one.alike_more} more` : ""}.` : null;
  const element = make("li", { class: "card", "data-s": one.s },
    make("p", { class: "size" }, one.budget), make("p", { class: "name" }, swatch(one.s), make("span", {}, one.scheme)),
    make("dl", {}, ...pairs.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, ...text)])), alike && make("p", { class: "alike" }, alike));
  element.addEventListener("mouseenter", () => hover(one.s));
  element.addEventListener("mouseleave", () => hover(-1));
  return element;
}

function sections() {
  for (const one of page.sections) {
    const place = make("section", { id: one.id, "aria-labelledby": `${one.id}-title` }, make("h2", { id: `${one.id}-title` }, one.title));
    place.append(...one.text.map((text) => make("p", {}, ...rich(text))));
    document.getElementById("main").append(place);
  }
}

function download(name, kind, text) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: kind })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function csv(list) {
  const names = page.rows.fields;
  const quote = (value) => { const text = value === null ? "" : String(value); return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text; };
  return [names.join(","), ...list.map((row) => names.map((name) => quote(name === "run" ? row.cell : row[name])).join(","))].join("\n") + "\n";
}

function downloads() {
  const place = document.getElementById("data");
  if (!place) return;
  const links = [
    button("Rows as CSV", () => download("rows.csv", "text/csv", csv(rows))), button("Rows as JSON", () => download("rows.json", "application/json", JSON.stringify(rows, null, 1))),
    button("Rows that are shown, as CSV", () => download("rows-shown.csv", "text/csv", csv(rows.filter(shown)))),
    ...page.files.map((file) => make("a", { class: "button", href: `data:application/gzip;base64,${file.content}`, download: file.name }, file.title)),
  ];
  place.append(make("div", { class: "downloads" }, ...links));
  if (page.files.length) place.append(make("p", {}, "The losses by window are nats summed over the scored tokens of a window, to five digits; the records have all."));
  if (page.left_out) place.append(make("p", {}, page.left_out));
}

async function draw() {
  for (const one of page.sections) {
    const place = document.getElementById(one.id);
    const panels = make("div", { class: one.charts.length > 1 ? "panels" : "" });
    if (one.charts.length) place.append(panels);
    for (const each of one.charts) await chart(each, panel(panels), each.data ? unpacked(each.data) : rows.filter((row) => page.main.includes(row.run) && !row.refused && !row.lossless && isNumber(row.bits) && row.kl > 0).map((row) => ({ ...row, facet: page.main_names[page.main.indexOf(row.run)] })));
    for (const each of one.tables) {
      const table = plainTable(each.header, each.body, each.header.length ? "" : "record");
      if (each.header.length) place.append(each.title ? make("h3", {}, each.title) : "", table);
      else place.append(make("details", { class: "record", open: one.tables.length < 4 }, make("summary", {}, each.title), table));
    }
    if (one.notes.length) {
      const list = make("ul", { class: "notes" }, ...one.notes.map((text) => make("li", {}, ...rich(text))));
      place.append(one.notes.length > 3 && one.id !== "absent" ? make("details", { class: "record" }, make("summary", {}, `Notes (${one.notes.length})`), list) : list);
    }
  }
}

function panel(panels) {
  const place = make("div", { class: "panel" });
  panels.append(place);
  return place;
}

async function start() {
  theme();
  top_();
  const closed = [];
  addEventListener("beforeprint", () => closed.push(...document.querySelectorAll("details.record:not([open])")));
  addEventListener("beforeprint", () => closed.forEach((one) => { one.open = true; }));
  addEventListener("afterprint", () => closed.splice(0).forEach((one) => { one.open = false; }));
  sections();
  controls();
  if (document.getElementById("table")) table();
  downloads();
  changed();
  await draw();
  document.documentElement.dataset.ready = "true";
}

start();
