// The dialogs: all images with their state, upload and export; the training; the readers and how well they agree.
import * as api from "./api.js";

const $ = (selector) => document.querySelector(selector);

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const when = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString() : "");
const decimals = (value) => (value === null ? "–" : value.toFixed(2));

export class Panels {
  constructor(loop, say) {
    Object.assign(this, { loop, say });
    $("#filter").addEventListener("change", () => this.filter());
    $("#files").addEventListener("change", (event) => this.upload([...event.target.files]));
    $("#train").addEventListener("click", () => this.train(() => api.train()));
    $("#stop").addEventListener("click", () => this.train(() => api.stopTraining()));
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      this.upload([...event.dataTransfer.files]);
    });
    for (const dialog of document.querySelectorAll("dialog"))
      dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it
  }

  open(name) {
    $(`#${name}`).showModal();
    const fill = { images: () => this.images(), training: () => this.training(), readers: () => this.readers() }[name];
    fill?.().catch((error) => this.say(error.message, true));
  }

  async images() {
    const list = await api.images(this.loop.reader);
    $("#gallery").replaceChildren(
      ...list.map((entry) => {
        const button = element("button", "", { type: "button", class: "card" });
        const said = entry.class || entry.state;
        const by = entry.by.map(({ reader, time }) => `${reader}, ${when(time)}`).join("; ");
        const picture = element("img", "", { src: api.thumbnail(entry.image), alt: "", loading: "lazy" });
        button.append(picture, element("b", entry.image), element("span", said), element("small", by));
        if (entry.disagree) button.append(element("small", "mask and class disagree"));
        button.dataset.state = entry.state;
        button.dataset.disagree = entry.disagree;
        button.addEventListener("click", () => {
          $("#images").close();
          const { reading, past } = this.loop;
          if (reading) past.push({ image: reading.image, again: reading.again });
          this.loop.open(entry.image).catch((error) => this.say(error.message, true));
        });
        return button;
      }),
    );
    this.filter();
  }

  filter() {
    const wanted = $("#filter").value, cards = [...$("#gallery").children];
    for (const card of cards)
      card.hidden = wanted && card.dataset.state !== wanted && !(wanted === "disagree" && card.dataset.disagree === "true");
    $("#found").textContent = `${cards.filter((card) => !card.hidden).length} of ${cards.length} images`;
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
    this.say(lines.length === 1 ? lines[0] : `${lines.filter((line) => line.endsWith("added")).length} of ${lines.length} images added.`);
    $("#files").value = "";
    if ($("#images").open) await this.images();
    if (this.loop.reading) this.loop.look();
    else await this.loop.next();
  }

  async train(order) {
    try {
      await order();
    } catch (error) {
      $("#outcome").textContent = error.message;
      return;
    }
    await this.training();
  }

  // Look every second as long as it runs and the dialog is open.
  async training() {
    const { status, done, lines, history, started } = await api.training();
    const runs = ["SUBMITTED", "RUNNING"].includes(status);
    $("#train").disabled = runs;
    $("#stop").disabled = !runs;
    this.done = started === this.started ? Math.max(this.done, done) : done; // the evaluation counts anew
    this.started = started;
    $("#epochs").value = runs ? this.done : 0;
    const last = history.at(-1);
    const ended = status === "ERROR" ? `the training failed: ${lines.at(-1) ?? ""}` : last ? last.outcome : "No training yet; the released weights serve.";
    $("#outcome").textContent = runs ? `Training since ${started}: ${Math.round(100 * this.done)} %` : ended;
    $("#history").replaceChildren(...history.toReversed().map((entry) => element("li", `${entry.time}: ${entry.outcome}`)));
    if (runs && $("#training").open) setTimeout(() => this.training().catch(() => {}), 1000);
  }

  async readers() {
    const pairs = await api.agreement(), name = (tag) => tag.replace("reader_", "").replace("again_", "again: ");
    $("#pairs tbody").replaceChildren(
      ...pairs.map((pair) => {
        const row = element("tr");
        row.append(element("th", `${name(pair.first)} and ${name(pair.second)}`, { scope: "row" }));
        for (const value of [pair.images, decimals(pair.dice), decimals(pair.kappa), pair.differing.join(", ")])
          row.append(element("td", value));
        return row;
      }),
    );
    $("#pairs").hidden = !pairs.length;
    $("#nobody").hidden = pairs.length > 0;
  }
}
