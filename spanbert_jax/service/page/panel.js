// What all panels share: controls in a form, a place for the result, and the requests. Invariant: the result is that of
// the newest run, and an error says what the server said.

import { Refused } from "./ask.js";
import { h } from "./dom.js";
import { requests } from "./requests.js";

// run() returns {node, asked}: the result, and the answers of `ask`. Returns {node, run, clear}.
export function panel({ id, title, hint, controls, action, run }) {
  const result = h("div", { class: "result", "aria-live": "polite" });
  let newest = 0;
  const start = async (event) => {
    event?.preventDefault();
    const mine = ++newest;
    result.setAttribute("aria-busy", "true");
    let shown;
    try {
      const { node, asked } = await run();
      shown = [node, requests(asked)];
    } catch (error) {
      shown = [h("p", { role: "alert" }, error instanceof Refused ? error.message : `The page failed: ${error}`)];
    }
    if (mine !== newest) return;
    result.removeAttribute("aria-busy");
    result.replaceChildren(...shown);
  };
  const form = h("form", { class: "controls", onsubmit: start }, controls, h("button", { class: "run" }, action));
  const node = h("section", { id: `panel-${id}`, class: "card", role: "tabpanel", "aria-labelledby": `tab-${id}` },
    h("h2", {}, title), h("p", { class: "hint" }, hint), form, result);
  const clear = () => {
    newest++;
    result.removeAttribute("aria-busy");
    result.replaceChildren();
  };
  return { node, run: start, clear };
}

// A button that takes the selection of the text, with what it took; take() may also be called with a span. Returns
// {node, span, take}.
export function spanButton(text, label) {
  const shown = h("bdi", { class: "taken" });
  let span = null;
  const take = (given) => {
    span = given;
    shown.textContent = span ? text.value.slice(...span) : "nothing yet";
    shown.classList.toggle("hint", !span);
  };
  const button = h("button", { type: "button", onclick: () => take(text.selection()) }, label);
  text.addEventListener("change", () => take(null));
  take(null);
  return { node: h("span", { class: "span-button" }, button, shown), span: () => span, take };
}
