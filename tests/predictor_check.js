// One call of predictor.onnx from JavaScript: node predictor_check.js FILE.onnx PIXELS.bin ROWS COLUMNS
// PIXELS.bin holds ROWS * COLUMNS bytes of grey. Prints the class probabilities, the mask's area in pixels and the
// sum of the lesion's probability, as JSON.
const fs = require("fs");
const ort = require("onnxruntime-node");

async function main([file, pixels, ...shape]) {
  const session = await ort.InferenceSession.create(file);
  const image = new ort.Tensor("uint8", new Uint8Array(fs.readFileSync(pixels)), shape.map(Number));
  const { mask, lesion_probability, class_probabilities } = await session.run({ image });
  console.log(
    JSON.stringify({
      shape: mask.dims,
      class_probabilities: Array.from(class_probabilities.data),
      area: mask.data.filter((value) => value === 255).length,
      background: mask.data.filter((value) => value === 0).length,
      lesion: lesion_probability.data.reduce((sum, value) => sum + value, 0),
    })
  );
}

main(process.argv.slice(2));
