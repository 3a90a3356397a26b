// Starts the page: asks which checkpoints there are, and builds the panels that they have heads for.

import { ask, Refused, useKey } from "./ask.js";
import { h } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { answer } from "./panel_answer.js";
import { entities } from "./panel_entities.js";
import { explain } from "./panel_explain.js";
import { infill } from "./panel_infill.js";
import { labels } from "./panel_labels.js";
import { relation } from "./panel_relation.js";
import { spans } from "./panel_spans.js";
import { tabs } from "./tabs.js";
import { TextBox } from "./text.js";

const PANELS = [spans, entities, answer, relation, labels, infill, explain];
const at = (id) => document.getElementById(id);
const say = (text) => { at("state").textContent = text; };

async function connect() {
  try {
    build((await ask("info")).value);
    await untilReady();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    at("key").hidden = error.status !== 401;
    say(error.status === 401 ? "The server asks for an API key." : error.message);
  }
}

async function untilReady() {
  for (;;) {
    try {
      await ask("health/ready");
      return say("Ready");
    } catch (error) {
      if (!(error instanceof Refused) || error.status !== 503) throw error;
      say("Compiling …");
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

function build(info) {
  at("key").hidden = true;
  at("version").textContent = `· version ${info.version}`;
  const { checkpoints } = info, select = at("checkpoints").querySelector("select");
  select.replaceChildren(...checkpoints.map(({ id }) => h("option", {}, id)));
  at("checkpoints").hidden = checkpoints.length < 2;
  at("input").hidden = at("tabs").hidden = false;
  const text = new TextBox(at("input"));
  const made = PANELS.map(({ build, ...of }) => ({ ...of, ...build({ text, checkpoint: () => checkpoints.find(({ id }) => id === select.value) }) }));
  at("panels").replaceChildren(...made.map(({ node }) => node));
  const open = tabs(at("tabs"), made);
  const choose = () => {
    made.forEach(({ clear }) => clear());
    open(made.filter(({ fits }) => fits(checkpoints.find(({ id }) => id === select.value))));
  };
  text.addEventListener("change", () => made.forEach(({ clear }) => clear()));
  select.addEventListener("change", choose);
  text.use(EXAMPLES[0]);
  at("panels").addEventListener("submit", () => remember(select.value, text.value));
  recall(select, text);
  choose();
}

// A link to this page has the checkpoint, the text and the question of the last run behind its #, which is not sent to
// the server.
function remember(checkpoint, text) {
  const question = at("question").value;
  if (text.length <= 2000) history.replaceState(null, "", `#${new URLSearchParams({ checkpoint, text, question })}`);
}

function recall(select, text) {
  const kept = new URLSearchParams(location.hash.slice(1));
  if (!kept.has("text")) return;
  if ([...select.options].some(({ value }) => value === kept.get("checkpoint"))) select.value = kept.get("checkpoint");
  text.value = kept.get("text");
  at("question").value = kept.get("question") ?? "";
}

at("key").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(at("key").querySelector("input").value);
  connect();
});
connect();
