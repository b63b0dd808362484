// The dialogs: all images with their state, upload and export; the training; the readers and how well they agree.
import * as api from "./api.js";

const $ = (selector) => document.querySelector(selector);

export function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const when = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString("sv").slice(0, 16) : ""); // ISO 8601
// A mean with its interval.
const range = ({ mean, low, high, n }, digits = 2) => {
  if (mean === null) return "–";
  return `${mean.toFixed(digits)}${low === null ? "" : ` (95 % ${low.toFixed(digits)} to ${high.toFixed(digits)})`}, n ${n}`;
};
const isRunning = (status) => ["SUBMITTED", "RUNNING"].includes(status);
const decimals = (value) => (value === null ? "–" : value.toFixed(2));

export class Panels {
  constructor(loop, say) {
    Object.assign(this, { loop, say });
    for (const name of ["#filter", "#find"]) $(name).addEventListener("input", () => this.filter());
    for (const button of document.querySelectorAll(".export")) button.addEventListener("click", () => this.export());
    $("#files").addEventListener("change", (event) => this.upload([...event.target.files]));
    $("#train").addEventListener("click", () => this.train(() => api.train()));
    $("#summarize").addEventListener("click", () => this.summarize().catch((error) => $("#summary").replaceChildren(element("li", error.message))));
    $("#stop").addEventListener("click", () => this.train(() => api.stopTraining()));
    addEventListener("dragover", (event) => {
      event.preventDefault();
      $("#stage").classList.add("drop");
    });
    addEventListener("dragleave", (event) => event.relatedTarget || $("#stage").classList.remove("drop"));
    addEventListener("drop", (event) => {
      event.preventDefault();
      $("#stage").classList.remove("drop");
      this.upload([...event.dataTransfer.files]);
    });
    for (const dialog of document.querySelectorAll("dialog"))
      dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it
  }

  // `filter`: which images, in the dialog of images.
  open(name, filter) {
    if (["agreement", "training"].includes(name) && !this.loop.mayAdjudicate)
      return this.say("Only adjudicators see what others say, and train.", true);
    if (filter) $("#filter").value = filter;
    $(`#${name}`).showModal();
    const fill = { images: () => this.images(), training: () => this.training(), agreement: () => this.agreement() }[name];
    fill?.().catch((error) => this.tell(error.message));
  }

  // In the dialog that is open, or in the page.
  tell(text) {
    const place = { images: "#images-message", training: "#outcome", agreement: "#computing" }[document.querySelector("dialog[open]")?.id];
    if (place) $(place).textContent = text;
    else this.say(text, true);
  }

  async images() {
    const { reader, namesHidden } = this.loop, list = await api.images(reader);
    if (reader !== this.loop.reader) return;
    $("#images-message").textContent = list.length ? "" : "No images in this folder yet. Drop some onto the page.";
    $("#gallery").replaceChildren(...list.map((entry, i) => this.card(entry, namesHidden ? `image ${i + 1}` : entry.image)));
    this.filter();
  }

  card(entry, title) {
    const button = element("button", "", { type: "button", class: "card", "data-name": title });
    const image = element("img", "", { src: api.thumbnail(entry.image), alt: "", loading: "lazy" });
    const own = entry.by.find(({ reader }) => reader === this.loop.reader)?.doubts ?? [];
    button.append(image, element("b", title), element("span", [...new Set([entry.state, ...own])].join(", ")));
    if (entry.by.length) {
      const names = entry.by.map(({ reader, time }) => `${reader} ${when(time)}`).join("; ");
      button.append(element("small", entry.by.length > 1 ? `${entry.by.length} readers` : names, { title: names }));
    }
    for (const { reader, doubts } of entry.by)
      if (doubts.length && reader !== this.loop.reader) button.append(element("small", `${reader}: ${doubts.join(", ")}`));
    if (entry.disagree) button.append(element("small", "outline and class disagree"));
    button.dataset.state = entry.labelled ? "labelled" : "open";
    button.dataset.doubtful = entry.by.some(({ doubts }) => doubts.length);
    button.dataset.disagree = entry.disagree;
    button.addEventListener("click", () => {
      $("#images").close();
      // Who settles a study looks at what others said; who reads does not
      const settles = Object.keys(this.loop.config.readers).length && this.loop.mayAdjudicate && entry.by.length && !entry.labelled;
      settles ? this.loop.settle(entry.image) : this.loop.visit(entry.image);
    });
    return button;
  }

  filter() {
    const wanted = $("#filter").value, text = $("#find").value.toLowerCase(), cards = [...$("#gallery").children];
    const fits = ({ dataset }) => !wanted || (["open", "labelled"].includes(wanted) ? dataset.state === wanted : dataset[wanted] === "true");
    for (const card of cards) card.hidden = !fits(card) || !card.dataset.name.toLowerCase().includes(text);
    $("#found").textContent = `${cards.filter((card) => !card.hidden).length} of ${cards.length} images`;
  }

