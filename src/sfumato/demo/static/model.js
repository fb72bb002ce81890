// The controls that sampling and restoring share: model, sampler, steps, grid, class, seed.

import { get } from "./api.js";
import { choice, element, levels, seed, slider } from "./controls.js";

const STEPS = 200;
const USUAL = 50;

export class ModelControls {
  constructor({ offered, names, images, changed, renewed, failed }) {
    this.offered = offered;
    this.changed = changed;
    this.renewed = renewed;
    this.failed = failed;
    this.model = choice({ label: "Model", choices: names.map((n) => [n]), value: names[0] },
      () => this.load());
    this.sampler = choice({ label: "Sampler", choices: [["", "the model\u2019s own"], ...offered.samplers.map((s) => [s.name])], value: "" },
      () => { this.parts(); changed(); });
    this.grid = choice({ label: "Grid of times", choices: offered.grids.map((g) => [g.name]), value: "own" }, changed);
    this.images = slider({ label: "Images", value: images, low: 1, high: 16, whole: true }, changed);
    this.seed = seed({ label: "Seed", value: 0 }, changed);
    this.numbers = element("div", { className: "bare" });
    this.stepsPlace = element("div");
    this.classPlace = element("div");
    this.parts();
  }

  get elements() {
    return [this.sampler.element, this.numbers, this.stepsPlace, this.grid.element, this.classPlace, this.images.element, this.seed.element];
  }

  // The numbers of a sampler, such as eta of ddim.
  parts() {
    const found = this.offered.samplers.find((s) => s.name === this.sampler.value);
    const described = Object.entries(found?.parameters ?? {}).map(([name, value]) => {
      const whole = Number.isInteger(value) && ["steps", "order"].includes(name);
      return { name, help: "", kind: whole ? "whole" : "number", value, low: whole ? 1 : 0, high: Math.max(whole ? 4 : 1, 2 * value) };
    });
    this.extra = levels(described, this.changed);
    this.numbers.replaceChildren(...this.extra.elements);
    this.sampler.element.title = found?.help ?? "As the model was published, or trained to be sampled.";
  }

  async load() {
    try {
      this.known = await get(`/api/model?name=${encodeURIComponent(this.model.value)}`);
    } catch (error) {
      if (!error.stale) this.failed(error);
      return;
    }
    const { steps, fixed, classes, sampler } = this.known;
    const usual = fixed ? steps : Math.min(steps, USUAL);
    this.steps = slider({ label: "Steps", value: usual, low: 1, high: Math.max(STEPS, usual), whole: true, log: true }, this.changed);
    this.steps.off = fixed;
    this.stepsPlace.replaceChildren(this.steps.element);
    this.sampler.element.querySelector("option").textContent = `the model\u2019s own (${sampler})`;
    this.kind = classes ? choice({ label: "Class", choices: classes.map((c, i) => [String(i), c]), value: "0" }, this.changed) : null;
    this.classPlace.replaceChildren(...(this.kind ? [this.kind.element] : []));
    this.classPlace.hidden = !this.kind;
    this.renewed(this.known);
  }

  get values() {
    return {
      model: this.model.value,
      sampler: this.sampler.value || null,
      numbers: this.extra.values,
      steps: this.steps.value,
      grid: this.grid.value,
      images: this.images.value,
      seed: this.seed.value,
      class: this.kind ? Number(this.kind.value) : null,
    };
  }
}
