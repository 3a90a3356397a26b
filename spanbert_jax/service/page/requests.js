// Shows requests: how long each took, as curl, as Python, and its response. Invariant: a response is shown only as far
// as it can be read; lists of numbers and long responses are cut, with the number of what is left out.

import { curl, python } from "./ask.js";
import { h } from "./dom.js";

const MOST = 20000; // characters of a response
const NUMBERS = 4; // of a list of numbers

export function requests(asked) {
  return h("div", { class: "requests" }, asked.map((one) => h("details", { class: "request" },
    h("summary", {}, h("code", {}, `POST /${one.path}`), " ", h("span", { class: "hint" }, took(one))),
    code("curl", curl(one)), code("Python", python(one)), code("Response", brief(one.value)))));
}

function took({ phases, total }) {
  const server = phases.map(([name, milliseconds]) => `${name} ${milliseconds.toFixed(1)}`);
  return `${total.toFixed(0)} ms, on the server: ${server.join(", ")}`;
}

function code(title, text) {
  const copy = h("button", { type: "button", class: "quiet", onclick: async () => {
    await navigator.clipboard.writeText(text);
    copy.textContent = "Copied";
  } }, "Copy");
  return h("section", {}, h("h3", {}, title, " ", navigator.clipboard ? copy : null),
    h("pre", { tabindex: 0, dir: "ltr" }, h("code", {}, text)));
}

function brief(value) {
  const short = (_, of) => Array.isArray(of) && of.length > 2 * NUMBERS && of.every((one) => typeof one === "number")
    ? [...of.slice(0, NUMBERS), `and ${of.length - NUMBERS} more numbers`] : of;
  const text = JSON.stringify(value, short, 1);
  return text.length > MOST ? `${text.slice(0, MOST)}\n... and ${text.length - MOST} more characters` : text;
}
