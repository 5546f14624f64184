// One streamed answer: its text coloured by source, its figures while it grows and at its end.

import { NONE, acceptance, el, keepingEnd, ms, number, percent, plural, seconds } from "./dom.js";
import { stream } from "./gateway.js";

/** What a token came from (docs/api.md, "Sources"). */
export const SOURCES = {
  accepted: "a correct guess",
  lookup: "a correct guess of the verifier's own, from the text",
  recovered: "the target's token in place of a wrong guess",
  bonus: "the target's token behind correct guesses",
  target: "the target's token without a guess",
};
const NAMES = { off: "target only", static: "static window", adaptive: "adaptive window" };

export class Answer {
  constructor(speculation) {
    this.name = NAMES[speculation];
    this.isOff = speculation === "off";
    this.requestId = null;
    this.text = "";
    this.state = "running"; // then "done", "stopped" or "failed"
    this.report = null; // the `dsd` object at the end
    this.metrics = null;
    this.usage = null;
    this._counts = {}; // pieces by source
    this._window = null;
    this._askedAt = performance.now();
    this._firstAt = null;
    this._body = el("div", { class: "text", "aria-busy": "true" });
    this._live = el("p", { class: "live" }, "waiting for the first token");
    this._error = el("p", { class: "error", role: "alert" });
    this.node = el("section", { class: "answer" }, el("h3", {}, this.name), this._body, this._live, this._error);
  }

  /** Asks, and follows the answer to its end. Throws nothing: `state` tells how it ended. */
  async run(body, signal) {
    try {
      for await (const event of stream("v1/chat/completions", body, signal)) this._take(event);
      this.state = "done";
      this._live.textContent = this.usage ? plural(this.usage.completion_tokens, "token") : "";
    } catch (error) {
      this.state = error.name === "AbortError" ? "stopped" : "failed";
      this._live.textContent = this.state === "stopped" ? `stopped after ${this._summary()}` : "";
      if (this.state === "failed") this._error.textContent = error.message;
    }
    this._body.removeAttribute("aria-busy");
  }

  /** In one sentence, for readers of screens. */
  get outcome() {
    if (this.state === "failed") return `The answer failed: ${this._error.textContent}`;
    if (this.state === "stopped") return "The answer was stopped";
    const { tokens, rate } = this.figures;
    const right = this.report && acceptance(this.report); // a proxy may have cut off the report
    const told = [
      tokens != null && plural(tokens, "token"),
      rate != null && `${number(rate, 1)} per second`,
      right != null && `acceptance ${percent(right)}`,
    ].filter(Boolean);
    return ["The answer is complete", told.join(", ")].filter(Boolean).join(": ");
  }

  get figures() {
    return {
      ttft: this.report?.ttft_ms,
      tpot: this.report?.tpot_ms,
      rate: this.metrics?.tokens_per_second,
      tokens: this.usage?.completion_tokens,
    };
  }

  _take(event) {
    this.requestId ??= event.id.slice(event.id.lastIndexOf("-") + 1);
    this.usage = event.usage ?? this.usage;
    this.metrics = event.metrics ?? this.metrics;
    if (event.dsd?.pieces) this._grow(event.dsd);
    else this.report = event.dsd ?? this.report;
  }

  _grow({ pieces, window }) {
    this._firstAt ??= performance.now();
    this._numFirst ??= pieces.length; // they came at once
    this._window = window;
    for (const { text, source } of pieces) {
      this.text += text;
      this._counts[source] = (this._counts[source] ?? 0) + 1;
    }
    keepingEnd(() => {
      this._body.append(...pieces.map(({ text, source }) => el("span", { class: `token ${source}` }, text)));
      this._live.textContent = this._summary();
    });
  }

  /** What is known before the end. Pieces are about as many as tokens. */
  _summary() {
    const { accepted = 0, recovered = 0 } = this._counts;
    const tokens = Object.values(this._counts).reduce((sum, count) => sum + count, 0);
    const elapsed = performance.now() - this._firstAt;
    const parts = [plural(tokens, "token")];
    if (tokens > this._numFirst) parts.push(`${number((1000 * (tokens - this._numFirst)) / elapsed, 1)} tokens/s`);
    if (tokens) parts.push(`TTFT ${ms(this._firstAt - this._askedAt)}`);
    if (accepted + recovered) parts.push(`acceptance ${percent(accepted / (accepted + recovered))}`);
    if (this._window != null) parts.push(`window ${this._window}`);
    return parts.join(" · ");
  }
}

const times = (value) => (value == null || !Number.isFinite(value) ? NONE : `× ${number(value, 2)}`);

/** Rows of the table that compares answers: a name, a value, and how many times faster the first is. */
const ROWS = [
  ["tokens per second", (each) => number(each.figures.rate, 1), (a, b) => times(a.rate / b.rate)],
  ["TPOT", (each) => ms(each.figures.tpot), (a, b) => times(b.tpot / a.tpot)],
  ["TTFT", (each) => seconds(each.figures.ttft), (a, b) => times(b.ttft / a.ttft)],
  ["tokens", (each) => number(each.figures.tokens)],
  ["tokens per verdict", (each) => number(each.report.tokens_per_verdict, 2)],
  ["acceptance", (each) => percent(acceptance(each.report))],
  ["guesses", (each) => fates(each.report)],
  ["looked up", (each) => number(each.report.looked_up)],
  ["window", (each) => number(each.report.window)],
  ["served by", (each) => [each.report.verifier, each.report.drafter].filter(Boolean).join(", ")],
];

function fates({ accepted, late, rejected, discarded }) {
  const told = { accepted, late, rejected, discarded };
  const some = Object.entries(told).filter(([, count]) => count);
  return some.map(([fate, count]) => `${number(count)} ${fate}`).join(", ") || NONE;
}

/** The figures of one answer, or of one with speculation beside one without. */
export function comparison(answers) {
  const whole = answers.filter((each) => each.state === "done" && each.report);
  if (!whole.length) return null;
  const isPair = whole.length === 2;
  const head = ["figure", ...whole.map((each) => each.name), ...(isPair ? ["gain"] : [])];
  const rows = ROWS.map(([name, value, gain]) => {
    const cells = whole.map((each) => el("td", {}, value(each)));
    if (isPair) cells.push(el("td", {}, gain ? gain(whole[0].figures, whole[1].figures) : ""));
    return el("tr", {}, el("th", { scope: "row" }, name), ...cells);
  });
  const caption = isPair ? sameText(whole) : "Figures of the answer";
  return el(
    "div",
    { class: "comparison" },
    el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, ...head.map(columnHead))), el("tbody", {}, ...rows)),
    isPair && el("p", { class: "note" }, "The second request may find the prompt in the KV cache, which shortens its TTFT."),
  );
}

const columnHead = (name) => el("th", { scope: "col" }, name);

const sameText = ([first, second]) =>
  first.text === second.text ? "Both answers have the same text" : "The answers differ in their text";
