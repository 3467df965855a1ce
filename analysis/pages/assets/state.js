// What the page holds, and what of it is shown. Text from records reaches the page by textContent alone.
const page = JSON.parse(document.getElementById("page-data").textContent);
const unpacked = (table) => table.values.map((line) => Object.fromEntries(table.fields.map((name, i) => [name, line[i]])));
const rows = unpacked(page.rows).map((row) => ({ ...row, cell: page.runs[row.run] }));
const { schemes, sources } = page;
const AXES = [["model", "Model"], ["text", "Text"], ["protocol", "Protocol"], ["prefix", "Cached tokens"]];

const state = { query: "", hidden: new Set(), off: {}, chosen: new Set(), only: false, hover: -1 };
for (const [axis] of AXES) state.off[axis] = new Set();
const listeners = [];
const changed = () => listeners.forEach((listener) => listener());

function sourceShown(c) {
  if (c === null || c === undefined) return true;
  return AXES.every(([axis]) => !state.off[axis].has(sources[c][axis]));
}

function schemeShown(s) {
  if (s === null || s === undefined) return true;
  if (state.only && state.chosen.size && !state.chosen.has(s)) return false;
  return !state.hidden.has(schemes[s].family) && schemes[s].label.toLowerCase().includes(state.query);
}

const shown = (datum) => sourceShown(datum.c) && schemeShown(datum.s);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Paragraphs of ours, in which `…` is code.
function rich(text) {
  return text.split("`").map((part, i) => (i % 2 ? make("code", {}, part) : part));
}

const PATHS = {
  circle: "M0,-0.8A0.8,0.8,0,1,1,0,0.8A0.8,0.8,0,1,1,0,-0.8Z", square: "M-0.8,-0.8H0.8V0.8H-0.8Z", diamond: "M0,-1L1,0L0,1L-1,0Z",
  cross: "M-0.35,-1H0.35V-0.35H1V0.35H0.35V1H-0.35V0.35H-1V-0.35H-0.35Z", "triangle-up": "M0,-0.9L1,0.8H-1Z",
  "triangle-down": "M0,0.9L1,-0.8H-1Z", "triangle-left": "M-0.9,0L0.8,-1V1Z", "triangle-right": "M0.9,0L-0.8,-1V1Z",
};

// A scheme's mark as the charts draw it.
function swatch(s) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const look = schemes[s];
  svg.setAttribute("viewBox", "-1.2 -1.2 2.4 2.4");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "swatch");
  path.setAttribute("d", PATHS[look.shape] || look.shape);
  path.setAttribute("fill", look.hollow ? "var(--paper)" : `var(--hue-${look.hue})`);
  path.setAttribute("stroke", `var(--hue-${look.hue})`);
  path.setAttribute("stroke-width", "0.35");
  svg.append(path);
  return svg;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

// To so many significant digits, as the tables of the command line have it.
function number(value, digits = 3) {
  if (!isNumber(value)) return "–";
  if (value === 0) return "0";
  if (Math.abs(value) >= 1000 || Math.abs(value) < 1e-3) return value.toExponential(digits - 1).replace(/e([+-])(\d)$/, "e$10$2");
  return value.toFixed(Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value)))));
}

function signed(value, digits = 4) {
  if (!isNumber(value)) return "–";
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : (value > 0 ? "+" : "−") + text.replace("-", "");
}

const FORMATS = {
  bits: (value) => (isNumber(value) ? value.toFixed(2) : "–"), nats: (value) => number(value, 2), signed: (value) => signed(value),
  number: (value) => number(value), percent: (value) => (isNumber(value) ? value.toFixed(1) : "–"), text: (value) => (value === null ? "–" : String(value)),
  whole: (value) => (isNumber(value) ? String(Math.round(value)) : "–"), chance: (value) => (!isNumber(value) ? "–" : value < 1e-4 ? "<0.0001" : number(value, 2)),
};

function hover(s) {
  if (state.hover === s) return;
  state.hover = s;
  requestAnimationFrame(() => highlighters.forEach((highlight) => highlight()));
}
const highlighters = [];

function choose(s) {
  if (!state.chosen.delete(s)) state.chosen.add(s);
  changed();
}
