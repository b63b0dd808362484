// The tools that change the mask, and undo and redo, one step a stroke. Points are in pixels of the image.
import { area, copy, ellipse, empty, fill, fromOwnRuns, fromRuns, lesionMask, note, over, ownRuns, partsBeyond, polygon, stamp, toRuns, untouched } from "./mask.js";

const KEPT = 20; // steps that outlive the page
const DRAG = 2; // pixels; a smaller ellipse or box was a slip

export const AWAY = ["eraser", "click away"]; // tools that take away

const corners = (from, to) => ({
  left: Math.min(from.x, to.x),
  top: Math.min(from.y, to.y),
  right: Math.max(from.x, to.x),
  bottom: Math.max(from.y, to.y),
});

export class Tools {
  // `changed(what)` is called after each change of the mask, `askBox(box)` when a box has been drawn, and
  // `askClick(point, lesion)` after a click, `lesion` whether it is there.
  constructor(view, changed, askBox, askClick) {
    Object.assign(this, { view, changed, askBox, askClick, tool: "brush", size: 12, mask: null, gesture: null });
  }

  // Begin with a mask, which can be undone to but not further. The threshold cuts the map of `source`, if there is one.
  start(mask, { steps, source = null, threshold = null, own = untouched(mask) }) {
    Object.assign(this, { mask, own, source, threshold, scale: steps, gesture: null });
    this.steps = [this.snapshot("")];
    this.step = 0;
    this.view.preview = null;
    this.view.setMask(mask);
  }

  // The model's mask at the threshold.
  base(threshold = this.threshold) {
    const { map, rule } = this.source;
    return lesionMask(map, this.scale, { ...rule, mask_threshold: threshold });
  }

  // Cut at another threshold; what the reader has drawn stays. `done`: the slider rests, which is a step.
  cut(threshold, done) {
    if (!this.source) return;
    const mask = over(this.base(threshold), this.own);
    this.threshold = threshold;
    if (!done) return this.view.setMask(mask);
    this.mask = mask;
    this.commit("slider");
  }

  // Put a mask in the place of this one, and another map below it.
  use(mask, tool, source = this.source, threshold = this.threshold) {
    Object.assign(this, { mask: copy(mask), own: untouched(mask), source, threshold });
    if (!source || tool === "version") note(this.own, source ? this.base() : empty(mask.width, mask.height), mask);
    this.commit(tool);
  }

  // Put another map below what the reader has drawn; where she has cleared all, below what she drew since.
  lay(source, tool) {
    const { own } = this;
    if (own.data.every(Boolean)) own.data.forEach((value, i) => (own.data[i] = value === 1 ? 1 : 0));
    Object.assign(this, { source, threshold: source.rule.mask_threshold });
    this.mask = over(this.base(), own);
    this.commit(tool);
  }

  // Put another map below what is drawn of other lesions, which `kept` holds and no slider changes.
  add(source, tool, kept) {
    const own = untouched(kept);
    note(own, empty(kept.width, kept.height), kept);
    Object.assign(this, { own, source, threshold: source.rule.mask_threshold });
    this.mask = over(this.base(), own);
    this.commit(tool);
  }

  // The lesion in a box anew.
  box(source, box) {
    this.add(source, "box", partsBeyond(this.mask, box));
  }

  // What is drawn without the reader's own strokes.
  get models() {
    const { mask, own } = this;
    return { ...mask, data: mask.data.map((value, i) => (own.data[i] === 1 ? 0 : value)) };
  }

  // Erase the part at a point if no pixel of it is the model's; whether there was one.
  erasePart(point) {
    const mask = copy(this.mask);
    if (!fill(mask, point, 0) || mask.data.some((value, i) => value !== this.mask.data[i] && this.own.data[i] !== 1)) return false;
    note(this.own, this.mask, mask);
    this.mask = mask;
    this.commit("click away");
    return true;
  }

  clear() {
    if (!area(this.mask)) return;
    this.own.data.fill(2);
    this.mask = empty(this.mask.width, this.mask.height);
    this.commit("clear");
  }

  snapshot(tool) {
    return { tool, runs: toRuns(this.mask), own: ownRuns(this.own), source: this.source, threshold: this.threshold };
  }

