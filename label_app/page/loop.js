// The loop: open an image, note what the reader says, submit, next. The page's state lives here; it draws nothing.
import * as api from "./api.js";
import { area, dice, empty, fromRuns, toRuns } from "./mask.js";

const IDLE = 30; // seconds; a longer pause is not work

export class Loop {
  // `view` and `tools` show and change the mask; `render()` shows the state; `say(text, wrong)` tells the reader.
  constructor(view, tools, render, say) {
    Object.assign(this, { view, tools, render, say });
    this.config = { classes: [], orders: {} };
    this.reader = sessionStorage.getItem("reader") ?? localStorage.getItem("reader") ?? "me";
    this.order = localStorage.getItem("order") ?? "first";
    this.progress = { labelled: 0, of: 0 };
    this.reading = null;
    this.past = [];
    this.later = [];
    this.ahead = null;
    for (const kind of ["pointerdown", "pointermove", "keydown"]) addEventListener(kind, () => this.work(), true);
  }

  async start() {
    this.config = await api.config();
    const place = JSON.parse(sessionStorage.getItem(`place/${this.reader}`) ?? "null");
    if (place) await this.open(place.image, place.again).catch(() => this.next());
    else await this.next();
  }

  async as(reader, order) {
    localStorage.setItem("reader", reader);
    sessionStorage.setItem("reader", reader);
    localStorage.setItem("order", order);
    const same = reader === this.reader;
    Object.assign(this, { reader, order, ahead: null, later: [] });
    if (same) return this.look(); // the order of what comes next is another, the image stays
    this.past = [];
    await this.next();
  }

  // The next image and all that it needs, fetched while the reader works on this one.
  look() {
    const here = this.reading?.image;
    this.ahead = (async () => {
      const next = await api.next(this.reader, this.order, here ? [here] : []);
      return { next, loaded: next.image && (await api.load(next.image, this.reader, next.again)) };
    })();
    this.ahead.catch(() => {});
    return this.ahead;
  }

  async next() {
    const waiting = this.later.pop();
    if (waiting) return this.open(waiting.image, waiting.again);
    try {
      const { next, loaded } = await (this.ahead ?? this.look());
      this.ahead = null;
      this.progress = { of: next.of, labelled: Math.max(next.labelled, this.progress.labelled) };
      if (next.left_out?.length) this.say(`Passed by: ${next.left_out.join("; ")}`, true);
      if (loaded) this.show(loaded);
      else this.finish();
    } catch (error) {
      this.ahead = null;
      this.say(error.message, true);
    }
  }

  finish() {
    this.reading = this.tools.mask = null;
    sessionStorage.removeItem(`place/${this.reader}`);
    this.say("All images are labelled. Thank you.");
    this.render();
  }

  async open(image, again = false) {
    this.show(await api.load(image, this.reader, again));
  }

  back() {
    const before = this.past.pop();
    if (!before) return this.say("This is the first image of this session.");
    if (this.reading) this.later.push({ image: this.reading.image, again: this.reading.again });
    return this.open(before.image, before.again).catch((error) => this.say(error.message, true));
  }

  show(loaded) {
    const { image, again, pixels, suggestion = null, label = null, withheld = false, failed } = loaded;
    const draft = JSON.parse(localStorage.getItem(this.draftKey(image, again)) ?? "null");
    this.reading = {
      image, again, pixels, suggestion, withheld,
      map: suggestion?.map ?? null,
      threshold: this.config.threshold,
      class: label?.class ?? "",
      cannotTell: Boolean(label?.cannot_tell),
      classBefore: label?.class ?? "",
      seconds: 0, strokes: 0, edits: 0, undone: 0, tools: [],
      ...draft?.reading,
    };
    this.last = performance.now();
    const { width, height } = pixels;
    const mask = draft ? fromRuns(width, height, draft.runs) : label?.mask ?? suggestion?.mask ?? empty(width, height);
    this.view.show(pixels, mask, suggestion?.mask ?? null);
    this.tools.start(fromRuns(width, height, toRuns(mask)));
    sessionStorage.setItem(`place/${this.reader}`, JSON.stringify({ image, again }));
    if (failed) this.say(`No suggestion: ${failed}`, true);
    else if (draft) this.say("Your draft of this image is back.");
    else if (label) this.say("Your label of this image; Enter replaces it.");
    else if (withheld) this.say("This image comes without a suggestion, to measure what suggestions are worth.");
    else this.say("");
    this.render();
    this.look();
  }

