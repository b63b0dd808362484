// Puts the page together: the state of the loop on the screen, and what buttons and sliders do.
import * as api from "./api.js";
import { View } from "./canvas.js";
import { bindings, help, listen as listenToKeys } from "./keys.js";
import { Loop } from "./loop.js";
import { threshold } from "./mask.js";
import { Panels } from "./panels.js";
import { listen as listenToPointers } from "./pointer.js";
import { Tools } from "./tools.js";

const $ = (selector) => document.querySelector(selector);
const view = new View($("#view"));
const LARGEST = 100; // brush, in pixels
const PLAIN = { window: 255, level: 128 };

function say(text, wrong = false) {
  $("#message").textContent = text;
  $("#message").classList.toggle("wrong", wrong);
}

const tools = new Tools(view, (tool) => loop.changed(tool), askModel);
const loop = new Loop(view, tools, render, say);
const panels = new Panels(loop, say);
const pointer = listenToPointers(view, tools, look);

function look(values) {
  view.setLook(values);
  $("#window").value = values.window;
  $("#level").value = values.level;
  localStorage.setItem("look", JSON.stringify(values));
}

// The mask at another threshold; `done` where the slider has come to rest, which is one step to undo.
function cut(value, done = true) {
  const { reading } = loop;
  if (!reading?.map) return;
  reading.threshold = Math.min(0.95, Math.max(0.05, value));
  const mask = threshold(reading.pixels.width, reading.pixels.height, reading.map, reading.threshold);
  $("#threshold").value = reading.threshold;
  if (done) tools.replace(mask, "slider");
  else view.setMask(mask);
}

async function askModel({ left, top, right, bottom }) {
  const { reading } = loop;
  if (!reading.map) return say("The model is not asked about this image.", true);
  say("Asking the model …");
  try {
    const corners = [left, top, right, bottom].map(Math.round);
    const map = await api.box(reading.image, corners);
    if (loop.reading !== reading) return;
    Object.assign(reading, { map, threshold: 0.5 });
    tools.replace(threshold(reading.pixels.width, reading.pixels.height, map, 0.5), "box");
    say("The mask is the model's in your box; the threshold makes it larger or smaller.");
  } catch (error) {
    say(error.message, true);
  }
}

// What keys and buttons do with the page.
const page = {
  pick(name) {
    tools.cancel();
    tools.tool = name;
    render();
  },
  resize(factor) {
    tools.size = Math.min(LARGEST, Math.max(1, tools.size * factor));
    if (view.cursor) view.cursor.radius = tools.size / 2;
    view.draw();
    render();
  },
  shift: (step) => cut((loop.reading.threshold ?? 0.5) + step),
  reset() {
    const { reading } = loop;
    Object.assign(reading, { map: reading.suggestion?.map ?? null, threshold: loop.config.threshold });
    const { width, height } = reading.pixels;
    tools.replace(reading.suggestion?.mask ?? { width, height, data: new Uint8Array(width * height) }, "reset");
  },
  hide(hidden) {
    view.hidden = hidden;
    view.draw();
  },
  plainLook: () => look(PLAIN),
  open: (name) => panels.open(name),
};

function render() {
  const { reading, config, progress } = loop, ready = Boolean(reading);
  $("#count").textContent = `${progress.labelled} of ${progress.of} labelled`;
  $("#progress").max = progress.of || 1;
  $("#progress").value = progress.labelled;
  $("#name").textContent = ready ? reading.image + (reading.again ? " (again)" : "") : "";
  for (const button of document.querySelectorAll("[data-class]"))
    button.setAttribute("aria-pressed", ready && reading.class === button.dataset.class);
  $("#cannot").setAttribute("aria-pressed", ready && reading.cannotTell);
  for (const button of document.querySelectorAll("[data-tool]"))
    button.setAttribute("aria-pressed", tools.tool === button.dataset.tool);
  $("#size").value = tools.size;
  $("#size-shown").textContent = Math.round(tools.size);
  const map = ready && reading.map;
  $("#threshold").disabled = !map;
  if (ready) $("#threshold").value = reading.threshold;
  $("#threshold-shown").textContent = map ? reading.threshold.toFixed(2) : "–";
  $("#undo").disabled = !ready || tools.step === 0;
  $("#redo").disabled = !ready || tools.step === tools.steps.length - 1;
  for (const name of ["#submit", "#none", "#cannot", "#reset"]) $(name).disabled = !ready;
  // The model's class would pull the reader's own; it is shown after she has said hers.
  const told = ready && reading.suggestion && (!$("#blind").checked || reading.class || reading.cannotTell);
  $("#model").textContent = told ? modelSays(reading.suggestion) : ready && reading.suggestion ? "Model: shown after your class" : "";
  $("#view").classList.toggle("idle", !ready);
}

function modelSays({ class: name, classification, suspicious, unsure, disagreement }) {
  const values = classification.map(({ label, score }) => `${label} ${score.toFixed(2)}`).join(", ");
  const marks = [suspicious && "suspicious", unsure && "unsure", disagreement && "its mask and class disagree"].filter(Boolean);
  return `Model: ${name} (${values})${marks.length ? `; ${marks.join(", ")}` : ""}`;
}

function classButtons() {
  $("#none").hidden = !loop.config.no_lesion; // a set whose images all have one
  loop.config.classes.forEach((name, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.class = name;
    button.innerHTML = "<kbd></kbd> <span></span>";
    button.firstChild.textContent = i + 1;
    button.lastChild.textContent = name;
    button.addEventListener("click", () => loop.reading && loop.classify(name));
    $("#none").before(button);
  });
}

function settings() {
  for (const [name, description] of Object.entries(loop.config.orders)) {
    const option = new Option(name, name);
    option.title = description;
    $("#order").add(option);
  }
  $("#order").value = loop.order;
  $("#reader").value = loop.reader;
  const change = () => {
    if (!$("#reader").reportValidity()) return;
    loop.as($("#reader").value, $("#order").value);
    $("#view").focus();
  };
  $("#reader").addEventListener("change", change);
  $("#order").addEventListener("change", change);
  $("#blind").checked = localStorage.getItem("blind") !== "no";
  $("#blind").addEventListener("change", (event) => {
    localStorage.setItem("blind", event.target.checked ? "yes" : "no");
    render();
  });
}

function controls() {
  const click = (selector, action) => $(selector).addEventListener("click", action);
  for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => page.pick(button.dataset.tool));
  for (const button of document.querySelectorAll("[data-open]")) button.addEventListener("click", () => page.open(button.dataset.open));
  click("#none", () => loop.noLesion());
  click("#cannot", () => loop.cannotTell());
  click("#undo", () => tools.undo(-1));
  click("#redo", () => tools.undo(1));
  click("#reset", page.reset);
  click("#fit", () => view.fit());
  click("#submit", () => loop.submit());
  click("#back", () => loop.back());
  $("#size").addEventListener("input", (event) => page.resize(event.target.value / tools.size));
  $("#threshold").addEventListener("input", (event) => cut(Number(event.target.value), false));
  $("#threshold").addEventListener("change", (event) => cut(Number(event.target.value)));
  for (const name of ["window", "level"])
    $(`#${name}`).addEventListener("input", (event) => look({ ...view.look, [name]: Number(event.target.value) }));
}

look(JSON.parse(localStorage.getItem("look") ?? "null") ?? PLAIN);
controls();
render();
try {
  await loop.start();
  classButtons();
  settings();
  const list = bindings({ loop, view, tools, pointer, page });
  listenToKeys(list, { loop, page });
  help(list, $("#keys"));
  render();
  $("#view").focus();
} catch (error) {
  say(error.message, true);
}
