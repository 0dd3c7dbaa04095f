// The page's state, and what its buttons do.

let service = null; // the answer of GET /info
let nextConnect = null; // the timer of the next look at it

const chosenModel = () => service && service.models.find((model) => model.name === $("model").value);
const canExplain = (model) => Boolean(model.manifest) && !model.manifest.scoring.pair;
const findsSteps = (model) => canExplain(model) && Boolean(model.manifest.scoring.steps);
const canSayAlong = (model) => canExplain(model) && model.manifest.scoring.kind === "causal";

/** Say how the service is; what is said already is not said again. */
function say(state) {
  if ($("state").textContent !== state) $("state").textContent = state;
}

/** Look again in a while: the service is away or not ready, and may come back with another model. */
function connectLater() {
  if (nextConnect === null) nextConnect = setTimeout(connect, POLL_MS);
}

async function connect() {
  nextConnect = null;
  try {
    service = (await ask("info")).content;
  } catch (error) {
    const problem = asProblem(error);
    say(`${problem.title}: ${problem.detail}`);
    if (problem.isPassing) connectLater();
    return;
  }
  const chosen = $("model").value;
  $("model").replaceChildren(...service.models.map(({ name }) => make("option", { selected: name === chosen }, name)));
  say(service.ready ? "Ready." : "Not ready: scores are refused until every golden text has its reference score.");
  if (!service.ready) connectLater();
  showModel();
  showService();
}

/** What the chosen model cannot do cannot be chosen. */
function showModel() {
  const model = chosenModel();
  if (!model) return;
  $("along").disabled = !canSayAlong(model);
  const steps = $("along").querySelector("[value=steps]");
  steps.disabled = steps.hidden = !findsSteps(model);
  if (steps.disabled && steps.selected) $("along").value = "none";
  $("along-note").textContent = canSayAlong(model) ? ""
    : "Combinations, encoders and models of pairs give one score for a whole text, and no values along it.";
}

const VIEWS = ["compare", "sweep", "watch"];

function openView(name, focus = false) {
  for (const view of VIEWS) {
    const tab = $(`tab-${view}`);
    $(view).hidden = view !== name;
    tab.setAttribute("aria-selected", String(view === name));
    tab.tabIndex = view === name ? 0 : -1;
    if (view === name && focus) tab.focus();
  }
  watch();
}

/** Which file is scored: it counts, whatever stands in the field. */
function sayChosen() {
  const [file] = $("file").files;
  $("rows-note").replaceChildren(...(file ? [userText(file.name), " will be scored."] : []));
}

VIEWS.forEach((view, index) => {
  const tab = $(`tab-${view}`);
  tab.addEventListener("click", () => openView(view));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: VIEWS.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    openView(VIEWS[(to + VIEWS.length) % VIEWS.length], true);
  });
});

$("model").addEventListener("change", () => { showModel(); watch(); });
$("form").addEventListener("change", showForm);
$("add-turn").addEventListener("click", () => {
  addTurn({ role: $("turns").children.length % 2 ? "assistant" : "user", content: "" });
  $("turns").lastElementChild.querySelector("textarea").focus();
});
$("add-completion").addEventListener("click", () => {
  addCompletion();
  $("completions").lastElementChild.querySelector("textarea").focus();
});
$("compare-form").addEventListener("submit", (event) => { event.preventDefault(); compare(); });
$("compare-form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); compare(); }
});
$("compare-cancel").addEventListener("click", () => comparing.abort());
$("sweep-form").addEventListener("submit", (event) => { event.preventDefault(); alone(startSweep); });
$("sweep-cancel").addEventListener("click", () => sweep.abort.abort());
$("export").addEventListener("click", saveResults);
$("rows").addEventListener("input", () => { $("file").value = ""; sayChosen(); });
$("file").addEventListener("change", sayChosen);
// A file that falls beside the field would take the place of this page.
for (const type of ["dragover", "drop"]) {
  addEventListener(type, (event) => { if (event.dataTransfer.types.includes("Files")) event.preventDefault(); });
}
$("drop").addEventListener("drop", (event) => {
  if (!event.dataTransfer.files.length) return; // a text falls into the field by itself
  $("file").files = event.dataTransfer.files;
  sayChosen();
});
$("key-button").addEventListener("click", () => askForKey(""));
$("key-close").addEventListener("click", () => $("key-dialog").close());
$("key-form").addEventListener("submit", (event) => {
  const key = $("key").value.trim();
  if (!/^[ -~]+$/.test(key)) {
    event.preventDefault();
    $("key-problem").textContent = "A key has at least one character, and all of them are printable ASCII.";
    return;
  }
  apiKey = key;
  isKeyWanted = false;
  $("key").value = "";
  connect();
});

fillCompare({ prompt: "" }, ["", ""]);
connect();
setInterval(watch, POLL_MS);
fetch("docs", { method: "HEAD", credentials: "omit" }).then((response) => { $("docs-link").hidden = !response.ok; }, () => {});
