// The text that all panels share, with the menu of examples. Invariant: a selection is [start, end) in UTF-16 units of
// the text as it is sent, without the white space at its ends.

import { EXAMPLES } from "./examples.js";
import { choice, field, h } from "./dom.js";

// Dispatches "change" when the text is another, and "example" with the example in `detail` after one was chosen.
export class TextBox extends EventTarget {
  constructor(node) {
    super();
    this.area = h("textarea", { id: "text", rows: 3, dir: "auto", spellcheck: "false", "aria-label": "Text",
      oninput: () => this.dispatchEvent(new Event("change")) });
    const menu = choice([["", "Choose …"], ...EXAMPLES.map(({ name }, i) => [i, name])]);
    menu.addEventListener("change", () => menu.value && this.use(EXAMPLES[menu.value]));
    node.replaceChildren(h("div", { class: "heading" }, h("h2", {}, "Text"), field("Example", menu)), this.area,
      h("p", { class: "hint" }, "Select words in the text with the mouse, or with Shift and the arrow keys; the buttons below take the selection."));
  }

  get value() {
    return this.area.value;
  }

  set value(text) {
    this.area.value = text;
    this.dispatchEvent(new Event("change"));
  }

  // Takes the text of an example, and tells the panels.
  use(example) {
    this.value = example.text;
    this.dispatchEvent(new CustomEvent("example", { detail: example }));
  }

  // The selected characters, or null.
  selection() {
    let { selectionStart: start, selectionEnd: end } = this.area;
    while (start < end && /\s/.test(this.value[start])) start++;
    while (start < end && /\s/.test(this.value[end - 1])) end--;
    return start < end ? [start, end] : null;
  }

  // The characters of the first place where `words` stand, or null.
  find(words) {
    const start = words ? this.value.indexOf(words) : -1;
    return start < 0 ? null : [start, start + words.length];
  }
}
