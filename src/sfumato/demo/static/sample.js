// Sampling: a model's reverse process, step by step.

import { button, check, element, heading, slider } from "./controls.js";
import { ModelControls } from "./model.js";
import { Watch } from "./watch.js";

const PAUSE = 250;

export class Sample {
  constructor(page, offered, say) {
    this.page = page;
    this.say = say;
    this.watch = new Watch(page.querySelector(".watch"), say, (event) => this.begin(event));
    this.go = button("Sample", () => (this.watch.running ? this.stop() : this.run()), true);
    this.clip = check({ label: "Clip estimates to the data\u2019s range", value: false }, () => this.later());
    this.guidance = slider({ label: "Guidance", value: 0, low: 0, high: 8 }, () => this.later());
    this.controls = new ModelControls({
      offered, names: offered.models, images: 9,
      changed: () => this.later(), renewed: (known) => this.renew(known), failed: say,
    });
    page.querySelector(".panel").append(
      heading("Model"), this.controls.model.element, heading("Sampler"), ...this.controls.elements,
      this.guidance.element, this.clip.element, element("div", { className: "buttons" }, this.go));
  }

  open() {
    if (!this.controls.known) this.controls.load();
  }

  close() {
    this.stop();
  }

  renew(known) {
    this.page.querySelector("h1").textContent = known.name;
    this.page.querySelector(".about").textContent = `${known.method}, trained on ${known.data}.`;
    this.guidance.off = !known.guidance;
    this.guidance.value = Math.min(this.guidance.value, known.guidance);
    this.guidance.element.title = known.guidance ? "0 is none." : "This model has no classes to be guided to.";
    this.run();
  }

  // A slider that moves stops the sampler, and starts it again when it rests.
  later() {
    this.watch.stop();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.run(), PAUSE);
  }

  stop() {
    clearTimeout(this.timer);
    this.watch.stop();
  }

  run() {
    if (!this.controls.known) return;
    const body = { ...this.controls.values, clip: this.clip.value, guidance: this.guidance.value };
    this.watch.run("/api/sample", body, () => {
      this.go.textContent = this.watch.running ? "Stop" : "Sample again";
    });
  }

  begin(event) {
    if (event.kind !== "begin") return;
    const { method, data } = this.controls.known;
    const calls = event.calls === 1 ? "one network call" : `${event.calls} network calls`;
    this.page.querySelector(".about").textContent = `${method}, trained on ${data}: ${calls} for each image.`;
  }
}
