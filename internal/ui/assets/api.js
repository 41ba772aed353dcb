// Requests to the server that served this page.

// acting is the business that a caller with access to several acts for; it lasts as long as the tab.
export const acting = {
  get business() { return sessionStorage.getItem("business") ?? ""; },
  get user() { return sessionStorage.getItem("user") ?? ""; },
  set(business, user) {
    sessionStorage.setItem("business", business);
    sessionStorage.setItem("user", user);
  },
};

// token is the caller's token for the API, if the API asks for one. It lasts as long as the tab.
export const token = {
  get value() { return sessionStorage.getItem("token") ?? ""; },
  set value(text) { sessionStorage.setItem("token", text); },
};

// tokenWanted is the window event that reports that the API needs a token or refused the given one.
export const tokenWanted = "token-wanted";

function headers(more) {
  const all = { ...more };
  if (token.value) all.Authorization = `Bearer ${token.value}`;
  if (acting.business) all["X-BUSINESS-ID"] = acting.business;
  if (acting.user) all["X-USER-ID"] = acting.user;
  return all;
}

// Refused is an error response; body is its content.
export class Refused extends Error {
  constructor(status, body) {
    super(body?.detail ?? `the server answered ${status}`);
    this.status = status;
    this.body = body;
  }
}

// reason returns the text that describes an error to people.
export function reason(error) {
  return error instanceof Refused ? error.message : "The server does not answer.";
}

export async function ask(method, path, body, signal) {
  const response = await fetch(path, {
    method, signal, headers: headers(body ? { "Content-Type": "application/json" } : {}), body: body && JSON.stringify(body),
  });
  return read(response);
}

// read returns the JSON of a response. It throws Refused if the response is an error.
async function read(response) {
  const answer = await response.json().catch(() => null);
  if (response.status === 401) dispatchEvent(new Event(tokenWanted));
  if (!response.ok) throw new Refused(response.status, answer);
  return answer;
}

// follow reads the server-sent events of an execution until the last one, and reconnects after a broken connection. It
// calls onBroken with the error, and with null when the connection is back. EventSource cannot send the header that
// names the business.
export async function follow(id, onEvent, onBroken, signal) {
  let last = 0;
  while (!signal.aborted) {
    try {
      const response = await fetch(`/executions/${encodeURIComponent(id)}/events`, { signal, headers: headers({ "Last-Event-ID": String(last) }) });
      if (!response.ok) await read(response);
      onBroken(null);
      for await (const event of events(response.body)) {
        last = event.id || last;
        onEvent(event);
        if (event.type === "finished") return;
      }
    } catch (error) {
      if (signal.aborted || error instanceof Refused && error.status < 500) return;
      onBroken(error);
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const field = (name) => new RegExp(`^${name}: ?(.*)$`, "m").exec(block)?.[1];
      if (field("data")) yield { id: Number(field("id")), type: field("event"), ...JSON.parse(field("data")) };
    }
  }
}
