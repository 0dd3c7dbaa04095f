"""The page that shows a run of the demo."""

from dataclasses import asdict
from html import escape
from string import Template

from plaudit_demo.report.evaluation import sample_rows
from plaudit_demo.report.figures import kl_figure, latency_figure, over_optimization_figure, reward_figure, wait_figure
from plaudit_demo.report.results import Results
from plaudit_ppo.runs.charts import GOLD, SCORE
from plaudit_ppo.runs.page import make_card, make_document, make_figure, make_rows

_NUM_SAMPLES = 8
_LATENCY_BOUND_S = 0.1

_BODY = Template("""<div class="cards">$cards</div>
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
        make_figure("Gold reward", gold, "What the reader would really pay. PPO never sees it."),
        make_figure("Reward model's score", score, "What PPO maximizes, as the service answered it."),
        make_figure(
            "KL from the warmed-up policy",
            kl_figure([row["objective/kl"] for row in log]),
            f"Sum over the tokens of a completion; the penalty on it has the weight β = {results.settings.kl_coef:g}.",
        ),
        make_figure(
            "Over-optimization",
            over_optimization_figure(results),
            "The axes of Gao et al. 2022. Where the score goes on rising and gold falls, the policy learns the reward "
            "model's errors: plaudit-demo --kl-coef 0 shows it.",
        ),
    )
    serving = (
        make_figure(
            "Exposed reward wait",
            wait_figure(results),
            f"Scores are asked for while the next rollouts are generated and awaited after the reference and critic "
            f"passes: {results.exposed_wait} of the training time was spent waiting.",
        ),
        make_figure(
            "Latency of the service",
            latency_figure(results.latency),
            f"plaudit_request_seconds of /score: {sum(results.latency.counts)} requests, mean "
            f"{1e3 * results.latency.mean_s:.1f} ms, {results.latency.share_within(_LATENCY_BOUND_S):.1%} within "
            f"{1e3 * _LATENCY_BOUND_S:.0f} ms. A request has {results.settings.ppo_micro_batch} completions in "
            f"training, {len(results.prompts)} in the evaluation.",
        ),
    )
    settings = asdict(results.settings)
    body = _BODY.substitute(
        cards="".join(make_card(*card) for card in _cards(results)),
        verdict=escape(_verdict(results)),
        training="".join(training),
        serving="".join(serving),
        num_samples=min(_NUM_SAMPLES, len(results.prompts)),
        samples=_samples(results),
        method=_METHOD.substitute(fingerprint=escape(results.after.fingerprint)),
        times=make_rows((title, f"{seconds:.1f} s") for title, seconds in results.stage_seconds.items()),
        settings=make_rows((name.replace("_", " "), f"{value:g}") for name, value in settings.items()),
    )
    subtitle = (
        f"{len(log)} iterations of {settings['ppo_rollouts']} rollouts, seed {settings['seed']}, "
        f"{results.seconds:.0f} s in all"
    )
    return make_document(
        title="plaudit demo: PPO against a served reward model",
        heading="PPO against a served reward model",
        subtitle=subtitle,
        body=body,
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
