// The training curve of a run, live while it trains.

import { ask } from "./stream.js";

const EVERY_MS = 2000;
const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, BOTTOM] = [600, 240, 64, 30];

export class Curve {
  constructor(details, facts) {
    this.details = details;
    this.path = `/runs/${encodeURIComponent(facts.name)}`;
    this.points = [];
    this.next = 0;
    details.hidden = !facts.has_curve && !facts.has_report;
    details.querySelector("svg").toggleAttribute("hidden", !facts.has_curve);
    const report = details.querySelector(".report");
    if (facts.has_report) {
      const link = Object.assign(document.createElement("a"), { href: `${this.path}/report`, target: "_blank" });
      link.rel = "noopener";
      link.textContent = `Report of ${facts.name}`;
      report.append(link);
    } else {
      report.textContent = "No report yet; spikegpt measure RUN writes one.";
    }
    if (facts.has_curve) details.addEventListener("toggle", () => this.follow());
  }

  /** Fetch what is new, again and again while the curve is open and the training goes on. */
  async follow() {
    clearTimeout(this.timer);
    if (!this.details.open || !this.details.isConnected) return;
    const now = this.details.querySelector(".now");
    try {
      const found = await ask(`${this.path}/curve?after=${this.next}`);
      if (found.is_anew) this.points = [];
      this.points.push(...found.points);
      this.next = found.next;
      this.draw(found.steps, now);
    } catch (error) {
      now.textContent = error.message;
    }
    this.timer = setTimeout(() => this.follow(), EVERY_MS);
  }

  draw(steps, now) {
    const svg = this.details.querySelector("svg");
    const last = this.points.at(-1);
    if (!last) {
      now.textContent = "No step was logged yet.";
      return;
    }
    const end = Math.max(steps ?? 0, last.step, 1);
    const bits = this.points.map((point) => point.bits_per_byte);
    const [low, high] = [Math.min(...bits), Math.max(...bits, Math.min(...bits) + 0.1)];
    const x = (step) => LEFT + (step / end) * (WIDTH - LEFT - 8);
    const y = (value) => 8 + ((high - value) / (high - low)) * (HEIGHT - BOTTOM - 16);
    const of = (kind) => this.points.filter((point) => point.kind === kind);
    const line = (points) => points.map((point) => `${x(point.step)},${y(point.bits_per_byte)}`).join(" ");
    svg.replaceChildren(
      shape("polyline", { class: "axis", points: `${LEFT},8 ${LEFT},${HEIGHT - BOTTOM} ${WIDTH - 8},${HEIGHT - BOTTOM}` }),
      shape("polyline", { class: "train", points: line(of("train")) }),
      shape("polyline", { class: "valid", points: line(of("valid")) }),
      ...of("valid").map((point) => shape("circle", { cx: x(point.step), cy: y(point.bits_per_byte), r: 3 })),
      words(high.toFixed(2), LEFT - 6, 26, "end"),
      words(low.toFixed(2), LEFT - 6, HEIGHT - BOTTOM, "end"),
      words("bits per byte; dots: on text it has not seen", LEFT + 16, 26),
      words(`step ${end.toLocaleString("en")}`, WIDTH - 8, HEIGHT - 6, "end"),
    );
    const valid = of("valid").at(-1);
    const seen = valid ? `, ${valid.bits_per_byte.toFixed(3)} bits per byte on unseen text at step ${valid.step}` : "";
    const goes = steps !== null && last.step < steps ? "training, or broken off: " : "";
    now.textContent = `${goes}step ${last.step} of ${steps ?? "?"}, ${last.bits_per_byte.toFixed(3)} bits per byte${seen}`;
    svg.setAttribute("aria-label", `Training curve: ${now.textContent}`);
  }
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function words(text, x, y, anchor = "start") {
  const made = shape("text", { x, y, "text-anchor": anchor });
  made.textContent = text;
  return made;
}
