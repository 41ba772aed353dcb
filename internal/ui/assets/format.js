// Formats numbers and values for people.

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

// clock formats a moment as a time of day, to the millisecond.
export function clock(time) {
  const t = new Date(time);
  if (Number.isNaN(t.getTime())) return "";
  return `${two(t.getHours())}:${two(t.getMinutes())}:${two(t.getSeconds())}.${String(t.getMilliseconds()).padStart(3, "0")}`;
}

// day formats the date of a moment in the reader's time zone.
export function day(time) {
  const t = new Date(time);
  return Number.isNaN(t.getTime()) ? "" : `${t.getFullYear()}-${two(t.getMonth() + 1)}-${two(t.getDate())}`;
}

// instant returns a moment in milliseconds, with the fraction that a Date omits.
export function instant(time) {
  const [, seconds, fraction, zone] = /^(.*?:\d\d)(\.\d+)?([^.]*)$/.exec(time) ?? [];
  return Date.parse(seconds + zone) + Number(fraction ?? 0) * 1000;
}

const typeNames = {
  s: "text", em: "email", n: "number", b: "boolean", d: "date", dt: "datetime", p: "phone", u: "uuid", e: "employee", f: "file", l: "list",
};

// typeName returns the name of a wire code for people.
export function typeName(code) {
  const array = /^a\[(.*)\]$/.exec(code);
  if (array) return `list of ${typeName(array[1])}`;
  if (code.startsWith("e<")) return "entity";
  if (code.startsWith("o<")) return "option";
  return typeNames[code] ?? code;
}

// valueText returns the content of a wire value: text unchanged, everything else as JSON.
export function valueText(v) {
  return typeof v === "string" ? v : JSON.stringify(v, null, 2);
}

// outcomeText returns the name of an outcome.
export function outcomeText(record) {
  if (record.state === "queued") return "waiting";
  if (record.state === "running") return "running";
  if (record.state === "lost") return "no longer known";
  if (record.outcome === "ok") return "succeeded";
  if (!record.outcome) return "did not run";
  return record.outcome.replaceAll("_", " ");
}

// tone returns the class that colours an outcome.
export function tone(record) {
  if (record.state === "lost") return "warn";
  if (record.state !== "finished") return "live";
  if (record.outcome === "ok") return "good";
  return record.outcome === "cancelled" ? "warn" : "bad";
}

// callPath returns the URL of a call, or its path if it is below the API root.
export function callPath(call, root) {
  return call.session && root && call.url.startsWith(root) ? call.url.slice(root.length) || "/" : call.url;
}

// callTone returns the class that colours a call by its result.
export function callTone(call) {
  const status = call.responseStatusCode;
  if (call.requestErrorType || status >= 500) return "bad";
  return !status || status >= 400 ? "warn" : "good";
}

export function callStatus(call) {
  return call.requestErrorType ?? call.responseStatusCode ?? "no answer";
}

// pretty indents a body that is entirely JSON. Values stay as they were written, including the last digit of numbers.
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
