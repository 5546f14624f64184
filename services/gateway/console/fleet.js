// The fleet: asks for it every second while it is shown, draws it, and lists it in tables.

import { NONE, announce, byId, ms, number, percent, plural, seconds, table } from "./dom.js";
import { get } from "./gateway.js";
import { picture } from "./picture.js";

const EVERY_MS = 1000;
const REST = 10; // times as long as the last look took, so that a large fleet keeps neither side busy
const MAX_ROWS = 200; // of a table
const GONE_MS = 10_000; // for which one that has gone stays in the picture
const GAIN_MS = 60_000; // that a gain is the mean of

const name = { name: "name", value: (each) => each.name, kind: "head" };
const sessions = { name: "sessions", value: (each) => `${each.num_sessions} / ${each.max_sessions}` };
const heard = { name: "last heard", value: (each) => `${seconds(each.heartbeat_age_ms)} ago` };
const state = { name: "state", value: stateOf, kind: "text" };
const share = (value) => (value == null ? NONE : percent(value));

const TABLES = [
  [
    "Drafters",
    (fleet) => fleet.drafters,
    [
      name,
      state,
      sessions,
      { name: "round trip", value: (each) => ms(each.rtt_ms || null) },
      { name: "draft step", value: (each) => ms(each.step_ms) },
      { name: "guesses/s", value: (each) => number(each.guesses_per_s, 1) },
      { name: "acceptance", value: (each) => share(each.acceptance) },
      { name: "in time", value: (each) => share(each.in_time) },
      { name: "provider", value: (each) => each.provider, kind: "text" },
      heard,
    ],
  ],
  [
    "Verifiers",
    (fleet) => fleet.verifiers,
    [
      name,
      state,
      sessions,
      { name: "batch", value: (each) => number(each.batch) },
      { name: "queued tokens", value: (each) => number(each.queue_tokens) },
      { name: "pass", value: (each) => ms(each.step_ms) },
      { name: "free KV cache", value: (each) => share(each.kv_tokens ? each.free_kv_tokens / each.kv_tokens : null) },
      heard,
    ],
  ],
  [
    "Pairs and their windows",
    (fleet) => fleet.windows,
    [
      { name: "drafter", value: (pair) => short(pair.drafter_id), kind: "head" },
      { name: "verifier", value: (pair) => short(pair.verifier_id), kind: "text" },
      { name: "window", value: (pair) => (pair.window ? number(pair.window) : "0: paused") },
      { name: "chunk", value: (pair) => number(pair.chunk) },
      { name: "round trip", value: (pair) => ms(pair.reason?.rtt_ms) },
      { name: "acceptance", value: (pair) => share(pair.reason?.acceptance) },
      { name: "pass", value: (pair) => ms(pair.reason?.pass_ms) },
      { name: "TPOT", value: (pair) => ms(pair.reason?.tpot_ms) },
      { name: "gain (1 min)", value: (pair) => (pair.gain ? `× ${number(pair.gain, 2)}` : NONE) },
      { name: "draft step", value: (pair) => ms(pair.reason?.draft_ms) },
      { name: "policy", value: (pair) => pair.policy, kind: "text" },
      { name: "decided", value: (pair) => `${seconds(pair.age_ms)} ago` },
    ],
  ],
  ["Controllers", (fleet) => fleet.controllers, [name, state, heard]],
];

export const short = (instanceId) => instanceId.split(".")[0];

/** Pass time / TPOT of pairs: the target alone takes about a pass for a token. One decision tells of the last ten
 * verdicts or so, which scatter: a gain is the mean over the decisions of GAIN_MS, as far as the page was shown. */
class Gains {
  constructor() {
    this._told = new Map(); // {at, tpot, gain} of decisions, the oldest first, by pair
  }

