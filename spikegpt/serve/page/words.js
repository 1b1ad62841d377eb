// Numbers and tokens as they are shown.

const SURPRISES = [0.5, 1, 2, 4, 8];

/** The class of so many bits: b1 to b6, more of them thicker and further along the scale; b0 for none known. */
export function surprise(bits) {
  return bits === null ? "b0" : `b${1 + SURPRISES.filter((bound) => bits >= bound).length}`;
}

/** [class, words] of each step of the scale. */
export function scale() {
  const bounds = [0, ...SURPRISES];
  return bounds.map((low, n) => [`b${n + 1}`, n < SURPRISES.length ? `${low}–${SURPRISES[n]}` : `${low} and more`]);
}

/** 1234567 as 1.23 M. */
export function short(number) {
  for (const [size, sign] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
    if (number >= size) return (number / size).toPrecision(3) + sign;
  }
  return String(Math.round(number));
}

export function percent(share) {
  return `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
}

const NAMES = { "\n": "↵", "\t": "⇥", " ": "␣" };

/** A token as it can be read where it stands alone. */
export function visible(label) {
  return label.replace(/[\n\t ]/g, (sign) => NAMES[sign]);
}

/** An element with a class and a text. */
export function element(name, kind, text) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}
