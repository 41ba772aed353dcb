// Chooses the view: the list at #/, the scratch pad at #/new, an execution at #/executions/ID.
import { reason, token, tokenWanted } from "./api.js";
import { h } from "./dom.js";
import { showExecution } from "./live.js";
import { showList } from "./list.js";
import { showPad } from "./pad.js";

const main = document.getElementById("main");
let leaving = new AbortController();

async function show() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const path = location.hash.slice(1) || "/";
  const id = /^\/executions\/(.+)$/.exec(path)?.[1];
  for (const [link, current] of [["nav-list", path === "/"], ["nav-pad", path === "/new"]]) {
    if (current) document.getElementById(link).setAttribute("aria-current", "page");
    else document.getElementById(link).removeAttribute("aria-current");
  }
  main.replaceChildren();
  try {
    if (path === "/new") showPad(main);
    else if (id) await showExecution(main, decodeURIComponent(id), signal);
    else await showList(main, signal);
  } catch (error) {
    if (signal.aborted) return;
    main.replaceChildren(h("p", { class: "message", role: "alert" }, reason(error)));
  }
}

// askForToken shows a form in place of the view, which is drawn again once a token was given.
function askForToken() {
  leaving.abort();
  document.title = "Token";
  const input = h("input", { id: "token", type: "password", autocomplete: "off", required: true, "aria-describedby": "token-help" });
  main.replaceChildren(h("h1", {}, "Token"),
    h("p", { id: "token-help" }, token.value ? "The server does not know this token. " : "", "Paste a caller's token. If serve runs without a list of callers, the token is in the file that serve names in its log at the start."),
    h("form", {
      class: "filters",
      submit: (event) => {
        event.preventDefault();
        token.value = input.value.trim();
        show();
      },
    }, h("label", { class: "grow" }, h("span", {}, "Token"), input), h("button", { class: "button", id: "use-token" }, "Use")));
  input.focus();
}

addEventListener(tokenWanted, askForToken);
addEventListener("hashchange", () => {
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
  show();
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
show();
