// The image on the screen: zoom and pan, window and level, the outlines, and where a pointer is in the image.
import { outline } from "./mask.js";

const MASK = "#F0E442", SUGGESTION = "#56B4E9"; // Okabe and Ito's colours: seen on grey, told apart by all
const ERASE = "#FF8C69";
const LARGEST_ZOOM = 40;
export const COLOURS = ["#E69F00", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#FFFFFF"]; // of several readers
export const LIMITS = { window: [8, 510], level: [0, 255] };
const within = (value, [least, most]) => Math.min(most, Math.max(least, value));

export class View {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.shown = document.createElement("canvas");
    this.display = { window: 255, level: 128 }; // window and level
    this.hidden = false; // all outlines
    this.bare = false; // without those of model and other readers
    this.opacity = 0; // of the mask's inside
    this.others = []; // outlines of several readers, as paths
    this.whole = true; // the whole image is shown, and stays so when the window changes
    this.preview = null; // the shape being drawn
    this.cursor = null; // {x, y, radius} in the image
    new ResizeObserver(() => this.resize()).observe(canvas.parentElement);
  }

  // Show an image; mask and suggestion may be null. `labels` are those of several readers, with a mask each.
  show(pixels, mask, suggestion, labels = []) {
    this.pixels = pixels;
    this.shown.width = pixels.width;
    this.shown.height = pixels.height;
    this.suggestion = suggestion && outline(suggestion);
    this.others = labels.map((label) => outline(label.mask));
    this.setDisplay(this.display);
    this.setMask(mask);
    this.fit();
  }

  setMask(mask) {
    this.mask = mask;
    this.changed = true;
    this.draw();
  }

  setDisplay({ window, level }) {
    const display = { window: within(window, LIMITS.window), level: within(level, LIMITS.level) };
    this.display = display;
    if (!this.pixels) return;
    const { width, height, data, colours } = this.pixels, low = display.level - display.window / 2;
    const table = Uint32Array.from({ length: 256 }, (_, value) => Math.round(within(((value - low) / display.window) * 255, [0, 255])));
    const image = new ImageData(width, height), target = new Uint32Array(image.data.buffer);
    if (colours) for (let i = 0; i < colours.length; i++) image.data[i] = i % 4 === 3 ? 255 : table[colours[i]];
    else for (let i = 0; i < data.length; i++) target[i] = 0xff000000 | (table[data[i]] * 0x010101);
    this.shown.getContext("2d").putImageData(image, 0, 0);
    this.draw();
  }

  // The canvas has whole pixels, or the browser would resample what is drawn. Zoom and centre stay.
  resize() {
    const { width, height } = this.canvas.parentElement.getBoundingClientRect(), ratio = devicePixelRatio;
    const before = { width: this.width ?? 0, height: this.height ?? 0 };
    Object.assign(this, { width: Math.floor(width), height: Math.floor(height) });
    Object.assign(this.canvas.style, { width: `${this.width}px`, height: `${this.height}px` });
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    if (this.whole) return this.fit();
    this.pan((this.width - before.width) / 2, (this.height - before.height) / 2);
  }

  // The whole image, as large as it goes.
  fit() {
    if (!this.pixels || !this.width) return;
    this.whole = true;
    this.scale = Math.min(this.width / this.pixels.width, this.height / this.pixels.height);
    this.left = (this.width - this.scale * this.pixels.width) / 2;
    this.top = (this.height - this.scale * this.pixels.height) / 2;
    this.smallest = this.scale / 2;
    this.draw();
  }

  pan(dx, dy) {
    if (!this.pixels) return;
    this.whole = false;
    this.left += dx;
    this.top += dy;
    this.keepInSight();
    this.draw();
  }

  // Zoom about a point of the canvas, its middle by default.
  zoom(factor, x = this.width / 2, y = this.height / 2) {
    if (!this.pixels) return;
    this.whole = false;
    const scale = Math.min(LARGEST_ZOOM, Math.max(this.smallest, this.scale * factor));
    this.left = x - ((x - this.left) * scale) / this.scale;
    this.top = y - ((y - this.top) * scale) / this.scale;
    this.scale = scale;
    this.keepInSight();
    this.draw();
  }

  // A part of the image stays on the screen, a quarter of it or of the canvas.
  keepInSight() {
    const keep = (at, size, image) => {
      const part = Math.min(size, image * this.scale) / 4;
      return within(at, [part - image * this.scale, size - part]);
    };
    this.left = keep(this.left, this.width, this.pixels.width);
    this.top = keep(this.top, this.height, this.pixels.height);
  }

  // A pointer's place in the image, in pixels.
  point(event) {
    const { left, top } = this.canvas.getBoundingClientRect();
    return { x: (event.clientX - left - this.left) / this.scale, y: (event.clientY - top - this.top) / this.scale };
  }

  // Draw once before the next frame, however often it is asked for.
  draw() {
    this.request ??= requestAnimationFrame(() => {
      this.request = null;
      this.paint();
    });
  }

  paint() {
    if (!this.pixels) return;
    const { context, scale } = this, ratio = devicePixelRatio;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.setTransform(scale * ratio, 0, 0, scale * ratio, this.left * ratio, this.top * ratio);
    context.imageSmoothingEnabled = scale < 3; // pixels are told apart where they are large
    context.drawImage(this.shown, 0, 0);
    if (this.changed && this.mask) this.path = outline(this.mask);
    this.changed = false;
    if (!this.hidden && this.mask) {
      if (this.opacity) this.fill(this.opacity);
      if (this.suggestion && !this.bare) this.stroke(this.suggestion, SUGGESTION, [4, 6]);
      if (!this.bare) this.others.forEach((path, i) => this.stroke(path, COLOURS[i % COLOURS.length]));
      this.stroke(this.path, MASK, this.others.length ? [8, 4] : []);
    }
    if (this.preview) this.stroke(this.preview, "#fff", [6, 3]);
    if (this.cursor) {
      const circle = new Path2D();
      circle.arc(this.cursor.x, this.cursor.y, Math.max(this.cursor.radius, 2 / scale), 0, 2 * Math.PI);
      this.stroke(circle, this.cursor.erase ? ERASE : "#fff");
    }
  }

  // The mask's inside; its path is made of borders alone, so the mask itself is drawn.
  fill(opacity) {
    const { width, height, data } = this.mask;
    const inside = new ImageData(width, height), target = new Uint32Array(inside.data.buffer);
    for (let i = 0; i < data.length; i++) if (data[i]) target[i] = 0xff42e4f0; // MASK, in the order of its bytes
    this.inside ??= document.createElement("canvas");
    Object.assign(this.inside, { width, height });
    this.inside.getContext("2d").putImageData(inside, 0, 0);
    this.context.globalAlpha = opacity;
    this.context.drawImage(this.inside, 0, 0);
    this.context.globalAlpha = 1;
  }

  // A line of the same width at every zoom, on a dark rim.
  stroke(path, colour, dashes = []) {
    const { context, scale } = this;
    context.lineCap = "square";
    context.setLineDash([]);
    context.lineWidth = 3.5 / scale;
    context.strokeStyle = "#0009";
    context.stroke(path);
    context.setLineDash(dashes.map((length) => length / scale));
    context.lineWidth = 1.5 / scale;
    context.strokeStyle = colour;
    context.stroke(path);
  }
}
