// The relation of two entities that a person selects.

import { ask, Refused } from "./ask.js";
import { bars } from "./bars.js";
import { field, h } from "./dom.js";
import { marked } from "./marked.js";
import { panel, spanButton } from "./panel.js";

// pair() is the text with both entities, as /relation and /explain read them, once the panel is built. It throws Refused
// where an entity is not selected.
export let pair = null;

export const relation = {
  id: "relation", title: "Relation",
  fits: ({ task }) => task === "relation_extraction",
  build({ text, checkpoint }) {
    const subject = spanButton(text, "Subject: the selection"), object = spanButton(text, "Object: the selection");
    const types = ["PERSON", "LOCATION"].map((kind) => h("input", { size: 12, placeholder: kind, spellcheck: "false" }));
    text.addEventListener("example", ({ detail }) => {
      subject.take(text.find(detail.subject));
      object.take(text.find(detail.object));
    });

    pair = () => {
      if (!subject.span() || !object.span()) throw new Refused("Select a subject and an object in the text.", 0);
      const [subjectType, objectType] = types.map((input) => input.value.trim() || null);
      return { text: text.value, subject: subject.span(), object: object.span(), subject_type: subjectType,
        object_type: objectType, offsets: "utf16" };
    };

    async function run() {
      const body = pair(), asked = await ask("relation", { ...body, model: checkpoint().id });
      return { node: shown(body.text, body.subject, body.object, asked.value), asked: [asked] };
    }

    return panel({
      id: "relation", title: "Relation", action: "Relate", run,
      hint: "Select each entity in the text. Types are read by checkpoints that mask entities.",
      controls: [subject.node, field("Its type", types[0]), object.node, field("Its type", types[1])],
    });
  },
};

function shown(text, [a, b], [c, d], labels) {
  const spans = [{ start: a, end: b, label: "subject", hue: 0 }, { start: c, end: d, label: "object", hue: 1 }];
  return h("div", {}, marked(text, spans).node, bars(labels.map(({ label, score }) => ({ label, value: score }))).node);
}
