// The loop: open an image, note what the reader says, submit, next. The page's state lives here; it draws nothing.
import * as api from "./api.js";
import { area, copy, dice, empty, note, toRuns, untouched } from "./mask.js";
import { Outbox } from "./outbox.js";
import { stored } from "./stored.js";

const IDLE = 30; // seconds; of a longer pause no more is counted as work
const REMEMBERED = 200; // images that one can go back to
const AGAIN = 3; // seconds until the server is asked again that did not answer
const NO_STROKES = ["slider", "reset", "clear", "box", "click", "click away", "version", "accept"];

const random = () => [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

export class Loop {
  // `view` and `tools` show and change the mask; `render()` shows the state; `say(text, wrong)` tells the reader.
  constructor(view, tools, render, say) {
    Object.assign(this, { view, tools, render, say });
    this.config = { classes: [], orders: {}, fields: {}, readers: {} };
    this.reader = sessionStorage.getItem("reader") ?? localStorage.getItem("reader") ?? "";
    this.order = localStorage.getItem("order") ?? "first";
    this.blind = localStorage.getItem("blind") !== "no";
    const [visit] = performance.getEntriesByType("navigation"); // a page that is loaded again is the same window
    this.window = (visit?.type === "reload" && sessionStorage.getItem("window")) || random();
    sessionStorage.setItem("window", this.window);
    this.outbox = new Outbox(render, (answer, entry) => this.saved(answer, entry), (entry, error) => this.refused(entry, error));
    this.forget();
    for (const kind of ["pointerdown", "pointermove", "keydown", "wheel"])
      addEventListener(kind, () => this.work(), { capture: true, passive: true });
    addEventListener("pagehide", () => this.reading && this.savePlace());
  }

  // What belongs to one reader.
  forget() {
    Object.assign(this, { reading: null, past: [], later: [], skipped: [], toSettle: [], ahead: null });
    Object.assign(this, { progress: { labelled: 0, of: 0 }, elsewhere: null, waiting: "", ended: false, unsent: new Set() });
  }

  get mayAdjudicate() {
    const { readers } = this.config;
    return !Object.keys(readers).length || readers[this.reader] === "adjudicator";
  }

  get namesHidden() {
    return this.config.hide_names && !this.mayAdjudicate;
  }

  async start(config) {
    this.config = config;
    this.outbox.resume(config.folder, config.reader);
    if (!(this.order in config.orders)) this.order = "first";
    if (config.reader) this.reader = config.reader;
  }

  // Begin, or go on, as a reader.
  async as(reader) {
    localStorage.setItem("reader", reader);
    sessionStorage.setItem("reader", reader);
    this.forget();
    this.reader = reader;
    this.past = stored(sessionStorage, `past/${this.place}`, Array.isArray) ?? [];
    const before = stored(sessionStorage, `place/${this.place}`, ({ image }) => typeof image === "string");
    if (before && !this.onTheWay(before.image)) await this.open(before.image, before.again, before.seconds);
    else await this.next();
  }

  choose(order) {
    localStorage.setItem("order", order);
    Object.assign(this, { order, later: [] });
    return this.reading ? this.prefetch() : this.next(); // what comes next is another, the image stays
  }

  get place() {
    return `${this.reader}/${this.config.folder}`; // other folders on this address have images of the same name
  }

  // Her images whose labels are on their way.
  get unsaved() {
    return this.outbox.entries.filter((entry) => entry.reader === this.reader).map((entry) => entry.image);
  }

  onTheWay(image) {
    return this.unsaved.includes(image);
  }

  wait(text) {
    Object.assign(this, { reading: null, waiting: text, ended: false });
    this.tools.mask = null;
    this.say("");
    this.render();
  }

  // The next image and all that it needs, fetched while the reader works on this one.
  prefetch() {
    const skip = [this.reading?.image, ...this.skipped, ...this.unsaved];
    const { reader } = this;
    const ahead = (async () => {
      const next = await api.next(reader, { order: this.order, skip: skip.filter(Boolean), window: this.window });
      const loaded = next.image && (await api.load(next.image, reader, next.again));
      if (reader === this.reader) this.tell(next);
      return { next, loaded };
    })();
    ahead.catch(() => {});
    return (this.ahead = ahead);
  }

  tell({ labelled, of, other_window: minutes }) {
    this.progress = { of, labelled: of === this.progress.of ? Math.max(labelled, this.progress.labelled) : labelled };
    this.elsewhere = minutes;
    this.render();
  }

  async next() {
    const waiting = this.later.pop();
    if (waiting) return this.open(waiting.image, waiting.again);
    const turn = (this.turn = {});
    this.wait("Looking for the next image …");
    try {
      const { next, loaded } = await (this.ahead ?? this.prefetch());
      if (turn !== this.turn) return;
      this.ahead = null;
      if (loaded) await this.show(loaded);
      else if (this.skipped.length) {
        this.skipped = [];
        return this.next();
      } else this.finish();
      const left = next.left_out ?? [];
      if (left.length) this.say(`Passed by: ${this.namesHidden ? `${left.length}, not readable` : left.join("; ")}`, true);
    } catch (error) {
      this.ahead = null;
      if (turn === this.turn) this.retry(error, () => this.next());
    }
  }

  // Say on the empty page what is wrong, and ask again where that may help.
  retry(error, action) {
    const again = !error.status || error.status >= 500, turn = (this.turn = {});
    this.wait(`${error.message}${again ? "; asking again …" : ""}`);
    if (again) setTimeout(() => turn === this.turn && action(), 1000 * AGAIN);
  }

  finish() {
    sessionStorage.removeItem(`place/${this.place}`);
    this.wait(this.progress.of ? "" : "No images in this folder yet. Drop some here.");
    this.ended = this.progress.of > 0;
    this.say("");
    this.render();
  }

  async open(image, again = false, seconds = 0) {
    const turn = (this.turn = {});
    this.wait(this.onTheWay(image) ? "Saving …" : "Opening …");
    try {
      await this.outbox.sent(image);
      const loaded = await api.load(image, this.reader, again);
      if (turn === this.turn) await this.show(loaded, seconds);
    } catch (error) {
      if (turn === this.turn) this.retry(error, () => this.open(image, again, seconds));
    }
  }

  // Settle what readers say of an image; `list` are those that come after it.
  async settle(image, list = []) {
    const turn = (this.turn = {});
    if (this.reading && !this.reading.outlines) this.later.push({ image: this.reading.image, again: this.reading.again });
    this.toSettle = list;
    this.wait("Opening …");
    try {
      await this.outbox.sent(image);
      const loaded = await api.loadOutlines(image, this.reader);
      if (turn === this.turn) await this.show({ ...loaded, again: false });
    } catch (error) {
      if (turn === this.turn) this.retry(error, () => this.settle(image, list));
    }
  }

  // Another image is opened from a list.
  visit(image) {
    if (this.reading && !this.reading.outlines) this.remember();
    return this.open(image);
  }

  remember() {
    this.past = [...this.past, { image: this.reading.image, again: this.reading.again }].slice(-REMEMBERED);
    sessionStorage.setItem(`past/${this.place}`, JSON.stringify(this.past));
  }

  back() {
    const before = this.past.at(-1);
    if (!before) return this.say("This is the first image of this session.");
    if (this.reading && !this.reading.outlines) this.later.push({ image: this.reading.image, again: this.reading.again });
    this.past = this.past.slice(0, -1);
    sessionStorage.setItem(`past/${this.place}`, JSON.stringify(this.past));
    return this.open(before.image, before.again);
  }

  // Later: the image comes again when all others are done.
  skip() {
    if (this.reading.outlines) return this.leaveSettling();
    this.skipped.push(this.reading.image);
    this.remember();
    this.ahead = null;
    return this.next();
  }

  leaveSettling() {
    const [image, ...rest] = this.toSettle;
    return image ? this.settle(image, rest) : this.next();
  }

  async show(loaded, seconds = 0) {
    const { image, again, pixels, suggestion = null, label = null, withheld = false, failed, outlines = null, versions = [] } = loaded;
    const { width, height } = pixels, { turn } = this;
    const draft = await this.draftOf({ image, again, outlines }, pixels);
    if (turn !== this.turn) return;
    Object.assign(this, { waiting: "", ended: false });
    this.reading = { image, again, pixels, suggestion, withheld, outlines, versions, label };
    Object.assign(this.reading, {
      class: label?.class ?? "",
      classUnknown: Boolean(label?.class_unknown),
      notReadable: Boolean(label?.not_readable || label?.cannot_tell),
      classUnsure: Boolean(label?.class_unsure),
      flag: Boolean(label?.flag),
      comment: label?.comment ?? "",
      fields: label?.fields ?? {},
      classBefore: null,
      seconds, strokes: 0, edits: 0, undone: 0, tools: [],
      ...draft?.reading,
    });
    this.last = performance.now();
    const mask = label?.mask ?? suggestion?.mask ?? empty(width, height);
    this.view.show(pixels, mask, suggestion?.mask ?? null, outlines?.labels ?? []);
    this.startTools(mask, draft);
    this.shown();
    this.savePlace();
    this.say(failed ? `No suggestion: ${failed}` : this.welcome(draft), Boolean(failed));
    this.render();
    if (!outlines) this.prefetch();
  }

  welcome(draft) {
    const { label, withheld, outlines } = this.reading;
    if (draft) return "Your draft of this image is back.";
    if (outlines) return label ? "Settled before; Enter replaces it." : "Accept an outline, or draw; then the class, then Enter.";
    if (label) return "Your label of this image; Enter replaces it.";
    return withheld ? "This image comes without a suggestion, to measure what suggestions are worth." : "";
  }

  // With the steps of the draft, if there is one, to undo and redo.
  startTools(mask, draft) {
    const { suggestion, label } = this.reading, { steps } = this.config, own = untouched(mask);
    const source = suggestion?.source ?? null, threshold = source?.rule.mask_threshold ?? null;
    if (label) note(own, suggestion?.mask ?? empty(mask.width, mask.height), mask);
    this.tools.start(copy(mask), { steps, source, threshold, own });
    if (draft) this.tools.resume(draft.history, source);
  }

  // The draft of an image with its maps; none where an entry is damaged.
  async draftOf(entry, pixels) {
    const key = this.draftKey(entry), draft = stored(localStorage, key, (found) => this.fits(found, pixels));
    if (!draft) return null;
    try {
      const { history } = draft;
      return { ...draft, history: { ...history, sources: await Promise.all(history.sources.map(api.source)) } };
    } catch {
      localStorage.removeItem(key);
      return null;
    }
  }

  savePlace() {
    const { image, again, seconds, outlines } = this.reading;
    if (!outlines) sessionStorage.setItem(`place/${this.place}`, JSON.stringify({ image, again, seconds }));
  }

  // Work is counted from event to event, in no dialog.
  work() {
    const now = performance.now(), gap = (now - (this.last ?? now)) / 1000;
    if (this.reading && !document.querySelector("dialog[open]")) this.reading.seconds += Math.min(gap, IDLE);
    this.last = now;
  }

  draftKey({ image, again, outlines } = this.reading) {
    return `draft/${this.place}/${outlines ? "final/" : again ? "again/" : ""}${image}`;
  }

  // Whether a draft is whole, and of the very image that is shown: the file may have been replaced.
  fits({ content, reading, history: { steps, step } }, pixels) {
    const whole = (found) => found.reduce((sum, run) => sum + run, 0) === pixels.data.length;
    const kept = steps.flatMap(({ runs, own }) => [runs, own.added, own.erased]);
    return content === pixels.content && Array.isArray(reading.tools) && step in steps && kept.every(whole);
  }

  saveDraft() {
    const { pixels, suggestion, image, again, withheld, outlines, versions, label, ...own } = this.reading;
    const { before, ...history } = this.tools.history(suggestion?.source ?? null);
    own.tools = [...own.tools, ...before];
    try {
      localStorage.setItem(this.draftKey(), JSON.stringify({ content: pixels.content, reading: own, history }));
    } catch {
      this.say("This browser keeps no more drafts; submit before you leave the page.", true);
    }
  }

  // After each change of the mask by a tool.
  changed(tool) {
    const { reading } = this;
    if (tool === "no fill") return this.say("Nothing to fill here: fill closes a hole in the outline; with Ctrl it erases a part.");
    if (tool === "undo") reading.undone++;
    else if (tool === "redo") reading.undone--;
    else {
      reading.edits++;
      if (!NO_STROKES.includes(tool)) reading.strokes++;
    }
    this.saveDraft();
    this.render();
  }

  // Say something of the image: the class, or what stands in its place.
  answer(said, before) {
    const { reading } = this;
    Object.assign(reading, { class: "", classUnknown: false, notReadable: false }, said);
    if (before) reading.classBefore ??= before;
    this.saveDraft();
    this.render();
  }

  classify = (name) => this.answer({ class: name }, name);
  classUnknown = () => this.answer({ classUnknown: true }, "class unknown");

  notReadable() {
    this.tools.clear();
    this.answer({ notReadable: true }, "not readable");
  }

  // One key for an image without lesion. It does not show the model's class: whoever wants to draw anew presses it too.
  noLesion() {
    this.tools.clear();
    if (this.config.no_lesion) this.answer({ class: this.config.no_lesion });
  }

  remark(values) {
    Object.assign(this.reading, values);
    this.saveDraft();
    this.render();
  }

  // Whether the model's class may be seen: after the reader's own, or where she has labelled the image before.
  get revealed() {
    const { reading } = this;
    return Boolean(reading && (!this.blind || reading.classBefore || reading.label));
  }

  // What is missing before this can be submitted; "" for nothing.
  problem() {
    const { reading, config } = this, outline = area(this.tools.mask) > 0;
    if (reading.notReadable) return outline ? "The image is not readable, but there is an outline. Delete clears it." : "";
    if (reading.classUnknown) return outline ? "" : "Outline the lesion whose class is unknown, or say that there is none.";
    if (!reading.class) return `Say the class first: ${config.classes.map((name, i) => `${i + 1} ${name}`).join(", ")}.`;
    if (!config.disagreement[reading.class]?.[Number(outline)]) return "";
    if (outline) return `The class is ${reading.class}, but there is an outline. Delete clears it.`;
    return `The class is ${reading.class}: outline the lesion, or press N for no lesion.`;
  }

  // Put the label on its way, and go on at once.
  submit() {
    const { reading } = this;
    if (!reading || this.tools.gesture) return;
    const problem = this.problem();
    if (problem) return this.say(problem, true);
    this.work();
    this.saveDraft(); // which stays until the server has the label
    this.outbox.add(this.entry());
    if (reading.outlines) return this.leaveSettling();
    this.remember();
    return this.next();
  }

  entry() {
    const { reading, tools, reader } = this, { image, again, pixels, outlines } = reading;
    const params = {
      class: reading.class,
      class_unknown: reading.classUnknown,
      not_readable: reading.notReadable,
      class_unsure: reading.classUnsure,
      flag: reading.flag,
      comment: reading.comment.trim(),
      fields: reading.fields,
      submission: random(),
      replaces: reading.label?.mark ?? null,
    };
    if (!outlines) Object.assign(params, this.counted());
    const { width, height } = pixels;
    return { image, reader, again, final: Boolean(outlines), params, width, height, runs: toRuns(tools.mask), draft: this.draftKey() };
  }

  // What the log is told of how a label was made.
  counted() {
    const { reading, tools, blind } = this, { suggestion } = reading;
    const said = reading.class || (reading.classUnknown ? "class unknown" : "not readable");
    return {
      class_before: reading.label ? null : reading.classBefore ?? said,
      blind,
      class_model: suggestion?.class,
      suggestion: suggestion ? "shown" : reading.withheld ? "withheld" : "none",
      suggestion_dice: suggestion && !reading.notReadable ? dice(tools.mask, suggestion.mask) : null,
      weights: suggestion?.weights,
      threshold: tools.source ? tools.threshold : null,
      seconds: reading.seconds,
      strokes: reading.strokes,
      edits: reading.edits,
      undone: reading.undone,
      tools: this.toolsUsed().join(" "),
    };
  }

  toolsUsed() {
    return [...new Set([...this.reading.tools, ...this.tools.used()])];
  }

  // The server has a label.
  saved(answer, entry) {
    localStorage.removeItem(entry.draft);
    this.unsent.delete(entry.image);
    if (entry.reader === this.reader && !entry.final) this.tell({ ...answer, other_window: this.elsewhere });
  }

  // The server never takes a label: the draft of its image keeps it.
  refused({ image }, error) {
    this.unsent.add(image);
    const name = this.namesHidden ? "An image" : image;
    this.say(`${name} is not saved: ${error.message}. Your work is a draft of it; open it under Images.`, true);
  }
}
