"""The page that shows a run: one HTML file that loads nothing from anywhere."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from string import Template

from plaudit_ppo.demo.evaluation import sample_rows
from plaudit_ppo.demo.figures import (
    GOLD,
    SCORE,
    kl_figure,
    latency_figure,
    over_optimization_figure,
    reward_figure,
    wait_figure,
)
from plaudit_ppo.demo.results import Results

_NUM_SAMPLES = 8
_LATENCY_BOUND_S = 0.1

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>plaudit demo: PPO against a served reward model</title>
<style>
:root { color-scheme: light dark;
  --ground: #fdfdfc; --ink: #22262a; --soft: #626a72; --line: #dcdfe2; --card: #f4f5f5; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #16191c; --ink: #e4e6e8; --soft: #9aa2aa; --line: #33393f; --card: #1e2226; }
}
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 76rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0; }
p { margin: .4rem 0; max-width: 62rem; }
.soft, figcaption { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem; margin: 1.4rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.card span { display: block; font-size: .85rem; color: var(--soft); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 1.6rem 1.4rem; }
figure { margin: 0; }
figure svg { width: 100%; height: auto; display: block; margin: .3rem 0; }
figcaption { font-size: .88rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
td.label { color: var(--soft); white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.prompt td { font-weight: 600; border-bottom: 0; padding-top: 1rem; }
tr.first td { border-bottom: 0; }
table.narrow { width: auto; min-width: 22rem; }
code { font-size: .85em; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>PPO against a served reward model</h1>
<p class="soft">$subtitle</p>
<div class="cards">$cards</div>
<p>$verdict</p>
<h2>Training</h2>
<div class="figures">$training</div>
<h2>Serving</h2>
<div class="figures">$serving</div>
<h2>Samples</h2>
<p class="soft">The first $num_samples held-out prompts, each completed by the warmed-up policy and by the policy after
PPO, with the same sampling seed. No selection.</p>
<div class="scroll"><table>$samples</table></div>
<h2>How this was made</h2>
$method
<div class="figures">
<div class="scroll"><h3>Time</h3><table class="narrow">$times</table></div>
<div class="scroll"><h3>Settings</h3><table class="narrow">$settings</table></div>
</div>
</body>
</html>
""")

_METHOD = Template("""<p>The policy is a small Llama that writes hotel reviews in a synthetic language. A <em>gold
reward</em> known in closed form stands for the human reader: praise pays, naming what was asked for pays, each further
use of the same word costs more than the one before, and there is a best length (Gao et al. 2022, arXiv 2210.10760).
Two completions per prompt were labelled by Bradley-Terry from gold, so the labels are noisy. TRL's RewardTrainer
trained the reward model on them, with a tokenizer of its own. It was exported to ONNX and served; PPO saw its scores
over HTTP and nothing else. Gold was measured beside, and never trained on. The bundle is
<code>$fingerprint</code>.</p>""")


