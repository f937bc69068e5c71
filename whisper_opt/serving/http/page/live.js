// Live transcription of a microphone: the realtime API over a WebSocket, and the text as it comes.

import { socketProtocols } from "./api.js";

const RATE = 24000;

function base64(samples) {
  const bytes = new Uint8Array(samples.length * 2);
  const view = new DataView(bytes.buffer);
  samples.forEach((sample, i) => {
    view.setInt16(2 * i, Math.round(32767 * Math.max(-1, Math.min(1, sample))), true);
  });
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}

// What the form's options are in a session; null if it has others, which need the whole recording.
export function sessionOptions({ model, language, prompt, hotwords, ...others }) {
  const { task, ...more } = others;
  if (task === "translate" || Object.values(more).some((value) => value !== "")) return null;
  const transcription = { model };
  if (language) transcription.language = language;
  if (prompt) transcription.prompt = prompt;
  if (hotwords) transcription.keywords = hotwords.split(",").map((word) => word.trim());
  return transcription;
}

export class LiveTranscription {
  // Calls onText(items): [{text, partial}] in order, whenever something changes.
  constructor(stream, transcription, onText) {
    this.stream = stream;
    this.transcription = transcription;
    this.onText = onText;
    this.items = new Map(); // id -> {text, partial, segments}
  }

  // Resolves when the server listens; rejects if it does not.
  async start() {
    this.context = new AudioContext({ sampleRate: RATE });
    await this.context.audioWorklet.addModule("page/capture.js");
    const url = new URL("v1/realtime?intent=transcription", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    this.socket = new WebSocket(url, socketProtocols());
    this.closed = new Promise((resolve) => (this.socket.onclose = resolve));
    await new Promise((resolve, reject) => {
      this.socket.onerror = () => reject(new Error("the server does not listen"));
      this.closed.then(() => reject(new Error("the server has closed the connection")));
      this.socket.onmessage = ({ data }) => {
        const event = JSON.parse(data);
        if (event.type === "error") reject(new Error(event.error.message));
        if (event.type === "session.updated") resolve();
        this.hear(event);
      };
      this.socket.onopen = () => this.send({ type: "session.update", session: this.session() });
    });
    const source = this.context.createMediaStreamSource(this.stream);
    const capture = new AudioWorkletNode(this.context, "capture", { numberOfOutputs: 0 });
    capture.port.onmessage = ({ data }) =>
      this.send({ type: "input_audio_buffer.append", audio: base64(data) });
    source.connect(capture);
  }

  session() {
    return {
      type: "transcription",
      include: ["whisper_opt.partials", "whisper_opt.words"],
      audio: { input: { transcription: this.transcription, turn_detection: { type: "server_vad" } } },
    };
  }

  send(event) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(event));
  }

  hear({ type, item_id: id, ...event }) {
    if (!id) return;
    if (!this.items.has(id)) this.items.set(id, { text: "", partial: "", segments: [] });
    const item = this.items.get(id);
    if (type === "whisper_opt.partial") item.partial = event.text;
    if (type.endsWith("transcription.delta")) item.text += event.delta;
    if (type.endsWith("transcription.completed")) {
      [item.text, item.partial, item.segments] = [event.transcript, "", event.segments ?? []];
    }
    if (type.endsWith("transcription.failed")) item.partial = "";
    this.onText([...this.items.values()]);
  }

  // Ends the last utterance; resolves to the segments of all when they are there, or to null if the
  // connection broke.
  async stop() {
    await this.context.close();
    this.send({ type: "whisper_opt.finish" });
    const { code } = await this.closed;
    if (code !== 1000) return null;
    return [...this.items.values()].flatMap((item) => item.segments);
  }

  abandon() {
    this.context?.close();
    this.socket?.close();
  }
}

// Text as it comes: what is certain in normal letters, what may change in quiet ones.
export class LiveView {
  constructor() {
    this.root = document.createElement("article");
    this.root.setAttribute("aria-label", "Live text");
    this.parts = []; // [certain, partial] of each item
    this.text = document.createElement("p");
    this.text.className = "live";
    this.text.setAttribute("aria-live", "polite");
    this.root.append(this.text);
  }

  // Only what has changed is touched: sessions last for hours, and screen readers read changes.
  show(items) {
    items.forEach(({ text, partial }, i) => {
      this.parts[i] ??= [this.part("certain"), this.part("partial")];
      [text, partial].forEach((part, kind) => {
        const shown = part.trim() && `${part.trim()} `;
        if (this.parts[i][kind].textContent !== shown) this.parts[i][kind].textContent = shown;
      });
    });
  }

  part(kind) {
    const made = document.createElement("span");
    made.className = kind;
    this.text.append(made);
    return made;
  }
}
