// A list of labels with bars. Invariant: the number stands beside each bar.

import { h, percent } from "./dom.js";

// rows: [{label, value, note}]; a bar's length is `value`, from 0 to 1. choose(i), if given, is called for a row that
// is chosen. Returns {node, choose}; choose(i) marks row i.
export function bars(rows, choose = null, show = percent) {
  const items = rows.map(({ label, value, note }, i) => {
    const bar = h("span", { class: "bar" }, h("span", {}));
    bar.firstChild.style.setProperty("inline-size", `${100 * Math.min(1, Math.max(0, value))}%`);
    const parts = [h("bdi", { class: "name" }, label), note ? h("bdi", { class: "hint" }, note) : null, bar,
      h("span", { class: "number" }, show(value))];
    return h("li", {}, choose ? h("button", { type: "button", class: "row", onclick: () => choose(i) }, parts)
      : h("div", { class: "row" }, parts));
  });
  const mark = (chosen) => items.forEach((item, i) => {
    item.firstChild.classList.toggle("chosen", i === chosen);
    if (choose) item.firstChild.setAttribute("aria-pressed", i === chosen);
  });
  return { node: h("ol", { class: "bars" }, items), choose: mark };
}
