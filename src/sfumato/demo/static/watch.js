// A sampler on its way: x_t and the estimate of x_0 side by side, every step kept to go back to.

import { events } from "./api.js";
import { Chart } from "./chart.js";
import { element, slider } from "./controls.js";
import { draw, split } from "./sheet.js";

const FRAMES = 9;

function picture(name, text) {
  const canvas = element("canvas", { width: 28, height: 28 });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", text);
  const told = element("span");
  const figure = element("figure", { className: "picture" }, canvas, element("figcaption", {}, element("b", {}, name), told));
  return { figure, canvas, told };
}

export class Watch {
  constructor(place, say, other = () => {}) {
    this.say = say;
    this.other = other;
    this.x = picture("x\u209c", "The sample on its way");
    this.estimate = picture("x\u0302\u2080", "The estimate of the clean image");
    this.bar = element("div", { className: "progress" }, element("i"));
    this.bar.setAttribute("role", "progressbar");
    this.bar.setAttribute("aria-label", "Steps done");
    const chart = element("figure", { className: "chart" }, element("figcaption"));
    this.chart = new Chart(chart);
    this.scrub = slider({ label: "Step", value: 0, low: 0, high: 1, whole: true }, (i) => this.show(i));
    this.strip = element("ol", { className: "strip" });
    this.strip.setAttribute("aria-label", "The first image from noise to sample");
    place.append(
      element("div", { className: "trio" }, this.x.figure, this.estimate.figure, chart),
      element("div", { className: "steps" }, this.bar, this.scrub.element), this.strip);
    this.moments = [];
  }

  get running() {
    return this.control !== undefined;
  }

  stop() {
    this.control?.abort();
  }

  // Run a request to its end; a newer one stops it.
  async run(path, body, changed) {
    this.stop();
    const control = new AbortController();
    this.control = control;
    this.moments = [];
    this.strip.replaceChildren();
    this.follow = true;
    this.bar.classList.add("waiting", "running");
    this.chart.reset();
    this.say(null);
    changed();
    try {
      await events(path, body, control.signal, (event) => this.hear(event));
    } catch (error) {
      if (error.name !== "AbortError" && !error.stale) this.say(error);
    }
    if (this.control !== control) return;
    this.control = undefined;
    this.bar.classList.remove("waiting", "running");
    changed();
  }

  hear(event) {
    if (event.kind === "error") this.say(new Error(event.error));
    else if (event.kind === "end" && event.notes.length) this.say({ message: event.notes.join(" "), note: true });
    else if (event.kind === "moment") this.add(event);
    else this.other(event);
  }

  add(moment) {
    this.bar.classList.remove("waiting");
    this.moments.push(moment);
    this.bar.firstChild.style.width = `${(100 * moment.done) / moment.steps}%`;
    this.bar.setAttribute("aria-valuenow", Math.round((100 * moment.done) / moment.steps));
    const last = this.moments.length - 1;
    this.scrub.high = Math.max(1, last);
    if (this.follow) {
      this.scrub.value = last;
      this.show(last);
    }
    this.thumbs(moment, last);
  }

  // A picture of the first image at FRAMES even steps, each a way back to its step.
  thumbs(moment, i) {
    const share = (moment.done / moment.steps) * (FRAMES - 1);
    const known = this.strip.children.length;
    if (share < known - 1e-9) return;
    const canvas = element("canvas", { "aria-hidden": "true" });
    draw(canvas, split(moment.x)[0]);
    const t = String(Number(moment.t.toFixed(3)));
    const made = element("button", { type: "button" }, canvas, t);
    made.setAttribute("aria-label", `Go back to time ${t}`);
    made.addEventListener("click", () => { this.scrub.value = i; this.show(i); });
    this.strip.append(element("li", {}, made));
  }

  show(i) {
    const moment = this.moments[Math.min(i, this.moments.length - 1)];
    if (!moment) return;
    this.follow = i >= this.moments.length - 1;
    draw(this.x.canvas, moment.x);
    this.x.told.textContent = `t = ${Number(moment.t.toFixed(3))}`;
    draw(this.estimate.canvas, moment.estimate ?? moment.x);
    this.estimate.told.textContent = moment.estimate ? "estimate of the image" : "not known here";
    this.chart.show(moment.spectrum);
    this.scrub.says = `${moment.done} of ${moment.steps}`;
  }
}
