// The page's state, and what its buttons do.

let service = null; // the answer of GET /info

const chosenModel = () => service && service.models.find((model) => model.name === $("model").value);
const canExplain = (model) => Boolean(model.manifest) && !model.manifest.scoring.pair;
const canSayAlong = (model) => canExplain(model) && model.manifest.scoring.kind === "causal";

async function connect() {
  try {
    service = await (await ask("info")).json();
  } catch (error) {
    const problem = asProblem(error);
    $("state").textContent = `${problem.title}: ${problem.detail}`;
    if (problem.isPassing) setTimeout(connect, POLL_MS);
    return;
  }
  const chosen = $("model").value;
  $("model").replaceChildren(...service.models.map(({ name }) => make("option", { selected: name === chosen }, name)));
  $("state").textContent = service.ready ? "Ready." : "Not ready: scores are refused until every golden text has its reference score.";
  if (!service.ready) setTimeout(connect, POLL_MS);
  showModel();
  showService();
}

/** What the chosen model cannot do cannot be chosen. */
function showModel() {
  const model = chosenModel();
  if (!model) return;
  $("along").disabled = !canSayAlong(model);
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
$("add-turn").addEventListener("click", () => addTurn($("turns").children.length % 2 ? "assistant" : "user"));
$("add-completion").addEventListener("click", () => addCompletion());
$("compare-form").addEventListener("submit", (event) => { event.preventDefault(); compare(); });
$("compare-form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); compare(); }
});
$("compare-cancel").addEventListener("click", () => comparing.abort());
$("sweep-form").addEventListener("submit", (event) => { event.preventDefault(); startSweep(); });
$("sweep-cancel").addEventListener("click", () => sweep.abort.abort());
$("export").addEventListener("click", saveResults);
$("drop").addEventListener("dragover", (event) => event.preventDefault());
$("drop").addEventListener("drop", (event) => {
  const files = event.dataTransfer.files;
  if (!files.length) return; // a text falls into the field by itself
  event.preventDefault();
  $("file").files = files;
  $("rows-note").textContent = `${files[0].name} chosen.`;
});
$("key-button").addEventListener("click", askForKey);
$("key-form").addEventListener("submit", () => {
  apiKey = $("key").value.trim();
  $("key").value = "";
  connect();
});

fillCompare({ prompt: "" }, ["", ""]);
connect();
setInterval(watch, POLL_MS);
fetch("docs", { method: "HEAD", credentials: "omit" }).then((response) => { $("docs-link").hidden = !response.ok; }, () => {});
