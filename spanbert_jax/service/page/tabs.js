// The tabs of the panels, with the keys of a tab list: arrows, Home and End. Invariant: one panel is shown.

import { h } from "./dom.js";

// panels: [{id, title, node}]. Returns open(panels): only these have a tab. The second of them, which is the one for the
// checkpoint's own head, is shown, unless the panel that was shown before is among them.
export function tabs(list, panels) {
  const buttons = panels.map(({ id, title }) => h("button", {
    type: "button", role: "tab", id: `tab-${id}`, "aria-controls": `panel-${id}`, onclick: () => show(id),
  }, title));
  list.replaceChildren(...buttons);
  let shown = "", open = [];

  function show(id) {
    shown = id;
    panels.forEach(({ id, node }, i) => {
      node.hidden = id !== shown;
      buttons[i].setAttribute("aria-selected", id === shown);
      buttons[i].tabIndex = id === shown ? 0 : -1;
    });
  }

  list.addEventListener("keydown", ({ key }) => {
    const ids = open.map(({ id }) => id), from = ids.indexOf(shown), last = ids.length - 1;
    const to = { ArrowRight: from < last ? from + 1 : 0, ArrowLeft: from > 0 ? from - 1 : last, Home: 0, End: last }[key];
    if (to === undefined) return;
    show(ids[to]);
    document.getElementById(`tab-${ids[to]}`).focus();
  });

  return (fitting) => {
    open = fitting;
    panels.forEach((panel, i) => { buttons[i].hidden = !open.includes(panel); });
    show((open.find(({ id }) => id === shown) ?? open[1] ?? open[0]).id);
  };
}
