// What the page asks the server for. Each call gives its answer or throws an Error with the server's own words.

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer");
  }
  if (response.status === 401) location.reload(); // the log-in has ended
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    const detail = typeof answer.detail === "string" ? answer.detail : `the server answered ${response.status}`;
    throw new Error(detail);
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

// Grey values, one byte a pixel, of a PNG.
async function grey(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  return { width: bitmap.width, height: bitmap.height, data: pixels.filter((_, i) => i % 4 === 0) };
}

const fromBase64 = (text) => grey(new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))]));

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

export const config = () => get("api/config");
export const next = (reader, order, skip) => send("api/next", { reader, order, skip });
export const images = (reader) => get(`api/images?${query({ reader })}`);
export const thumbnail = (image) => `api/thumbnail?${query({ image })}`;
export const agreement = () => get("api/agreement");
export const training = () => get("api/training");
export const train = () => send("../train/breast_ultrasound", {});
export const stopTraining = () => send("../train/", {}, "DELETE");

// All that is needed to show an image: its pixels, the suggestion, the reader's own earlier label.
export async function load(image, reader, again) {
  const [pixels, reading] = await Promise.all([
    call(`api/image?${query({ image })}`).then((response) => response.blob()).then(grey),
    get(`api/reading?${query({ image, reader, again })}`).catch((error) => ({ failed: error.message })),
  ]);
  const { suggestion, label } = reading;
  if (suggestion) {
    suggestion.mask = await binary(suggestion.mask);
    suggestion.map = (await fromBase64(suggestion.probability)).data;
  }
  if (label) label.mask = await binary(label.mask);
  return { image, again, pixels, ...reading };
}

export const box = async (image, corners) => (await fromBase64((await send("api/box", { image, box: corners })).probability)).data;

export async function save(image, reader, again, mask, params) {
  const form = new FormData();
  form.append("params", JSON.stringify(params));
  form.append("mask", await png(mask), "mask.png");
  return send(`api/label?${query({ image, reader, again })}`, form, "PUT");
}

export function upload(file) {
  const form = new FormData();
  form.append("file", file, file.name);
  return send("api/images", form);
}
