// Sweep: score every line of a file, and show where the model and the file disagree.

const SEQUENCES_PER_REQUEST = 32, CHARACTERS_PER_REQUEST = 262144, REQUESTS_AT_ONCE = 2, ROWS_SHOWN = 50;
const MOST_PAIRS = 200000; // that are held and drawn; long groups make many
let sweep = null; // {rows, results, next, abort}: what runs, or has run
let isSweeping = false;

/** Do this unless a sweep is under way. */
async function alone(work) {
  if (isSweeping) return;
  isSweeping = true;
  try {
    await work();
  } finally {
    isSweeping = false;
  }
}

/** Rows that are asked for together: never more than the service takes, and never many long texts. */
function takeRows(rows, from, mostSequences) {
  let to = from, sequences = 0, characters = 0;
  while (to < rows.length) {
    const { texts, size } = rows[to];
    if (to > from && (sequences + texts.length > mostSequences || characters + size > CHARACTERS_PER_REQUEST)) break;
    sequences += texts.length;
    characters += size;
    to += 1;
  }
  return to;
}

async function startSweep() {
  let rows;
  try {
    const file = $("file").files[0];
    rows = readRows(file ? await textOfFile(file) : $("rows").value);
  } catch (error) {
    $("rows-note").textContent = `Nothing was scored: ${error.message}.`;
    return;
  }
  const model = chosenModel();
  if (!model) return;
  $("rows-note").textContent = `${counted(rows.length)} lines read.`;
  sweep = {
    rows, results: new Array(rows.length).fill(null), waiting: [], next: 0, model,
    options: { model: model.name, fingerprint: model.fingerprint, truncation: $("sweep-truncation").value, raw: $("sweep-raw").checked },
    mostSequences: Math.min(SEQUENCES_PER_REQUEST, service.limits.max_sequences_per_request),
  };
  $("sweep-results").replaceChildren();
  await runSweep();
}

/** Score what is not scored yet. Stops at the first passing problem, with a button that goes on from there. */
async function runSweep() {
  const abort = new AbortController();
  sweep.abort = abort;
  showRunning(true);
  const problems = [];
  const worker = async () => {
    while (!abort.signal.aborted && !problems.length) {
      const rows = nextRows();
      if (!rows.length) return;
      try {
        await scoreRows(rows, abort.signal);
      } catch (error) {
        sweep.waiting.push(...rows.filter((index) => sweep.results[index] === null));
        if (error.name !== "AbortError") problems.push(asProblem(error));
        return;
      }
      showProgress();
    }
  };
  await Promise.all(Array.from({ length: REQUESTS_AT_ONCE }, worker));
  showRunning(false);
  showSweep();
  if (problems.length) showProblem($("sweep-problem"), problems[0], () => alone(runSweep));
}

/** Indexes of the rows of the next request: first those whose request found no room. */
function nextRows() {
  const { waiting, rows, mostSequences } = sweep;
  if (waiting.length) {
    waiting.sort((a, b) => a - b);
    return waiting.splice(0, takeRows(waiting.map((index) => rows[index]), 0, mostSequences));
  }
  const from = sweep.next;
  sweep.next = takeRows(rows, from, mostSequences);
  return Array.from({ length: sweep.next - from }, (_, index) => from + index);
}

/** Where the service refuses several rows together, each is asked for by itself, and only the culprit has no scores. */
async function scoreRows(indexes, signal) {
  const items = indexes.flatMap((index) => sweep.rows[index].items);
  try {
    const { content } = await ask("score", { body: { ...sweep.options, items }, signal });
    let at = 0;
    for (const index of indexes) {
      const size = sweep.rows[index].texts.length;
      sweep.results[index] = content.results.slice(at, at + size);
      at += size;
    }
  } catch (error) {
    if (![400, 413, 422].includes(error.status)) throw error;
    if (indexes.length > 1) {
      for (const index of indexes) await scoreRows([index], signal);
    } else {
      const { texts } = sweep.rows[indexes[0]];
      sweep.results[indexes[0]] = texts.map(() => ({ status: "refused", score: null, num_tokens: 0, detail: error.detail }));
    }
  }
}

function showRunning(isRunning) {
  showBusy($("sweep-start"), $("sweep-cancel"), isRunning);
  $("sweep-note").setAttribute("aria-busy", String(isRunning)); // it is read aloud once, at the end
  $("sweep-progress").hidden = !isRunning;
  $("export").hidden = isRunning;
  $("sweep-problem").replaceChildren();
  showProgress();
}

function showProgress() {
  const done = sweep.results.filter((results) => results !== null).length;
  $("sweep-progress").max = sweep.rows.length;
  $("sweep-progress").value = done;
  $("sweep-note").textContent = `${counted(done)} of ${counted(sweep.rows.length)} lines scored.`;
}

/** Call `visit` with every two scored texts of a line of which one is worth more. */
function visitPairs(row, scored, visit) {
  if (!scored || !row.worth) return;
  for (let better = 0; better < row.texts.length; better += 1) {
    for (let worse = 0; worse < row.texts.length; worse += 1) {
      if (row.worth[better] > row.worth[worse] && scored[better].score !== null && scored[worse].score !== null) visit(better, worse);
    }
  }
}

/** What the model makes of the pairs of every line, or of every `step`-th where there are too many: {step, compared}. */
function comparisons({ rows, results }) {
  let count = 0;
  rows.forEach((row, index) => visitPairs(row, results[index], () => { count += 1; }));
  const step = Math.max(1, Math.ceil(count / MOST_PAIRS));
  const compared = [];
  for (let index = 0; index < rows.length; index += step) {
    const row = rows[index], scored = results[index];
    visitPairs(row, scored, (better, worse) => compared.push({
      row, better, worse, margin: scored[better].score - scored[worse].score,
      longer: scored[better].num_tokens - scored[worse].num_tokens, scores: [scored[better].score, scored[worse].score],
    }));
  }
  return { step, compared };
}

