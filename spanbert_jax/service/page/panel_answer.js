// The answers to a question, in their context.

import { ask } from "./ask.js";
import { bars } from "./bars.js";
import { field, h } from "./dom.js";
import { marked } from "./marked.js";
import { panel } from "./panel.js";

export const answer = {
  id: "answer", title: "Question",
  fits: ({ task }) => task === "question_answering",
  build({ text, checkpoint }) {
    const question = h("input", { id: "question", size: 50, dir: "auto", "aria-label": "Question" });
    text.addEventListener("example", ({ detail }) => { question.value = detail.question; });

    async function run() {
      const context = text.value;
      const asked = await ask("answer", { question: question.value, context, offsets: "utf16", model: checkpoint().id });
      return { node: shown(context, asked.value), asked: [asked] };
    }

    return panel({
      id: "answer", title: "Question", action: "Answer", run,
      hint: "The text above is the context. Choose one of the answers to see where it stands.",
      controls: [field("Question", question)],
    });
  },
};

function shown(context, { answers, none_probability: none }) {
  const rows = answers.map(({ text, probability }) => ({ label: text, value: probability }));
  if (none !== null) rows.push({ label: "(no answer)", value: none });
  if (!rows.length) return h("p", {}, "There is no answer.");
  const place = h("div", { class: "context" });
  const choose = (i) => {
    const span = answers[i] ? [{ ...answers[i], label: `answer ${i + 1}`, hue: 0 }] : [];
    const drawn = marked(context, span);
    drawn.choose(span.length ? 0 : null);
    place.replaceChildren(drawn.node);
    place.querySelector(".chosen")?.scrollIntoView({ block: "nearest" });
    list.choose(i);
  };
  const list = bars(rows, choose);
  choose(none !== null && answers.every(({ probability }) => probability < none) ? answers.length : 0);
  return h("div", {}, place, list.node);
}
