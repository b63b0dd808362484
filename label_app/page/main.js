// Puts the page together: the state of the loop on the screen, and what buttons and sliders do.
import * as api from "./api.js";
import { COLOURS, View } from "./canvas.js";
import { bindings, help, listen as listenToKeys } from "./keys.js";
import { Loop } from "./loop.js";
import { empty } from "./mask.js";
import { element, Panels } from "./panels.js";
import { listen as listenToPointers } from "./pointer.js";
import { stored } from "./stored.js";
import { Tools } from "./tools.js";

const $ = (selector) => document.querySelector(selector);
const view = new View($("#view"));
const LARGEST = 100; // brush, in pixels
const PRESETS = { full: { window: 255, level: 128 }, dark: { window: 128, level: 64 }, soft: { window: 400, level: 128 } };
const FILLS = [20, 40]; // percent, which a key goes through
const LEAST = 0.05; // threshold; 1 less it is the most
const EDGE = Math.log(1 / LEAST - 1);
const STEP = 0.4; // of the threshold's logit, for a key

function say(text, wrong = false) {
  $("#message").textContent = text;
  $("#message").classList.toggle("wrong", wrong);
}

const tools = new Tools(view, (tool) => loop.changed(tool), askBox, askClick);
const loop = new Loop(view, tools, render, say);
const panels = new Panels(loop, say);
const pointer = listenToPointers(view, tools, setDisplay, (factor) => page.resize(factor));

function setDisplay(values) {
  view.setDisplay(values);
  const { window, level } = view.display, { full } = PRESETS;
  for (const [name, value] of Object.entries({ window, level })) {
    $(`#${name}`).value = value;
    $(`#${name}-shown`).textContent = Math.round(value);
  }
  $("#look").hidden = window === full.window && level === full.level;
  $("#look").textContent = `W ${Math.round(window)} L ${Math.round(level)}: reset`;
  localStorage.setItem("display", JSON.stringify(view.display));
}

// The slider goes by the logit, in which a map's rim is even; thresholds are hundredths, which cut it exactly.
const logit = (value) => Math.log(value / (1 - value));
const hundredths = (value) => Math.round(100 * Math.min(1 - LEAST, Math.max(LEAST, 1 / (1 + Math.exp(-value))))) / 100;
const place = (threshold) => 50 - (50 * logit(threshold)) / EDGE;

function applyThreshold(value, done = true) {
  if (!tools.source) return;
  tools.cut(hundredths(value), done);
  showThreshold();
  if (done && tools.own.data.every(Boolean)) say("All was cleared; R brings the suggestion back.");
}

function showThreshold() {
  $("#threshold").disabled = !tools.mask || !tools.source;
  if (tools.source) $("#threshold").value = place(tools.threshold);
  $("#threshold-shown").textContent = tools.mask && tools.source ? tools.threshold.toFixed(2) : "–";
}

// Ask for a map, one after another, and put it to use unless the image has changed meanwhile.
let asked = Promise.resolve();
function askModel(ask, use) {
  const { reading } = loop;
  say("Asking the model …");
  asked = asked.then(async () => {
    if (loop.reading !== reading) return;
    try {
      const source = await ask(reading.image);
      if (loop.reading === reading) use(source);
    } catch (error) {
      if (loop.reading === reading) say(error.message, true);
    }
  });
}

function askBox({ left, top, right, bottom }) {
  const box = [left, top, right, bottom].map(Math.round);
  askModel((image) => api.askBox(image, box), (source) => {
    tools.box(source, { left, top, right, bottom });
    say("In the box the outline is the model's and your box's together. Parts elsewhere stay.");
  });
}

// Whether a point is so far from a box that it is in another lesion; as lib/box.py `surroundings`.
function isBeyond([left, top, right, bottom], { x, y }) {
  const columns = (right - left) / 2, rows = (bottom - top) / 2;
  return x < left - columns || x >= right + columns || y < top - rows || y >= bottom + rows;
}

