// Files of a transcript: segments {start, end, text, words} in seconds, words {start, end, word}.
// Times and lines are those of the command line's files (whisper_opt/text/writers.py).

function time(seconds, mark, alwaysHours) {
  const all = Math.round(seconds * 1000);
  const two = (value) => String(value).padStart(2, "0");
  const hours = Math.floor(all / 3600000);
  const rest = `${two(Math.floor(all / 60000) % 60)}:${two(Math.floor(all / 1000) % 60)}`;
  const start = hours || alwaysHours ? `${two(hours)}:` : "";
  return `${start}${rest}${mark}${String(all % 1000).padStart(3, "0")}`;
}

// Blank lines end a cue, and an arrow marks a line of times: both are removed, as in writers.py.
const SYNTAX = /-+(?=->)|[\r\n]\s*(?=[\r\n])|[\r\n]\s*$/g;

// A cue per segment, with the times of its words where there are some.
function cues(segments, mark, alwaysHours) {
  return segments
    .filter((segment) => segment.words?.length !== 0)
    .map(({ start, end, text, words }) => {
      const times = [words ? words[0].start : start, words ? words.at(-1).end : end];
      const whole = words ? words.map((word) => word.word).join("") : text;
      return {
        times: times.map((at) => time(at, mark, alwaysHours)).join(" --> "),
        text: whole.trim().replace(SYNTAX, ""),
      };
    });
}

export const formats = {
  txt: (segments) => segments.map((segment) => `${segment.text.trim()}\n`).join(""),
  srt: (segments) =>
    cues(segments, ",", true)
      .map(({ times, text }, i) => `${i + 1}\n${times}\n${text}\n\n`)
      .join(""),
  vtt: (segments) =>
    `WEBVTT\n\n${cues(segments, ".", false)
      .map(({ times, text }) => `${times}\n${text}\n\n`)
      .join("")}`,
  json: (segments, about) =>
    JSON.stringify(
      { ...about, text: segments.map((segment) => segment.text).join("").trim(), segments },
      null,
      2,
    ),
};

export const types = {
  txt: "text/plain",
  srt: "application/x-subrip",
  vtt: "text/vtt",
  json: "application/json",
};

// "1:02:03" or "2:03", for people.
export function clock(seconds) {
  const whole = Math.floor(seconds);
  const two = (value) => String(value).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}
