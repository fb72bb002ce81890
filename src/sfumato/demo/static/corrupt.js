// The forward process on an image: x_t at once, its spectrum, and a strip of times.

import { latest, post } from "./api.js";
import { Chart } from "./chart.js";
import { button, choice, element, heading, levels, seed, slider } from "./controls.js";
import { droppable, opener } from "./pictures.js";
import { typeset } from "./formula.js";
import { draw, split } from "./sheet.js";

const FRAMES = 9;
const PLAY = "M3 1.5v13l11-6.5z";
const PAUSE = "M3 1.5h3.6v13H3zM9.4 1.5H13v13H9.4z";
const EXAMPLES = [["flower", "Flower"], ["china", "Temple"]];

export class Corrupt {
  constructor(page, offered, say) {
    this.page = page;
    this.offered = offered;
    this.say = say;
    this.image = "flower";
    this.names = new Map(EXAMPLES);
    this.canvas = page.querySelector(".picture canvas");
    this.chart = new Chart(page.querySelector(".chart"));
    this.method = choice({
      label: "Method",
      choices: offered.methods.map((m) => [m.name, `${m.title} (${m.name})`]),
      value: "soft",
    }, () => this.choose());
    this.seed = seed({ label: "Seed of the noise", value: 0 }, () => this.ask(true));
    this.ask = latest((frames) => this.fetch(frames));
    this.time();
    this.panel();
    droppable(page.querySelector("[data-drop]"), (found, name) => this.take(found, name), say);
  }

  panel() {
    this.images = element("div", { className: "buttons", role: "group" });
    this.images.setAttribute("aria-label", "Image");
    this.list = element("div", { className: "bare" });
    this.page.querySelector(".panel").append(
      heading("Image"), this.images,
      opener("Open your own\u2026", (found, name) => this.take(found, name), this.say),
      heading("Corruption"), this.method.element, this.list,
      button("Reset the levels", () => { this.levels.reset(); this.ask(true); }),
      this.seed.element,
    );
    this.thumbs();
  }

  thumbs() {
    this.images.replaceChildren(...[...this.names].map(([name, text]) => {
      const made = button(text, () => { this.image = name; this.thumbs(); this.chart.reset(); this.ask(true); });
      made.setAttribute("aria-pressed", name === this.image);
      return made;
    }));
  }

  take({ image }, name) {
    this.image = image;
    this.names.set(image, (name || "Yours").slice(0, 18));
    this.thumbs();
    this.chart.reset();
    this.ask(true);
  }

  time() {
    this.t = slider({ label: "Time t", value: 0.3, low: 0, high: 1 }, () => { this.stop(); this.ask(false); });
    this.path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    icon.setAttribute("viewBox", "0 0 16 16");
    icon.append(this.path);
    this.player = element("button", { type: "button", className: "round" }, icon);
    this.player.addEventListener("click", () => (this.playing ? this.stop() : this.play()));
    this.stop();
    this.page.querySelector(".time").append(this.player, this.t.element);
    this.page.querySelector(".time").style.gridTemplateColumns = "auto minmax(0, 1fr)";
  }

  stop() {
    this.playing = false;
    this.path.setAttribute("d", PLAY);
    this.player.setAttribute("aria-label", "Play from clean to corrupted");
  }

  async play() {
    this.playing = true;
    this.path.setAttribute("d", PAUSE);
    this.player.setAttribute("aria-label", "Pause");
    if (this.t.value >= 1) this.t.value = 0;
    while (this.playing && this.t.value < 1) {
      this.t.value = Math.min(1, Number((this.t.value + 0.01).toFixed(3)));
      await this.ask(false);
      await new Promise((resume) => setTimeout(resume, 30));
    }
    this.stop();
  }

  choose() {
    const method = this.offered.methods.find((m) => m.name === this.method.value);
    this.levels = levels(method.levels, () => this.ask(true));
    this.list.replaceChildren(...this.levels.elements);
    this.page.querySelector("h1").textContent = method.title;
    const about = this.page.querySelector(".about");
    about.textContent = `${method.summary[0].toUpperCase()}${method.summary.slice(1)}. ${method.reference}.`;
    this.chart.reset();
    this.ask(true);
  }

  open() {
    if (!this.levels) this.choose();
  }

  close() {
    this.stop();
  }

  async fetch(frames) {
    const body = {
      method: this.method.value,
      levels: this.levels.values,
      image: this.image,
      seed: this.seed.value,
      t: this.t.value,
      frames: frames ? FRAMES : 0,
    };
    try {
      const found = await post("/api/forward", body);
      this.say(null);
      draw(this.canvas, found.x);
      this.canvas.setAttribute("aria-label", `The image at time ${body.t} of ${body.method}`);
      this.page.querySelector(".picture figcaption").replaceChildren(
        element("b", {}, "x\u209c"), `at t = ${body.t}, ${found.x.shape[2]} \u00d7 ${found.x.shape[1]} pixels`);
      this.page.querySelector(".formula").replaceChildren(...typeset(found.formulas));
      this.chart.show(found.spectrum);
      if (found.frames) this.strip(found.frames);
      this.mark();
    } catch (error) {
      if (!error.stale) this.say(error);
    }
  }

  strip(frames) {
    const images = split(frames);
    this.page.querySelector(".strip").replaceChildren(...images.map((image, i) => {
      const t = i / (images.length - 1);
      const canvas = element("canvas", { "aria-hidden": "true" });
      draw(canvas, image);
      const made = element("button", { type: "button" }, canvas, String(t));
      made.setAttribute("aria-label", `Go to time ${t}`);
      made.dataset.t = t;
      made.addEventListener("click", () => { this.stop(); this.t.value = t; this.ask(false); });
      return element("li", {}, made);
    }));
  }

  mark() {
    for (const made of this.page.querySelectorAll(".strip button")) {
      made.setAttribute("aria-current", Math.abs(made.dataset.t - this.t.value) < 1e-6);
    }
  }
}
