// One raster mask: {width, height, data}, data a Uint8Array with 1 where the lesion is. Nothing here knows the page.
// A pixel (x, y) covers x to x + 1 and y to y + 1; it counts as inside a shape where its centre is.

export const empty = (width, height) => ({ width, height, data: new Uint8Array(width * height) });
export const copy = (mask) => ({ ...mask, data: mask.data.slice() });
export const area = (mask) => mask.data.reduce((sum, value) => sum + value, 0);
export const isEmpty = (mask) => !mask.data.includes(1);

export function dice(first, second) {
  let both = 0;
  for (let i = 0; i < first.data.length; i++) both += first.data[i] & second.data[i];
  const total = area(first) + area(second);
  return total ? (2 * both) / total : 1;
}

// A stroke of the brush from one point to another: all pixels within the radius of the line between them.
export function stamp(mask, from, to, radius, value) {
  const { width, height, data } = mask;
  const dx = to.x - from.x, dy = to.y - from.y, length = dx * dx + dy * dy;
  const top = Math.max(0, Math.floor(Math.min(from.y, to.y) - radius));
  const bottom = Math.min(height - 1, Math.ceil(Math.max(from.y, to.y) + radius));
  const left = Math.max(0, Math.floor(Math.min(from.x, to.x) - radius));
  const right = Math.min(width - 1, Math.ceil(Math.max(from.x, to.x) + radius));
  for (let y = top; y <= bottom; y++)
    for (let x = left; x <= right; x++) {
      const px = x + 0.5 - from.x, py = y + 0.5 - from.y;
      const along = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
      if ((px - along * dx) ** 2 + (py - along * dy) ** 2 <= radius * radius) data[y * width + x] = value;
    }
}

export function ellipse(mask, box, value) {
  const a = (box.right - box.left) / 2, b = (box.bottom - box.top) / 2;
  const points = Array.from({ length: 180 }, (_, i) => (i * Math.PI) / 90).map((t) => ({
    x: box.left + a + a * Math.cos(t),
    y: box.top + b + b * Math.sin(t),
  }));
  polygon(mask, points, value);
}

// The inside of a closed line; what it runs around twice is inside as well.
export function polygon(mask, points, value) {
  const { width, height, data } = mask;
  const ys = points.map((p) => p.y);
  const last = Math.min(height - 1, Math.floor(Math.max(...ys)));
  for (let y = Math.max(0, Math.floor(Math.min(...ys))); y <= last; y++) {
    const middle = y + 0.5, crossings = [];
    points.forEach((p, i) => {
      const q = points[(i + 1) % points.length], down = p.y <= middle;
      if (down !== q.y <= middle)
        crossings.push({ x: p.x + ((middle - p.y) / (q.y - p.y)) * (q.x - p.x), turn: down ? 1 : -1 });
    });
    crossings.sort((a, b) => a.x - b.x);
    let turns = 0;
    crossings.forEach(({ x, turn }, i) => {
      turns += turn;
      if (!turns) return;
      const start = Math.max(0, Math.ceil(x - 0.5)), end = Math.min(width, Math.ceil(crossings[i + 1].x - 0.5));
      if (start < end) data.fill(value, y * width + start, y * width + end);
    });
  }
}

// Indices of the pixels connected with one, by their sides, that have its value; `seen` marks them.
function region(mask, start, seen) {
  const { width, height, data } = mask;
  const found = [start], value = data[start];
  seen[start] = 1;
  const visit = (i) => {
    if (data[i] === value && !seen[i]) found.push(i), (seen[i] = 1);
  };
  for (let n = 0; n < found.length; n++) {
    const i = found[n], x = i % width;
    if (x > 0) visit(i - 1);
    if (x < width - 1) visit(i + 1);
    if (i >= width) visit(i - width);
    if (i < width * (height - 1)) visit(i + width);
  }
  return found;
}

// Fill the hole at a point (value 1), or erase the part there (value 0); whether there was one.
export function fill(mask, point, value) {
  const { width, height, data } = mask;
  const x = Math.floor(point.x), y = Math.floor(point.y);
  if (x < 0 || y < 0 || x >= width || y >= height || data[y * width + x] === value) return false;
  const found = region(mask, y * width + x, new Uint8Array(data.length));
  const onBorder = (i) => i % width === 0 || i % width === width - 1 || i < width || i >= width * (height - 1);
  if (value && found.some(onBorder)) return false; // the surroundings of the lesion are no hole
  for (const i of found) data[i] = value;
  return true;
}

// The mask of a probability map (Uint8Array, 255 is 1) at a threshold, without specks.
export function threshold(width, height, map, limit, smallest = 0.002) {
  const mask = empty(width, height), { data } = mask;
  for (let i = 0; i < data.length; i++) data[i] = map[i] >= limit * 255 ? 1 : 0;
  const seen = new Uint8Array(data.length);
  for (let i = data.indexOf(1); i >= 0; i = data.indexOf(1, i + 1)) {
    if (seen[i]) continue;
    const part = region(mask, i, seen);
    if (part.length < smallest * data.length) for (const j of part) data[j] = 0;
  }
  return mask;
}

// Lengths of the runs of 0 and 1 in turn, row by row: what a draft and a step to undo are kept as.
export function toRuns({ data }) {
  const runs = [];
  let from = 0, value = 0;
  while (from < data.length) {
    const next = data.indexOf(1 - value, from), to = next < 0 ? data.length : next;
    runs.push(to - from);
    (from = to), (value = 1 - value);
  }
  return runs;
}

export function fromRuns(width, height, runs) {
  const mask = empty(width, height);
  let at = 0;
  runs.forEach((length, i) => {
    if (i % 2) mask.data.fill(1, at, at + length);
    at += length;
  });
  return mask;
}

// The mask's outline as a path along the pixels' borders, in pixels.
export function outline({ width, height, data }) {
  const path = new Path2D(), first = data.indexOf(1);
  if (first < 0) return path;
  const top = Math.floor(first / width), bottom = Math.floor(data.lastIndexOf(1) / width);
  const at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : data[y * width + x]);
  for (let y = top; y <= bottom + 1; y++)
    for (let x = 0; x < width; x++) {
      if (at(x, y) === at(x, y - 1)) continue;
      const start = x;
      while (x < width && at(x, y) !== at(x, y - 1)) x++;
      path.moveTo(start, y);
      path.lineTo(x, y);
    }
  for (let y = top; y <= bottom; y++)
    for (let x = 0; x <= width; x++)
      if (at(x, y) !== at(x - 1, y)) {
        path.moveTo(x, y);
        path.lineTo(x, y + 1);
      }
  return path;
}
