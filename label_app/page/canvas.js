// The image on the screen: zoom and pan, window and level, the outlines, and where a pointer is in the image.
import { outline } from "./mask.js";

const MASK = "#F0E442", SUGGESTION = "#56B4E9"; // Okabe and Ito's colours: seen on grey, told apart by all
const LARGEST_ZOOM = 40;

export class View {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.shown = document.createElement("canvas");
    this.look = { window: 255, level: 128 }; // of the display only
    this.hidden = false;
    this.preview = null; // the shape being drawn
    this.cursor = null; // {x, y, radius} in the image
    new ResizeObserver(() => this.fit()).observe(canvas);
  }

  // Show an image; mask and suggestion may be null.
  show(pixels, mask, suggestion) {
    this.pixels = pixels;
    this.shown.width = pixels.width;
    this.shown.height = pixels.height;
    this.suggestion = suggestion && outline(suggestion);
    this.setLook(this.look);
    this.setMask(mask);
    this.fit();
  }

  setMask(mask) {
    this.mask = mask;
    this.changed = true;
    this.draw();
  }

  setLook(look) {
    this.look = look;
    if (!this.pixels) return;
    const { width, height, data } = this.pixels, low = look.level - look.window / 2;
    const table = Uint32Array.from({ length: 256 }, (_, value) => {
      const grey = Math.round(Math.min(255, Math.max(0, ((value - low) / look.window) * 255)));
      return 0xff000000 | (grey * 0x010101);
    });
    const image = new ImageData(width, height), target = new Uint32Array(image.data.buffer);
    for (let i = 0; i < data.length; i++) target[i] = table[data[i]];
    this.shown.getContext("2d").putImageData(image, 0, 0);
    this.draw();
  }

  // The whole image, as large as it goes.
  fit() {
    const { clientWidth, clientHeight } = this.canvas, ratio = devicePixelRatio;
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    if (!this.pixels || !clientWidth) return;
    this.scale = Math.min(clientWidth / this.pixels.width, clientHeight / this.pixels.height);
    this.left = (clientWidth - this.scale * this.pixels.width) / 2;
    this.top = (clientHeight - this.scale * this.pixels.height) / 2;
    this.smallest = this.scale / 2;
    this.draw();
  }

  pan(dx, dy) {
    this.left += dx;
    this.top += dy;
    this.draw();
  }

  // Zoom about a point of the canvas, its middle by default.
  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const scale = Math.min(LARGEST_ZOOM, Math.max(this.smallest, this.scale * factor));
    this.left = x - ((x - this.left) * scale) / this.scale;
    this.top = y - ((y - this.top) * scale) / this.scale;
    this.scale = scale;
    this.draw();
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
      if (this.suggestion) this.stroke(this.suggestion, SUGGESTION, [4, 4]);
      this.stroke(this.path, MASK);
    }
    if (this.preview) this.stroke(this.preview, "#fff", [6, 3]);
    if (this.cursor) {
      const circle = new Path2D();
      circle.arc(this.cursor.x, this.cursor.y, Math.max(this.cursor.radius, 2 / scale), 0, 2 * Math.PI);
      this.stroke(circle, "#fff");
    }
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
