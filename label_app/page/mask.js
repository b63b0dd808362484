// One raster mask: {width, height, data}, data a Uint8Array with 1 where the lesion is. Nothing here knows the page.
// A pixel (x, y) covers x to x + 1 and y to y + 1; it counts as inside a shape where its centre is.

export const empty = (width, height) => ({ width, height, data: new Uint8Array(width * height) });
export const copy = (mask) => ({ ...mask, data: mask.data.slice() });
export const area = (mask) => mask.data.reduce((sum, value) => sum + value, 0);

export function dice(first, second) {
  let both = 0;
  for (let i = 0; i < first.data.length; i++) both += first.data[i] & second.data[i];
  const total = area(first) + area(second);
  return total ? (2 * both) / total : null; // nothing to compare
}

// What a reader has added (1) to a mask and erased (2) from it, over whatever the model makes there (0).
export const untouched = ({ width, height }) => ({ width, height, data: new Uint8Array(width * height) });

// Note in `own` where a mask differs from the one before; whether it does.
export function note(own, before, mask) {
  let changed = false;
  for (let i = 0; i < mask.data.length; i++)
    if (mask.data[i] !== before.data[i]) {
      own.data[i] = mask.data[i] ? 1 : 2;
      changed = true;
    }
  return changed;
}

// The model's mask with the reader's own pixels over it.
export function over(base, own) {
  const mask = copy(base);
  for (let i = 0; i < own.data.length; i++) if (own.data[i]) mask.data[i] = own.data[i] === 1 ? 1 : 0;
  return mask;
}

const only = (own, value) => toRuns({ data: own.data.map((found) => (found === value ? 1 : 0)) });
export const ownRuns = (own) => ({ added: only(own, 1), erased: only(own, 2) });
export function fromOwnRuns(width, height, { added, erased }) {
  const own = fromRuns(width, height, added), gone = fromRuns(width, height, erased);
  gone.data.forEach((value, i) => value && (own.data[i] = 2));
  return own;
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

// Indices of the pixels connected with one that have its value, by their sides or by corners too; `seen` marks them.
function region(mask, start, seen, corners = false) {
  const { width, height, data } = mask;
  const found = [start], value = data[start];
  seen[start] = 1;
  for (let n = 0; n < found.length; n++) {
    const x = found[n] % width, y = (found[n] - x) / width;
    for (let v = Math.max(0, y - 1); v <= Math.min(height - 1, y + 1); v++)
      for (let u = Math.max(0, x - 1); u <= Math.min(width - 1, x + 1); u++) {
        const i = v * width + u;
        if (data[i] !== value || seen[i] || (!corners && u !== x && v !== y)) continue;
        found.push(i);
        seen[i] = 1;
      }
  }
  return found;
}

// The parts of a mask (8 neighbours) that a box's ellipse does not reach.
export function partsBeyond(mask, box) {
  const kept = copy(mask), inside = empty(mask.width, mask.height), seen = new Uint8Array(mask.data.length);
  ellipse(inside, box, 1);
  for (let i = mask.data.indexOf(1); i >= 0; i = mask.data.indexOf(1, i + 1)) {
    if (seen[i]) continue;
    const part = region(mask, i, seen, true);
    if (part.some((j) => inside.data[j])) for (const j of part) kept.data[j] = 0;
  }
  return kept;
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

// The mask of a probability map {width, height, data} by the bundle's rule, `LesionMaskd` of its transforms.py: parts
// (8 neighbours) that are small or doubtful are erased. `data` counts in steps as lib/pixels.py: 0 to `steps`.
export function lesionMask({ width, height, data }, steps, { mask_threshold, smallest_fraction, component_threshold }) {
  // Middle of each step, in float32 as in the bundle: sums in float64 are then the same to the last bit.
  const probability = Float32Array.from({ length: steps + 1 }, (_, step) => (step + 0.5) / steps);
  const mask = empty(width, height), seen = new Uint8Array(data.length), limit = Math.fround(mask_threshold);
  for (let i = 0; i < data.length; i++) mask.data[i] = probability[data[i]] >= limit ? 1 : 0;
  for (let i = mask.data.indexOf(1); i >= 0; i = mask.data.indexOf(1, i + 1)) {
    if (seen[i]) continue;
    const part = region(mask, i, seen, true);
    const sum = part.reduce((total, j) => total + probability[data[j]], 0);
    const stays = part.length >= smallest_fraction * data.length && sum >= component_threshold * part.length;
    if (!stays) for (const j of part) mask.data[j] = 0;
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
