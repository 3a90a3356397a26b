// A text with spans that may overlap. Invariant: each span is a line of its own under its characters and a label behind
// its end, so that no span is told by colour alone. Offsets are UTF-16 units, as JavaScript counts.

import { h } from "./dom.js";

// spans: [{start, end, label, hue}]. choose(i) is called when a span is clicked: the shortest of those there. Returns
// {node, choose}; choose(i) marks span i, and null none.
export function marked(text, spans, choose = () => {}) {
  const lanes = inLanes(spans);
  const node = h("p", { class: "marked", dir: "auto", onclick: (event) => {
    const within = event.target.closest("[data-spans]")?.dataset.spans.split(" ").map(Number);
    if (within?.length) choose(within.reduce((one, other) => length(spans[other]) < length(spans[one]) ? other : one));
  } });
  node.style.setProperty("--lanes", lanes.reduce((most, lane) => Math.max(most, lane + 1), 0));
  const begins = at(spans, "start"), ends = at(spans, "end");
  const cuts = [...new Set([0, ...begins.keys(), ...ends.keys(), text.length])].sort((one, other) => one - other);
  const active = new Set();
  cuts.forEach((cut, number) => {
    const ended = ends.get(cut) ?? [];
    ended.forEach((i) => active.delete(i));
    const around = [...active];
    for (const i of ended.filter((i) => spans[i].label)) {
      const label = h("bdi", { class: "label", "data-spans": [i, ...around].join(" ") }, spans[i].label);
      label.style.setProperty("--hue", `var(--hue-${spans[i].hue})`);
      node.append(underlined(label, spans, around, lanes));
    }
    (begins.get(cut) ?? []).forEach((i) => active.add(i));
    const part = text.slice(cut, cuts[number + 1] ?? cut);
    const inside = [...active];
    if (!part) return;
    node.append(inside.length
      ? underlined(h("span", { class: "mark", "data-spans": inside.join(" ") }, part), spans, inside, lanes) : part);
  });
  const mark = (chosen) => node.querySelectorAll("[data-spans]").forEach((part) => {
    part.classList.toggle("chosen", part.dataset.spans.split(" ").includes(String(chosen)));
  });
  return { node, choose: mark };
}

function length(span) {
  return span.end - span.start;
}

function at(spans, edge) {
  const places = new Map();
  spans.forEach((span, i) => places.set(span[edge], [...(places.get(span[edge]) ?? []), i]));
  return places;
}

// The lane of each span: the first that is free, where longer spans choose first, so that they lie lowest.
function inLanes(spans) {
  const order = spans.map((_, i) => i)
    .sort((one, other) => spans[one].start - spans[other].start || length(spans[other]) - length(spans[one]));
  const free = [], lanes = [];
  for (const i of order) {
    const lane = free.findIndex((end) => end <= spans[i].start);
    lanes[i] = lane < 0 ? free.length : lane;
    free[lanes[i]] = spans[i].end;
  }
  return lanes;
}

function underlined(node, spans, inside, lanes) {
  const colour = (i) => `var(--hue-${spans[i].hue})`;
  node.style.setProperty("background-image", inside.map((i) => `linear-gradient(${colour(i)}, ${colour(i)})`).join(", "));
  node.style.setProperty("background-position", inside.map((i) => `0 calc(100% - ${5 * lanes[i]}px)`).join(", "));
  return node;
}
