// Controls of a form: each has an element, a value, and tells when it was changed.

const TICKS = 1000;
let count = 0;

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in made && key !== "form" && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export const heading = (text) => element("h2", {}, text);

export function shown(value) {
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 0.001 && Math.abs(value) < 1e5 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
}

function field(label, note, help, inner, right) {
  const id = `control-${++count}`;
  inner.id = id;
  const named = element("label", { htmlFor: id }, label);
  if (note) named.append(" ", element("small", {}, note));
  const says = element("div", { className: "says" }, named);
  if (right) says.append(right);
  const made = element("div", { className: "field", title: help ?? "" }, says, inner);
  return made;
}

// A slider of a number; log and whole as the server says.
export function slider({ label, note, help, value, low, high, log = false, whole = false, unit = "" }, changed) {
  const range = element("input", { type: "range", min: 0, step: 1 });
  let last;
  const bound = (end) => {
    high = end;
    last = whole && !log && high - low < TICKS ? high - low : TICKS;
    range.max = last;
  };
  bound(high);
  const told = element("output");
  const toTick = (v) => Math.round(last * (log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low)));
  const toValue = (tick) => {
    const share = tick / last;
    const raw = log ? low * (high / low) ** share : low + share * (high - low);
    return whole ? Math.round(raw) : Math.min(high, Math.max(low, Number(raw.toPrecision(3))));
  };
  const made = field(label, note, help, range, told);
  let now = value;
  const render = () => {
    range.value = toTick(now);
    range.style.setProperty("--at", `${(100 * range.value) / last}%`);
    told.value = shown(now) + unit;
    range.setAttribute("aria-valuetext", told.value);
  };
  range.addEventListener("input", () => {
    now = toValue(Number(range.value));
    const kept = range.value;
    render();
    range.value = kept;
    changed?.(now);
  });
  render();
  return {
    element: made,
    get value() { return now; },
    set value(v) { now = v; render(); },
    set high(end) { bound(end); render(); },
    set says(text) { told.value = text; range.setAttribute("aria-valuetext", text); },
    set off(yes) { range.disabled = yes; made.classList.toggle("off", yes); },
  };
}

// A list of choices: [value, text], or groups {label, choices}.
export function choice({ label, help, choices, value }, changed) {
  const list = element("select");
  const option = ([v, text]) => element("option", { value: v, textContent: text ?? v });
  list.append(...choices.map(option));
  list.value = value;
  list.addEventListener("change", () => changed?.(list.value));
  return {
    element: field(label, "", help, list),
    get value() { return list.value; },
    set value(v) { list.value = v; },
    set off(yes) { list.disabled = yes; },
  };
}

export function check({ label, help, value }, changed) {
  const box = element("input", { type: "checkbox", checked: value });
  box.addEventListener("change", () => changed?.(box.checked));
  return {
    element: element("label", { className: "check", title: help ?? "" }, box, label),
    get value() { return box.checked; },
    set value(v) { box.checked = v; },
  };
}

// A seed, and a button that draws another.
export function seed({ label, value }, changed) {
  const box = element("input", { type: "number", min: 0, max: 2 ** 30, step: 1, value });
  const read = () => Math.min(2 ** 30, Math.max(0, Math.trunc(Number(box.value) || 0)));
  const dice = button("Next", () => { box.value = read() + 1; changed?.(); });
  box.addEventListener("change", () => { box.value = read(); changed?.(); });
  const made = field(label, "", "", box);
  const both = element("div", { className: "two" });
  box.replaceWith(both);
  both.append(box, dice);
  return { element: made, get value() { return read(); } };
}

export function button(text, pressed, main = false) {
  const made = element("button", { type: "button", className: main ? "button main" : "button" }, text);
  made.addEventListener("click", pressed);
  return made;
}

// The two sliders of a pair side by side.
function paired(found) {
  const rows = [];
  for (const [name, { element: made }] of found) {
    const first = found.find(([other]) => other === name.replace(/\.1$/, ".0"));
    if (name.endsWith(".1") && first) first[1].element.parentElement.append(made);
    else rows.push(name.endsWith(".0") ? element("div", { className: "two" }, made) : made);
  }
  return rows;
}

// The controls that the server describes, as an object of values.
export function levels(described, changed) {
  const labels = { 0: "from", 1: "to" };
  const found = described.map((d) => {
    const [name, place] = d.name.split(".");
    const label = name.replaceAll("_", " ");
    const note = labels[place] ?? "";
    const made = d.kind === "choice"
      ? choice({ label, help: d.help, choices: d.choices.map((c) => [c]), value: d.value }, changed)
      : slider({ ...d, label, note, whole: d.kind === "whole" }, changed);
    return [d.name, made];
  });
  return {
    elements: paired(found),
    get values() { return Object.fromEntries(found.map(([name, made]) => [name, made.value])); },
    reset() { described.forEach((d, i) => { found[i][1].value = d.value; }); },
  };
}
