// The raster: a band for each layer of neurons, a column for each token, the mean firing rate of the layer at the right.

const SHOWN = 8; // neurons of a layer, evenly over it
const DOT = 2; // their height in CSS pixels
const GAP = 5;
const BAND = SHOWN * DOT + GAP;
const COLUMN = 4;

export class Raster {
  /** Draws tokens of `history` (see view.js) into `canvas`; `layers` say what stands where. */
  constructor(canvas, layers, history) {
    this.canvas = canvas;
    this.layers = layers;
    this.history = history;
    this.bands = layers.map((layer) => {
      const shown = Math.min(SHOWN, layer.channels);
      return Array.from({ length: shown }, (_, n) => Math.floor((n * layer.channels) / shown));
    });
    canvas.style.height = `${this.layers.length * BAND + GAP}px`;
  }

  get columns() {
    return Math.max(1, Math.floor((this.width - this.left - this.right) / COLUMN));
  }

  get width() {
    return this.canvas.clientWidth;
  }

  /** Where names end, and how much room the rates have; less of both on a phone. */
  get left() {
    return this.width < 480 ? 84 : 150;
  }

  get right() {
    return this.width < 480 ? 46 : 90;
  }

  /** The number of the token in the first column. */
  get first() {
    return Math.max(0, this.history.length - this.columns);
  }

  /** {layer, neuron, token} at a point of the canvas; null beside the bands. */
  at(x, y) {
    const layer = Math.floor((y - GAP / 2) / BAND);
    if (layer < 0 || layer >= this.layers.length) return null;
    const row = Math.floor((y - GAP - layer * BAND) / DOT);
    const band = this.bands[layer];
    const neuron = band[Math.min(Math.max(row, 0), band.length - 1)];
    const token = this.first + Math.floor((x - this.left) / COLUMN);
    return { layer, neuron, token: Math.min(Math.max(token, 0), this.history.length - 1) };
  }

  /** Draw all of it; `chosen` {layer, neuron, token} is marked. */
  draw(chosen, means) {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [this.width, this.layers.length * BAND + GAP];
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    const pen = this.canvas.getContext("2d");
    const style = getComputedStyle(this.canvas);
    const colour = (name) => style.getPropertyValue(name);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `${width < 480 ? 10 : 11}px system-ui, sans-serif`;
    pen.textBaseline = "middle";
    const shown = this.history.slice(this.first);
    this.layers.forEach((layer, n) => {
      const top = GAP + n * BAND;
      pen.fillStyle = n === chosen?.layer ? colour("--chosen") : colour("--muted");
      pen.fillText(this.name(layer, width < 480), 0, top + (BAND - GAP) / 2, this.left - 6);
      pen.fillStyle = layer.half === "channel mix" ? colour("--spike-other") : colour("--spike");
      this.bands[n].forEach((neuron, row) => {
        shown.forEach((token, column) => {
          if (fires(token, layer, neuron)) {
            pen.fillRect(this.left + column * COLUMN, top + row * DOT, COLUMN - 1, DOT - 0.5);
          }
        });
      });
      this.drawRate(pen, means[n] ?? 0, width - this.right + 6, top, colour);
    });
    if (chosen) this.mark(pen, chosen, colour("--chosen"));
  }

  drawRate(pen, mean, x, top, colour) {
    const room = this.right - 44;
    if (room > 10) pen.fillRect(x, top + 3, mean * room, BAND - GAP - 6);
    pen.fillStyle = colour("--ink");
    pen.fillText(`${(100 * mean).toFixed(0)} %`, x + Math.max(room, 0) + 4, top + (BAND - GAP) / 2);
  }

  mark(pen, chosen, colour) {
    const band = this.bands[chosen.layer];
    const row = band.findLastIndex((neuron) => neuron <= chosen.neuron);
    pen.strokeStyle = colour;
    pen.lineWidth = 1;
    const y = GAP + chosen.layer * BAND + row * DOT;
    pen.strokeRect(this.left - 1, y - 1, this.columns * COLUMN + 1, DOT + 1);
    if (chosen.token >= this.first) {
      const x = this.left + (chosen.token - this.first) * COLUMN;
      pen.strokeRect(x - 1, GAP / 2, COLUMN + 1, this.layers.length * BAND);
    }
  }

  /** A layer in few letters: block, half and site; in fewer on a phone. */
  name(layer, isShort = false) {
    const half = layer.half.replace(" mix", "");
    const place = layer.block === null ? "" : `${layer.block} `;
    return `${place}${isShort ? `${half.slice(0, 2)} ${layer.site.slice(0, 6)}` : `${half} ${layer.site}`}`.trim();
  }
}

/** Whether a neuron of `layer` fired at a token. */
export function fires(token, layer, neuron) {
  const place = layer.start + neuron;
  return (token.fired[place >> 3] >> (7 - (place & 7))) & 1;
}
