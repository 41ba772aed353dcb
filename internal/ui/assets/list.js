// The recent executions of a business.
import { acting, ask, reason } from "./api.js";
import { h, printable, renew } from "./dom.js";
import { clock, day, duration, outcomeText, tone } from "./format.js";

const outcomes = [
  "ok", "syntax_error", "exception", "timeout", "cpu_limit", "memory_limit", "process_limit", "output_limit", "killed_by_signal",
  "exited", "result_missing", "result_not_serialisable", "cancelled", "internal", "refused", "not_started", "worker_died",
];
const chosen = { text: "", state: "", outcome: "" };

export async function showList(root, signal) {
  document.title = "Executions";
  const body = h("tbody", {});
  const status = h("p", { class: "none", role: "status" });
  let all = [];
  const draw = () => {
    const text = chosen.text.toLowerCase();
    const shown = all.filter((e) => (!chosen.state || e.state === chosen.state) && (!chosen.outcome || e.outcome === chosen.outcome)
      && (!text || `${e.name ?? ""} ${e.execution_id}`.toLowerCase().includes(text)));
    const focused = document.activeElement?.id;
    renew(body, h("tbody", {}, shown.map(row)));
    if (focused?.startsWith("go-")) document.getElementById(focused)?.focus({ preventScroll: true });
    status.textContent = shown.length > 0 ? "" : all.length === 0 ? "No executions yet. The scratch pad runs one." : "No execution matches the filters.";
  };
  const refresh = async () => {
    try {
      all = (await ask("GET", "/executions", null, signal)).results;
      draw();
    } catch (error) {
      status.textContent = signal.aborted ? "" : reason(error);
    }
  };
  root.replaceChildren(h("h1", { class: "sr" }, "Executions"), filters(draw), actingFor(refresh),
    h("table", { class: "list" },
      h("thead", {}, h("tr", {}, ["Step", "Outcome", "Runtime", "Began", "Took"].map((name) => h("th", { scope: "col" }, name)))), body), status);
  await refresh();
  const timer = setInterval(() => {
    if (!document.hidden) refresh();
  }, 2000);
  signal.addEventListener("abort", () => clearInterval(timer));
}

function row(e) {
  const took = e.phases ? e.phases.step_ms : null;
  return h("tr", { class: tone({ ...e, outcome: e.outcome ?? "" }) },
    h("td", { class: "what" }, h("a", { href: `#/executions/${encodeURIComponent(e.execution_id)}`, id: `go-${e.execution_id}` }, e.name || "unnamed step"),
      h("span", { class: "id" }, e.execution_id)),
    h("td", { class: "outcome" }, h("span", { class: "dot", "aria-hidden": "true" }), outcomeText({ ...e, outcome: e.outcome ?? "" })),
    h("td", { class: "runtime" }, e.runtime),
    h("td", { class: "began" }, day(e.queued_at) === day(new Date()) ? clock(e.queued_at) : `${day(e.queued_at)} ${clock(e.queued_at)}`),
    h("td", { class: "took" }, duration(took)));
}

function filters(draw) {
  const select = (name, label, options) => h("label", {}, h("span", {}, label),
    h("select", { id: `filter-${name}`, change: (event) => { chosen[name] = event.target.value; draw(); } },
      h("option", { value: "" }, "any"), options.map((option) => h("option", { value: option, selected: chosen[name] === option }, option.replaceAll("_", " ")))));
  const text = h("input", { id: "filter-text", type: "search", autocomplete: "off", placeholder: "name or id", input: (event) => { chosen.text = event.target.value; draw(); } });
  text.value = chosen.text;
  return h("div", { class: "filters", role: "search" },
    h("label", { class: "grow" }, h("span", {}, "Search"), text),
    select("state", "State", ["queued", "running", "finished"]), select("outcome", "Outcome", outcomes));
}

// actingFor lets a caller with access to all businesses choose one.
function actingFor(refresh) {
  const field = (name, label) => {
    const input = h("input", { id: `acting-${name}`, autocomplete: "off" });
    input.value = acting[name];
    return [h("label", {}, h("span", {}, label), input), input];
  };
  const [business, businessInput] = field("business", "Business id");
  const [user, userInput] = field("user", "Account id");
  const said = () => acting.business ? `Acting for ${acting.business}` : "Act for another business";
  const summary = h("summary", {}, said());
  return h("details", { class: "fold acting" }, summary,
    h("form", {
      class: "filters",
      submit: (event) => {
        event.preventDefault();
        acting.set(businessInput.value.trim(), userInput.value.trim());
        summary.replaceChildren(printable(said()));
        refresh();
      },
    }, business, user, h("button", { class: "button" }, "Use")));
}
