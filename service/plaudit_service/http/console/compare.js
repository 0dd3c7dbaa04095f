// Compare: one prompt or chat, two to eight completions, their scores side by side.

const LEAST_COMPLETIONS = 2, MOST_COMPLETIONS = 8;
const letter = (index) => String.fromCharCode(65 + index);
let comparing = null; // what cancels the request that is under way

function addTurn(role = "user", content = "") {
  const turn = make("div", { class: "turn" },
    make("select", { "aria-label": "Role" }, ["system", "user", "assistant"].map((name) =>
      make("option", { selected: name === role }, name))),
    make("textarea", { rows: 2, dir: "auto", "aria-label": "Content" }),
    make("button", { type: "button", onclick: () => turn.remove() }, "Remove turn"));
  turn.querySelector("textarea").value = content;
  $("turns").append(turn);
}

function addCompletion(text = "") {
  const box = make("div", { class: "completion" },
    make("label", {}, make("span", {}), make("textarea", { rows: 4, dir: "auto" })),
    make("button", { type: "button", onclick: () => { box.remove(); nameCompletions(); } }, "Remove"));
  box.querySelector("textarea").value = text;
  $("completions").append(box);
  nameCompletions();
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

const completions = () => [...$("completions").querySelectorAll("textarea")].map((area) => area.value);

const turns = () => [...$("turns").children].map((turn) => ({
  role: turn.querySelector("select").value, content: turn.querySelector("textarea").value,
}));

/** Show a prompt (a text, or messages) and completions in the form. */
function fillCompare({ prompt, messages, texts }, given) {
  $("form").value = messages ? "chat" : texts ? "text" : "prompt";
  $("prompt").value = prompt || "";
  $("turns").replaceChildren();
  for (const { role, content } of messages || [{ role: "user", content: "" }]) addTurn(role, content);
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
    const head = form === "chat" ? { messages: turns() } : { prompt: $("prompt").value };
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
  $("score").disabled = true;
  $("compare-cancel").hidden = false;
  $("compare-problem").replaceChildren();
  try {
    const started = performance.now();
    const response = await ask("score", { body: compareRequest(model), signal: comparing.signal });
    const answer = await response.json();
    showComparison(answer, [...timings(response), ["in all", performance.now() - started]]);
  } catch (error) {
    $("compare-results").replaceChildren();
    if (error.name !== "AbortError") showProblem($("compare-problem"), asProblem(error), compare);
  } finally {
    comparing = null;
    $("score").disabled = false;
    $("compare-cancel").hidden = true;
  }
}

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
