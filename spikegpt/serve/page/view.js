// One run on the page: its text, its figures, its spikes, and one neuron of it.

import { Curve } from "./curve.js";
import { Raster, fires } from "./raster.js";
import { element, percent, short, surprise, visible } from "./words.js";

const KEPT = 4096; // tokens whose spikes are remembered
const TRACED = 200; // of them, shown for one neuron
const LISTED = 40; // in the table
const DRIVERS = 8;

export class View {
  /** Shows `facts` of a run, and what `show` is given of its tokens; `changed` is called when a neuron is chosen. */
  constructor(facts, changed) {
    this.facts = facts;
    this.changed = changed;
    let start = 0;
    this.layers = facts.layers.map((layer) => {
      const placed = { ...layer, start };
      start += layer.channels;
      return placed;
    });
    this.neurons = start;
    this.history = [];
    this.chosen = null;
    this.root = document.getElementById("run").content.cloneNode(true).firstElementChild;
    this.find(".facts").textContent =
      `${facts.block === "none" ? "dense" : "spiking"}, ${facts.mixer}, ${facts.n_layer} layers of ${facts.n_embd}, ` +
      `${short(facts.parameters)} parameters` + (start ? `, ${start.toLocaleString("en")} neurons` : "");
    this.find("h2").textContent = facts.name;
    this.find(".spikes").hidden = !this.layers.length;
    this.all(".table .scroll")[1].hidden = !this.layers.length;
    this.find('[data-figure="rate"]').parentElement.hidden = !this.layers.length;
    this.curve = new Curve(this.find(".training"), facts);
    this.raster = new Raster(this.find(".raster"), this.layers, this.history);
    this.listen();
    this.clear();
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  all(selector) {
    return [...this.root.querySelectorAll(selector)];
  }

  listen() {
    const [canvas, layer, neuron] = [this.find(".raster"), this.find('[data-pick="layer"]'), this.find('[data-pick="neuron"]')];
    this.layers.forEach((one, n) => {
      const place = one.block === null ? "" : `block ${one.block}, `;
      layer.append(new Option(`${place}${one.half} ${one.site}`.trim(), n));
    });
    canvas.addEventListener("click", (event) => {
      const found = this.raster.at(event.offsetX, event.offsetY);
      if (found) this.choose(found);
    });
    canvas.addEventListener("keydown", (event) => this.move(event));
    for (const input of [layer, neuron]) {
      input.addEventListener("change", () => {
        this.choose({ layer: Number(layer.value), neuron: Number(neuron.value), token: this.history.length - 1 });
      });
    }
    this.find(".text").addEventListener("click", (event) => {
      const token = event.target.dataset?.token;
      if (token !== undefined && this.layers.length) {
        this.choose({ layer: 0, neuron: 0, ...this.chosen, token: Number(token) - this.forgotten });
      }
    });
  }

  /** Arrow keys: up and down the shown neurons, left and right the tokens. */
  move(event) {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
    if (down === undefined) return;
    event.preventDefault();
    let { layer, neuron, token } = this.chosen ?? { layer: 0, neuron: 0, token: this.history.length - 1 };
    const bands = this.raster.bands;
    let row = bands[layer].findLastIndex((one) => one <= neuron) + down;
    if (row < 0 && layer > 0) row = bands[--layer].length - 1;
    else if (row >= bands[layer].length && layer < bands.length - 1) [layer, row] = [layer + 1, 0];
    row = Math.min(Math.max(row, 0), bands[layer].length - 1);
    token = Math.min(Math.max(token + right, 0), Math.max(this.history.length - 1, 0));
    this.choose({ layer, neuron: down ? bands[layer][row] : neuron, token });
  }

  /** Choose {layer, neuron, token} and show the neuron. */
  choose(chosen) {
    if (!this.layers.length) return;
    const layer = Math.min(Math.max(chosen.layer || 0, 0), this.layers.length - 1);
    const neuron = Math.min(Math.max(Math.trunc(chosen.neuron) || 0, 0), this.layers[layer].channels - 1);
    this.chosen = { layer, neuron, token: chosen.token };
    this.find('[data-pick="layer"]').value = layer;
    Object.assign(this.find('[data-pick="neuron"]'), { value: neuron, max: this.layers[layer].channels - 1 });
    this.changed();
    this.draw();
  }

  /** Begin a text: what was seen of neurons before is kept, what is shown is not. */
  clear() {
    this.shown = { tokens: 0, bits: 0, scored: 0, began: null, written: 0 };
    this.pending = 0;
    this.forgotten = 0;
    this.history.length = 0;
    this.find(".text").replaceChildren();
    this.totals = this.layers.map(() => 0);
    if (this.chosen) this.chosen.token = 0;
    this.draw();
  }

  /** Take in one token, as the server tells of it. */
  show(token, isPrompt) {
    token.fired = Uint8Array.from(atob(token.fired), (sign) => sign.charCodeAt(0));
    token.rates = this.layers.map((layer) => this.rate(token, layer));
    token.operations = token.macs + token.acs;
    this.history.push(token);
    token.rates.forEach((rate, n) => { this.totals[n] += rate; });
    this.shown.tokens += 1;
    if (token.bits !== null) {
      this.shown.bits += token.bits;
      this.shown.scored += 1;
    }
    if (!isPrompt) {
      this.shown.began ??= performance.now();
      this.shown.written += 1;
    }
    this.write(token, isPrompt);
    if (this.history.length > KEPT) {
      this.history.shift();
      this.forgotten += 1;
    }
    if (this.chosen) this.chosen.token = this.history.length - 1;
  }

  rate(token, layer) {
    let count = 0;
    for (let neuron = 0; neuron < layer.channels; neuron += 1) count += fires(token, layer, neuron);
    return count / layer.channels;
  }

  /** The text of a token, underlined by its surprise; of several for one character, by theirs together. */
  write(token, isPrompt) {
    this.pending += token.bits ?? 0;
    if (!token.text) return;
    const known = token.bits === null ? null : this.pending / [...token.text].length;
    const span = element("span", `${surprise(known)}${isPrompt ? " prompt" : ""}`, token.text);
    span.dataset.token = this.shown.tokens - 1;
    span.title = known === null ? "the first token" : `${this.pending.toFixed(2)} bits`;
    this.pending = 0;
    const text = this.find(".text");
    const isAtEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 8;
    text.append(span);
    if (isAtEnd) text.scrollTop = text.scrollHeight;
  }

  /** Bring all that is shown up to date. */
  draw() {
    const last = this.history.at(-1);
    const set = (name, words) => { this.find(`[data-figure="${name}"]`).textContent = words; };
    set("pace", this.pace());
    set("bits", this.shown.scored ? `${(this.shown.bits / this.shown.scored).toFixed(2)} bits` : "–");
    if (last) {
      const fired = this.layers.reduce((sum, layer, n) => sum + last.rates[n] * layer.channels, 0);
      set("rate", this.layers.length ? percent(fired / this.neurons) : "–");
      const share = last.operations / this.facts.dense_macs;
      set("operations", `${short(last.operations)}; dense, zeros included: ${short(this.facts.dense_macs)} (${percent(share)})`);
      this.find(".macs").style.width = `${(100 * last.macs) / this.facts.dense_macs}%`;
      this.find(".acs").style.width = `${(100 * last.acs) / this.facts.dense_macs}%`;
    }
    if (this.layers.length) {
      const means = this.totals.map((total) => total / Math.max(this.shown.tokens, 1));
      this.raster.draw(this.chosen, means);
      this.find(".raster").setAttribute("aria-label", this.summary(means));
      this.drawNeuron();
    }
    if (this.find(".table").open) this.tabulate();
  }

  pace() {
    const seconds = (performance.now() - this.shown.began) / 1000;
    return this.shown.written > 1 && seconds > 0 && !this.isDone ? (this.rateShown = (this.shown.written / seconds).toFixed(0))
      : this.rateShown ?? "–";
  }

  summary(means) {
    if (!this.history.length) return "Raster of spikes, empty: write something first";
    const most = means.indexOf(Math.max(...means));
    const words = `${this.shown.tokens} tokens, ${this.layers.length} layers; most fires ${this.raster.name(this.layers[most])}`;
    return `Raster of spikes: ${words}, ${percent(means[most])}. Arrow keys choose a neuron and a token.`;
  }

  drawNeuron() {
    const cursor = this.find(".cursor");
    if (!this.chosen || !this.history.length) {
      cursor.textContent = "";
      this.find(".fires").textContent = "Write something, then choose a neuron.";
      this.find(".trace").replaceChildren();
      this.find(".drivers").replaceChildren();
      return;
    }
    const { neuron, token } = this.chosen;
    const layer = this.layers[this.chosen.layer];
    const at = this.history[token];
    if (at) {
      const bits = at.bits === null ? "" : `, ${at.bits.toFixed(2)} bits`;
      cursor.textContent = `Token ${token + 1} “${visible(at.label)}”${bits}: neuron ${neuron} of ${this.raster.name(layer)} ` +
        (fires(at, layer, neuron) ? "fired" : "was silent");
    }
    const counts = new Map();
    let total = 0;
    for (const one of this.history) {
      const count = counts.get(one.label) ?? { seen: 0, fired: 0 };
      const fired = fires(one, layer, neuron);
      count.seen += 1;
      count.fired += fired;
      total += fired;
      counts.set(one.label, count);
    }
    this.find(".fires").textContent =
      `It fired at ${total} of ${this.history.length} tokens (${percent(total / this.history.length)}); ` +
      (layer.synapses ? `a spike of it reaches ${layer.synapses.toLocaleString("en")} synapses.` : "no matrix reads it.");
    this.drawTrace(layer, neuron);
    const drivers = [...counts].filter(([, count]) => count.fired)
      .sort(([, a], [, b]) => b.fired - a.fired || a.seen - b.seen).slice(0, DRIVERS);
    this.find(".drivers").replaceChildren(...drivers.map(([label, count]) => {
      const item = element("li");
      item.append(element("code", "", visible(label)), ` ${count.fired} of ${count.seen}`);
      return item;
    }));
  }

  drawTrace(layer, neuron) {
    const first = Math.max(0, this.history.length - TRACED);
    this.find(".trace").replaceChildren(...this.history.slice(first).map((one, n) => {
      const text = one.label.startsWith("bytes:") ? "·" : one.label;
      const kind = `${fires(one, layer, neuron) ? "on" : ""}${first + n === this.chosen.token ? " at" : ""}`;
      return element("span", kind, text);
    }));
  }

  tabulate() {
    const [tokens, layers] = this.all(".table tbody");
    tokens.replaceChildren(...this.history.slice(-LISTED).reverse().map((one) => row(
      visible(one.label),
      one.bits === null ? "–" : one.bits.toFixed(2),
      this.layers.length ? percent(one.rates.reduce((sum, rate, n) => sum + rate * this.layers[n].channels, 0) / this.neurons) : "–",
      short(one.operations),
    )));
    const last = this.history.at(-1);
    layers.replaceChildren(...this.layers.map((layer, n) => row(
      layer.name,
      last ? percent(last.rates[n]) : "–",
      percent(this.totals[n] / Math.max(this.shown.tokens, 1)),
    )));
  }
}

function row(...cells) {
  const made = element("tr");
  made.append(...cells.map((cell) => element("td", "", cell)));
  return made;
}