  /** The pairs with their gains; null before there is one. */
  update(pairs, now) {
    const idOf = (pair) => `${pair.drafter_id} ${pair.verifier_id}`;
    const further = (pair) => this._further(this._told.get(idOf(pair)) ?? [], pair.reason, now);
    this._told = new Map(pairs.map((pair) => [idOf(pair), further(pair)]));
    return pairs.map((pair) => ({ ...pair, gain: mean(this._told.get(idOf(pair)).map((each) => each.gain)) }));
  }

  _further(before, reason, now) {
    const { pass_ms: pass, tpot_ms: tpot } = reason ?? {};
    const isNew = pass && tpot && before.at(-1)?.tpot !== tpot; // a decision that is repeated tells nothing new
    const all = isNew ? [...before, { at: now, tpot, gain: pass / tpot }] : before;
    return all.filter((each) => each === all.at(-1) || now - each.at < GAIN_MS);
  }
}

const mean = (values) => (values.length ? values.reduce((sum, each) => sum + each, 0) / values.length : null);

function stateOf(each) {
  if (each.goneAt) return "gone";
  return each.draining ? "draining" : "live";
}

/** Who has come and who has gone, by instance. Those that have gone stay for GONE_MS. */
class Roll {
  constructor() {
    this._known = null;
    this._gone = new Map();
  }

  /** The fleet with those that have just gone; announces changes. */
  update(fleet, now) {
    const live = new Map();
    for (const service of ["drafters", "verifiers"]) {
      for (const each of fleet[service]) live.set(each.instance_id, { service, each });
    }
    const news = [];
    for (const [id, { service, each }] of this._known ?? []) {
      if (live.has(id)) continue;
      this._gone.set(id, { service, each: { ...each, goneAt: now } });
      news.push(`${each.name} has gone`);
    }
    for (const [id, { each }] of live) {
      this._gone.delete(id);
      if (this._known && !this._known.has(id)) news.push(`${each.name} has joined`);
    }
    this._known = live;
    for (const [id, { each }] of this._gone) if (now - each.goneAt > GONE_MS) this._gone.delete(id);
    if (news.length) announce(news.join(", "));
    const gone = (service) => [...this._gone.values()].filter((entry) => entry.service === service);
    const withGone = (service) => [...fleet[service], ...gone(service).map((entry) => entry.each)];
    return { ...fleet, drafters: withGone("drafters"), verifiers: withGone("verifiers") };
  }
}

export function startFleet() {
  const roll = new Roll();
  const gains = new Gains();
  const tables = TABLES.map(([caption, rows, columns]) => ({ rows, view: table(caption, columns, []) }));
  byId("fleet-tables").append(...tables.map(({ view }) => view.node));
  let watching = null; // the AbortController of the loop

  async function look(signal) {
    const fleet = await get("dsd/fleet", signal);
    const { gateway } = fleet;
    const counts = [plural(fleet.drafters.length, "drafter"), plural(fleet.verifiers.length, "verifier")];
    const load = `${gateway.num_sessions} of ${gateway.max_sessions} sessions, ${gateway.num_waiting} waiting`;
    byId("fleet-summary").textContent = `${counts.join(", ")}. Gateway ${gateway.name}: ${load}.`;
    const now = performance.now();
    const whole = { ...roll.update(fleet, now), windows: gains.update(fleet.windows, now) };
    byId("picture").replaceChildren(picture(whole));
    for (const { rows, view } of tables) view.update(rows(whole).slice(0, MAX_ROWS));
  }

  async function watch(signal) {
    while (!signal.aborted) {
      const begun = performance.now();
      try {
        if (!document.hidden) await look(signal);
      } catch (error) {
        if (error.name === "AbortError") return;
        byId("fleet-summary").textContent = error.message;
      }
      const rest = Math.max(EVERY_MS, REST * (performance.now() - begun));
      await new Promise((resolve) => setTimeout(resolve, rest));
    }
  }

  return {
    show() {
      if (watching) return;
      watching = new AbortController();
      watch(watching.signal);
    },
    hide() {
      watching?.abort();
      watching = null;
    },
  };
}