// Clicks add up, after a box too, until the outline is replaced; far from the box another lesion begins.
function askClick(point, lesion) {
  const [x, y] = [point.x, point.y].map(Math.floor), { width, height } = tools.mask;
  if (x < 0 || y < 0 || x >= width || y >= height) return;
  if (!lesion && tools.erasePart(point)) return say("This part is gone; undo brings it back.");
  let another = false;
  const ask = (image) => {
    const { clicks = [], box = null } = tools.source ?? {};
    another = Boolean(lesion && box && isBeyond(box, point));
    if (another) return api.askClicks(image, { clicks: [[x, y, true]] }, empty(width, height));
    return api.askClicks(image, { clicks: [...clicks, [x, y, lesion]], box, threshold: tools.threshold }, tools.models);
  };
  askModel(ask, (source) => {
    if (another) tools.add(source, "click", tools.mask);
    else tools.lay(source, lesion ? "click" : "click away");
    const kept = Boolean(tools.mask.data[y * width + x]) !== lesion;
    say(kept ? "Here your own drawing counts: brush or eraser change it." : "The model has corrected itself; click again, or change the outline's size.");
  });
}

// What keys and buttons do with the page.
const page = {
  pick(name) {
    tools.cancel();
    tools.tool = name;
    localStorage.setItem("tool", name);
    render();
  },
  resize(factor) {
    tools.size = Math.min(LARGEST, Math.max(1, tools.size * factor));
    localStorage.setItem("size", tools.size);
    if (view.cursor?.radius) view.cursor.radius = tools.size / 2;
    view.draw();
    render();
  },
  shiftThreshold: (steps) => tools.source && applyThreshold(logit(tools.threshold) + STEP * steps),
  reset() {
    const { suggestion, pixels } = loop.reading, source = suggestion?.source ?? null;
    tools.use(suggestion?.mask ?? empty(pixels.width, pixels.height), "reset", source, source?.rule.mask_threshold ?? null);
  },
  hide(what, hidden) {
    view[what] = hidden;
    view.draw();
  },
  resetDisplay: () => setDisplay(PRESETS.full),
  fill: () => setOpacity(FILLS.find((percent) => percent > 100 * view.opacity) ?? 0),
  undo: () => tools.undo(-1) || (loop.past.length && say("Nothing to undo here; P goes back to the image before.")),
  toggle: (name) => loop.remark({ [name]: !loop.reading[name] }),
  flag() {
    page.toggle("flag");
    $("#remarks").open = true;
    if (loop.reading.flag) $("#comment").focus();
  },
  open: (name) => panels.open(name),
};

