// Contents and filters.
function controls() {
  const side = document.getElementById("side");
  const links = page.sections.map((one) => make("li", {}, make("a", { href: `#${one.id}` }, one.title)));
  const wide = matchMedia("(min-width: 1100px)").matches;
  const contents = make("nav", { "aria-label": "Contents" }, make("details", { class: "contents", open: wide }, make("summary", {}, "Contents"), make("ol", {}, ...links)));
  const filters = make("details", { class: "filters", open: wide }, make("summary", {}, "Choose what is shown"));
  const search = make("input", { type: "search", id: "search", autocomplete: "off", spellcheck: "false", placeholder: "such as kivi or bits=4" });
  search.addEventListener("input", () => { state.query = search.value.trim().toLowerCase(); changed(); });
  filters.append(make("label", { for: "search" }, "Search schemes"), search);
  const status = make("p", { class: "status", role: "status", id: "status" });
  filters.append(status);
  for (const [axis, title] of AXES) {
    const values = [...new Set(sources.map((source) => source[axis]))].filter((value) => value !== null);
    if (values.length < 2) continue;
    if (axis === "prefix") values.sort((a, b) => a - b);
    filters.append(fieldset(title, values.map((value) => check(String(value), (on) => toggle(state.off[axis], value, on), `${axis}-${value}`))));
  }
  const families = [...new Map(schemes.map((one) => [one.family, one.i]))];
  if (families.length > 1) {
    const boxes = families.map(([family, s]) => check(family, (on) => toggle(state.hidden, family, on), `family-${family}`, swatch(s)));
    const all = (on) => boxes.forEach((box) => { const input = box.querySelector("input"); if (input.checked !== on) input.click(); });
    filters.append(make("details", {}, make("summary", {}, `Families (${families.length})`),
      make("div", { class: "buttons" }, button("All", () => all(true)), button("None", () => all(false))),
      fieldset("Show rows of", boxes)));
  }
  const only = check("Only those chosen", (on) => { state.only = on; }, "only");
  only.querySelector("input").checked = false;
  const clear = button("Clear choice", () => { state.chosen.clear(); changed(); });
  filters.append(fieldset("Chosen schemes", [only, make("div", { class: "buttons" }, clear)]));
  side.append(contents);
  if (schemes.length) side.append(filters);
  listeners.push(() => {
    const parts = [rows.length && `${rows.filter(shown).length} of ${rows.length} rows`, state.chosen.size && `${state.chosen.size} chosen`];
    status.textContent = parts.filter(Boolean).join(", ");
    clear.disabled = !state.chosen.size;
  });
}

const button = (text, act) => make("button", { type: "button", onclick: act }, text);
const fieldset = (title, boxes) => make("fieldset", {}, make("legend", {}, title), ...boxes);

function toggle(set, value, on) {
  if (on) set.delete(value);
  else set.add(value);
}

function check(text, act, id, mark = null) {
  const input = make("input", { type: "checkbox", checked: true, "data-filter": id });
  input.addEventListener("change", () => { act(input.checked); changed(); });
  return make("label", { class: "check" }, input, mark, make("span", {}, text));
}

function theme() {
  const element = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const names = ["system", "light", "dark"];
  let at = 0;
  const apply = () => {
    const dark = names[at] === "dark" || (names[at] === "system" && system.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    element.textContent = `Theme: ${names[at]}`;
  };
  element.addEventListener("click", () => { at = (at + 1) % names.length; apply(); });
  system.addEventListener("change", apply);
  let before = "light";
  addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; document.documentElement.dataset.theme = "light"; });
  addEventListener("afterprint", () => { document.documentElement.dataset.theme = before; });
  apply();
}
