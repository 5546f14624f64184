// The chat: a conversation with the model, one answer at a time, each asked again without speculation on demand.

import { Answer, SOURCES, comparison } from "./answer.js";
import { announce, byId, el, keepingEnd } from "./dom.js";
import { get } from "./gateway.js";

/** One question and its answers: the first, and the one that it is compared with. */
class Turn {
  constructor(chat, prompt, body) {
    this.body = body;
    this.answers = []; // with speculation first
    this.first = null;
    this._chat = chat;
    this._answers = el("div", { class: "answers" });
    this._figures = el("div");
    this._actions = el("div", { class: "row" });
    this.node = el("article", { class: "turn" }, el("p", { class: "prompt" }, prompt));
    this.node.append(this._answers, this._figures, this._actions);
  }

  /** Asks with this kind of speculation; replaces an earlier answer of the same kind. */
  async ask(speculation, signal) {
    const answer = new Answer(speculation);
    this.first ??= answer;
    this.answers = [...this.answers.filter((each) => each.isOff !== answer.isOff), answer];
    this.answers.sort((a, b) => a.isOff - b.isOff);
    this._answers.replaceChildren(...this.answers.map((each) => each.node));
    this._figures.replaceChildren();
    this._actions.replaceChildren();
    await answer.run(this._bodyFor(speculation), signal);
    keepingEnd(() => {
      this._figures.replaceChildren(...[comparison(this.answers)].filter(Boolean));
      this._showActions();
    });
    return answer;
  }

  _bodyFor(speculation) {
    const { window, drafter, ...dsd } = { ...this.body.dsd, speculation };
    if (speculation === "static") dsd.window = window ?? 8;
    if (speculation !== "off" && drafter) dsd.drafter = drafter;
    return { ...this.body, dsd };
  }

  _showActions() {
    const wasOff = this.body.dsd.speculation === "off";
    const other = wasOff ? "adaptive" : "off";
    const again = el("button", { type: "button" }, `Ask again with speculation ${wasOff ? "on" : "off"}`);
    again.addEventListener("click", () => this._chat.run(this, other));
    this._actions.replaceChildren(again);
    if (!this._chat.hasInspector) return;
    for (const answer of this.answers.filter((each) => each.requestId)) {
      this._actions.append(el("a", { href: `#requests/${answer.requestId}` }, `Timeline (${answer.name})`));
    }
  }
}

class Chat {
  constructor(hasInspector) {
    this.hasInspector = hasInspector;
    this._turns = [];
    this._running = null; // the AbortController of the answer under way
  }

  get isRunning() {
    return this._running !== null;
  }

  /** Asks a question. Does nothing while an answer is under way. */
  async send() {
    const prompt = byId("prompt").value;
    if (!prompt.trim() || this.isRunning) return;
    const turn = new Turn(this, prompt, this._body(prompt));
    this._turns.push(turn);
    byId("turns").append(turn.node);
    byId("prompt").value = "";
    scrollTo(0, document.documentElement.scrollHeight);
    await this.run(turn, turn.body.dsd.speculation);
  }

  async run(turn, speculation) {
    if (this.isRunning) return;
    this._running = new AbortController();
    this._enable();
    const hadFocus = turn.node.contains(document.activeElement);
    announce("The answer begins");
    const answer = await turn.ask(speculation, this._running.signal);
    this._running = null;
    if (hadFocus) turn.node.querySelector("button")?.focus();
    else if (document.activeElement === byId("stop")) byId("prompt").focus();
    this._enable();
    announce(answer.outcome);
  }

  stop() {
    this._running?.abort();
  }

  clear() {
    this.stop();
    this._turns = [];
    byId("turns").replaceChildren();
    byId("prompt").focus();
  }

  _enable() {
    byId("send").disabled = this.isRunning;
    byId("stop").disabled = !this.isRunning;
  }

  _body(prompt) {
    const messages = this._turns
      .filter((turn) => turn.first.state !== "failed" && turn.first.text)
      .flatMap((turn) => [turn.body.messages.at(-1), { role: "assistant", content: turn.first.text }]);
    const value = (id) => byId(id).value;
    return {
      model: byId("model").textContent,
      messages: [...messages, { role: "user", content: prompt }],
      temperature: Number(value("temperature")),
      max_tokens: Number(value("max-tokens")),
      // Drawn here, so that the question has the same seed when it is asked again.
      seed: value("seed") === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : Number(value("seed")),
      stream: true,
      stream_options: { include_usage: true },
      dsd: {
        speculation: value("speculation"),
        sources: true,
        window: Number(value("window")),
        drafter: value("drafter"),
      },
    };
  }
}

/** The names of the live drafters, to choose one. */
async function listDrafters() {
  const { drafters } = await get("dsd/fleet");
  const chosen = byId("drafter").value;
  const names = [...new Set(drafters.map((each) => each.name))];
  const options = ["", ...names].map((name) => el("option", { value: name }, name || "any"));
  byId("drafter").replaceChildren(...options);
  byId("drafter").value = names.includes(chosen) ? chosen : "";
}

export function startChat({ has_inspector: hasInspector }) {
  const chat = new Chat(hasInspector);
  for (const [source, meaning] of Object.entries(SOURCES)) {
    byId("legend").append(el("li", {}, el("span", { class: `token ${source}` }, source), ` ${meaning}`));
  }
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    chat.send();
  });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    chat.send();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && chat.stop());
  byId("stop").addEventListener("click", () => chat.stop());
  byId("new-chat").addEventListener("click", () => chat.clear());
  byId("speculation").addEventListener("change", ({ target }) => {
    byId("window").disabled = target.value !== "static";
    byId("drafter").disabled = target.value === "off";
  });
  byId("options").addEventListener("toggle", () => listDrafters().catch(() => {}));
  return { show() {}, hide() {} };
}
