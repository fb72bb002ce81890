// A spectrum: power by frequency, both logarithmic, as lines of an SVG.

const EDGE = { left: 40, right: 8, top: 8, bottom: 38 };
const SVG = "http://www.w3.org/2000/svg";
const NAMES = {
  image: "image",
  signal: "its part in x\u209c",
  noise: "noise in x\u209c",
  x_t: "x\u209c",
  estimate: "estimate of x\u2080",
};
const DASHED = new Set(["image"]);
let charts = 0;
const SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079";

function node(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent?.append(made);
  return made;
}

const power = (n) => "10" + (n < 0 ? "\u207b" : "") + [...String(Math.abs(n))].map((d) => SUPERSCRIPTS[d]).join("");

export class Chart {
  constructor(figure) {
    this.caption = figure.querySelector("figcaption");
    this.svg = node("svg", { role: "img", "aria-label": "Power of the image by frequency" }, figure);
    this.frame = node("g", {}, this.svg);
    const clip = node("clipPath", { id: `clip-${++charts}` }, this.svg);
    this.clip = node("rect", { x: EDGE.left, y: 0 }, clip);
    this.lines = node("g", { "clip-path": `url(#${clip.id})` }, this.svg);
    this.size = [460, 300];
    this.reset();
    new ResizeObserver(([{ contentRect: { width, height } }]) => {
      if (!width) return;
      this.size = [width, height];
      this.drawn = undefined;
      if (this.held) this.show(this.held);
    }).observe(this.svg);
  }

  // Forget the extent of the axes, which otherwise only grow.
  reset() {
    this.extent = null;
  }

  show(held) {
    this.held = held;
    const { frequency, lines } = held;
    const [width, height] = this.size;
    const all = Object.values(lines).flat().filter((value) => value > 0);
    const top = Math.ceil(Math.log10(Math.max(...all, 1)));
    const bottom = Math.max(Math.floor(Math.log10(Math.min(...all, 1))), top - 8, -6);
    const known = this.extent ?? { top, bottom };
    const extent = { top: Math.max(known.top, top), bottom: Math.min(known.bottom, bottom) };
    const across = [Math.log10(frequency[0]), Math.log10(frequency.at(-1))];
    const fresh = JSON.stringify({ extent, across });
    this.extent = extent;
    this.x = (f) => EDGE.left + ((Math.log10(f) - across[0]) / (across[1] - across[0])) * (width - EDGE.left - EDGE.right);
    this.y = (p) => {
      const level = Math.max(Math.log10(Math.max(p, 1e-30)), extent.bottom - 2);
      return EDGE.top + ((extent.top - level) / (extent.top - extent.bottom)) * (height - EDGE.top - EDGE.bottom);
    };
    if (fresh !== this.drawn) this.axes(extent, frequency);
    this.drawn = fresh;
    this.paths(frequency, lines);
  }

  axes({ top, bottom }, frequency) {
    const [width, height] = this.size;
    this.frame.replaceChildren();
    this.clip.setAttribute("width", width - EDGE.left - EDGE.right);
    this.clip.setAttribute("height", height - EDGE.bottom);
    const every = Math.ceil((top - bottom) / 5);
    for (let n = bottom; n <= top; n += every) {
      const y = this.y(10 ** n);
      node("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y, y2: y }, this.frame);
      node("text", { x: EDGE.left - 6, y: y + 4, "text-anchor": "end" }, this.frame).textContent = power(n);
    }
    for (const f of [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]) {
      if (f < frequency[0] || f > frequency.at(-1)) continue;
      node("text", { x: this.x(f), y: height - EDGE.bottom + 16, "text-anchor": "middle" }, this.frame).textContent = f;
    }
    const middle = (EDGE.left + width - EDGE.right) / 2;
    node("text", { x: middle, y: height - 6, "text-anchor": "middle" }, this.frame).textContent = "cycles per pixel";
  }

  paths(frequency, lines) {
    const names = Object.keys(lines);
    if (names.join() !== this.names) {
      this.names = names.join();
      this.lines.replaceChildren(...names.map((name) => node("path", { class: `line-${name} ${DASHED.has(name) ? "dashed" : ""}` })));
      this.caption.replaceChildren(...names.map((name) => {
        const key = document.createElement("span");
        key.className = `key key-${name} ${DASHED.has(name) ? "dashed" : ""}`;
        key.textContent = NAMES[name] ?? name;
        return key;
      }));
    }
    names.forEach((name, i) => {
      const points = frequency.map((f, k) => `${this.x(f).toFixed(1)} ${this.y(lines[name][k]).toFixed(1)}`);
      this.lines.children[i].setAttribute("d", `M${points.join("L")}`);
    });
  }
}