def make_page(results: Results) -> str:
    """The page of a run.

    Args:
        results: what the run measured.

    Returns:
        HTML with inline style and inline SVG, without any reference to another resource.
    """
    before, log = results.before, results.log
    gold = reward_figure(
        [row["eval/scores"] for row in log],
        label="gold reward",
        color=GOLD,
        start=before.gold_mean,
        start_std=before.gold_std,
    )
    score = reward_figure(
        [row["scoring/score_mean"] for row in log],
        label="score",
        color=SCORE,
        start=before.score_mean,
        start_std=before.score_std,
    )
    training = (
        _figure("Gold reward", gold, "What the reader would really pay. PPO never sees it."),
        _figure("Reward model's score", score, "What PPO maximizes, as the service answered it."),
        _figure(
            "KL from the warmed-up policy",
            kl_figure([row["objective/kl"] for row in log]),
            f"Sum over the tokens of a completion; the penalty on it has the weight β = {results.settings.kl_coef:g}.",
        ),
        _figure(
            "Over-optimization",
            over_optimization_figure(results),
            "The axes of Gao et al. 2022. Where the score goes on rising and gold falls, the policy learns the reward "
            "model's errors: plaudit-demo --kl-coef 0 shows it.",
        ),
    )
    serving = (
        _figure(
            "Exposed reward wait",
            wait_figure(results),
            f"Scores are asked for while the next rollouts are generated and awaited after the reference and critic "
            f"passes: {results.exposed_wait} of the training time was spent waiting.",
        ),
        _figure(
            "Latency of the service",
            latency_figure(results.latency),
            f"plaudit_request_seconds of /score: {sum(results.latency.counts)} requests, mean "
            f"{1e3 * results.latency.mean_s:.1f} ms, {results.latency.share_within(_LATENCY_BOUND_S):.1%} within "
            f"{1e3 * _LATENCY_BOUND_S:.0f} ms. A request has {results.settings.ppo_micro_batch} completions in "
            f"training, {len(results.prompts)} in the evaluation.",
        ),
    )
    settings = asdict(results.settings)
    return _PAGE.substitute(
        subtitle=escape(
            f"{len(log)} iterations of {settings['ppo_rollouts']} rollouts, seed {settings['seed']}, "
            f"{results.seconds:.0f} s in all"
        ),
        cards="".join(_card(*card) for card in _cards(results)),
        verdict=escape(_verdict(results)),
        training="".join(training),
        serving="".join(serving),
        num_samples=min(_NUM_SAMPLES, len(results.prompts)),
        samples=_samples(results),
        method=_METHOD.substitute(fingerprint=escape(results.after.fingerprint)),
        times=_table((title, f"{seconds:.1f} s") for title, seconds in results.stage_seconds.items()),
        settings=_table((name.replace("_", " "), f"{value:g}") for name, value in settings.items()),
    )


def _cards(results: Results) -> list[tuple[str, str]]:
    before, after = results.before, results.after
    gain = (after.gold_mean - before.gold_mean) / before.gold_std
    return [
        (f"{before.gold_mean:.2f} → {after.gold_mean:.2f}", f"gold reward, held-out prompts ({gain:+.1f} std)"),
        (f"{before.score_mean:.2f} → {after.score_mean:.2f}", "reward model's score, held-out prompts"),
        (f"{after.kl_mean:.1f} nats", "KL per completion at the end"),
        (
            f"{results.pair_accuracy:.1%}",
            f"pair accuracy of the reward model (gold itself: {results.best_pair_accuracy:.1%})",
        ),
        (results.exposed_wait, "of the PPO time spent waiting for scores"),
    ]


def _verdict(results: Results) -> str:
    """What happened, in words, from the figures alone."""
    before, after = results.before, results.after
    gold_gain = (after.gold_mean - before.gold_mean) / before.gold_std
    score_gain = (after.score_mean - before.score_mean) / before.score_std
    return (
        f"On {len(results.prompts)} prompts that neither the reward model nor PPO has seen, the score moved by "
        f"{score_gain:+.2f} standard deviations of the warmed-up policy, the gold reward by {gold_gain:+.2f}. "
        f"{results.masked_share:.1%} of the rollouts got no score."
    )


def _samples(results: Results) -> str:
    rows = [
        '<thead><tr><th></th><th>completion</th><th class="number">gold</th><th class="number">score</th>'
        '<th class="number">KL, nats</th></tr></thead>'
    ]
    for sample in sample_rows(results.prompts, results.before, results.after)[:_NUM_SAMPLES]:
        rows.append(f'<tr class="prompt"><td colspan="5">{escape(sample["prompt"])}</td></tr>')
        for key, label, css in (("before", "warmed up", "first"), ("after", "after PPO", "second")):
            row = sample[key]
            numbers = "".join(f'<td class="number">{row[name]:.2f}</td>' for name in ("gold", "score", "kl"))
            text = escape(row["completion"].strip())
            rows.append(f'<tr class="{css}"><td class="label">{label}</td><td>{text}</td>{numbers}</tr>')
    return "".join(rows)


def _card(figure: str, label: str) -> str:
    return f'<div class="card"><b>{escape(figure)}</b><span>{escape(label)}</span></div>'


def _figure(title: str, svg: str, caption: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(rows: Iterable[Sequence[str]]) -> str:
    return "".join(f'<tr><td>{escape(name)}</td><td class="number">{escape(value)}</td></tr>' for name, value in rows)
