// Requests to the server: the OpenAI audio API, with segments as they come (response_format
// verbose_json together with stream).

export class ApiError extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

let key = sessionStorage.getItem("api-key");

export function useKey(value) {
  key = value;
  sessionStorage.setItem("api-key", value);
}

// Subprotocols of a WebSocket: the only way for a page to send a key with it.
export function socketProtocols() {
  return key ? ["realtime", `openai-insecure-api-key.${key}`] : ["realtime"];
}

async function request(path, init = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const response = await fetch(path, { ...init, headers });
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // not from this server, perhaps from a proxy
  }
  throw new ApiError(response.status, message, Number(response.headers.get("retry-after")) || null);
}

export async function models() {
  const found = await (await request("v1/models")).json();
  return found.data.map((model) => model.id);
}

// Schema of the form of /v1/audio/transcriptions: name -> {description, ...}.
export async function optionSchemas() {
  const document = await (await request("openapi.json")).json();
  const content = document.paths["/v1/audio/transcriptions"].post.requestBody.content;
  let schema = content["multipart/form-data"].schema;
  if (schema.$ref) schema = document.components.schemas[schema.$ref.split("/").pop()];
  return schema.properties;
}

// Sends a file; calls onSegment for every segment. Resolves when all is there.
export async function transcribe(file, options, { signal, onSegment }) {
  const form = new FormData();
  for (const [name, value] of Object.entries(options)) if (value !== "") form.append(name, value);
  form.append("response_format", "verbose_json");
  form.append("timestamp_granularities[]", "segment");
  form.append("timestamp_granularities[]", "word");
  form.append("stream", "true");
  form.append("file", file, file.name); // last: the server knows the options when it comes
  const sent = { method: "POST", body: form, signal };
  const response = await request("v1/audio/transcriptions", sent);
  let ended = false;
  for await (const event of events(response.body)) {
    if (event.error) throw new ApiError(500, event.error.message, null);
    if (event.type === "transcript.text.segment") onSegment(event);
    if (event.type === "transcript.text.done") ended = true;
  }
  if (!ended) throw new ApiError(0, "the connection broke before the end; try again", null);
}

// Server-sent events of a body.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    buffer += value;
    let end;
    while ((end = buffer.indexOf("\n\n")) >= 0) {
      const block = buffer.slice(0, end);
      buffer = buffer.slice(end + 2);
      const data = block
        .split("\n")
        .filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5))
        .join("\n");
      if (data) yield JSON.parse(data);
    }
  }
}
