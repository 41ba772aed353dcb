// Draws phases and calls on one time axis.
import { h, place } from "./dom.js";
import { callPath, callStatus, callTone, duration, instant, pretty } from "./format.js";

const phaseTitles = {
  queue: "Waiting for a slot", mint: "Minting the execution's key", spawn: "Starting a sandboxed Python",
  import: "Loading the step", step: "The step's own code", teardown: "Ending the process", revoke: "Revoking the key",
  running: "From the slot until now",
};

// callStart returns when a call started, in milliseconds after the record's origin.
function callStart(record, call) {
  const start = instant(call.requestSubmittedAt) - instant(record.origin);
  return Number.isFinite(start) ? Math.max(start, 0) : 0;
}

// extent returns the time span of a record.
function extent(record, calls, now) {
  let end = 0.001;
  const reach = (time) => { end = Math.max(end, time); };
  for (const phase of record.phases) reach(phase.start_ms + phase.spent_ms);
  for (const call of calls) reach(callStart(record, call) + (call.duration ?? 0));
  record.log_times.forEach(reach);
  if (record.state !== "finished") reach(now);
  return end;
}

// ticks returns round times up to end, about as many as wanted.
function ticks(to, wanted) {
  const rough = to / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const result = [];
  for (let at = 0; at < to; at += step) result.push(at);
  return result;
}

function tickText(ms) {
  if (ms === 0) return "0";
  return ms >= 1000 ? `${+(ms / 1000).toPrecision(4)} s` : `${+ms.toPrecision(4)} ms`;
}

// logMarks returns where messages appear on a bar; messages close together share one mark.
function logMarks(times, part) {
  const places = new Set(times.map((time) => (part(time) * 100).toFixed(1)));
  return [...places].map((left) => {
    const mark = h("i", { class: "logmark", "aria-hidden": "true" });
    mark.style.left = `${left}%`;
    return mark;
  });
}

// waterfall draws a record. view keeps the reader's choices: the scale, and which calls are open.
export function waterfall(record, calls, view) {
  const now = Date.now() - Date.parse(record.origin);
  const step = record.phases.find((phase) => phase.name === "step");
  let from = 0;
  let to = extent(record, calls, now);
  if (view.scale === "step" && step) {
    from = step.start_ms;
    to = Math.max(step.start_ms + step.spent_ms, ...calls.map((call) => callStart(record, call) + (call.duration ?? 0)));
  }
  const part = (ms) => Math.min(Math.max((ms - from) / (to - from || 1), 0), 1);
  const bar = (start, spent, name, text) => {
    const left = part(start);
    const right = part(start + spent);
    const element = place(h("span", { class: `bar ${name}` }), left, right);
    const label = h("span", { class: "spent" }, text);
    if (right <= 0.82) label.style.left = `${(right * 100).toFixed(3)}%`;
    else if (left >= 0.18) label.style.right = `${((1 - left) * 100).toFixed(3)}%`;
    else { // there is no room beside the bar
      label.classList.add("over");
      label.style.right = `${((1 - right) * 100).toFixed(3)}%`;
    }
    return [element, label];
  };
  const marks = ticks(to - from, 5).map((at) => at + from);
  const grid = () => marks.map((at) => {
    const line = h("i", { class: "grid" });
    line.style.left = `${(part(at) * 100).toFixed(3)}%`;
    return line;
  });
  const axis = h("div", { class: "axis", "aria-hidden": "true" }, h("span", {}), h("div", { class: "track" }, marks.map((at) => {
    const mark = h("span", { class: "tick" }, tickText(at - from));
    mark.style.left = `${(part(at) * 100).toFixed(3)}%`;
    if (part(at) > 0.9) mark.classList.add("last");
    return mark;
  })));

  const phases = h("ul", { class: "rows", "aria-label": "Phases" }, record.phases
    .filter((phase) => phase.start_ms < to && phase.start_ms + phase.spent_ms > from)
    .map((phase) => h("li", { class: "row", title: phaseTitles[phase.name] },
      h("span", { class: "label" }, phase.name),
      h("div", { class: "track" }, grid(), bar(phase.start_ms, phase.spent_ms, `phase-${phase.name}`, duration(phase.spent_ms)),
        phase.name === "step" && logMarks(record.log_times, part)))));

  const rows = h("ul", { class: "rows calls", "aria-label": "HTTP calls" }, calls.map((call, i) => {
    const open = view.open.has(i);
    const path = callPath(call, record.api_root);
    const spent = call.duration ?? (record.state === "finished" ? 0 : Math.max(now - callStart(record, call), 0));
    return h("li", {},
      h("button", {
        type: "button", class: `row call ${callTone(call)}`, id: `call-${i}`, "aria-expanded": String(open), "aria-controls": `call-${i}-detail`,
        "aria-label": `${call.method} ${path}, ${callStatus(call)}, ${duration(call.duration)}`,
        click: () => {
          if (!view.open.delete(i)) view.open.add(i);
          view.redraw();
        },
      },
        h("span", { class: "label" }, h("span", { class: "method" }, call.method), h("span", { class: "path", title: call.url }, path),
          h("span", { class: "status" }, callStatus(call))),
        h("span", { class: "track" }, grid(), bar(callStart(record, call), spent, `call-${callTone(call)}`, duration(call.duration)))),
      open && callDetail(call, i));
  }));

  const choose = (scale, text) => h("button", {
    type: "button", id: `scale-${scale}`, class: "choice", "aria-pressed": String(view.scale === scale), click: () => { view.scale = scale; view.redraw(); },
  }, text);
  return h("section", { class: "waterfall", "aria-labelledby": "time-title" },
    h("div", { class: "bar-title" }, h("h2", { id: "time-title" }, "Time"),
      step && h("div", { class: "choices", role: "group", "aria-label": "Scale" }, choose("all", "all of it"), choose("step", "the step"))),
    axis, phases, calls.length > 0 && rows);
}

function callDetail(call, i) {
  return h("div", { class: "detail", id: `call-${i}-detail`, role: "region", "aria-label": `Call ${i + 1}` },
    h("p", { class: "url" }, h("b", {}, call.method), " ", call.url),
    h("div", { class: "halves" },
      half("Request", call.headers, call.body),
      half(`Response ${callStatus(call)}`, call.responseHeaders, call.responseBody)));
}

function half(title, headers, body) {
  const names = Object.keys(headers ?? {}).sort();
  return h("div", { class: "half" }, h("h3", {}, title),
    names.length > 0 && h("dl", { class: "headers" }, names.map((name) => [h("dt", {}, name), h("dd", {}, headers[name])])),
    body ? h("pre", { class: "body scroll", tabindex: "0", "aria-label": `${title}: body` }, pretty(body)) : h("p", { class: "none" }, "no body"));
}