  async export() {
    try {
      const link = element("a", "", { href: URL.createObjectURL(await api.exported(this.loop.reader)), download: "labels.zip" });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    } catch (error) {
      this.tell(error.message);
    }
  }

  async upload(files) {
    const lines = [];
    for (const file of files)
      try {
        await api.upload(file);
        lines.push(`${file.name}: added`);
      } catch (error) {
        lines.push(`${file.name}: not added (${error.message})`);
      }
    $("#uploaded").replaceChildren(...lines.map((line) => element("li", line)));
    const refused = lines.filter((line) => !line.endsWith(": added"));
    const added = lines.length === 1 ? lines[0] : `${lines.length - refused.length} of ${lines.length} images added. ${refused.join("; ")}`;
    this.say(added, refused.length > 0);
    $("#files").value = "";
    if ($("#images").open) await this.images();
    if (this.loop.reading) this.loop.prefetch();
    else await this.loop.next();
  }

  async train(request) {
    try {
      await request();
    } catch (error) {
      const { message } = error;
      $("#outcome").textContent = message.startsWith("no label to learn") ? "No final label yet: submit one first." : message;
      return;
    }
    await this.training();
  }

  // Look every second, as long as the dialog is open, whether a training runs or an answer did not come. Only the
  // answer to the latest question counts, and nothing of an earlier look stays.
  async training() {
    clearTimeout(this.timer);
    const turn = (this.turn = {}), found = await api.training().catch((error) => ({ problem: error.message }));
    if (turn !== this.turn || !$("#training").open) return;
    this.showTraining(found);
    if (found.problem || isRunning(found.status)) this.timer = setTimeout(() => this.training(), 1000);
  }

  showTraining({ problem = "", status = "", started, done = 0, failed, history = [] }) {
    const runs = isRunning(status), last = history.at(-1);
    $("#train").disabled = runs || problem !== "";
    $("#stop").disabled = !runs;
    $("#epochs").value = runs ? done : 0;
    $("#epochs").hidden = !runs;
    const far = !done ? "begins …" : done < 1 ? `${Math.round(100 * done)} %` : "compared with the model in use …";
    if (problem) $("#outcome").textContent = `${problem}; asking again …`;
    else if (runs) $("#outcome").textContent = `Training since ${started}: ${far}`;
    else if (status === "ERROR") $("#outcome").textContent = `The training failed: ${failed}`;
    else if (status === "STOPPED") $("#outcome").textContent = "The training was stopped; the model in use is the same.";
    else $("#outcome").textContent = last ? last.outcome : "No training yet; the released weights are in use.";
    $("#history").replaceChildren(...history.toReversed().map((entry) => element("li", `${entry.time}: ${entry.outcome}`)));
  }

  async agreement() {
    $("#computing").textContent = "Computing …";
    $("#agreed").hidden = true;
    $("#summary").replaceChildren();
    const { reader } = this.loop, { pairs, differing } = await api.agreement(reader), open = differing.filter(({ source }) => !source);
    if (reader !== this.loop.reader) return;
    $("#computing").textContent = pairs.length ? "" : "No two readers have labelled the same image yet.";
    $("#agreed").hidden = !pairs.length;
    $("#pairs tbody").replaceChildren(
      ...pairs.map((pair) => {
        const row = element("tr");
        row.append(element("th", `${pair.first} and ${pair.second}`, { scope: "row" }));
        for (const value of [pair.images, decimals(pair.dice), decimals(pair.kappa), pair.differing.length]) row.append(element("td", value));
        return row;
      }),
    );
    $("#differing-title").textContent = `Images in which readers differ: ${differing.length}; not settled: ${open.length}`;
    $("#differing").replaceChildren(
      ...differing.map(({ image, source }) => {
        const item = element("li"), button = element("button", image, { type: "button" });
        button.addEventListener("click", () => {
          $("#agreement").close();
          const rest = open.map((entry) => entry.image);
          this.loop.settle(image, rest.slice(rest.indexOf(image) + 1));
        });
        item.append(button, ` ${source ? `settled: ${source}` : ""}`);
        return item;
      }),
    );
  }

  async summarize() {
    $("#summary").replaceChildren(element("li", "Computing …"));
    const found = await api.summary(this.loop.reader), { shown, withheld } = found.seconds;
    const lines = [
      `Dice of two readers: ${range(found.dice)}`,
      `HD95 of two readers, pixels: ${range(found.hd95, 1)}`,
      `Fleiss' kappa of the class, on images that all readers gave one: ${range(found.kappa)}`,
      `Seconds an image: with suggestion ${range(shown, 1)}; without ${range(withheld, 1)}`,
      `Seconds saved by a suggestion, on images read both ways: ${range(found.saved, 1)}`,
    ];
    $("#summary").replaceChildren(...lines.map((line) => element("li", line)));
  }
}
