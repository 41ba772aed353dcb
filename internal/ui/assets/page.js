// Draws the page of one execution.
import { h, renew } from "./dom.js";
import { clock, count, day, duration, outcomeText, tone, typeName, valueText } from "./format.js";
import { frames, showFailing, sourceView } from "./python.js";
import { waterfall } from "./waterfall.js";

// newView returns the reader's choices for a new page.
export function newView() {
  return { scale: "all", open: new Set(), scrolled: false };
}

// drawPage draws record into root; actions are elements for the header.
export function drawPage(root, record, view, actions = []) {
  view.redraw = () => drawPage(root, record, view, actions);
  const focused = document.activeElement?.id;
  const result = record.result ?? {};
  const calls = result.http_requests?.requests ?? [];
  const places = [...root.querySelectorAll(".scroll")].map((element) => element.scrollTop);
  const page = h("article", { class: `page ${tone(record)}`, "data-state": record.state },
    header(record, result, actions),
    failure(record, result),
    waterfall(record, calls, view),
    result.http_requests?.not_logged > 0 && h("p", { class: "note" }, `${count(result.http_requests.not_logged, "more call")} not recorded`),
    h("div", { class: "columns" }, values(record, result), inputs(record)),
    logs(record, result),
    printed(record),
    !result.error && record.source && h("details", { class: "fold" }, h("summary", {}, "Source"), sourceView(record.source, [])));
  // The source of a running step is open, so that the reader can follow it; otherwise it is one click away.
  const opened = root.querySelector(".page") ? [...root.querySelectorAll("details[open] > summary")].map((summary) => summary.textContent)
    : record.state !== "finished" ? ["Source"] : [];
  for (const summary of page.querySelectorAll("details > summary")) summary.parentElement.open = opened.includes(summary.textContent);
  const old = root.querySelector(".page");
  if (old?.dataset.state === record.state) renew(old, page);
  else root.replaceChildren(page);
  if (view.scrolled) [...root.querySelectorAll(".scroll")].forEach((element, i) => { element.scrollTop = places[i] ?? 0; });
  if (!view.scrolled && result.error) {
    showFailing(root);
    view.scrolled = true;
  }
  if (focused && document.activeElement?.id !== focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

function header(record, result, actions) {
  const spent = record.state === "finished" ? duration(result.duration_ms) : duration(Date.now() - Date.parse(record.origin));
  const fact = (name, value, title) => value && h("div", {}, h("dt", {}, name), h("dd", { title }, value));
  return h("header", { class: "head" },
    h("div", { class: "title" },
      h("h1", {}, record.name || "unnamed step"),
      h("p", { class: "outcome" }, h("span", { class: "dot", "aria-hidden": "true" }), h("span", { role: "status" }, outcomeText(record)), h("span", { class: "time" }, spent)),
      actions.length > 0 && h("div", { class: "actions" }, actions)),
    h("dl", { class: "facts" },
      fact("runtime", record.runtime),
      fact("account", record.account_type, record.account_id),
      fact("business", record.business_id),
      fact("began", `${day(record.origin)} ${clock(record.origin).slice(0, 8)}`, record.origin),
      result.error?.evidence?.peak_memory_bytes > 0 && fact("memory", `${Math.round(result.error.evidence.peak_memory_bytes / 2 ** 20)} MB`),
      copyable("execution", record.execution_id),
      record.trace_id && copyable("trace", record.trace_id)),
    (record.notes ?? []).map((note) => h("p", { class: "note" }, note)),
    record.trouble && h("p", { class: "message", role: "alert" }, record.trouble));
}

// copyable is an id with a button that copies it. If the browser does not permit copying, the button selects the id.
function copyable(name, value) {
  const text = h("code", { class: "id" }, value);
  const button = h("button", {
    type: "button", class: "copy", id: `copy-${name}`, "aria-label": `Copy ${name} id`,
    click: async () => {
      let said = "copied";
      try {
        await navigator.clipboard.writeText(value);
      } catch {
        getSelection().selectAllChildren(text);
        said = "selected";
      }
      button.textContent = said;
      button.dataset.kept = "true";
      setTimeout(() => {
        button.textContent = "copy";
        delete button.dataset.kept;
      }, 1500);
    },
  }, "copy");
  return h("div", { class: "wide" }, h("dt", {}, name), h("dd", {}, text, button));
}

function failure(record, result) {
  if (record.failure) {
    return h("section", { class: "failure", "aria-labelledby": "error-title" }, h("h2", { id: "error-title" }, "Did not run"), h("p", { class: "message" }, record.failure));
  }
  if (!result.error) return null;
  const passed = frames(result.error.detail);
  return h("section", { class: "failure", "aria-labelledby": "error-title" },
    h("h2", { id: "error-title" }, "Error"),
    h("p", { class: "message" }, result.error.error),
    h("div", { class: "beside" },
      record.source && sourceView(record.source, passed, passed.length > 0 && result.error.error),
      result.error.detail && h("pre", { class: "traceback scroll", tabindex: "0", role: "region", "aria-label": "Traceback" }, result.error.detail)));
}

function values(record, result) {
  const names = Object.keys(result.values ?? {});
  let none = "none assigned";
  if (record.state !== "finished") none = "not yet";
  else if (result.error || record.failure) none = "none: a step that fails writes no outputs";
  return table("Values", "values", names.map((name) => [name, result.values[name]]), none);
}

function inputs(record) {
  const names = Object.keys(record.inputs ?? {}).sort();
  return table("Inputs", "inputs", names.map((name) => [name, record.inputs[name]]), "none supplied");
}

function table(title, id, rows, none) {
  return h("section", { class: "card", "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title),
    rows.length === 0 ? h("p", { class: "none" }, none)
      : h("dl", { class: "values" }, rows.map(([name, value]) => [
        h("dt", {}, name, h("span", { class: "type" }, typeName(value.t))),
        h("dd", { class: value.v === null || value.v === "" ? "null" : "", dir: "auto" }, value.v === "" ? "empty" : valueText(value.v))])));
}

function logs(record, result) {
  const lines = result.logs ?? [];
  const step = record.phases.find((phase) => phase.name === "step");
  const origin = step?.start_ms ?? 0;
  const dropped = record.dropped_messages > 0 || record.dropped_bytes > 0
    ? `${count(record.dropped_messages, "message")} dropped, ${count(record.dropped_bytes, "byte")} of text` : "";
  return h("section", { class: "logs", "aria-labelledby": "logs-title" },
    h("div", { class: "bar-title" }, h("h2", { id: "logs-title" }, "Logs"), h("span", { class: "note" }, dropped || (lines.length > 0 && count(lines.length, "message")))),
    lines.length === 0 ? h("p", { class: "none" }, record.state === "finished" ? "none; outputs.log(…) writes here, print does not" : "none yet")
      : h("div", { class: "lines", role: "log", "aria-live": record.state === "finished" ? "off" : "polite" }, blocks(lines.length).map(([first, end]) =>
        h("ol", { class: end - first === block ? "block" : "" }, lines.slice(first, end).map((line, i) => {
          const at = record.log_times[first + i];
          return h("li", {}, h("time", { title: at === undefined ? null : clock(Date.parse(record.origin) + at) },
            at === undefined ? "" : `+${duration(Math.max(at - origin, 0))}`), h("span", { class: "text" }, line));
        })))));
}

// block is how many messages the browser lays out or skips together. A hundred thousand messages laid out one by one
// would take a minute.
const block = 200;

function blocks(count) {
  return Array.from({ length: Math.ceil(count / block) }, (_, i) => [i * block, Math.min((i + 1) * block, count)]);
}

function printed(record) {
  return [["Standard output", record.stdout], ["Standard error", record.stderr]].filter(([, text]) => text).map(([title, text]) =>
    h("details", { class: "fold" }, h("summary", {}, title), h("pre", { class: "body scroll", tabindex: "0" }, text)));
}