function render() {
  const { reading, config, progress, waiting, ended } = loop, ready = Boolean(reading), settling = Boolean(reading?.outlines);
  $("#count").textContent = progress.of ? `${progress.labelled} of ${progress.of} labelled` : "";
  $("#progress").max = progress.of || 1;
  $("#progress").value = progress.labelled;
  $("#who").textContent = `${loop.reader}${loop.elsewhere == null ? "" : " (open twice)"}`;
  $("#who").hidden = !loop.reader;
  $("#who").disabled = Boolean(config.reader);
  $("#saving").textContent = saving(loop);
  const shownName = loop.namesHidden ? `image ${progress.labelled + 1}` : reading?.image;
  $("#name").textContent = ready ? shownName : "";
  $("#name").dataset.image = reading?.image ?? "";
  $("#waiting").textContent = waiting;
  $("#ended").hidden = !ended;
  $("#view").classList.toggle("idle", !ready);
  for (const button of document.querySelectorAll("[data-class]")) button.setAttribute("aria-pressed", ready && reading.class === button.dataset.class);
  for (const [id, name] of [["unknown", "classUnknown"], ["unreadable", "notReadable"], ["unsure", "classUnsure"]])
    $(`#${id}`).setAttribute("aria-pressed", ready && reading[name]);
  for (const button of document.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", tools.tool === button.dataset.tool);
  $("#size").value = tools.size;
  $("#size-shown").textContent = Math.round(tools.size);
  showThreshold();
  $("#undo").disabled = !ready || tools.step === 0;
  $("#redo").disabled = !ready || tools.step === tools.steps.length - 1;
  for (const button of document.querySelectorAll("#panel fieldset button:not(#undo):not(#redo), #submit, #skip, #remarks input, #remarks select"))
    button.disabled = !ready;
  $("#settle").hidden = !settling;
  $("#ask").hidden = settling;
  for (const button of document.querySelectorAll(".export, [data-open=agreement], [data-open=training]")) button.hidden = !loop.mayAdjudicate;
  remarks();
  const model = ready && reading.suggestion;
  $("#model").replaceChildren(...(model && loop.revealed ? probabilities(model) : [element("p", model ? "The model's class is shown after yours." : "")]));
}

// What is on its way to the server.
function saving({ outbox: { entries, problem }, unsent }) {
  if (!entries.length && unsent.size) return `${unsent.size} not taken by the server: a draft, open it under Images.`;
  if (!entries.length) return problem && `Careful: ${problem}.`;
  return problem ? `${entries.length} not saved yet: ${problem}. Kept in this browser; sent again.` : "Saving …";
}

function remarks() {
  const { reading } = loop;
  $("#flag").checked = Boolean(reading?.flag);
  if (document.activeElement !== $("#comment")) $("#comment").value = reading?.comment ?? "";
  for (const select of document.querySelectorAll("#fields select")) select.value = reading?.fields[select.name] ?? "";
  const times = reading?.versions ?? [];
  $("#earlier").hidden = !times.length;
  if ($("#versions").dataset.of === (reading ? `${reading.image} ${times.length}` : "")) return;
  $("#versions").dataset.of = reading ? `${reading.image} ${times.length}` : "";
  $("#versions").replaceChildren(new Option("bring back …", ""), ...times.map((time) => new Option(time.slice(0, 19).replaceAll(".", ":"), time)));
}

function probabilities({ class: name, classification, suspicious, unsure, disagreement, check, reason }) {
  const marks = [suspicious && "suspicious", unsure && "unsure", disagreement && "its outline and class disagree"];
  if (check && check !== "ok") marks.push(`${check === "refused" ? "not to be trusted" : "unusual"} (${reason})`);
  const rows = classification.map(({ label, score }) => {
    const row = element("p", "", { class: "bar-row" }), bar = element("progress", "", { max: 1, "aria-label": label });
    bar.value = score;
    row.append(element(label === name ? "b" : "span", label), bar, element("span", score.toFixed(2)));
    return row;
  });
  return [element("p", `Model: ${name}${marks.filter(Boolean).map((mark) => `; ${mark}`).join("")}`), ...rows];
}

// The outlines of an image that is to be settled, each with a button that takes it over.
function settleRows() {
  const { outlines } = loop.reading ?? {};
  if (!outlines) return $("#outlines").replaceChildren();
  const row = (name, said, colour, accept) => {
    const made = element("p", "", { class: "outline" }), button = element("button", `accept ${name}`, { type: "button" });
    const swatch = element("span", "", { class: "swatch" });
    swatch.style.background = colour;
    button.addEventListener("click", accept);
    made.append(swatch, button, element("span", said));
    return made;
  };
  const take = (mask, said) => {
    tools.use(mask, "accept", null, null);
    Object.assign(loop.reading, { class: "", classUnknown: false, notReadable: false }, said);
    loop.saveDraft();
    render();
  };
  $("#outlines").replaceChildren(
    ...outlines.labels.map((label, i) =>
      row(label.reader, [label.says, label.class_unsure && "unsure", label.comment].filter(Boolean).join(", "), COLOURS[i % COLOURS.length], () =>
        take(label.mask, { class: label.class ?? "", classUnknown: Boolean(label.class_unknown), notReadable: label.says === "not readable" }),
      ),
    ),
    ...Object.entries(outlines.consensus).map(([name, mask]) =>
      row({ majority: "majority", staple: "STAPLE" }[name], outlines.class || "no class leads", "transparent", () => take(mask, { class: outlines.class })),
    ),
  );
}

function classButtons() {
  loop.config.classes.forEach((name, i) => {
    const button = element("button", "", { type: "button", "data-class": name });
    button.append(element("kbd", i + 1), " ", element("span", name));
    button.addEventListener("click", () => loop.classify(name));
    $("#classes").append(button);
  });
  for (const [name, choices] of Object.entries(loop.config.fields)) {
    const label = element("label", `${name} `, { class: "wide" }), select = element("select", "", { name });
    select.append(new Option("–", ""), ...choices.map((choice) => new Option(choice, choice)));
    select.addEventListener("change", () => {
      const { [name]: before, ...others } = loop.reading.fields;
      loop.remark({ fields: select.value ? { ...others, [name]: select.value } : others });
    });
    label.append(select);
    $("#fields").append(label);
    $("#remarks").open = true;
  }
}

function settings() {
  const titles = { first: loop.config.hide_names ? "one after another" : "by name", random: "random", uncertainty: "hardest first", disagreement: "outline and class disagree" };
  for (const [name, description] of Object.entries(loop.config.orders)) {
    const option = new Option(titles[name] ?? name, name);
    option.title = description;
    $("#order").add(option);
  }
  $("#files").accept = loop.config.extensions.join();
  $("#order").value = loop.order;
  $("#order").addEventListener("change", (event) => loop.choose(event.target.value));
  $("#blind").checked = loop.blind;
  $("#blind").addEventListener("change", (event) => {
    loop.blind = event.target.checked;
    localStorage.setItem("blind", loop.blind ? "yes" : "no");
    render();
  });
}

// Ask who reads; resolves with a name.
function login() {
  const names = Object.keys(loop.config.readers), dialog = $("#login");
  $("#typed").hidden = names.length > 0;
  $("#listed").hidden = !names.length;
  $("#readers").replaceChildren(...names.map((name) => new Option(`${name} (${loop.config.readers[name]})`, name)));
  $("#reader").value = loop.reader;
  if (names.includes(loop.reader)) $("#readers").value = loop.reader;
  dialog.showModal();
  return new Promise((done) => {
    dialog.querySelector("form").onsubmit = (event) => {
      const name = (names.length ? $("#readers") : $("#reader")).value.trim().replace(/\s+/g, " ");
      $("#login-problem").textContent = name ? "" : "Type a name.";
      if (!name) return event.preventDefault();
      done(name);
    };
    dialog.oncancel = (event) => (loop.reader ? done("") : event.preventDefault());
  });
}

async function changeReader() {
  const name = await login();
  if (name && name !== loop.reader) await loop.as(name);
  if (loop.elsewhere != null) say(`You have this page open in another window too (${loop.elsewhere} min ago).`, true);
}

function theme(name = localStorage.getItem("theme") ?? "dark") {
  document.documentElement.style.colorScheme = name;
  $("#theme").textContent = name === "dark" ? "light" : "dark";
  localStorage.setItem("theme", name);
}

function controls() {
  const click = (selector, action) => $(selector).addEventListener("click", action);
  for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => page.pick(button.dataset.tool));
  for (const button of document.querySelectorAll("[data-open]")) button.addEventListener("click", () => page.open(button.dataset.open));
  click("#who", changeReader);
  click("#theme", () => theme($("#theme").textContent));
  click("#unknown", () => loop.classUnknown());
  click("#unreadable", () => loop.notReadable());
  click("#unsure", () => page.toggle("classUnsure"));
  click("#clear", () => tools.clear());
  click("#undo", page.undo);
  click("#redo", () => tools.undo(1));
  click("#reset", page.reset);
  click("#fit", () => view.fit());
  click("#look", page.resetDisplay);
  click("#submit", () => loop.submit());
  click("#back", () => loop.back());
  click("#skip", () => loop.skip());
  click("#review", () => panels.open("images", "doubtful"));
  click("#understood", () => {
    localStorage.setItem("hint", "seen");
    $("#hint").hidden = true;
  });
  $("#hint").hidden = localStorage.getItem("hint") === "seen";
  $("#size").addEventListener("input", (event) => page.resize(event.target.value / tools.size));
  const cut = (event) => (50 - Number(event.target.value)) / (50 / EDGE);
  $("#threshold").addEventListener("input", (event) => applyThreshold(cut(event), false));
  $("#threshold").addEventListener("change", (event) => applyThreshold(cut(event)));
  for (const name of ["window", "level"]) $(`#${name}`).addEventListener("input", (event) => setDisplay({ ...view.display, [name]: Number(event.target.value) }));
  for (const [name, values] of Object.entries(PRESETS)) {
    const button = element("button", name, { type: "button" });
    button.addEventListener("click", () => setDisplay(values));
    $("#presets").append(button);
  }
  $("#opacity").addEventListener("input", (event) => setOpacity(Number(event.target.value)));
  $("#flag").addEventListener("change", () => page.toggle("flag"));
  $("#comment").addEventListener("input", (event) => loop.remark({ comment: event.target.value }));
  $("#comment").addEventListener("keydown", (event) => ["Enter", "Escape"].includes(event.key) && $("#view").focus());
  $("#versions").addEventListener("change", (event) => bringBack(event.target.value));
  // Enter submits after a click as well: only who came by Tab presses the button again.
  const pressed = "button, summary, input[type=checkbox]";
  $("main").addEventListener("click", (event) => event.detail && event.target.closest(pressed) && !dialogOpen() && $("#view").focus());
  for (const slider of document.querySelectorAll("main input[type=range]")) slider.addEventListener("pointerup", () => $("#view").focus());
}

