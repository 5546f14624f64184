// One request as a picture over time, the parts of its time, and its verdicts in a table.

import { NONE, acceptance, el, ms, number, percent, plural, seconds, svg, table } from "./dom.js";

const LANES = { phases: 30, drafts: 66, passes: 96, tokens: 200 }; // upper edges; of tokens the base line
const HEIGHT = 270;
const BAR = 18;
const SQUARE = 8;
const MARGIN = 70; // for the names of lanes
const ZOOM = 1.6;
const FATES = ["late", "rejected", "discarded"];
const NOTABLE = new Set(["failure", "absent", "gone", "waiting", "poll"]);

/** The view of a request as GET /v1/dsd/requests/{id} tells it. */
export function timeline(told) {
  const title = el("h3", { tabindex: "-1" }, `Request ${told.id.slice(0, 8)}: ${headline(told)}`);
  return el(
    "section",
    { class: "timeline" },
    title,
    phasesList(told),
    zoomable(told),
    el("p", { class: "note" }, "Above the line: tokens by source, one column for each verdict. Below it: guesses that were late, rejected or discarded."),
    told.num_left_out > 0 && el("p", { class: "note" }, `${plural(told.num_left_out, "later message")} are not kept.`),
    el("details", {}, el("summary", {}, `Verdicts (${number(told.verdicts.length)})`), verdictTable(told).node),
    el("details", {}, el("summary", {}, `Other messages (${number(told.steps.length)})`), stepTable(told).node),
  );
}

function headline(told) {
  const right = acceptance(told);
  const parts = [plural(told.num_tokens, "token"), `${seconds(told.total_ms)}`, `speculation ${told.speculation}`];
  if (right != null) parts.push(`acceptance ${percent(right)}`);
  return [...parts, told.outcome].join(", ");
}

// --- where the time went ---------------------------------------------------------------------------------------------

/** The parts of a request's time, one after the other. */
function phases(told) {
  const opened = told.steps.find((step) => step.kind === "opened")?.at_ms ?? told.started_ms;
  const first = told.ttft_ms ?? told.total_ms;
  const last = told.verdicts.findLast((each) => each.num_tokens)?.at_ms ?? first;
  const bounds = [
    ["before", "reading, tokens of the prompt, waiting for a slot", told.started_ms],
    ["opening", "until a verifier took the session", Math.min(opened, first)],
    ["prefill", "until the first token", first],
    ["decode", "from the first to the last token", last],
    ["end", "until the answer was closed", told.total_ms],
  ];
  let from = 0;
  return bounds.map(([kind, meaning, until]) => {
    const part = { kind, meaning, from, until: Math.max(from, until) };
    from = part.until;
    return part;
  });
}

function phasesList(told) {
  const parts = phases(told).map(({ kind, meaning, from, until }) => {
    const share = told.total_ms ? (until - from) / told.total_ms : 0;
    return el("li", {}, el("span", { class: `key ${kind}` }), `${kind}: ${ms(until - from)} (${percent(share)}), ${meaning}`);
  });
  return el("div", {}, el("ul", { class: "phases", "aria-label": "Where the time went" }, ...parts), el("p", {}, decoding(told)));
}

/** What decoding consisted of. */
function decoding(told) {
  const passes = told.verdicts.filter((each) => each.num_tokens);
  const decode = phases(told).find(({ kind }) => kind === "decode");
  const span = decode.until - decode.from;
  if (passes.length < 2 || !span) return "";
  const computing = passes.slice(1).reduce((sum, each) => sum + each.pass_ms, 0);
  const mean = (field) => passes.reduce((sum, each) => sum + each[field], 0) / passes.length;
  const parts = [
    `Decoding took ${plural(passes.length, "pass", "passes")} with ${number(told.num_tokens / passes.length, 2)} tokens each`,
    `computing them ${percent(Math.min(1, computing / span))} of that time, the rest waiting for guesses, for other sessions or on the way`,
    `${number(mean("batch"), 1)} sessions in a pass`,
  ];
  if (told.speculation !== "off") parts.push(`${plural(told.accepted, "guess", "guesses")} accepted, ${number(told.late)} right but late`);
  if (told.num_failovers) parts.push(plural(told.num_failovers, "failover"));
  if (told.num_drafter_changes) parts.push(plural(told.num_drafter_changes, "change of drafter", "changes of drafter"));
  return `${parts.join("; ")}.`;
}

// --- the picture -----------------------------------------------------------------------------------------------------

/** The picture, with buttons that widen and narrow it. */
function zoomable(told) {
  let scale = 1;
  const place = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Timeline, scrolls sideways" });
  const draw = () => place.replaceChildren(picture(told, 960 * scale));
  const zoom = (factor) => {
    scale = Math.min(64, Math.max(1, scale * factor));
    draw();
  };
  const buttons = [
    el("button", { type: "button", onclick: () => zoom(ZOOM) }, "Zoom in"),
    el("button", { type: "button", onclick: () => zoom(1 / ZOOM) }, "Zoom out"),
  ];
  draw();
  return el("div", {}, el("div", { class: "row" }, ...buttons), place);
}

