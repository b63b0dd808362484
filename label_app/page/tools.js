// The tools that change the mask, and undo and redo, one step a stroke. Points are in pixels of the image.
import { copy, ellipse, fill, fromRuns, polygon, stamp, toRuns } from "./mask.js";

const DRAG = 2; // pixels; a smaller ellipse or box was a slip

const corners = (from, to) => ({
  left: Math.min(from.x, to.x),
  top: Math.min(from.y, to.y),
  right: Math.max(from.x, to.x),
  bottom: Math.max(from.y, to.y),
});

export class Tools {
  // `changed(tool)` is called after each change of the mask, `askModel(box)` when a box has been drawn.
  constructor(view, changed, askModel) {
    Object.assign(this, { view, changed, askModel, tool: "brush", size: 12, mask: null, gesture: null });
  }

  // Begin with a mask, which can be undone to but not further.
  start(mask) {
    this.mask = mask;
    this.steps = [toRuns(mask)];
    this.step = 0;
    this.gesture = this.view.preview = null;
    this.view.setMask(mask);
  }

  // Replace the whole mask; one step.
  replace(mask, tool) {
    this.mask = copy(mask);
    this.commit(tool);
  }

  commit(tool) {
    this.steps = [...this.steps.slice(0, this.step + 1), toRuns(this.mask)];
    this.step++;
    this.view.setMask(this.mask);
    this.changed(tool);
  }

  // Go back (-1) or forth (1) by a step; whether there was one.
  undo(direction = -1) {
    const step = this.step + direction;
    if (this.gesture || step < 0 || step >= this.steps.length) return false;
    this.step = step;
    this.restore();
    this.changed("");
    return true;
  }

  restore() {
    this.mask = fromRuns(this.mask.width, this.mask.height, this.steps[this.step]);
    this.view.setMask(this.mask);
  }

  begin(point, erase = false) {
    const tool = this.tool === "eraser" ? "brush" : this.tool;
    this.gesture = { tool, name: this.tool, value: erase || this.tool === "eraser" ? 0 : 1, points: [point] };
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
    if (tool !== "brush" && tool !== "fill") {
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
    if (tool === "lasso" && points.length > 2) polygon(this.mask, points, value);
    else if (tool === "ellipse" && !slip) ellipse(this.mask, box, value);
    else if (tool === "box" && !slip) return this.askModel(box);
    else if (tool === "fill" && !fill(this.mask, points[0], value)) return;
    else if (tool !== "brush" && tool !== "fill") return;
    this.commit(name);
  }

  // Take back what has been drawn since the beginning of this stroke.
  cancel() {
    if (!this.gesture) return;
    this.gesture = this.view.preview = null;
    this.restore();
  }
}
