// The page: choose, drop or record files, and transcribe them with the options of the form.

import { ApiError, models, optionSchemas, transcribe, useKey } from "./api.js";
import { LiveTranscription, LiveView, sessionOptions } from "./live.js";
import { TranscriptView } from "./transcript.js";

const AT_ONCE = 3; // recordings sent at the same time; the others wait here
const TRIES = 5; // while the server says that it is busy

const byId = (id) => document.getElementById(id);

// Fields of the form: [name, label, kind]; descriptions come from the server's list of options.
const FIELDS = [
  ["model", "Model", "select"],
  ["language", "Language (code; empty: detected)", "text"],
  ["task", "Task", ["transcribe", "translate"]],
  ["prompt", "Prompt", "text"],
  ["hotwords", "Hotwords", "text"],
  ["beam_size", "Beam size", "number"],
  ["vad", "Voice activity detection", ["", "off", "check", "cut"]],
];

async function withKey(action) {
  for (;;) {
    try {
      return await action();
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 401 || !(await askKey())) throw error;
    }
  }
}

let asked = null;

function askKey() {
  if (asked) return asked; // several recordings ask once
  const dialog = byId("key-dialog");
  asked = new Promise((resolve) => {
    dialog.onclose = () => {
      asked = null;
      const use = dialog.returnValue === "use" && byId("key").value;
      if (use) useKey(byId("key").value);
      resolve(Boolean(use));
    };
  });
  dialog.returnValue = "";
  dialog.showModal();
  return asked;
}

async function makeOptions() {
  const [names, schemas] = await withKey(() => Promise.all([models(), optionSchemas()]));
  for (const [name, label, kind] of FIELDS) {
    if (name !== "task" && !(name in schemas)) continue;
    const values = name === "model" ? names : kind;
    const input = document.createElement(Array.isArray(values) ? "select" : "input");
    if (Array.isArray(values)) {
      input.append(...values.map((value) => new Option(value || "default", value)));
    } else {
      input.type = kind;
      if (kind === "number") input.min = 1;
    }
    input.name = name;
    const whole = document.createElement("label");
    whole.append(label, input);
    const help = schemas[name]?.description;
    if (help) {
      const small = document.createElement("small");
      small.id = `help-${name}`;
      small.textContent = help;
      input.setAttribute("aria-describedby", small.id);
      whole.append(small);
    }
    byId("options").append(whole);
  }
}

function chosenOptions() {
  return Object.fromEntries(
    [...byId("options").querySelectorAll("input, select")].map((input) => [input.name, input.value]),
  );
}

const waiting = [];
let running = 0;

function enqueue(work) {
  waiting.push(work);
  next();
}

function next() {
  if (running >= AT_ONCE || !waiting.length) return;
  running += 1;
  waiting
    .shift()()
    .finally(() => {
      running -= 1;
      next();
    });
}

function say(text) {
  byId("status").textContent = text;
}

async function whenFree(send) {
  for (let tried = 1; ; tried += 1) {
    try {
      return await send();
    } catch (error) {
      if (error.status !== 429 || tried === TRIES) throw error;
      await new Promise((done) => setTimeout(done, 1000 * (error.retryAfter ?? 2)));
    }
  }
}

// Shows a file; transcribes it unless its segments are known.
function add(file, segments = null) {
  let control;
  const options = chosenOptions();
  const view = new TranscriptView(file, {
    onCancel: () => control.abort(),
    onRetry: () => start(),
  });
  const start = () => {
    control = new AbortController();
    view.started();
    enqueue(async () => {
      const { signal } = control;
      try {
        signal.throwIfAborted();
        const onSegment = (event) => view.add(event);
        await withKey(() =>
          whenFree(() => {
            view.clear();
            return transcribe(file, options, { signal, onSegment });
          }),
        );
        view.ended();
        say(`${file.name}: done`);
      } catch (error) {
        view.failed(signal.aborted ? "Cancelled." : error.message);
        say(`${file.name}: ${signal.aborted ? "cancelled" : "failed"}`);
      }
    });
  };
  byId("recordings").prepend(view.root);
  if (!segments) {
    start();
    return;
  }
  view.started();
  for (const segment of segments) view.add(segment);
  view.ended();
}

function addAll(files) {
  for (const file of files) add(file);
}

let recorder = null;

async function record() {
  if (recorder) {
    recorder.stop();
    return;
  }
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  let live = null;
  try {
    live = await listen(stream);
    const started = recorderOf(stream, live);
    started.start(); // once the server listens: times of words are those of the file
    recorder = started;
  } catch (error) {
    release(stream);
    live?.abandon();
    live?.view.root.remove();
    throw error;
  }
  pressed(true);
}

function release(stream) {
  for (const track of stream.getTracks()) track.stop();
}

function recorderOf(stream, live) {
  const made = new MediaRecorder(stream);
  const parts = [];
  made.ondataavailable = (event) => parts.push(event.data);
  made.onstop = async () => {
    const segments = await live?.stop();
    release(stream);
    const type = made.mimeType;
    const suffix = type.includes("ogg") ? "ogg" : type.includes("mp4") ? "m4a" : "webm";
    recorder = null;
    pressed(false);
    const at = new Date().toISOString().slice(0, 19).replaceAll(":", "-");
    live?.view.root.remove();
    add(new File(parts, `recording-${at}.${suffix}`, { type }), segments);
  };
  return made;
}

// The text while it is spoken; null if it is transcribed afterwards.
async function listen(stream) {
  const options = sessionOptions(chosenOptions());
  if (!options) return null;
  const view = new LiveView();
  const live = new LiveTranscription(stream, options, (items) => view.show(items));
  try {
    await live.start();
  } catch (error) {
    live.abandon();
    say(`No live text: ${error.message}`);
    return null;
  }
  byId("recordings").prepend(view.root);
  return Object.assign(live, { view });
}

function pressed(on) {
  byId("record").setAttribute("aria-pressed", String(on));
  byId("record").textContent = on ? "Stop recording" : "Record";
}

const drop = byId("drop");
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop") addAll(event.dataTransfer.files);
  });
}
byId("form").addEventListener("submit", (event) => event.preventDefault());
byId("files").addEventListener("change", (event) => {
  addAll(event.target.files);
  event.target.value = ""; // the same file can be chosen again
});
byId("record").addEventListener("click", async () => {
  byId("record").disabled = true; // while the microphone and the server get ready
  try {
    await record();
  } catch (error) {
    say(`Recording is not possible: ${error.message}`);
  }
  byId("record").disabled = false;
});
if (!navigator.mediaDevices?.getUserMedia) byId("record").hidden = true; // needs https or localhost
makeOptions().catch((error) => say(`The server's options cannot be read: ${error.message}`));
