// The labels of the text.

import { ask } from "./ask.js";
import { bars } from "./bars.js";
import { h } from "./dom.js";
import { panel } from "./panel.js";

export const labels = {
  id: "labels", title: "Labels",
  fits: ({ task }) => task === "sequence_classification",
  build({ text, checkpoint }) {
    async function run() {
      const asked = await ask("predict", { inputs: text.value, model: checkpoint().id });
      return { node: bars(asked.value.map(({ label, score }) => ({ label, value: score }))).node, asked: [asked] };
    }

    return panel({
      id: "labels", title: "Labels", action: "Label", run, controls: [],
      hint: "The probability of each label for the whole text.",
    });
  },
};