// The same of a list: who chose by keys goes on there.
function leaveLists() {
  for (const select of document.querySelectorAll("main select, #order")) {
    let pointed = false;
    select.addEventListener("pointerdown", () => (pointed = true));
    select.addEventListener("keydown", () => (pointed = false));
    select.addEventListener("change", () => pointed && $("#view").focus());
  }
}

const dialogOpen = () => document.querySelector("dialog[open]") || document.activeElement === $("#comment");

function setOpacity(percent) {
  $("#opacity").value = percent;
  $("#opacity-shown").textContent = `${percent} %`;
  view.opacity = percent / 100;
  localStorage.setItem("opacity", percent);
  view.draw();
}

// An earlier label of this image, in place of what is drawn.
async function bringBack(time) {
  const { reading } = loop;
  if (!time || !reading) return;
  try {
    const label = await api.version(reading.image, loop.reader, reading.again, Boolean(reading.outlines), time);
    if (loop.reading !== reading) return;
    tools.use(label.mask, "version");
    loop.remark({ class: label.class ?? "", classUnknown: Boolean(label.class_unknown), notReadable: Boolean(label.not_readable) });
    say("The earlier label is back; Enter keeps it.");
  } catch (error) {
    say(error.message, true);
  }
  $("#versions").value = "";
  $("#view").focus();
}

