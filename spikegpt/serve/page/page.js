// The page: what is asked, whose turn it is, and a link that says it again.

import { ask, events } from "./stream.js";
import { View } from "./view.js";
import { element, scale } from "./words.js";

const NOTES = "spikegpt-notes";
const find = (id) => document.getElementById(id);
const form = find("ask").elements;
const status = find("status");

let runs = [];
let views = [];
let queues = [];
let stopping = null;
let isPaused = false;

// --- what is asked --------------------------------------------------------------------------------------------------

async function open() {
  try {
    runs = (await ask("/runs")).runs;
  } catch (error) {
    find("key").hidden = error.status !== 401;
    find("ask").hidden = true;
    status.textContent = error.message;
    return;
  }
  find("key").hidden = true;
  find("ask").hidden = false;
  form.run.replaceChildren(...runs.map((run) => new Option(run.name)));
  form.beside.replaceChildren(new Option("nothing", ""), ...runs.map((run) => new Option(run.name)));
  form.beside.value = runs.find((run, n) => n && run.block === "none")?.name ?? "";
  readLink();
  showRuns();
  status.textContent = "ready";
}

function showRuns() {
  stop();
  const names = [form.run.value, form.beside.value].filter((name, n, all) => name && all.indexOf(name) === n);
  views = names.map((name) => new View(runs.find((run) => run.name === name), writeLink));
  queues = views.map(() => []);
  find("runs").replaceChildren(...views.map((view) => view.root));
  for (const view of views) view.draw();
  showNotes();
}

async function write() {
  stop();
  const mine = new AbortController();
  stopping = mine;
  setPaused(false);
  queues = views.map(() => []);
  status.textContent = "reading the prompt";
  writeLink();
  for (const view of views) {
    Object.assign(view, { isDone: false, rateShown: undefined });
    view.clear();
  }
  const done = await Promise.all(views.map((view, n) => follow(view, queues[n], mine.signal)));
  const faults = done.filter((said) => said !== null);
  if (stopping === mine) {
    stopping = null;
    if (faults.length) status.textContent = faults.join("; ");
  }
}

/** Put the tokens of a run's text into its queue as they come; the words of the fault if it ends by one. */
async function follow(view, queue, signal) {
  const fields = {
    model: view.facts.name,
    prompt: form.prompt.value,
    max_tokens: Number(form.tokens.value),
    temperature: Number(form.temperature.value),
    seed: Number(form.seed.value),
  };
  try {
    for await (const event of events("/watch", fields, signal)) {
      if (event.type === "error") return event.error.message;
      if (event.type === "tokens") queue.push(...event.tokens.map((token) => [token, event.is_prompt]));
      if (event.type === "end") queue.push(null);
    }
  } catch (error) {
    if (!signal.aborted) return `${view.facts.name}: ${error.message}`;
  }
  return null;
}

function stop() {
  stopping?.abort();
  stopping = null;
}

// --- what is shown --------------------------------------------------------------------------------------------------

/** Show up to `most` tokens that wait for a view; whether there were any. */
function take(view, queue, most) {
  let left = most;
  while (queue.length && left > 0) {
    const next = queue.shift();
    if (next === null) {
      view.isDone = true;
    } else {
      view.show(...next);
      // the prompt is there at once
      left -= next[1] && most !== 1 ? 0 : 1;
    }
  }
  return left < most || view.isDone;
}

function advance(most) {
  let changed = false;
  views.forEach((view, n) => {
    const waiting = queues[n].length;
    if (waiting && take(view, queues[n], most ?? 2 + (waiting >> 3))) {
      view.draw();
      changed = true;
    }
  });
  if (changed) {
    const words = views.map((view) => `${view.facts.name}: ${view.shown.written} tokens${view.isDone ? ", done" : ""}`);
    if (isPaused || views.every((view) => view.isDone) || status.textContent === "reading the prompt") {
      status.textContent = `${isPaused ? "paused; " : ""}${words.join("; ")}`;
    }
  }
}

