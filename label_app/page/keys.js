// Every key of the page: what `?` lists is what works. An entry is [keys, what it does, action(event)].

export function bindings({ loop, view, tools, pointer, page }) {
  const pick = (name) => () => page.pick(name);
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const classes = loop.config.classes.slice(0, 9);
  return [
    ...classes.map((name, i) => [[String(i + 1)], `class ${name}`, () => loop.classify(name)]),
    [["n"], "no lesion: erases the mask", () => loop.noLesion()],
    [["x"], "cannot tell", () => loop.cannotTell()],
    [["Enter"], "submit, next image", () => loop.submit()],
    [["p"], "back to the previous image", () => loop.back()],
    [["b"], "brush", pick("brush")],
    [["e"], "eraser (or Ctrl, or the right button, with any tool)", pick("eraser")],
    [["l"], "lasso; with Ctrl it takes away", pick("lasso")],
    [["o"], "ellipse", pick("ellipse")],
    [["m"], "box that asks the model again", pick("box")],
    [["f"], "fill a hole; with Ctrl erase a part", pick("fill")],
    [["["], "smaller brush", () => page.resize(1 / 1.2)],
    [["]"], "larger brush", () => page.resize(1.2)],
    [[","], "larger mask: lower threshold", () => page.shift(-0.05)],
    [["."], "smaller mask: higher threshold", () => page.shift(0.05)],
    [["r"], "back to the suggestion", () => page.reset()],
    [["Ctrl+z"], "undo", () => tools.undo(-1)],
    [["Ctrl+y", "Ctrl+Z"], "redo", () => tools.undo(1)],
    [Object.keys(arrows), "move the pointer; with Shift by one pixel", (e) => pointer.arrow(...arrows[e.key], e.shiftKey)],
    [[" "], "put the pointer down, lift it", () => pointer.press(false)],
    [["h"], "hide the outlines while held", () => page.hide(true)],
    [["+", "="], "zoom in", () => view.zoom(1.25)],
    [["-"], "zoom out", () => view.zoom(0.8)],
    [["0"], "whole image", () => view.fit()],
    [["w"], "window and level as at first", () => page.plainLook()],
    [["g"], "all images", () => page.open("images")],
    [["t"], "training", () => page.open("training")],
    [["a"], "readers and their agreement", () => page.open("readers")],
    [["?"], "this list", () => page.open("help")],
    [["Escape"], "take back the stroke that is being drawn", () => (pointer.lift(), tools.cancel())],
  ];
}

const WITHOUT_IMAGE = ["p", "g", "t", "a", "?"]; // what works where no image is open

export function listen(list, { loop, page }) {
  const actions = new Map(list.flatMap(([keys, , action]) => keys.map((key) => [key, action])));
  addEventListener("keydown", (event) => {
    const { target } = event, control = event.ctrlKey || event.metaKey;
    const key = event.key.length === 1 && !control ? event.key.toLowerCase() : event.key;
    if (document.querySelector("dialog[open]") || target.matches("input[type=text], select")) return;
    if (target.matches("input[type=range]") && key.startsWith("Arrow")) return; // the slider's own
    if (target.matches("button, a, summary, input[type=checkbox]") && [" ", "Enter"].includes(key)) return; // pressed
    const action = actions.get((control ? "Ctrl+" : "") + key);
    if (!action || event.altKey || (!loop.reading && !WITHOUT_IMAGE.includes(key))) return;
    event.preventDefault();
    action(event);
  });
  addEventListener("keyup", (event) => event.key === "h" && page.hide(false));
}

const SIGNS = { "Ctrl+z": "Ctrl+Z", "Ctrl+y": "Ctrl+Y", " ": "Space", ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", "Ctrl+Z": "Ctrl+Shift+Z" };

// The list of keys, as rows of a table.
export function help(list, table) {
  for (const [keys, text] of list) {
    const row = table.insertRow(), head = document.createElement("th");
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
