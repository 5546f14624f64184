// Requests to the gateway that served this page. The API key lives in this tab's session storage, and nowhere else.

const BASE = new URL("..", import.meta.url);
const KEY = "dsd-key";

/** What the gateway refused, or why it could not be asked. */
export class GatewayError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

async function ask(path, options = {}) {
  const headers = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  if (options.body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(new URL(path, BASE), { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new GatewayError("The gateway can't be reached");
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  if (response.status === 401) document.dispatchEvent(new CustomEvent("dsd-key-refused"));
  throw new GatewayError(error?.message ?? `Status ${response.status}`, response.status, error?.code);
}

export const get = async (path, signal) => (await ask(path, { signal })).json();

/** The events of a streamed answer, parsed. Throws GatewayError where the stream tells an error or breaks off. */
export async function* stream(path, body, signal) {
  const response = await ask(path, { method: "POST", body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new GatewayError("The answer broke off");
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue;
        if (line === "data: [DONE]") return;
        const event = JSON.parse(line.slice(6));
        if (event.error) throw new GatewayError(event.error.message, 200, event.error.code);
        yield event;
      }
    }
  } catch (error) {
    if (error instanceof GatewayError || error.name === "AbortError") throw error;
    throw new GatewayError("The connection broke off");
  } finally {
    reader.cancel().catch(() => {});
  }
}