// The page cannot begin without; a server that starts anew is waited for.
async function configured() {
  for (;;)
    try {
      return await api.config();
    } catch (error) {
      if (error.status && error.status < 500) throw error;
      loop.wait(`${error.message}; asking again …`);
      await new Promise((done) => setTimeout(done, 3000));
    }
}

theme();
setDisplay(stored(localStorage, "display", ({ window, level }) => window > 0 && Number.isFinite(level)) ?? PRESETS.full);
setOpacity(Number(localStorage.getItem("opacity") ?? 0));
tools.tool = localStorage.getItem("tool") ?? tools.tool;
tools.size = Number(localStorage.getItem("size") ?? tools.size);
loop.shown = settleRows;
controls();
render();
try {
  await loop.start(await configured());
  classButtons();
  settings();
  leaveLists();
  const list = bindings({ loop, view, tools, pointer, page });
  listenToKeys(list, { loop, page, pointer });
  help(list, $("#keys"));
  const known = loop.config.reader || (loop.reader && (!Object.keys(loop.config.readers).length || loop.reader in loop.config.readers));
  await loop.as(known ? loop.reader : await login());
  if (loop.elsewhere != null) say(`You have this page open in another window too (${loop.elsewhere} min ago).`, true);
  $("#view").focus();
} catch (error) {
  loop.wait(error.message);
}
