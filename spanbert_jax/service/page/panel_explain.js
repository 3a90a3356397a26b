// What an answer is due to: the attribution of each piece or word as a strip. Invariant: the sign and the size of an
// attribution are told by the bar under the text and by the number, not by colour alone.

import { ask, Refused } from "./ask.js";
import { choice, field, h } from "./dom.js";
import { panel, spanButton } from "./panel.js";
import { pair } from "./panel_relation.js";

const METHODS = [["integrated_gradients", "integrated gradients"], ["occlusion", "occlusion of each word"]];

export const explain = {
  id: "explain", title: "Why",
  fits: ({ task, heads }) => task !== "" || heads.includes("mlm"),
  build({ text, checkpoint }) {
    const method = choice(METHODS);
    const target = spanButton(text, "Explain the selection");
    text.addEventListener("example", ({ detail }) => target.take(text.find(detail.gap)));

    async function run() {
      const { id, task } = checkpoint(), of = text.value;
      const body = { record: of, method: method.value, offsets: "utf16", model: id };
      if (task === "question_answering") body.record = { question: document.getElementById("question").value, context: of };
      if (task === "relation_extraction") body.record = pair();
      if (task === "") {
        if (!target.span()) throw new Refused("Select the words whose probability is to be explained.", 0);
        body.target = target.span().map((unit) => [...of.slice(0, unit)].length); // in characters
      }
      const asked = await ask("explain", body);
      return { node: shown(asked.value), asked: [asked] };
    }

    return panel({
      id: "explain", title: "Why", action: "Explain", run,
      hint: "What the model's answer depends on: bars above the words speak for it, bars below against it. Without a task the answer is the selection, which is masked. With one it is the prediction; a question and entities are taken from their panel.",
      controls: [field("Method", method), target.node],
    });
  },
};

function shown({ target, score, baseline, gap, texts, tokens }) {
  const most = Math.max(...tokens.map(({ attribution }) => Math.abs(attribution))) || 1;
  const strips = Object.entries(texts).map(([name, text]) => h("section", {}, h("h3", {}, name),
    strip(text, tokens.filter(({ field }) => field === name), most)));
  const sum = tokens.reduce((total, { attribution }) => total + attribution, 0);
  const rest = gap === null ? "" : `, with every piece masked ${baseline.toFixed(2)}, attributions ${sum.toFixed(2)}, gap ${gap.toPrecision(2)}`;
  return h("div", {}, strips, h("p", { class: "hint" }, `Target ${JSON.stringify(target)}: score ${score.toFixed(2)}${rest}`));
}

function strip(text, tokens, most) {
  const line = h("p", { class: "strip", dir: "auto" });
  let at = 0;
  for (const { start, end, attribution } of tokens) {
    if (start < at) continue; // pieces that share a character
    const number = h("span", { class: "number" }, `${attribution < 0 ? "−" : "+"}${Math.abs(attribution).toFixed(2)}`);
    const bar = h("span", { class: attribution < 0 ? "against" : "for" });
    bar.style.setProperty("block-size", `${100 * Math.abs(attribution) / most}%`);
    line.append(text.slice(at, start), h("span", { class: "token" }, h("span", { class: "up" }, attribution < 0 ? null : bar),
      h("span", { class: "word" }, text.slice(start, end)), h("span", { class: "down" }, attribution < 0 ? bar : null), number));
    at = end;
  }
  line.append(text.slice(at));
  return line;
}
