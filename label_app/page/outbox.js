// Labels on their way to the server: kept in the browser until it has them, sent one after another, again and again.
import * as api from "./api.js";
import { fromRuns } from "./mask.js";

const AGAIN = 3; // seconds until a label is sent again that the server did not take

export class Outbox {
  // `changed()` is called when something was sent or could not be; `saved(answer)`, and `refused(entry, error)` where
  // sending it again would not help.
  constructor(changed, saved, refused) {
    Object.assign(this, { changed, saved, refused, entries: [], problem: "" });
  }

  // What an earlier page left behind, of one folder of images; where a log-in names the reader, hers alone.
  resume(folder, reader) {
    this.prefix = `unsaved/${folder}/`;
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(this.prefix));
    for (const key of keys)
      try {
        const entry = JSON.parse(localStorage.getItem(key));
        if (!reader || entry.reader === reader) this.entries.push(entry);
      } catch {
        localStorage.removeItem(key);
      }
    this.run();
  }

  // An entry is {image, reader, again, final, params, width, height, runs}.
  add(entry) {
    this.entries.push(entry);
    try {
      localStorage.setItem(this.prefix + entry.params.submission, JSON.stringify(entry));
    } catch {
      this.problem = "this browser keeps no more; leave the page open until all is saved"; // it stays in memory
    }
    this.run();
  }

  // Resolves when nothing of an image is on its way.
  async sent(image) {
    while (this.entries.some((entry) => entry.image === image)) await new Promise((done) => setTimeout(done, 50));
  }

  async run() {
    if (this.running) return;
    this.running = true;
    while (this.entries.length) {
      const [entry] = this.entries;
      this.changed();
      try {
        this.saved(await api.save(entry, fromRuns(entry.width, entry.height, entry.runs)), entry);
      } catch (error) {
        if (!error.status || error.status === 401 || error.status >= 500) {
          if (error.status >= 500) this.entries.push(this.entries.shift()); // it may be this image alone
          this.problem = error.message;
          this.changed();
          await new Promise((done) => setTimeout(done, 1000 * AGAIN));
          continue;
        }
        this.refused(entry, error);
      }
      this.problem = "";
      this.entries.shift();
      localStorage.removeItem(this.prefix + entry.params.submission);
    }
    this.running = false;
    this.changed();
  }
}
