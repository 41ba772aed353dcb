// Which view is shown: the list at #/, the scratch pad at #/new, an execution at #/executions/ID.
import { reason } from "./api.js";
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
