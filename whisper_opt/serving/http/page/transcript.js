// One recording on the page: player, segments, words, downloads.

import { clock, formats, types } from "./formats.js";

function element(tag, properties = {}, children = []) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export class TranscriptView {
  constructor(file, { onCancel, onRetry }) {
    this.name = file.name;
    this.segments = [];
    this.words = []; // {start, end, span} in the order of time
    this.focused = null;
    this.audio = element("audio", { controls: true, src: URL.createObjectURL(file) });
    this.audio.setAttribute("aria-label", `Recording ${file.name}`);
    this.progress = element("progress", { max: 1 });
    this.progress.setAttribute("aria-label", `Progress of ${file.name}`);
    this.message = element("p", { className: "error", hidden: true });
    this.message.setAttribute("role", "alert");
    this.list = element("ol", { className: "segments" });
    this.cancel = element("button", { type: "button", textContent: "Cancel", onclick: onCancel });
    this.retry = element("button", {
      type: "button",
      textContent: "Try again",
      hidden: true,
      onclick: onRetry,
    });
    this.remove = element("button", {
      type: "button",
      textContent: "Remove",
      hidden: true,
      onclick: () => this.close(),
    });
    this.downloads = element("div", { className: "row", hidden: true }, [
      element("span", { textContent: "Download" }),
      ...Object.keys(formats).map((format) => this.download(format)),
    ]);
    const heading = element("h2", { textContent: file.name });
    const buttons = element("div", { className: "row" }, [this.cancel, this.retry, this.remove]);
    this.root = element("article", {}, [
      element("header", {}, [heading, buttons]),
      this.audio,
      this.progress,
      this.message,
      this.list,
      this.downloads,
    ]);
    this.root.setAttribute("aria-label", file.name);
    this.list.addEventListener("keydown", (event) => this.onKey(event));
    this.audio.addEventListener("play", () => this.follow());
    this.audio.addEventListener("seeked", () => this.mark());
  }

  download(format) {
    return element("button", {
      type: "button",
      textContent: format,
      onclick: () => {
        const blob = new Blob([this.as(format)], { type: types[format] });
        const link = element("a", {
          href: URL.createObjectURL(blob),
          download: `${this.name.replace(/\.[^.]*$/, "")}.${format}`,
        });
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      },
    });
  }

  as(format) {
    return formats[format](this.segments, { file: this.name });
  }

  clear() {
    this.segments = [];
    this.words = [];
    this.focused = null;
    this.list.replaceChildren();
  }

  started() {
    this.clear();
    this.progress.removeAttribute("value");
    this.progress.hidden = this.cancel.hidden = false;
    this.message.hidden = this.retry.hidden = this.remove.hidden = this.downloads.hidden = true;
  }

  ended() {
    this.progress.hidden = this.cancel.hidden = true;
    this.remove.hidden = false;
    this.downloads.hidden = this.segments.length === 0;
  }

  failed(message) {
    this.ended();
    this.message.textContent = message;
    this.message.hidden = this.retry.hidden = false;
  }

  close() {
    this.audio.pause();
    URL.revokeObjectURL(this.audio.src);
    this.root.remove();
  }

  add(event) {
    const segment = { start: event.start, end: event.end, text: event.text };
    if (event.words) segment.words = event.words;
    this.segments.push(segment);
    this.list.append(this.line(segment));
    if (this.audio.duration) this.progress.value = Math.min(1, segment.end / this.audio.duration);
  }

  line(segment) {
    const at = clock(segment.start);
    const time = element("button", {
      type: "button",
      className: "time",
      textContent: at,
      onclick: () => this.play(segment.start),
    });
    time.setAttribute("aria-label", `Play from ${at}`);
    const edit = element("button", { type: "button", className: "edit", textContent: "Edit" });
    edit.setAttribute("aria-label", `Edit the line at ${at}`);
    const text = element("p");
    const item = element("li", {}, [time, text, edit]);
    edit.onclick = () => this.edit(segment, item, edit);
    this.fill(segment, text);
    return item;
  }

  // The text of a line: a span per word, if the server gave words and nobody edited them.
  fill(segment, text) {
    if (!segment.words?.length) {
      text.textContent = segment.text.trim();
      return;
    }
    for (const word of segment.words) {
      const shown = word.word.trimStart();
      text.append(word.word.slice(0, word.word.length - shown.length));
      const span = element("span", { className: "word", textContent: shown, tabIndex: -1 });
      span.setAttribute("role", "button");
      span.onclick = () => this.play(word.start);
      this.words.push({ start: word.start, end: word.end, span });
      text.append(span);
    }
    if (!this.focused && this.words.length) this.focusable(this.words[0].span);
  }

  edit(segment, item, button) {
    const old = item.querySelector("p");
    const area = element("textarea", { value: segment.text.trim(), rows: 2 });
    area.setAttribute("aria-label", `Text at ${clock(segment.start)}`);
    const finish = (keep) => {
      const text = element("p");
      const changed = keep && area.value.trim() !== segment.text.trim();
      if (changed) {
        this.words = this.words.filter((word) => !old.contains(word.span));
        if (old.contains(this.focused)) this.focused = null;
        segment.text = ` ${area.value.trim()}`;
        delete segment.words; // their times are those of other words
        this.fill(segment, text);
        if (!this.focused && this.words.length) this.focusable(this.words[0].span);
      }
      area.replaceWith(changed ? text : old);
      button.textContent = "Edit";
      button.onclick = () => this.edit(segment, item, button);
      button.focus();
    };
    area.onkeydown = (event) => {
      if (event.key === "Escape") finish(false);
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        finish(true);
      }
      event.stopPropagation();
    };
    old.replaceWith(area);
    button.textContent = "Save";
    button.onclick = () => finish(true);
    area.focus();
  }

  play(at) {
    this.audio.currentTime = at;
    this.audio.play().catch(() => {}); // a format that this browser does not play
    this.mark();
  }

  // All words are one stop of the Tab key; arrows go from word to word, Enter plays.
  focusable(span) {
    if (this.focused) this.focused.tabIndex = -1;
    this.focused = span;
    span.tabIndex = 0;
  }

  onKey(event) {
    const i = this.words.findIndex((word) => word.span === event.target);
    if (i < 0) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.play(this.words[i].start);
      return;
    }
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const next = step && this.words[i + step];
    if (!next) return;
    event.preventDefault();
    this.focusable(next.span);
    next.span.focus();
  }

  follow() {
    this.mark();
    if (!this.audio.paused) requestAnimationFrame(() => this.follow());
  }

  mark() {
    const now = this.audio.currentTime;
    const word = this.words.find(({ start, end }) => start <= now && now < Math.max(end, start + 0.05));
    if (word?.span === this.marked) return;
    this.marked?.classList.remove("now");
    this.marked = word?.span;
    this.marked?.classList.add("now");
  }
}
