// Gaps of the text, filled by MLM and by SBO, and by both together. Invariant: the columns show the same step.

import { ask } from "./ask.js";
import { bars } from "./bars.js";
import { choice, field, h, percent } from "./dom.js";
import { panel } from "./panel.js";

const ORDERS = [["confidence", "the surest first"], ["left_to_right", "left to right"], ["parallel", "all at once"], ["beam", "beam"]];
const STEP = 700; // milliseconds that a step is shown

export const infill = {
  id: "infill", title: "Infill",
  fits: ({ heads }) => heads.length > 0,
  build({ text, checkpoint }) {
    const order = choice(ORDERS, "order");
    const words = choice([["", "1 to 4"], ...[1, 2, 3, 4, 5, 6].map((count) => [count, count])]);
    const cut = () => {
      const span = text.selection();
      if (span) text.value = `${text.value.slice(0, span[0])}___${text.value.slice(span[1])}`;
    };
    let playing = 0;

    async function run() {
      clearInterval(playing);
      const { heads, id } = checkpoint();
      const mixes = heads.length < 2 ? [[heads[0].toUpperCase(), null]] : [["MLM", 0], ["Both", null], ["SBO", 1]];
      const body = { text: text.value, order: order.value, offsets: "utf16", model: id };
      if (words.value) body.words = Number(words.value);
      const asked = await Promise.all(mixes.map(([, mix]) => ask("infill", { ...body, mix })));
      const columns = asked.map(({ value }, i) => filled(mixes[i][0], value));
      return { node: steps(columns, (timer) => { playing = timer; }), asked };
    }

    return panel({
      id: "infill", title: "Infill", action: "Fill the gaps", run,
      hint: "___ is a gap of some words, [MASK] one of one piece. Choose a piece to see what else each head would put there.",
      controls: [h("button", { type: "button", onclick: cut }, "Make a gap of the selection"), field("Words", words), field("Order", order)],
    });
  },
};

// The columns with a slider and a button that play the steps.
function steps(columns, started) {
  const last = Math.max(0, ...columns.map(({ steps }) => steps));
  const slider = h("input", { type: "range", min: 0, max: last, step: 1, value: last, "aria-label": "Step", oninput: () => show() });
  const number = h("output");
  const show = () => {
    number.textContent = `${slider.value} of ${last}`;
    columns.forEach((column) => column.show(Number(slider.value)));
  };
  const play = h("button", { type: "button", onclick: () => {
    slider.value = 0;
    show();
    const timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (Number(slider.value) >= last || !slider.isConnected) clearInterval(timer);
    }, STEP);
    started(timer);
  } }, "Play");
  show();
  return h("div", {}, h("div", { class: "controls" }, play, h("label", {}, h("span", {}, "Step ", number), slider)),
    h("div", { class: "columns" }, columns.map(({ node }) => node)));
}

// A column: the filled text, whose pieces are buttons, and the choice at one of them.
function filled(title, { text, gaps }) {
  const pieces = gaps.flatMap(({ pieces }) => pieces), order = [...new Set(pieces.map(({ step }) => step))].sort((a, b) => a - b);
  const detail = h("div"), line = h("p", { class: "marked", dir: "auto" });
  const buttons = pieces.map((piece, i) => h("button", { type: "button", class: "piece", onclick: () => choose(i) }));
  let at = 0;
  pieces.forEach(({ start, end }, i) => {
    line.append(text.slice(at, start), buttons[i]);
    at = end;
  });
  line.append(text.slice(at));
  const choose = (chosen) => {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === chosen));
    const { alternatives, probability, piece } = pieces[chosen];
    const rows = (alternatives.length ? alternatives : [{ piece, probability, heads: {} }])
      .map(({ piece, probability, heads }) => ({ label: piece, value: probability, note: byHead(heads) }));
    detail.replaceChildren(bars(rows).node);
  };
  const show = (step) => buttons.forEach((button, i) => {
    const isFilled = order.indexOf(pieces[i].step) < step;
    button.textContent = isFilled ? text.slice(pieces[i].start, pieces[i].end) : "▢";
    button.setAttribute("aria-label", isFilled ? `${button.textContent}, ${percent(pieces[i].probability)}` : "still a gap");
  });
  const total = gaps.reduce((sum, { log_probability: one }) => sum + one, 0);
  choose(0);
  const node = h("section", { class: "filled" }, h("h3", {}, title), line,
    h("p", { class: "hint" }, `log-probability ${total.toFixed(2)}`), detail);
  return { node, show, steps: order.length };
}

function byHead(heads) {
  return Object.entries(heads).map(([name, share]) => `${name.toUpperCase()} ${percent(share)}`).join(", ");
}
