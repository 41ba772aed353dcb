// The scratch pad: a script, its inputs, and a button that runs it.
import { ask, reason, Refused } from "./api.js";
import { h } from "./dom.js";

const types = [
  ["s", "text"], ["n", "number"], ["b", "boolean"], ["d", "date"], ["dt", "datetime"], ["em", "email"], ["p", "phone"], ["u", "uuid"],
  ["e", "employee"], ["f", "file (JSON)"], ["l", "list (JSON)"], ["a[s]", "list of text (JSON)"], ["a[n]", "list of numbers (JSON)"],
];
const draft = {
  name: "scratch", runtime: "python-3-13", timeout: "", secrets: "",
  script: 'outputs.log(f"hello, {inputs.who}")\noutputs.greeting = f"hello, {inputs.who}"\n',
  inputs: [{ name: "who", type: "s", value: "world" }], outputs: [{ name: "greeting", type: "s" }],
};

// refill copies an execution into the draft. An input that was null stays null until its field is edited.
export function refill(record) {
  draft.name = record.name || "scratch";
  draft.runtime = record.runtime;
  draft.script = record.source;
  draft.inputs = Object.entries(record.inputs ?? {}).map(([name, { t, v }]) => ({ name, type: t, value: v === null || typeof v === "string" ? v : JSON.stringify(v) }));
  draft.outputs = Object.entries(record.output_types ?? {}).map(([name, type]) => ({ name, type }));
  draft.secrets = (record.secrets ?? []).join(", ");
  draft.timeout = record.timeout_ms ? String(record.timeout_ms / 1000) : "";
}

// body returns the request for the draft.
function body() {
  const inputs = draft.inputs.filter((input) => input.name).map(({ name, type, value }) => [name, { t: type, v: wire(type, value) }]);
  const outputs = draft.outputs.filter((output) => output.name).map(({ name, type }) => [name, type]);
  const secrets = draft.secrets.split(/[\s,]+/).filter(Boolean);
  return {
    name: draft.name, runtime: draft.runtime, user_script: draft.script,
    inputs: Object.fromEntries(inputs), output_types: Object.fromEntries(outputs),
    ...(secrets.length > 0 && { secrets }), ...(draft.timeout && { timeout_ms: Math.round(Number(draft.timeout) * 1000) }),
  };
}

