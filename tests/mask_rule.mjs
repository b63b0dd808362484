// The page's masks of the maps in a JSON file: node mask_rule.mjs mask.js CASES.json
// A case has width, height, data (base64), steps and rule; prints the masks' pixels as a list of base64.
import { readFileSync } from "node:fs";

const [script, cases] = process.argv.slice(2).map((file) => readFileSync(file, "utf8"));
const { lesionMask } = await import(`data:text/javascript,${encodeURIComponent(script)}`); // no package.json says what .js is
const masks = JSON.parse(cases).map(({ data, steps, rule, ...size }) =>
  lesionMask({ ...size, data: Buffer.from(data, "base64") }, steps, rule),
);
console.log(JSON.stringify(masks.map(({ data }) => Buffer.from(data).toString("base64"))));
