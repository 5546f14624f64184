// The fleet as a picture: drafters on the left, the links to their verifiers, verifiers, and the gateway on the right.

import { ms, number, percent, plural, svg } from "./dom.js";

const MAX_DRAWN = { drafters: 12, verifiers: 8 };
const BOX = { width: 220, height: 62, gap: 16 };
const COLUMNS = { drafters: 10, verifiers: 460, gateway: 790 };
const WIDTH = 1020;
const MAX_LABELS = 16; // of links; more would hide each other
const MAX_CHARACTERS = 26;

/** The picture of a fleet. What it does not show is in the tables. */
export function picture(fleet) {
  const shown = {
    drafters: busiest(fleet.drafters, MAX_DRAWN.drafters),
    verifiers: busiest(fleet.verifiers, MAX_DRAWN.verifiers),
  };
  const rows = Math.max(shown.drafters.length, shown.verifiers.length, 1);
  const height = rows * (BOX.height + BOX.gap) + 50;
  const spots = new Map();
  for (const service of ["drafters", "verifiers"]) {
    shown[service].forEach((each, i) => {
      const free = (rows - shown[service].length) * (BOX.height + BOX.gap);
      spots.set(each.instance_id, { x: COLUMNS[service], y: 34 + free / 2 + i * (BOX.height + BOX.gap), i });
    });
  }
  const middle = { x: COLUMNS.gateway, y: 34 + ((rows - 1) * (BOX.height + BOX.gap)) / 2 };
  const links = fleet.windows.filter((pair) => spots.has(pair.drafter_id) && spots.has(pair.verifier_id));
  const parts = [
    ...heads(fleet, shown),
    ...shown.verifiers.map((each) => line(spots.get(each.instance_id), middle, "way")),
    ...links.flatMap((pair) => link(pair, spots, links.length, shown)),
    ...shown.drafters.map((each) => box(each, spots.get(each.instance_id), "drafter", ofDrafter(each))),
    ...shown.verifiers.map((each) => box(each, spots.get(each.instance_id), "verifier", ofVerifier(each))),
    box(fleet.gateway, middle, "gateway", ofGateway(fleet.gateway)),
  ];
  const title = "The fleet; the tables below have these figures and more";
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": title }, ...parts);
}

const busiest = (all, most) =>
  [...all]
    .sort((a, b) => b.num_sessions - a.num_sessions || a.name.localeCompare(b.name))
    .slice(0, most)
    .sort((a, b) => a.name.localeCompare(b.name));

function heads(fleet, shown) {
  const counts = ["drafters", "verifiers"].map((service) => {
    const left = fleet[service].length - shown[service].length;
    return [COLUMNS[service], `${service}${left ? ` (${left} more below)` : ""}`];
  });
  return [...counts, [COLUMNS.gateway, "gateway"]].map(([x, text]) => svg("text", { x, y: 18, class: "head" }, text));
}

function box(each, { x, y }, kind, lines) {
  const state = each.goneAt ? "gone" : each.draining ? "draining" : "";
  const texts = [each.goneAt ? "gone" : lines[0], each.goneAt ? "" : lines[1]];
  return svg(
    "g",
    { class: `${kind} ${state}`, transform: `translate(${x} ${y})` },
    svg("rect", { width: BOX.width, height: BOX.height, rx: 6, class: "box" }),
    svg("text", { x: 10, y: 19, class: "name" }, fit(each.name)),
    svg("text", { x: 10, y: 36 }, texts[0]),
    svg("text", { x: 10, y: 52 }, texts[1]),
  );
}

const fit = (text) => (text.length > MAX_CHARACTERS ? `${text.slice(0, MAX_CHARACTERS - 1)}…` : text);

function ofDrafter(each) {
  const quality = each.acceptance == null ? "no guesses lately" : `acceptance ${percent(each.acceptance)}`;
  const rate = each.guesses_per_s >= 0.1 ? `, ${number(each.guesses_per_s)} guesses/s` : "";
  return [`${plural(each.num_sessions, "session")}, step ${ms(each.step_ms)}`, quality + rate];
}

function ofVerifier(each) {
  const free = each.kv_tokens ? `, KV ${percent(each.free_kv_tokens / each.kv_tokens)} free` : "";
  return [`batch ${each.batch}, pass ${ms(each.step_ms)}`, `queue ${number(each.queue_tokens)}${free}`];
}

const ofGateway = (each) => [`${each.num_sessions} of ${each.max_sessions} sessions`, `${each.num_waiting} waiting`];

const line = (from, to, kind, width = 1.5) => {
  const [x1, y1, x2, y2] = ends(from, to);
  return svg("line", { x1, y1, x2, y2, class: kind, "stroke-width": width });
};

const ends = (from, to) => [from.x + BOX.width, from.y + BOX.height / 2, to.x, to.y + BOX.height / 2];

/** The link of a pair: the wider its window, the wider the line; dashed where it pauses. */
function link(pair, spots, numLinks, shown) {
  const [from, to] = [spots.get(pair.drafter_id), spots.get(pair.verifier_id)];
  const kind = pair.window ? "link" : "link paused";
  const parts = [line(from, to, kind, pair.window ? 1.5 + Math.min(pair.window, 32) / 8 : 1.5)];
  if (numLinks > MAX_LABELS) return parts;
  const [x1, y1, x2, y2] = ends(from, to);
  const at = (to.i + 1) / (shown.verifiers.length + 1); // each verifier's labels in a column of their own
  const text = `${pair.reason ? `${ms(pair.reason.rtt_ms)}, ` : ""}window ${pair.window}`;
  const [x, y] = [x1 + (x2 - x1) * at, y1 + (y2 - y1) * at];
  const width = text.length * 6.4 + 8;
  parts.push(
    svg("rect", { x: x - width / 2, y: y - 10, width, height: 19, rx: 4, class: "label" }),
    svg("text", { x, y: y + 4, "text-anchor": "middle" }, text),
  );
  return parts;
}
