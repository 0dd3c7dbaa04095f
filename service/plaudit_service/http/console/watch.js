// Service: what is loaded, how near it is to the checkpoint's scores, and what it does now.

const POLL_MS = 2000, WINDOW = 15; // figures are of the last 30 seconds
const samples = [];

/** Prometheus' text format as Map of "name{labels}" to number. */
function parseMetrics(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const at = line.lastIndexOf(" ");
    if (at > 0 && !line.startsWith("#")) found.set(line.slice(0, at), Number(line.slice(at + 1).replace("Inf", "Infinity")));
  }
  return found;
}

const ofModel = (metrics, name, model) => metrics.get(`${name}{model="${model}"}`);

/** Sum of all series of a name; labels that must be there are given as they are written. */
function total(metrics, name, label = "") {
  let sum = 0;
  for (const [series, value] of metrics) {
    if (series === name || (series.startsWith(`${name}{`) && series.includes(label))) sum += value;
  }
  return sum;
}

/** A quantile from the growth of a histogram's buckets, linear inside of a bucket as in Prometheus; null without any. */
function quantile(share, before, now, name, label) {
  const buckets = [];
  for (const [series, value] of now) {
    const bound = series.startsWith(`${name}_bucket{`) && series.includes(label) && /le="([^"]+)"/.exec(series);
    if (bound) buckets.push([Number(bound[1].replace("+Inf", "Infinity")), value - (before.get(series) || 0)]);
  }
  buckets.sort((a, b) => a[0] - b[0]);
  const all = buckets.length ? buckets.at(-1)[1] : 0;
  if (!all) return null;
  let low = 0, below = 0;
  for (const [bound, count] of buckets) {
    if (count >= share * all) return Number.isFinite(bound) ? low + ((share * all - below) / (count - below || 1)) * (bound - low) : low;
    [low, below] = [bound, count];
  }
  return low;
}

async function watch() {
  if ($("watch").hidden || document.hidden || isKeyWanted) return;
  try {
    const metrics = parseMetrics((await ask("metrics", { as: "text" })).content);
    samples.push({ at: performance.now() / 1000, metrics });
    samples.splice(0, samples.length - WINDOW - 1);
    $("watch-problem").replaceChildren();
    showLive();
  } catch (error) {
    showProblem($("watch-problem"), asProblem(error), watch);
  }
}

function showLive() {
  const { at, metrics } = samples.at(-1);
  const first = samples[0];
  const seconds = at - first.at;
  const grown = (name, label) => total(metrics, name, label) - total(first.metrics, name, label);
  const rate = (name, label) => (seconds > 0 ? (grown(name, label) / seconds).toFixed(1) : "–");
  const share = (part, whole) => (whole > 0 ? `${((100 * part) / whole).toFixed(1)} %` : "–");
  const latency = (which) => {
    const value = quantile(which, first.metrics, metrics, "plaudit_request_seconds", 'route="/score"');
    return value === null ? "–" : `${(1000 * value).toFixed(0)} ms`;
  };
  const computed = grown("plaudit_computed_tokens_total"), shared = grown("plaudit_shared_tokens_total");
  const padding = grown("plaudit_padding_tokens_total"), batches = grown("plaudit_batch_sequences_count");
  const model = chosenModel();
  const cards = [
    [rate("plaudit_requests_total", 'route="/score"'), "requests of /score per second"],
    [rate("plaudit_sequences_total"), "sequences per second"],
    [`${latency(0.5)}, ${latency(0.99)}`, "p50, p99 of /score"],
    [`${counted(total(metrics, "plaudit_queued_sequences"))}, ${counted(total(metrics, "plaudit_running_sequences"))}`, "sequences waiting, computing"],
    [batches > 0 ? (grown("plaudit_batch_sequences_sum") / batches).toFixed(1) : "–", "sequences of a batch"],
    [share(padding, padding + computed), "of computed tokens are padding"],
    [share(shared, shared + computed), "of tokens shared, not computed again"],
    ...(model ? [[`${shown(ofModel(metrics, "plaudit_score_mean", model.name), 3)} ± ${shown(ofModel(metrics, "plaudit_score_std", model.name), 3)}`, `scores of ${model.name}, latest 1,024`]] : []),
  ];
  $("live").replaceChildren(...cards.map(([value, label]) => make("div", { class: "card" }, make("b", {}, value), make("span", {}, label))));
  $("live-note").textContent = `Of the last ${Math.round(seconds)} seconds, from /metrics; refreshed every ${POLL_MS / 1000} seconds while this view is open.`;
}

function showService() {
  $("models").replaceChildren(table(
    ["model", "kind", "head", { number: "most tokens" }, "precision", "rule of the text", "engine", "fingerprint"],
    service.models.map(({ name, manifest, formula, engine, fingerprint }) => {
      const scoring = manifest && manifest.scoring;
      return [name, ...(scoring
        ? [scoring.kind + (scoring.pair ? ", pairs" : ""), `${scoring.head}: ${scoring.heads.map((head) => head.name).join(", ")}`,
          { number: counted(scoring.max_tokens) }, scoring.precision, manifest.recipe || "–"]
        : [formula, "–", { number: "–" }, "–", "–"]), engine, make("code", {}, fingerprint)];
    })));
  $("parity").replaceChildren(...service.models.filter(({ parity }) => parity).map(({ name, parity }) => make("details", { open: service.models.length === 1 },
    make("summary", {}, `${name}: ${parity.ok ? "every golden text gets its reference score" : "golden texts do not get their reference scores"}; largest difference ${parity.max_abs_diff === null ? "–" : parity.max_abs_diff.toExponential(1)}`),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Golden texts of ${name}` }, table(
      [{ number: "text" }, { number: "tokens" }, { number: "checkpoint" }, { number: "served" }, { number: "largest difference" }, { number: "allowed" }, "problem"],
      parity.texts.map((text) => [{ number: text.index }, { number: text.num_tokens }, { number: shown(text.reference) }, { number: shown(text.served) },
        { number: text.difference === null ? "–" : text.difference.toExponential(1) }, { number: text.allowed.toExponential(1) }, text.problem || ""])))))) ;
  const limits = { version: service.version, threads: service.num_threads, "calls of the engine at once": service.engine_calls, ...service.limits };
  $("limits").replaceChildren(table(["limit", { number: "value" }], Object.entries(limits).map(([name, value]) => [name, { number: String(value ?? "by device") }])));
}
