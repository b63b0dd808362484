// Every key of the page: what `?` lists is what works. An entry is [keys, what it does, action(event)].

export function bindings({ loop, view, tools, pointer, page }) {
  const pick = (name) => () => page.pick(name);
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const classes = loop.config.classes.slice(0, 9);
  return [
    ["Class"],
    ...classes.map((name, i) => [[String(i + 1)], name, () => loop.classify(name)]),
    [["n"], "no lesion: clears the outline, says normal", () => loop.noLesion()],
    [["x"], "class unknown; the outline counts", () => loop.classUnknown()],
    [["z"], "image not readable; clears the outline", () => loop.notReadable()],
    [["u"], "unsure of the class", () => page.toggle("classUnsure")],
    ["Images"],
    [["Enter"], "submit, next image", () => loop.submit()],
    [["s"], "later: skip the image for now", () => loop.skip()],
    [["p"], "back to the image before, to correct what was submitted", () => loop.back()],
    [["c"], "flag the image, with a comment", () => page.flag()],
    ["Draw"],
    [["b"], "brush", pick("brush")],
    [["e"], "eraser (or Ctrl, or the right button, with any tool)", pick("eraser")],
    [["l"], "lasso; with Ctrl it takes away", pick("lasso")],
    [["o"], "ellipse", pick("ellipse")],
    [["f"], "fill a hole; with Ctrl erase a part", pick("fill")],
    [["["], "smaller brush (or Ctrl and the wheel)", () => page.resize(1 / 1.2)],
    [["]"], "larger brush", () => page.resize(1.2)],
    [["Delete", "Backspace"], "clear the outline", () => tools.clear()],
    [["Ctrl+z"], "undo", () => page.undo()],
    [["Ctrl+y", "Ctrl+Shift+z"], "redo", () => tools.undo(1)],
    ["Ask the model"],
    [["m"], "model in a box that you drag", pick("box")],
    [["i"], "click on the lesion, the model corrects itself", pick("click")],
    [["d"], "click beside it (or Ctrl, or the right button)", pick("click away")],
    [[","], "larger outline; what you drew stays", () => page.shiftThreshold(-1)],
    [["."], "smaller outline", () => page.shiftThreshold(1)],
    [["r"], "back to the suggestion", () => page.reset()],
    ["Look"],
    [["h"], "hide all but your outline while held", () => page.hide("bare", true)],
    [["j"], "hide all outlines while held", () => page.hide("hidden", true)],
    [["v"], "fill the outline: a little, more, not", () => page.fill()],
    [["+", "="], "zoom in", () => view.zoom(1.25)],
    [["-"], "zoom out", () => view.zoom(0.8)],
    [["0"], "whole image", () => view.fit()],
    [["w"], "window and level as at first", () => page.resetDisplay()],
    ["By keyboard alone"],
    [Object.keys(arrows), "move the pointer; with Shift by one pixel", (e) => pointer.arrow(...arrows[e.key], e.shiftKey)],
    [[" "], "put the pointer down, lift it; held, drag pans", () => pointer.space(true)],
    [["Escape"], "take back the stroke that is being drawn", () => (pointer.lift(), tools.cancel())],
    ["Dialogs"],
    [["g"], "all images", () => page.open("images")],
    [["t"], "training", () => page.open("training")],
    [["a"], "agreement of the readers", () => page.open("agreement")],
    [["?"], "this list", () => page.open("help")],
  ];
}

const WITHOUT_IMAGE = ["p", "g", "t", "a", "?"]; // what works where no image is open
const REPEATED = ["[", "]", ",", ".", "+", "=", "-", "Ctrl+z", "Ctrl+y", "Ctrl+Shift+z"]; // while a key is held, and arrows
// Where keys lie, for keyboards that need another one beside for these signs.
const PLACES = { BracketLeft: "[", BracketRight: "]", Comma: ",", Period: "." };
const placeOf = ({ code }) => PLACES[code] ?? /^(?:Digit|Numpad)(\d)$/.exec(code)?.[1];

// A key's letter, small in spite of Caps Lock; of other scripts the Latin one in its place.
function letterOf({ key, code }) {
  const latin = key > "\x7f" && /^Key([A-Z])$/.exec(code)?.[1];
  return latin || key.length === 1 ? (latin || key).toLowerCase() : key;
}

// The name of a key that is pressed, as the list has it.
function keyOf(event, actions) {
  const key = letterOf(event);
  if (event.ctrlKey || event.metaKey) return `Ctrl+${event.shiftKey ? "Shift+" : ""}${key}`;
  return actions.has(key) ? key : placeOf(event) ?? key;
}

export function listen(list, { loop, page, pointer }) {
  const actions = new Map(list.filter((entry) => entry.length > 1).flatMap(([keys, , action]) => keys.map((key) => [key, action])));
  addEventListener("keydown", (event) => {
    const { target } = event, key = keyOf(event, actions);
    if (document.querySelector("dialog[open]") || target.matches("input[type=text], textarea, select")) return;
    if (target.matches("input[type=range]") && key.startsWith("Arrow")) return; // the slider's own
    if (target.matches("button, a, summary, input[type=checkbox]") && [" ", "Enter"].includes(key)) return; // pressed
    const action = actions.get(key);
    if (!action || (event.altKey && key.length > 1) || (!loop.reading && !WITHOUT_IMAGE.includes(key))) return;
    event.preventDefault();
    if (!event.repeat || REPEATED.includes(key) || key.startsWith("Arrow")) action(event);
  });
  addEventListener("keyup", (event) => {
    if (event.key === " ") pointer.space(false);
    const hidden = { h: "bare", j: "hidden" }[letterOf(event)];
    if (hidden) page.hide(hidden, false);
  });
  addEventListener("blur", () => {
    page.hide("bare", false);
    page.hide("hidden", false);
    pointer.space(false, true);
  });
}

const SIGNS = { Delete: "Del", "Ctrl+z": "Ctrl+Z", "Ctrl+y": "Ctrl+Y", " ": "Space", ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", "Ctrl+Shift+z": "Ctrl+Shift+Z" };

// The list of keys, as rows of a table.
export function help(list, table) {
  for (const [keys, text] of list) {
    const row = table.insertRow(), head = document.createElement("th");
    if (!text) {
      Object.assign(head, { colSpan: 2, scope: "colgroup", className: "group", textContent: keys });
      row.append(head);
      continue;
    }
    head.scope = "row";
    for (const key of keys) {
      const mark = document.createElement("kbd");
      mark.textContent = SIGNS[key] ?? (key.length === 1 ? key.toUpperCase() : key);
      head.append(mark, " ");
    }
    row.append(head);
    row.insertCell().textContent = text;
  }
}
