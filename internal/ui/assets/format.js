// Numbers and values as people read them.

// duration takes milliseconds.
export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1) return `${Math.round(ms * 1000)} µs`;
  if (ms < 10) return `${ms.toFixed(2)} ms`;
  if (ms < 100) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return `${(ms / 1000).toFixed(2)} s`;
}

export function count(n, noun) {
  return `${n} ${noun}${n === 1 ? "" : "s"}`;
}

const two = (n) => String(n).padStart(2, "0");

// clock is a moment of the day, to the millisecond.
export function clock(time) {
  const t = new Date(time);
  if (Number.isNaN(t.getTime())) return "";
  return `${two(t.getHours())}:${two(t.getMinutes())}:${two(t.getSeconds())}.${String(t.getMilliseconds()).padStart(3, "0")}`;
}

// day is the date of a moment, where the reader is.
export function day(time) {
  const t = new Date(time);
  return Number.isNaN(t.getTime()) ? "" : `${t.getFullYear()}-${two(t.getMonth() + 1)}-${two(t.getDate())}`;
}

// instant is a moment in milliseconds, with the fraction that a Date leaves out.
export function instant(time) {
  const [, seconds, fraction, zone] = /^(.*?:\d\d)(\.\d+)?([^.]*)$/.exec(time) ?? [];
  return Date.parse(seconds + zone) + Number(fraction ?? 0) * 1000;
}

const typeNames = {
  s: "text", em: "email", n: "number", b: "boolean", d: "date", dt: "datetime", p: "phone", u: "uuid", e: "employee", f: "file", l: "list",
};

// typeName is the human name of a wire code.
export function typeName(code) {
  const array = /^a\[(.*)\]$/.exec(code);
  if (array) return `list of ${typeName(array[1])}`;
  if (code.startsWith("e<")) return "entity";
  if (code.startsWith("o<")) return "option";
  return typeNames[code] ?? code;
}

// valueText is what a wire value holds: text as it is, all else as JSON.
export function valueText(v) {
  return typeof v === "string" ? v : JSON.stringify(v, null, 2);
}

// outcomeText names an outcome.
export function outcomeText(record) {
  if (record.state === "queued") return "waiting";
  if (record.state === "running") return "running";
  if (record.state === "lost") return "not known any more";
  if (record.outcome === "ok") return "succeeded";
  if (!record.outcome) return "did not run";
  return record.outcome.replaceAll("_", " ");
}

// tone is the class that colours it.
export function tone(record) {
  if (record.state === "lost") return "warn";
  if (record.state !== "finished") return "live";
  if (record.outcome === "ok") return "good";
  return record.outcome === "cancelled" ? "warn" : "bad";
}

// callPath is the URL of a call, or its path below the API root.
export function callPath(call, root) {
  return call.session && root && call.url.startsWith(root) ? call.url.slice(root.length) || "/" : call.url;
}

// callTone colours a call by what came of it.
export function callTone(call) {
  const status = call.responseStatusCode;
  if (call.requestErrorType || status >= 500) return "bad";
  return !status || status >= 400 ? "warn" : "good";
}

export function callStatus(call) {
  return call.requestErrorType ?? call.responseStatusCode ?? "no answer";
}

// pretty indents a body that is whole JSON. Its parts stay as they were written, numbers to the last digit.
export function pretty(body) {
  try {
    JSON.parse(body);
  } catch {
    return body;
  }
  let depth = 0;
  const line = () => `\n${"  ".repeat(depth)}`;
  const parts = body.match(/"(?:\\.|[^"\\])*"|[{[]\s*[}\]]|[{}[\],:]|[^\s{}[\],:"]+/g);
  return parts.map((part) => {
    if (part === "{" || part === "[") {
      depth++;
      return part + line();
    }
    if (part === "}" || part === "]") {
      depth--;
      return line() + part;
    }
    if (part === ",") return part + line();
    return part === ":" ? ": " : part;
  }).join("");
}
