// The JSON interface of the server: one sentence where it refuses.

const SENTENCE = "the server does not answer; is sfumato demo still running?";

let pending = 0;

// While something is asked, the page says that it is busy.
async function waiting(work) {
  pending += 1;
  document.documentElement.setAttribute("aria-busy", "true");
  try {
    return await work();
  } finally {
    pending -= 1;
    document.documentElement.setAttribute("aria-busy", String(pending > 0));
  }
}

async function reach(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(SENTENCE);
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  const error = new Error(told.error ?? `the server answered ${response.status}.`);
  error.stale = response.status === 409;
  throw error;
}

function json(body, signal) {
  const headers = { "Content-Type": "application/json" };
  return { method: "POST", headers, body: JSON.stringify(body), signal };
}

export const get = (path) => waiting(async () => (await reach(path)).json());
export const post = (path, body) => waiting(async () => (await reach(path, json(body))).json());

export async function upload(file) {
  if (!["image/png", "image/jpeg"].includes(file.type)) {
    throw new Error(`${file.name || "this file"} is not a PNG or JPEG image; choose one of these.`);
  }
  const headers = { "Content-Type": file.type };
  return waiting(async () => (await reach("/api/image", { method: "POST", headers, body: file })).json());
}

// Hears the server-sent events of a POST, one by one.
export function events(path, body, signal, hear) {
  return waiting(async () => {
    const response = await reach(path, json(body, signal));
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) hear(JSON.parse(part.slice("data: ".length)));
    }
  });
}

// Runs one call at a time; of those asked for meanwhile, only the last.
export function latest(call) {
  let running = false;
  let next = null;
  return async function ask(...given) {
    next = given;
    if (running) return;
    running = true;
    while (next) {
      const now = next;
      next = null;
      await call(...now);
    }
    running = false;
  };
}