function showSweep() {
  const { results, rows } = sweep;
  const scored = results.filter((result) => result !== null);
  const sequences = scored.flat();
  const unscored = sequences.filter((result) => result.score === null);
  const { step, compared } = comparisons(sweep);
  compared.sort((a, b) => a.margin - b.margin);
  const cards = [[counted(scored.length), `of ${counted(rows.length)} lines`], [counted(unscored.length), "texts without a score"]];
  const figures = [];
  if (compared.length) {
    const right = mean(compared.map(({ margin }) => (margin > 0 ? 1 : margin === 0 ? 0.5 : 0)));
    const error = Math.sqrt((right * (1 - right)) / compared.length);
    const lengths = correlation(compared.map(({ longer, margin }) => [longer, margin]));
    cards.push([`${(100 * right).toFixed(1)} %`, `of ${counted(compared.length)} pairs right, ± ${(100 * error).toFixed(1)}`],
      [shown(mean(compared.map(({ margin }) => margin)), 3), "mean margin"],
      [shown(lengths, 2), "correlation of margin and length"]);
    figures.push(
      figure("Margins", histogram("Margins of the pairs", "score of the better − score of the worse", compared.map(({ margin }) => margin)),
        "Below zero the model prefers what the file calls worse."),
      figure("Margin and length", scatter("Margin against difference of length", "tokens of the better − tokens of the worse", "margin",
        compared.map(({ longer, margin }) => [longer, margin])), "A slope means that length is part of what is rewarded."));
  }
  const centered = rows.flatMap((row, index) => withinGroup(row, results[index]));
  if (centered.length) {
    const lengths = correlation(centered);
    cards.push([shown(Math.sqrt(mean(centered.map(([, score]) => score ** 2))), 3), "deviation of scores within a line"],
      [shown(lengths, 2), "correlation of score and length within a line"]);
    figures.push(figure("Score and length within a line", scatter("Score against length within a line", "tokens − mean of the line",
      "score − mean of the line", centered), "Lines whose worth is not known."));
  }
  $("sweep-results").replaceChildren(
    make("div", { class: "cards" }, cards.map(([value, label]) => make("div", { class: "card" }, make("b", {}, value), make("span", {}, label)))),
    step > 1 ? make("p", {}, `There are too many pairs: these figures are of the pairs of one line in ${step}.`) : "",
    make("div", { class: "figures" }, figures), wrongFirst(compared) || "", reasons(unscored) || "");
}

/** [tokens, score] of the scored texts of a line without `worth`, less their means. */
function withinGroup(row, results) {
  const scored = (!row.worth && results ? results : []).filter((result) => result.score !== null);
  if (scored.length < 2) return [];
  const tokens = mean(scored.map((result) => result.num_tokens)), score = mean(scored.map((result) => result.score));
  return scored.map((result) => [result.num_tokens - tokens, result.score - score]);
}

function wrongFirst(compared) {
  if (!compared.length) return null;
  const place = make("div", {});
  const show = (count) => {
    const some = compared.slice(0, count);
    const rows = some.map(({ row, better, worse, margin, scores }) => [
      { number: row.line }, { number: shown(margin, 3) },
      make("div", {}, make("span", { class: "soft" }, shown(scores[0], 3), " "), userText(shortened(row.texts[better], 300))),
      make("div", {}, make("span", { class: "soft" }, shown(scores[1], 3), " "), userText(shortened(row.texts[worse], 300))),
      make("button", { type: "button", "aria-label": `Compare line ${row.line}`, onclick: () => {
        fillCompare(row.head, [row.texts[better], row.texts[worse]]);
        openView("compare", true);
        compare();
      } }, "Compare"),
    ]);
    place.replaceChildren(make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Pairs, worst first" },
      table([{ number: "line" }, { number: "margin" }, "better, by the file", "worse, by the file", "look closer"], rows)),
      ...(count < compared.length ? [make("button", { type: "button", onclick: () => {
        show(count + ROWS_SHOWN);
        place.querySelectorAll("tbody button")[count].focus();
      } }, `Show ${ROWS_SHOWN} more`)] : []));
  };
  show(ROWS_SHOWN);
  return make("div", {}, make("h3", {}, "Pairs, worst first"), place);
}

/** How many texts have no score, by reason. */
function reasons(unscored) {
  if (!unscored.length) return null;
  const counts = new Map();
  for (const result of unscored) {
    const why = result.detail ? `${result.status}: ${shortened(reason(result), 200)}` : result.status;
    counts.set(why, (counts.get(why) || 0) + 1);
  }
  const most = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 20);
  return make("div", {}, make("h3", {}, "Without a score"), table([{ number: "texts" }, "reason"], most.map(([why, count]) => [{ number: counted(count) }, why])));
}

/** One JSON line for each line that was scored, as a file. */
function saveResults() {
  const written = sweep.rows.flatMap((row, index) => {
    const results = sweep.results[index];
    if (!results) return [];
    const columns = { scores: results.map(({ score }) => score), statuses: results.map(({ status }) => status), num_tokens: results.map(({ num_tokens }) => num_tokens) };
    return [JSON.stringify({ line: row.line, model: sweep.model.name, fingerprint: sweep.model.fingerprint, ...columns })];
  });
  const url = URL.createObjectURL(new Blob([written.join("\n") + "\n"], { type: "application/x-ndjson" }));
  make("a", { href: url, download: "plaudit-scores.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