function picture(told, width) {
  const scale = (width - MARGIN - 10) / Math.max(told.total_ms, 1);
  const x = (at) => MARGIN + Math.max(0, at) * scale;
  const parts = [
    ...ticks(told.total_ms, x),
    ...Object.entries(LANES).map(([lane, y]) => svg("text", { x: 0, y: y + (lane === "tokens" ? 4 : 13) }, lane)),
    ...phases(told).map(({ kind, from, until }) => bar(x(from), x(until), LANES.phases, kind)),
    ...drafts(told, x),
    svg("path", { class: "pass", d: told.verdicts.filter((each) => each.pass_ms).map((each) => rect(x(each.at_ms - each.pass_ms), x(each.at_ms), LANES.passes, BAR)).join("") }),
    ...columns(told, x),
    svg("line", { class: "axis", x1: MARGIN, x2: width - 10, y1: LANES.tokens, y2: LANES.tokens }),
    ...marks(told, x),
  ];
  return svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": headline(told) }, ...parts);
}

const rect = (from, to, y, height) => `M${from.toFixed(1)} ${y}H${Math.max(to, from + 1).toFixed(1)}v${height}H${from.toFixed(1)}z`;

const bar = (from, to, y, kind) => svg("path", { class: kind, d: rect(from, to, y, BAR) });

/** How long the newest draft of each verdict lay at the verifier: from its coming to the verdict. */
function drafts(told, x) {
  const some = told.verdicts.filter((each) => each.held_ms != null);
  const lying = some.map((each) => rect(x(each.at_ms - each.held_ms), x(each.at_ms), LANES.drafts + 5, 8)).join("");
  const coming = some.map((each) => `M${x(each.at_ms - each.held_ms).toFixed(1)} ${LANES.drafts}v${BAR}`).join("");
  return [svg("path", { class: "held", d: lying }), svg("path", { class: "came", d: coming })];
}

/** Squares above and below the line, by source and by fate: one path for each, however many there are. */
function columns(told, x) {
  const paths = {};
  const add = (kind, at, row) => {
    const y = row >= 0 ? LANES.tokens - (row + 1) * SQUARE : LANES.tokens - (row + 1) * SQUARE + 2;
    paths[kind] = (paths[kind] ?? "") + `M${(at - SQUARE / 2).toFixed(1)} ${y}h${SQUARE - 1}v${SQUARE - 1}h${1 - SQUARE}z`;
  };
  for (const each of told.verdicts) {
    for (let i = 0; i < Math.min(each.num_tokens, 10); i++) add(source(each, i), x(each.at_ms), i);
    const unused = FATES.flatMap((fate) => Array(Math.min(each[fate], 8)).fill(fate));
    unused.slice(0, 8).forEach((fate, i) => add(fate, x(each.at_ms), -1 - i));
  }
  return Object.entries(paths).map(([kind, d]) => svg("path", { class: `square ${kind}`, d }));
}

/** What the i-th new token of a verdict came from. */
function source(verdict, i) {
  if (i < verdict.num_accepted) return "accepted";
  return i < verdict.num_accepted + verdict.num_looked_up ? "lookup" : verdict.own;
}

/** Events that cost time: refusals, losses, new openings. */
function marks(told, x) {
  const some = told.steps.filter((step) => NOTABLE.has(step.kind) || (step.kind === "open" && step.term > 1));
  return some.map((step) => {
    const text = `${step.kind} ${step.instance} ${step.detail}`.trim();
    const at = x(step.at_ms).toFixed(1);
    const isLate = step.at_ms > told.total_ms / 2; // then the text is on the left of its line
    const label = svg("text", { x: at, dx: isLate ? -4 : 4, y: HEIGHT - 8, "text-anchor": isLate ? "end" : "start" }, text);
    return svg("g", { class: "mark" }, svg("path", { d: `M${at} 24V${HEIGHT - 4}` }), label);
  });
}

function ticks(total, x) {
  const rough = total / 8 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const parts = [];
  for (let at = 0; at <= total; at += step) {
    parts.push(svg("text", { x: x(at), y: 14, "text-anchor": at ? "middle" : "start", class: "tick" }, seconds(at)));
    parts.push(svg("path", { class: "grid", d: `M${x(at).toFixed(1)} 20V${HEIGHT - 4}` }));
  }
  return parts;
}

// --- the tables ------------------------------------------------------------------------------------------------------

function verdictTable(told) {
  return table(
    "Verdicts",
    [
      { name: "at", value: (each) => seconds(each.at_ms), kind: "head" },
      { name: "tokens", value: (each) => number(each.num_tokens) },
      { name: "accepted", value: (each) => number(each.num_accepted) },
      { name: "looked up", value: (each) => number(each.num_looked_up) },
      { name: "others are", value: (each) => (each.num_tokens > each.num_accepted + each.num_looked_up ? each.own : NONE), kind: "text" },
      { name: "rejected", value: (each) => number(each.rejected) },
      { name: "late", value: (each) => number(each.late) },
      { name: "discarded", value: (each) => number(each.discarded) },
      { name: "pass", value: (each) => ms(each.pass_ms) },
      { name: "fed tokens", value: (each) => number(each.pass_tokens) },
      { name: "batch", value: (each) => number(each.batch) },
      { name: "queue", value: (each) => percent(each.queue) },
      { name: "draft lay", value: (each) => ms(each.held_ms) },
      { name: "window", value: (each) => number(each.window) },
      { name: "term", value: (each) => number(each.term) },
    ],
    told.verdicts,
  );
}

function stepTable(told) {
  return table(
    "Other messages",
    [
      { name: "at", value: (step) => seconds(step.at_ms), kind: "head" },
      { name: "what", value: (step) => [step.kind, step.detail].filter(Boolean).join(" "), kind: "text" },
      { name: "instance", value: (step) => step.instance, kind: "text" },
      { name: "term", value: (step) => number(step.term) },
    ],
    told.steps,
  );
}
