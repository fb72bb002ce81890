// Restoration: an image is measured, and a model draws what it may have been.

import { latest, post } from "./api.js";
import { button, check, choice, element, heading, levels, slider } from "./controls.js";
import { ModelControls } from "./model.js";
import { droppable, opener } from "./pictures.js";
import { draw } from "./sheet.js";
import { Watch } from "./watch.js";

const PAUSE = 250;
const PLACES = [
  ["truth", "the image"],
  ["measured", "measurement y"],
  ["mean", "mean of the samples"],
  ["spread", "their spread"],
];

export class Restore {
  constructor(page, offered, say) {
    this.page = page;
    this.say = say;
    this.image = "sample";
    this.example = 0;
    this.ask = latest(() => this.measure());
    this.row = page.querySelector(".row");
    this.places = Object.fromEntries(PLACES.map(([name, text]) => {
      const canvas = element("canvas", { width: 28, height: 28 });
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", text);
      const figure = element("figure", { className: "picture" }, canvas, element("figcaption", {}, text));
      this.row.append(figure);
      return [name, { canvas, figure }];
    }));
    droppable(this.row, (found, name) => this.take(found, name), say);
    this.watch = new Watch(page.querySelector(".watch"), say, (event) => this.hear(event));
    this.go = button("Restore", () => (this.watch.running ? this.stop() : this.run()), true);
    this.controls = new ModelControls({
      offered, names: offered.models, images: 4,
      changed: () => this.later(), renewed: (known) => this.renew(known), failed: say,
    });
    this.rule = choice({ label: "Rule", choices: offered.rules.map((r) => [r]), value: "spectrum",
      help: "How the estimate follows the measurement." }, () => { this.scaled(); this.later(); });
    this.scale = slider({ label: "Scale of the rule", value: 1, low: 0, high: 4 }, () => this.later());
    this.noise = slider({ label: "Noise of y", value: 0.05, low: 0, high: 1,
      help: "Its standard deviation, for images in [-1, 1]." }, () => this.later());
    this.clean = check({ label: "The image is clean: measure it first", value: true }, () => this.later());
    this.operatorPlace = element("div", { className: "bare" });
    this.source = element("p", { className: "hint" });
    this.panel();
  }

  panel() {
    page(this.page).append(
      heading("Image"),
      element("div", { className: "buttons" },
        button("Another example", () => { this.image = "sample"; this.example += 1; this.sourced("made by the model"); this.later(); }),
        opener("Open your own\u2026", (found, name) => this.take(found, name), this.say)),
      this.source, this.clean.element,
      heading("Measurement"), this.operatorPlace, this.noise.element,
      heading("Model"), this.controls.model.element, this.rule.element, this.scale.element,
      ...this.controls.elements,
      element("div", { className: "buttons" }, this.go));
    this.sourced("made by the model");
    this.scaled();
  }

  // The other rules have no scale.
  scaled() {
    this.scale.off = !["pigdm", "dps"].includes(this.rule.value);
  }

  sourced(text) {
    this.source.textContent = `Now: an image ${text}.`;
  }

  take({ image }, name) {
    this.image = image;
    this.sourced(`of yours, ${name || "pasted"}, cut to a square`);
    this.later();
  }

  open() {
    if (!this.controls.known) this.controls.load();
  }

  close() {
    this.stop();
  }

  renew(known) {
    this.page.querySelector("h1").textContent = "Restore an image";
    this.page.querySelector(".about").textContent = `Samples of p(x\u2080 | y) for y = A x\u2080 + noise, by ${known.name}.`;
    const names = Object.keys(known.operators);
    const kept = this.operator && names.includes(this.operator.value) ? this.operator.value : "box";
    this.operator = choice({ label: "Operator A", choices: names.map((n) => [n]), value: kept }, () => { this.parts(); this.later(); });
    this.parts();
    this.later();
  }

  parts() {
    this.parameters = levels(this.controls.known.operators[this.operator.value], () => this.later());
    this.operatorPlace.replaceChildren(this.operator.element, ...this.parameters.elements);
  }

  get values() {
    return {
      ...this.controls.values,
      image: this.image,
      example: this.example,
      clean: this.clean.value,
      operator: this.operator.value,
      parameters: this.parameters.values,
      noise: this.noise.value,
      rule: this.rule.value,
      scale: this.scale.value,
    };
  }

  // The measurement is shown at once; the sampler follows when the sliders rest.
  later() {
    this.watch.stop();
    clearTimeout(this.timer);
    if (!this.operator) return;
    this.ask();
  }

  async measure() {
    try {
      const found = await post("/api/measure", this.values);
      this.say(null);
      this.place(found);
      this.places.truth.figure.hidden = !found.truth;
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.run(), PAUSE);
    } catch (error) {
      if (!error.stale) this.say(error);
    }
  }

  place(found) {
    for (const [name, { canvas }] of Object.entries(this.places)) {
      if (found[name]) draw(canvas, found[name]);
    }
  }

  stop() {
    clearTimeout(this.timer);
    this.watch.stop();
  }

  run() {
    if (!this.operator) return;
    for (const name of ["mean", "spread"]) {
      const { canvas } = this.places[name];
      canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    }
    this.watch.run("/api/restore", this.values, () => {
      this.go.textContent = this.watch.running ? "Stop" : "Restore again";
    });
  }

  hear(event) {
    if (event.kind === "restored") this.place(event);
  }
}

const page = (section) => section.querySelector(".panel");
