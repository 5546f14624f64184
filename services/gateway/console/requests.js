// The request inspector: the last requests of the key, and the timeline of one.

import { NONE, acceptance, byId, el, ms, number, percent, seconds, table } from "./dom.js";
import { get } from "./gateway.js";
import { timeline } from "./timeline.js";

const COLUMNS = [
  { name: "asked at", value: linkTo, kind: "head" },
  { name: "speculation", value: (each) => each.speculation, kind: "text" },
  { name: "outcome", value: (each) => each.outcome, kind: "text" },
  { name: "prompt", value: (each) => number(each.num_prompt_tokens) },
  { name: "tokens", value: (each) => number(each.num_tokens) },
  { name: "total", value: (each) => seconds(each.total_ms) },
  { name: "TTFT", value: (each) => seconds(each.ttft_ms) },
  { name: "TPOT", value: (each) => ms(each.tpot_ms) },
  { name: "acceptance", value: (each) => percent(acceptance(each)) },
  { name: "tokens/verdict", value: (each) => (each.num_verdicts ? number(each.num_tokens / each.num_verdicts, 2) : NONE) },
  { name: "verifier", value: (each) => each.verifier ?? NONE, kind: "text" },
  { name: "drafter", value: (each) => each.drafter ?? NONE, kind: "text" },
];

function linkTo(each) {
  const at = new Date(1000 * each.asked_at);
  return el("a", { href: `#requests/${each.id}` }, at.toLocaleTimeString("en", { hour12: false }));
}

export function startRequests() {
  const list = table("Requests, the newest first", COLUMNS, []);
  byId("request-list").append(list.node);

  let looking = new AbortController(); // the look-up whose answer is shown

  async function refresh() {
    const { requests } = await get("v1/dsd/requests", looking.signal);
    list.update(requests);
    say(requests.length ? "" : "No request is over yet.");
  }

  async function open(id) {
    const told = await get(`v1/dsd/requests/${encodeURIComponent(id)}`, looking.signal);
    byId("timeline").replaceChildren(timeline(told));
    byId("timeline").querySelector("h3").focus();
  }

  /** Stands above the list until the next look, and leaves an open timeline alone. */
  function say(text, kind = "note") {
    byId("requests-said").className = kind;
    byId("requests-said").textContent = text;
  }

  function tell(error) {
    if (error.name !== "AbortError") say(error.message, "error");
  }

  byId("refresh").addEventListener("click", () => refresh().catch(tell));
  return {
    async show(id) {
      looking.abort();
      looking = new AbortController();
      byId("timeline").replaceChildren();
      say("");
      try {
        await refresh();
        if (id) await open(id);
      } catch (error) {
        tell(error);
      }
    },
    hide: () => looking.abort(),
  };
}
