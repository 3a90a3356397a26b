// Spans that rules find and spans that a person selects, with the nearest spans of the text by their vectors.

import { ask, Refused } from "./ask.js";
import { bars } from "./bars.js";
import { choice, field, h, hues } from "./dom.js";
import { marked } from "./marked.js";
import { panel } from "./panel.js";

const NEAREST = 8;
const MOST = 128; // spans that are embedded

export const spans = {
  id: "spans", title: "Spans",
  fits: () => true,
  build({ text, checkpoint }) {
    const rules = h("input", { value: "sentence; capitals", size: 26, spellcheck: "false", "aria-label": "Rules" });
    const pooling = choice(["mean", "ends", "boundary", "attention"].map((name) => [name, name]));
    const own = [];
    const list = h("span", { class: "taken" });
    const show = () => list.replaceChildren(...own.map((span, i) => h("button", {
      type: "button", class: "quiet", title: "Leave this span out", onclick: () => { own.splice(i, 1); show(); },
    }, h("bdi", {}, text.value.slice(...span)), " ×")));
    const add = () => {
      const span = text.selection();
      if (span && !own.some((one) => one[0] === span[0] && one[1] === span[1])) own.push(span);
      show();
    };
    text.addEventListener("change", () => { own.length = 0; show(); });

    async function run() {
      const written = rules.value.split(";").map((rule) => rule.trim()).filter(Boolean);
      const found = await Promise.all(written.map((rule) => // together they would leave out spans that overlap
        tried("spans/find", { text: text.value, rules: [rule], offsets: "utf16" })));
      const selected = own.map(([start, end]) => ({ start, end, kind: "selected" }));
      const all = [...found.flatMap(({ value }) => value ?? []), ...selected];
      const inputs = [{ text: text.value, spans: all.slice(0, MOST).map(({ start, end }) => [start, end]) }];
      const embedded = all.length
        ? await tried("spans/embed", { inputs, pooling: pooling.value, offsets: "utf16", model: checkpoint().id }) : {};
      const vectors = (embedded.value?.[0] ?? []).map(({ embedding }) => unit(embedding));
      const asked = [...found, embedded];
      const problems = asked.filter(({ problem }) => problem).map(({ problem }) => h("p", { role: "alert" }, problem));
      return { node: h("div", {}, problems, shown(text.value, all, vectors)), asked: asked.filter(({ path }) => path) };
    }

    return panel({
      id: "spans", title: "Spans", action: "Find and compare", run,
      hint: "Rules find spans: sentence, capitals, regex:NAME=PATTERN, pos:NAME=PATTERN. Choose a span to see which others have the nearest vectors.",
      controls: [field("Rules", rules), field("Pooling", pooling),
        h("span", { class: "span-button" }, h("button", { type: "button", onclick: add }, "Add the selection"), list)],
    });
  },
};

// The answer, or {problem}: where one request is refused, the others are still shown.
async function tried(path, body) {
  try {
    return await ask(path, body);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    return { problem: error.message };
  }
}

function unit(vector) {
  const norm = Math.hypot(...vector) || 1;
  return vector.map((value) => value / norm);
}

function shown(text, all, vectors) {
  if (!all.length) return h("p", {}, "There is no span.");
  const hue = hues(all.map(({ kind }) => kind));
  const nearest = h("div", { class: "nearest" });
  const drawn = marked(text, all.map((one) => ({ ...one, label: one.kind, hue: hue(one.kind) })), (i) => choose(i));
  const named = ({ start, end }) => text.slice(start, end);
  const choose = (chosen) => {
    drawn.choose(chosen);
    names.choose(chosen);
    if (!vectors[chosen]) return nearest.replaceChildren(h("p", {}, "This span has no vector."));
    const others = vectors.map((vector, i) => ({ i, value: vector.reduce((sum, one, at) => sum + one * vectors[chosen][at], 0) }))
      .filter(({ i }) => i !== chosen).sort((one, other) => other.value - one.value).slice(0, NEAREST);
    const rows = others.map(({ i, value }) => ({ label: named(all[i]), note: all[i].kind, value }));
    nearest.replaceChildren(h("h3", {}, "Nearest to ", h("q", {}, h("bdi", {}, named(all[chosen])))),
      rows.length ? bars(rows, (row) => choose(others[row].i), (value) => value.toFixed(3)).node : h("p", {}, "There is no other span."));
  };
  const names = spanList(all.slice(0, MOST).map((one) => ({ text: named(one), label: one.kind })), choose);
  const note = all.length > MOST ? `; the first ${MOST} are listed and have vectors` : "";
  return h("div", {}, drawn.node, h("p", { class: "hint" }, `${all.length} spans${note}`),
    h("div", { class: "columns" }, names.node, nearest));
}

// A list of spans for the keyboard. Returns {node, choose}.
function spanList(found, choose) {
  const buttons = found.map(({ text, label }, i) => h("button", { type: "button", class: "row", onclick: () => choose(i) },
    h("bdi", { class: "name" }, text), h("bdi", { class: "hint" }, label)));
  const mark = (chosen) => buttons.forEach((button, i) => {
    button.classList.toggle("chosen", i === chosen);
    button.setAttribute("aria-pressed", i === chosen);
  });
  return { node: h("ol", { class: "bars list" }, buttons.map((button) => h("li", {}, button))), choose: mark };
}
