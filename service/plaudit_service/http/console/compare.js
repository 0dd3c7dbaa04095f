// Compare: one prompt or chat, two to eight completions, their scores side by side.

const LEAST_COMPLETIONS = 2, MOST_COMPLETIONS = 8;
const letter = (index) => String.fromCharCode(65 + index);
let comparing = null; // what cancels the request that is under way

/** A textarea that gives back the text that it was filled with until somebody edits it: by itself it loses carriage returns. */
function textArea(attributes, text) {
  const area = make("textarea", { dir: "auto", ...attributes });
  fillArea(area, text);
  return area;
}

function fillArea(area, text) {
  area.value = text;
  area.filled = { text, shown: area.value };
}

const textOf = ({ value, filled }) => (filled && filled.shown === value ? filled.text : value);

/** A turn of the chat; what a message has beside role and content is kept. */
function addTurn(message = { role: "user", content: "" }) {
  const roles = [...new Set(["system", "user", "assistant", message.role])];
  const turn = make("div", { class: "turn" },
    make("select", { "aria-label": "Role" }, roles.map((name) => make("option", { selected: name === message.role }, name))),
    textArea({ rows: 2, "aria-label": "Content" }, message.content),
    make("button", { type: "button", onclick: () => removed(turn, $("add-turn")) }, "Remove turn"));
  turn.message = message;
  $("turns").append(turn);
}

function addCompletion(text = "") {
  const box = make("div", { class: "completion" },
    make("label", {}, make("span", {}), textArea({ rows: 4 }, text)),
    make("button", { type: "button", onclick: () => { removed(box, $("add-completion")); nameCompletions(); } }, "Remove"));
  $("completions").append(box);
  nameCompletions();
}

/** Take a box with a text out of its list; the focus goes to the next text, or the one before, or elsewhere. */
function removed(box, elsewhere) {
  const near = box.nextElementSibling || box.previousElementSibling;
  box.remove();
  (near ? near.querySelector("textarea") : elsewhere).focus();
}

function nameCompletions() {
  const boxes = [...$("completions").children];
  boxes.forEach((box, index) => {
    box.querySelector("span").textContent = `Completion ${letter(index)}`;
    const remove = box.querySelector("button");
    remove.hidden = boxes.length <= LEAST_COMPLETIONS;
    remove.setAttribute("aria-label", `Remove completion ${letter(index)}`);
  });
  $("add-completion").hidden = boxes.length >= MOST_COMPLETIONS;
}

const completions = () => [...$("completions").querySelectorAll("textarea")].map(textOf);

const turns = () => [...$("turns").children].map((turn) => ({
  ...turn.message, role: turn.querySelector("select").value, content: textOf(turn.querySelector("textarea")),
}));

/** Show a prompt (a text, or messages) and completions in the form. */
function fillCompare({ prompt, messages, texts }, given) {
  $("form").value = messages ? "chat" : texts ? "text" : "prompt";
  fillArea($("prompt"), prompt || "");
  $("turns").replaceChildren();
  for (const message of messages || [undefined]) addTurn(message);
  $("completions").replaceChildren();
  given.forEach((text) => addCompletion(text));
  showForm();
}

function showForm() {
  $("prompt-part").hidden = $("form").value !== "prompt";
  $("chat-part").hidden = $("form").value !== "chat";
}

/** Each line of a text with the line end that belongs to it: together they are the text. */
const lines = (text) => text.match(/[^\n]*\n|[^\n]+$/g) || [text];

function compareRequest(model) {
  const form = $("form").value;
  const along = canSayAlong(model) ? $("along").value : "none";
  const items = completions().map((text) => {
    if (form === "text") return { text };
    const head = form === "chat" ? { messages: turns() } : { prompt: textOf($("prompt")) };
    const item = along === "lines" ? { ...head, steps: lines(text) }
      : form === "chat" ? { ...head, completions: [text] } : { ...head, completion: text };
    return $("unfinished").checked ? { ...item, finished: false } : item;
  });
  return {
    model: model.name, items, truncation: $("truncation").value, raw: $("raw").checked, explain: canExplain(model),
    along: along === "lines" ? (form === "text" ? "tokens" : "steps") : along,
  };
}

async function compare() {
  const model = chosenModel();
  if (comparing || !model) return;
  comparing = new AbortController();
  showBusy($("score"), $("compare-cancel"), true);
  $("compare-problem").replaceChildren();
  $("compare-note").textContent = "";
  try {
    const started = performance.now();
    const { content, headers } = await ask("score", { body: compareRequest(model), signal: comparing.signal });
    showComparison(content, [...timings(headers), ["in all", performance.now() - started]]);
  } catch (error) {
    $("compare-results").replaceChildren();
    if (error.name !== "AbortError") showProblem($("compare-problem"), asProblem(error), compare);
  } finally {
    comparing = null;
    showBusy($("score"), $("compare-cancel"), false);
  }
}

const letters = (scores, score) => scores.flatMap((each, index) => (each === score ? [letter(index)] : [])).join(", ");

function showComparison({ model, fingerprint, engine, results }, times) {
  const scores = results.map((result) => result.score);
  const best = Math.max(...scores.filter((score) => score !== null));
  const heads = [...new Set(results.flatMap((result) => Object.keys(result.heads || {})))];
  const headings = ["completion", { number: "rank" }, { number: "score" }, { number: "below the best" },
    ...heads.map((name) => ({ number: name })), { number: "tokens" }, "status"];
  const rows = results.map((result, index) => [
    letter(index),
    { number: result.score === null ? "–" : 1 + scores.filter((score) => score !== null && score > result.score).length },
    { number: shown(result.score) },
    { number: result.score === null ? "–" : shown(best - result.score) },
    ...heads.map((name) => ({ number: shown(result.heads && result.heads[name]) })),
    { number: counted(result.num_tokens) },
    [result.status, result.truncated ? "truncated" : null, reason(result)].filter(Boolean).join("; "),
  ]);
  const first = letters(scores, best);
  $("compare-note").textContent = first ? `Best: ${first}, ${shown(best)}.` : "No completion has a score.";
  const values = results.flatMap((result) => (result.along ? result.along.scores : []));
  const [low, high] = values.length ? [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))] : [0, 0];
  const some = results.find((result) => result.along);
  $("compare-results").replaceChildren(
    make("h3", {}, "Scores"),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Scores" }, table(headings, rows)),
    make("p", { class: "soft" }, times.map(([name, ms]) => `${name} ${ms.toFixed(1)} ms`).join(" · ")),
    make("p", { class: "soft" }, `${model} · ${engine} · `, make("code", {}, fingerprint)),
    ...(some ? [make("p", { class: "soft" },
      `Colours run from ${shown(low)} (`, make("span", { class: "piece low full" }, "low"), `) to ${shown(high)} (`,
      make("span", { class: "piece high full" }, "high"), "). ",
      some.along.trained ? "" : "This model was trained on whole texts: what it gives before the end is not trained to mean anything.")] : []),
    ...results.filter((result) => result.text !== undefined).map((result) => {
      const label = `What was scored, completion ${letter(results.indexOf(result))}`;
      return make("div", {}, make("h3", {}, label), scoredText(label, result.text, result.along, [low, high]));
    }));
}