  // Work is counted from event to event.
  work() {
    const now = performance.now(), gap = (now - (this.last ?? now)) / 1000;
    if (this.reading && gap < IDLE) this.reading.seconds += gap;
    this.last = now;
  }

  draftKey(image = this.reading.image, again = this.reading.again) {
    return `draft/${this.reader}/${again ? "again/" : ""}${image}`;
  }

  keep() {
    const { pixels, suggestion, map, image, again, withheld, ...kept } = this.reading;
    const draft = JSON.stringify({ reading: kept, runs: toRuns(this.tools.mask) });
    try {
      localStorage.setItem(this.draftKey(), draft);
    } catch {
      this.say("This browser keeps no more drafts; submit before you leave the page.", true);
    }
  }

  // After each change of the mask by a tool; "" for undo and redo.
  changed(tool) {
    const { reading } = this;
    if (tool) {
      reading.edits++;
      if (!["slider", "reset", "no lesion", "box"].includes(tool)) reading.strokes++;
      if (!reading.tools.includes(tool)) reading.tools.push(tool);
    } else reading.undone++;
    this.keep();
    this.render();
  }

  classify(name) {
    const { reading } = this;
    Object.assign(reading, { class: name, cannotTell: false, classBefore: reading.classBefore || name });
    this.keep();
    this.render();
  }

  noLesion() {
    const { width, height } = this.reading.pixels;
    if (area(this.tools.mask)) this.tools.replace(empty(width, height), "no lesion");
    if (this.config.no_lesion) this.classify(this.config.no_lesion);
  }

  cannotTell() {
    Object.assign(this.reading, { class: "", cannotTell: true });
    this.keep();
    this.render();
  }

  // What is missing before this can be submitted; "" for nothing.
  problem() {
    const { reading, config } = this, lesion = area(this.tools.mask) > 0;
    if (reading.cannotTell) return "";
    if (!reading.class) return `Say the class first: ${config.classes.map((name, i) => `${i + 1} ${name}`).join(", ")}.`;
    if (reading.class === config.no_lesion && lesion) return `The class is ${reading.class}, but there is an outline. N erases it.`;
    if (reading.class !== config.no_lesion && !lesion) return `The class is ${reading.class}: outline the lesion, or press N for no lesion.`;
    return "";
  }

  // Once at a time: who presses Enter twice submits one image.
  async submit() {
    if (!this.reading || this.submitting) return;
    this.submitting = true;
    try {
      const problem = this.problem();
      if (problem) this.say(problem, true);
      else if (await this.save()) await this.next();
    } finally {
      this.submitting = false;
    }
  }

  // Whether it was saved; the reader is told where it was not.
  async save() {
    const { reading } = this, { suggestion } = reading;
    this.work();
    const mask = reading.cannotTell ? empty(reading.pixels.width, reading.pixels.height) : this.tools.mask;
    try {
      this.progress = await api.save(reading.image, this.reader, reading.again, mask, {
        class: reading.class,
        cannot_tell: reading.cannotTell,
        class_before: reading.classBefore,
        class_model: suggestion?.class,
        suggestion: suggestion ? "shown" : reading.withheld ? "withheld" : "none",
        suggestion_dice: suggestion && dice(mask, suggestion.mask),
        weights: suggestion?.weights,
        threshold: reading.threshold,
        seconds: reading.seconds,
        strokes: reading.strokes,
        edits: reading.edits,
        undone: reading.undone,
        tools: reading.tools.join(" "),
      });
    } catch (error) {
      this.say(`Not saved: ${error.message}. Your work stays here; press Enter to try again.`, true);
      return false;
    }
    localStorage.removeItem(this.draftKey());
    this.past.push({ image: reading.image, again: reading.again });
    return true;
  }
}
