// The view of one execution, finished or running.
import { ask, follow, reason } from "./api.js";
import { h } from "./dom.js";
import { drawPage, newView } from "./page.js";
import { refill } from "./pad.js";

export async function showExecution(root, id, signal) {
  const path = `/executions/${encodeURIComponent(id)}`;
  const load = () => ask("GET", `${path}/record`, null, signal);
  const view = newView();
  let record = await load();
  const draw = () => {
    if (record.state === "running" && record.began !== undefined) {
      const now = Date.now() - Date.parse(record.origin);
      record.phases = [
        { name: "queue", start_ms: 0, spent_ms: record.began }, { name: "running", start_ms: record.began, spent_ms: Math.max(now - record.began, 0) },
      ];
    }
    document.title = `${record.name || id} · ${record.state === "finished" ? record.outcome || "did not run" : record.state}`;
    drawPage(root, record, view, actions(record, path, draw));
  };
  draw();
  if (record.state === "finished") return;
  record.result = { logs: [], http_requests: { requests: [], not_logged: 0 } };
  const clock = setInterval(draw, 250); // not with each event: there may be thousands a second
  signal.addEventListener("abort", () => clearInterval(clock));
  await follow(id, (event) => apply(record, event), (error) => {
    record.trouble = error && `${reason(error)} Trying again.`;
    draw();
  }, signal);
  clearInterval(clock);
  if (signal.aborted) return;
  try {
    record = await load();
  } catch (error) { // the part received so far stays readable
    if (signal.aborted) return;
    record.state = "lost";
    record.trouble = reason(error);
  }
  draw();
}

// apply updates a record with an event.
function apply(record, event) {
  const at = Date.parse(event.time) - Date.parse(record.origin);
  if (event.type === "started") {
    record.state = "running";
    record.began = Math.max(at, 0);
  } else if (event.type === "log") {
    record.result.logs.push(event.data.message);
    record.log_times.push(at);
  } else if (event.type === "http") {
    record.result.http_requests.requests.push(event.data);
  }
}

function actions(record, path, draw) {
  if (record.state === "queued" || record.state === "running") {
    const cancel = () => ask("DELETE", path).catch((error) => {
      record.trouble = `Not cancelled: ${reason(error)}`;
      draw();
    });
    return [h("button", { type: "button", class: "button", id: "cancel", click: cancel }, "Cancel")];
  }
  if (!record.source) return [];
  return [h("button", {
    type: "button", class: "button", id: "again",
    click: () => {
      refill(record);
      location.hash = "#/new";
    },
  }, "Edit and run again")];
}
