// Shows a step's source with light highlighting and the failing line marked.
import { h } from "./dom.js";

const tokens = /(#.*)|((?:[rbfuRBFU]{0,2})(?:"""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?))|\b(and|as|assert|async|await|break|class|continue|def|del|elif|else|except|finally|for|from|global|if|import|in|is|lambda|nonlocal|not|or|pass|raise|return|try|while|with|yield|None|True|False|match|case)\b|\b(\d[\d_.a-fA-Fx]*)\b/g;
const classes = ["comment", "string", "keyword", "number"];

// lines highlights source and returns the parts of each line.
function lines(source) {
  const result = [[]];
  const add = (text, name) => {
    text.split("\n").forEach((part, i) => {
      if (i > 0) result.push([]);
      if (part) result.at(-1).push(name ? h("span", { class: `py-${name}` }, part) : part);
    });
  };
  let end = 0;
  for (const match of source.matchAll(tokens)) {
    add(source.slice(end, match.index));
    add(match[0], classes[match.slice(1, 5).findIndex((group) => group !== undefined)]);
    end = match.index + match[0].length;
  }
  add(source.slice(end));
  return result;
}

// frames returns the lines of the step that appear in a traceback, the failing one last. It skips messages that
// mention a line; the bars are those of exception groups.
export function frames(detail) {
  return [...(detail ?? "").matchAll(/^[ |+-]*File "script\.py", line (\d+)/gm)].map((match) => Number(match[1]));
}

// sourceView shows source; passed has the lines of the traceback, of which the last one failed.
export function sourceView(source, passed, message) {
  const failing = passed.at(-1);
  const rows = lines(source.replace(/\n$/, "")).map((parts, i) => {
    const number = i + 1;
    const mark = number === failing ? "failing" : passed.includes(number) ? "passed" : "";
    return h("div", { class: `line ${mark}`, "data-line": number },
      h("span", { class: "number", "aria-hidden": "true" }, number),
      h("code", {}, parts, number === failing && h("span", { class: "sr" }, " — the failing line")),
      number === failing && message && h("span", { class: "why" }, message));
  });
  return h("div", { class: "source scroll", role: "region", tabindex: "0", "aria-label": "Source of the step" }, rows);
}

// showFailing scrolls the failing line to the middle of its view.
export function showFailing(root) {
  const line = root.querySelector(".line.failing");
  const view = line?.closest(".source");
  if (view) view.scrollTop = line.offsetTop - view.clientHeight / 2;
}