// wire converts a text to a wire value. If a type needs JSON and the text is not JSON, wire sends the text, so that
// the API refuses it with the name of the input.
function wire(type, text) {
  if (text === null || !/^[aflo]/.test(type)) return text;
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

export function showPad(root) {
  document.title = "Scratch pad";
  const problems = h("ul", { class: "problems", role: "alert" });
  const field = (name, label, attributes) => {
    const input = h("input", { id: `pad-${name}`, autocomplete: "off", input: (event) => { draft[name] = event.target.value; }, ...attributes });
    input.value = draft[name];
    return h("label", {}, h("span", {}, label), input);
  };
  const run = h("button", { class: "button primary", id: "run" }, "Run");
  const form = h("form", {
    class: "pad",
    submit: async (event) => {
      event.preventDefault();
      run.disabled = true;
      problems.replaceChildren();
      try {
        const started = await ask("POST", "/executions", body());
        location.hash = `#/executions/${encodeURIComponent(started.execution_id)}`;
      } catch (error) {
        problems.replaceChildren(...complaints(error).map((text) => h("li", {}, text)));
        run.disabled = false;
      }
    },
    keydown: (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    },
  },
  h("h1", { class: "sr" }, "Scratch pad"),
  h("div", { class: "write" }, editor()),
  h("div", { class: "given" },
    h("div", { class: "filters" }, field("name", "Name"), runtime(), field("timeout", "Limit, seconds", { type: "number", min: "1", step: "any", placeholder: "default" })),
    rows("Inputs", "input", draft.inputs, true), rows("Outputs", "output", draft.outputs, false),
    h("div", { class: "filters" }, h("label", { class: "grow" }, h("span", {}, "Secrets granted, by name"), field("secrets", "", {}).lastChild)),
    problems,
    h("p", { class: "go" }, run, h("span", { class: "none" }, "Ctrl+Enter in any field"))));
  root.replaceChildren(form);
}

function editor() {
  const numbers = h("pre", { class: "numbers", "aria-hidden": "true" });
  const area = h("textarea", {
    id: "pad-script", spellcheck: "false", autocapitalize: "off", autocomplete: "off", wrap: "off", "aria-label": "Script", "aria-describedby": "pad-hint",
    input: () => { draft.script = area.value; number(); },
    scroll: () => { numbers.scrollTop = area.scrollTop; },
    keydown: indent,
  });
  const number = () => {
    numbers.textContent = area.value.split("\n").map((_, i) => i + 1).join("\n");
  };
  area.value = draft.script;
  number();
  return [h("div", { class: "editor" }, numbers, area), h("p", { class: "none", id: "pad-hint" }, "Tab indents; Escape, then Tab, leaves the script.")];
}

let leave = false; // Escape was pressed, so the next Tab moves on

function indent(event) {
  if (event.key === "Escape") leave = true;
  else if (event.key !== "Tab") leave = event.key === "Shift" && leave;
  else if (leave || event.shiftKey) leave = false;
  else {
    event.preventDefault();
    const area = event.target;
    area.setRangeText("    ", area.selectionStart, area.selectionEnd, "end");
    area.dispatchEvent(new Event("input"));
  }
}

function runtime() {
  return h("label", {}, h("span", {}, "Runtime"), h("select", { id: "pad-runtime", change: (event) => { draft.runtime = event.target.value; } },
    ["python-3-13", "python-3-12"].map((name) => h("option", { value: name, selected: draft.runtime === name }, name))));
}

// rows is an editor for a list of parameters.
function rows(title, kind, list, valued) {
  const box = h("fieldset", { class: "parameters" });
  const draw = () => box.replaceChildren(h("legend", {}, title), ...list.map((item, i) => {
    const cell = (name, attributes) => {
      const field = h(attributes?.rows ? "textarea" : "input", {
        id: `${kind}-${i}-${name}`, "aria-label": `${title.slice(0, -1)} ${i + 1}: ${name}`, placeholder: item[name] === null ? "null" : name, autocomplete: "off",
        input: (event) => { item[name] = event.target.value; }, ...attributes,
      });
      field.value = item[name] ?? "";
      return field;
    };
    const known = types.some(([code]) => code === item.type) ? types : [...types, [item.type, item.type]];
    return h("div", { class: "parameter" }, cell("name"),
      h("select", { id: `${kind}-${i}-type`, "aria-label": `${title.slice(0, -1)} ${i + 1}: type`, change: (event) => { item.type = event.target.value; } },
        known.map(([code, name]) => h("option", { value: code, selected: item.type === code }, name))),
      valued && cell("value", { rows: "1" }), // a textarea, because an input would lose line breaks
      h("button", { type: "button", class: "copy", "aria-label": `Remove ${kind} ${i + 1}`, click: () => { list.splice(i, 1); draw(); add.focus(); } }, "×"));
  }), add);
  const add = h("button", {
    type: "button", class: "copy", id: `add-${kind}`,
    click: () => {
      list.push({ name: "", type: "s", value: "" });
      draw();
      document.getElementById(`${kind}-${list.length - 1}-name`).focus();
    },
  }, `add ${kind}`);
  draw();
  return box;
}

// complaints returns the messages of a refusal, each after the name of its field.
function complaints(error) {
  if (!(error instanceof Refused)) return [reason(error)];
  if (error.body?.detail) return [error.body.detail];
  const found = [];
  const walk = (value, place) => {
    if (typeof value === "string") found.push(place.length > 0 ? `${place.join(".")}: ${value}` : value);
    else if (Array.isArray(value)) value.forEach((item) => walk(item, place));
    else if (value) Object.entries(value).forEach(([key, item]) => walk(item, [...place, key]));
  };
  walk(error.body, []);
  return found.length > 0 ? found : [error.message];
}