function frame() {
  if (!isPaused) advance();
  requestAnimationFrame(frame);
}

function setPaused(paused) {
  isPaused = paused;
  find("pause").setAttribute("aria-pressed", String(paused));
  find("pause").textContent = paused ? "Go on" : "Pause";
}

// --- notes ----------------------------------------------------------------------------------------------------------

function dismissed() {
  try {
    return JSON.parse(localStorage.getItem(NOTES)) ?? [];
  } catch {
    return [];
  }
}

function dismiss(names) {
  try {
    localStorage.setItem(NOTES, JSON.stringify(names));
  } catch {
    // the browser keeps nothing: they come again next time
  }
}

/** Each note once, where it is first needed, until it was dismissed. */
function showNotes() {
  const gone = dismissed();
  const shown = new Set();
  for (const view of views) {
    for (const note of view.all(".note")) {
      const name = note.dataset.note;
      const fits = name === "twin" ? view.facts.block === "none" : view.facts.layers.length;
      note.hidden = !fits || gone.includes(name) || shown.has(name);
      if (!note.hidden) shown.add(name);
      note.querySelector("button").onclick = () => {
        dismiss([...dismissed(), name]);
        showNotes();
        find("write").focus();
      };
    }
  }
  find("explain").hidden = !gone.length;
}

// --- link -----------------------------------------------------------------------------------------------------------

const SHARED = ["prompt", "run", "beside", "tokens", "temperature", "seed"];

function writeLink() {
  const link = new URLSearchParams(SHARED.map((name) => [name, form[name].value]));
  views.forEach((view, n) => {
    if (view.chosen) link.set(`neuron${n}`, `${view.chosen.layer}.${view.chosen.neuron}`);
  });
  history.replaceState(null, "", `#${link}`);
}

function readLink() {
  const link = new URLSearchParams(location.hash.slice(1));
  for (const name of SHARED) {
    const value = link.get(name);
    const isChoice = form[name] instanceof HTMLSelectElement;
    if (value !== null && (!isChoice || [...form[name].options].some((option) => option.value === value))) {
      form[name].value = value;
    }
  }
  chosenByLink = [0, 1].map((n) => link.get(`neuron${n}`)?.split(".").map(Number));
}

let chosenByLink = [];

function chooseByLink() {
  views.forEach((view, n) => {
    const [layer, neuron] = chosenByLink[n] ?? [];
    if (Number.isInteger(layer) && Number.isInteger(neuron)) view.choose({ layer, neuron, token: 0 });
  });
}

// --- listening ------------------------------------------------------------------------------------------------------

find("legend").append(...scale().map(([kind, words]) => {
  const item = element("li");
  item.append(element("span", kind, "abc"), ` ${words}`);
  return item;
}));
find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  write();
});
form.prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    find("ask").requestSubmit();
  }
});
for (const name of ["run", "beside"]) form[name].addEventListener("change", () => { showRuns(); writeLink(); });
find("pause").addEventListener("click", () => {
  setPaused(!isPaused);
  status.textContent = isPaused ? "paused" : "going on";
});
find("step").addEventListener("click", () => {
  setPaused(true);
  advance(1);
});
find("share").addEventListener("click", async () => {
  writeLink();
  try {
    await navigator.clipboard.writeText(location.href);
    status.textContent = "the link is copied";
  } catch {
    status.textContent = "the link is in the address bar";
  }
});
find("explain").addEventListener("click", () => {
  dismiss([]);
  showNotes();
});
find("key").addEventListener("submit", async (event) => {
  event.preventDefault();
  const headers = { Authorization: `Bearer ${event.target.elements.key.value}` };
  const answer = await fetch("/session", { method: "POST", headers });
  if (answer.ok) await start();
  else status.textContent = "that is not the key";
});
window.addEventListener("resize", () => views.forEach((view) => view.draw()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => views.forEach((view) => view.draw()));

async function start() {
  await open();
  chooseByLink();
}

start();
requestAnimationFrame(frame);