  commit(tool) {
    this.steps = [...this.steps.slice(0, this.step + 1), this.snapshot(tool)];
    this.step++;
    this.view.setMask(this.mask);
    this.changed(tool);
  }

  // The latest steps as a draft keeps them, maps other than the suggestion's once; and the tools of the steps before.
  history(suggested) {
    const first = Math.max(0, this.step + 1 - KEPT), kept = this.steps.slice(first, first + KEPT);
    const sources = [...new Set(kept.map(({ source }) => source))].filter((source) => source && source !== suggested);
    const steps = kept.map((step) => ({ ...step, source: step.source === suggested ? "suggestion" : sources.indexOf(step.source) }));
    const before = this.steps.slice(1, first + 1).map(({ tool }) => tool);
    return { steps, step: this.step - first, sources: sources.map(({ map, ...kept }) => kept), before };
  }

  resume({ steps, step, sources }, suggested) {
    this.steps = steps.map((kept) => ({ ...kept, source: kept.source === "suggestion" ? suggested : sources[kept.source] ?? null }));
    this.step = step;
    this.restore();
  }

  // The tools that made what is there.
  used() {
    return this.steps.slice(1, this.step + 1).map(({ tool }) => tool);
  }

  // Go back (-1) or forth (1) by a step; whether there was one.
  undo(direction = -1) {
    const step = this.step + direction;
    if (!this.mask || this.gesture || step < 0 || step >= this.steps.length) return false;
    this.step = step;
    this.restore();
    this.changed(direction < 0 ? "undo" : "redo");
    return true;
  }

  restore() {
    const { width, height } = this.mask, { runs, own, source, threshold } = this.steps[this.step];
    Object.assign(this, { mask: fromRuns(width, height, runs), own: fromOwnRuns(width, height, own), source, threshold });
    this.view.setMask(this.mask);
  }

  begin(point, erase = false) {
    const tool = { eraser: "brush", "click away": "click" }[this.tool] ?? this.tool;
    const value = erase || AWAY.includes(this.tool) ? 0 : 1;
    const name = value || tool === "box" ? this.tool : { brush: "eraser", click: "click away" }[tool] ?? `${tool} erase`;
    this.gesture = { tool, name, value, points: [point] };
    if (tool === "brush") this.move(point);
  }

  move(point) {
    if (!this.gesture) return;
    const { tool, value, points } = this.gesture, last = points.at(-1);
    if (tool === "brush") {
      stamp(this.mask, last, point, this.size / 2, value);
      this.view.setMask(this.mask);
    }
    points.push(point);
    if (!["brush", "fill", "click"].includes(tool)) {
      this.view.preview = this.shape();
      this.view.draw();
    }
  }

  // The outline of what is being drawn.
  shape() {
    const { tool, points } = this.gesture, path = new Path2D();
    const { left, top, right, bottom } = corners(points[0], points.at(-1));
    if (tool === "lasso") points.forEach(({ x, y }) => path.lineTo(x, y));
    if (tool === "box") path.rect(left, top, right - left, bottom - top);
    if (tool === "ellipse")
      path.ellipse((left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2, 0, 0, 2 * Math.PI);
    return path;
  }

  end() {
    if (!this.gesture) return;
    const { tool, name, value, points } = this.gesture, box = corners(points[0], points.at(-1));
    this.gesture = this.view.preview = null;
    this.view.draw();
    const slip = box.right - box.left < DRAG || box.bottom - box.top < DRAG;
    if (tool === "box") return slip ? undefined : this.askBox(box);
    if (tool === "click") return this.askClick(points[0], Boolean(value));
    if (tool === "lasso" && points.length > 2) polygon(this.mask, points, value);
    if (tool === "ellipse" && !slip) ellipse(this.mask, box, value);
    if (tool === "fill" && !fill(this.mask, points[0], value)) return this.changed("no fill");
    const { width, height } = this.mask;
    if (note(this.own, fromRuns(width, height, this.steps[this.step].runs), this.mask)) this.commit(name);
  }

  // Take back what has been drawn since the beginning of this stroke.
  cancel() {
    if (!this.gesture) return;
    this.gesture = this.view.preview = null;
    this.restore();
  }
}
