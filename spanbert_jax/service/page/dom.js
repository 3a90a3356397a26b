// Makes elements. Invariant: texts enter the document as text nodes alone, so that nothing which a person types or a
// server answers becomes markup.

// An element. In `attributes`, a function under "onNAME" listens to the event NAME, and null or false leaves an
// attribute out. Children are elements, texts, numbers, or null.
export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null));
  return node;
}

// A labelled control.
export function field(label, control) {
  return h("label", {}, h("span", {}, label), control);
}

// A select element; `options` are [value, label].
export function choice(options, id = null) {
  return h("select", { id }, options.map(([value, label]) => h("option", { value }, label)));
}

// A share of 1 in per cent.
export function percent(share) {
  return `${(100 * share).toFixed(1)}%`;
}

// The hue of a label, 0 to 7: equal labels of one list have equal hues.
export function hues(labels) {
  const names = [...new Set(labels)];
  return (label) => names.indexOf(label) % 8;
}
