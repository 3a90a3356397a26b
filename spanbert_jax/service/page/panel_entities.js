// Entities of the text. Invariant: the threshold and the overlaps are filtered here, so that moving them asks nothing.

import { ask } from "./ask.js";
import { bars } from "./bars.js";
import { h, hues } from "./dom.js";
import { marked } from "./marked.js";
import { panel } from "./panel.js";

export const entities = {
  id: "entities", title: "Entities",
  fits: ({ task }) => task === "token_classification",
  build({ text, checkpoint }) {
    const threshold = h("input", { type: "range", min: 0, max: 1, step: 0.01, value: 0, "aria-label": "Threshold" });
    const number = h("output", {}, "0.00");
    const flat = h("input", { type: "checkbox" });
    let redraw = () => {};
    threshold.addEventListener("input", () => { number.textContent = Number(threshold.value).toFixed(2); redraw(); });
    flat.addEventListener("change", () => redraw());

    async function run() {
      const of = text.value;
      const asked = await ask("entities", { inputs: [of], offsets: "utf16", model: checkpoint().id });
      const node = h("div");
      redraw = () => node.replaceChildren(shown(of, asked.value[0], Number(threshold.value), flat.checked));
      redraw();
      return { node, asked: [asked] };
    }

    return panel({
      id: "entities", title: "Entities", action: "Find entities", run,
      hint: "Entities may overlap where the checkpoint was trained for that. The score is the probability of the label.",
      controls: [h("label", {}, h("span", {}, "Threshold ", number), threshold),
        h("label", { class: "check" }, flat, " Of entities that overlap only the best")],
    });
  },
};

function shown(text, all, threshold, isFlat) {
  const above = all.filter(({ score }) => score >= threshold);
  const kept = isFlat ? best(above) : above;
  const hue = hues(all.map(({ label }) => label));
  const drawn = marked(text, kept.map((one) => ({ ...one, hue: hue(one.label) })), (i) => choose(i));
  const list = bars(kept.map(({ start, end, label, score }) => ({ label: text.slice(start, end), note: label, value: score })), (i) => choose(i));
  const choose = (i) => { drawn.choose(i); list.choose(i); };
  return h("div", {}, drawn.node, h("p", { class: "hint" }, `${kept.length} of ${all.length} entities`), list.node);
}

// The entities that no better one overlaps, in the order of the text.
function best(all) {
  const kept = [];
  for (const one of [...all].sort((a, b) => b.score - a.score)) {
    if (kept.every((other) => one.end <= other.start || other.end <= one.start)) kept.push(one);
  }
  return kept.sort((one, other) => one.start - other.start);
}
