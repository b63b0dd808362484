// What the page asks the server for. Each call gives its answer or throws an Error with the server's own words, and the
// answer's status: 0 where there was none.

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw Object.assign(new Error("the server does not answer"), { status: 0 });
  }
  if (response.status === 401) location.reload(); // the log-in has ended
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    const detail = typeof answer.detail === "string" ? answer.detail : `the server answered ${response.status}`;
    throw Object.assign(new Error(detail), { status: response.status });
  }
  return response;
}

const query = (values) => new URLSearchParams(values).toString();
const get = async (path) => (await call(path)).json();
const send = async (path, body, method = "POST") => {
  const form = body instanceof FormData;
  const headers = form ? {} : { "Content-Type": "application/json" };
  return (await call(path, { method, headers, body: form ? body : JSON.stringify(body) })).json();
};

// Grey values, one byte a pixel, of a PNG; of one in colour its red ones, and `colours`, four bytes a pixel.
async function decoded(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  const data = new Uint8Array(bitmap.width * bitmap.height);
  let coloured = false;
  for (let i = 0, j = 0; i < data.length; i++, j += 4) {
    data[i] = pixels[j];
    coloured ||= pixels[j] !== pixels[j + 1] || pixels[j] !== pixels[j + 2];
  }
  return { width: bitmap.width, height: bitmap.height, data, colours: coloured ? pixels : null };
}

const fromBase64 = (text) => decoded(new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))]));

async function png({ width, height, data }) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  new Uint32Array(image.data.buffer).forEach((_, i, all) => (all[i] = data[i] ? 0xffffffff : 0xff000000));
  context.putImageData(image, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

const binary = async (text) => {
  const mask = await fromBase64(text);
  return { ...mask, data: Uint8Array.from(mask.data, (value) => (value > 127 ? 1 : 0)) };
};

const withMask = async (label) => label && { ...label, mask: await binary(label.mask) };

export const config = () => get("api/config");
export const next = (reader, asked) => send(`api/next?${query({ reader })}`, asked);
export const images = (reader) => get(`api/images?${query({ reader })}`);
export const thumbnail = (image) => `api/thumbnail?${query({ image })}`;
export const agreement = (reader) => get(`api/agreement?${query({ reader })}`);
export const summary = (reader) => get(`api/summary?${query({ reader })}`);
export const exported = (reader) => call(`api/export?${query({ reader })}`).then((response) => response.blob());
export const training = () => get("api/training");
export const train = () => send("../train/breast_ultrasound", {});
export const stopTraining = () => send("../train/", {}, "DELETE");

// `content`, a hash, tells the image from another one of its name.
async function pixelsOf(image) {
  const response = await call(`api/image?${query({ image })}`);
  return { ...(await decoded(await response.blob())), content: response.headers.get("ETag") };
}

// A map that the slider cuts, with the rule that makes a mask of it; a draft keeps it as it came.
export const source = async (found) => ({ ...found, map: await fromBase64(found.probability) });

// All that is needed to show an image: its pixels, the suggestion, the reader's own earlier label.
export async function load(image, reader, again) {
  const [pixels, reading] = await Promise.all([
    pixelsOf(image),
    get(`api/reading?${query({ image, reader, again })}`).catch((error) => ({ failed: error.message })),
  ]);
  const { suggestion } = reading;
  if (suggestion) {
    const { probability, rule } = suggestion;
    Object.assign(suggestion, { mask: await binary(suggestion.mask), source: await source({ probability, rule }) });
  }
  return { image, again, pixels, ...reading, label: await withMask(reading.label) };
}

// The same to settle what readers say of an image.
export async function loadOutlines(image, reader) {
  const [pixels, found] = await Promise.all([pixelsOf(image), get(`api/outlines?${query({ image, reader })}`)]);
  const consensus = Object.entries(found.consensus).map(async ([name, mask]) => [name, await binary(mask)]);
  return {
    image,
    pixels,
    versions: found.versions,
    label: await withMask(found.final),
    outlines: {
      labels: await Promise.all(found.labels.map(withMask)),
      class: found.class,
      consensus: Object.fromEntries(await Promise.all(consensus)),
    },
  };
}

export const version = (image, reader, again, final, version) =>
  get(`api/version?${query({ image, reader, again, final, version })}`).then(withMask);

// The model's map in a box; and after clicks, [x, y, whether the lesion is there], on the model's part of it.
export const askBox = async (image, box) => source({ ...(await send("api/box", { image, box })), box });
export async function askClicks(image, asked, mask) {
  const form = new FormData();
  form.append("params", JSON.stringify(asked));
  form.append("mask", await png(mask), "mask.png");
  return source({ ...(await send(`api/clicks?${query({ image })}`, form)), ...asked });
}

export async function save({ image, reader, again, final, params }, mask) {
  const form = new FormData();
  form.append("params", JSON.stringify(params));
  form.append("mask", await png(mask), "mask.png");
  return send(`api/${final ? "final" : "label"}?${query(final ? { image, reader } : { image, reader, again })}`, form, "PUT");
}

export function upload(file) {
  const form = new FormData();
  form.append("file", file, file.name);
  return send("api/images", form);
}
