"""docs/gpu.md: its figures are computed again, its flags and messages exist, its links lead somewhere."""

import re
from dataclasses import fields
from pathlib import Path

import gpu_check
import pytest
from pages import assert_leads_somewhere, name_in, names_in, rows

from plaudit_service.settings import Settings, flag

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "gpu.md"
TEXT = PAGE.read_text()
MEMORY = rows(TEXT, "model", "precision", "weights, GB")

# Llama 3: hidden, intermediate, layers, heads, heads of keys; 128 numbers a head, 128,256 tokens.
SHAPES = {"8B": (4096, 14336, 32, 32, 8), "70B": (8192, 28672, 80, 64, 8)}
HEAD, VOCABULARY, CALL_TOKENS = 128, 128_256, 16_384


def parameters(model):
    hidden, intermediate, layers, _, kv_heads = SHAPES[model]
    attention = 2 * hidden * hidden + 2 * hidden * kv_heads * HEAD
    layer = attention + 3 * hidden * intermediate + 2 * hidden
    return layers * layer + VOCABULARY * hidden + 2 * hidden  # the last norm, the scalar head


@pytest.mark.parametrize("row", MEMORY, ids=lambda row: f"{row['model']}, {row['precision']}")
def test_the_memory_is_what_the_shapes_give(row):
    hidden, intermediate, layers, heads, kv_heads = SHAPES[row["model"]]
    num_bytes = 4 if name_in(row["precision"]) == "fp32" else 2
    assert row["parameters"] == f"{parameters(row['model']):,}"
    assert row["weights, GB"] == f"{parameters(row['model']) * num_bytes / 1e9:.1f}"
    kept = 2 * layers * kv_heads * HEAD * num_bytes
    assert row["keys and values, bytes per token"] == f"{kept:,}"
    call = f"{CALL_TOKENS * (3 * intermediate + 4 * hidden) * num_bytes / 1e9:.1f}"
    if num_bytes == 4:
        call += f", attention {2 * 4 * heads * 4096**2 * 4 / 1e9:.1f}"
    assert row["one call of 16,384 tokens, GB"] == call


def test_what_a_card_has_to_hold_follows_from_the_parts():
    stated = [row["weights + one call + the rest"] for row in rows(TEXT, "weights + one call + the rest")]
    sums = [re.fullmatch(r"([\d.]+) \+ 2 \S ([\d.]+) \+ 1 = (\d+) GB", cell).groups() for cell in stated]
    parts = [(row["weights, GB"], row["one call of 16,384 tokens, GB"]) for row in MEMORY]
    call, attention = map(float, parts[0][1].split(", attention "))
    assert [each[:2] for each in sums] == [parts[1], (parts[0][0], f"{call + attention:.1f}"), parts[3]]
    for weights, each, total in sums:
        assert round(float(weights) + 2 * float(each) + 1) == int(total)


@pytest.mark.parametrize("row", rows(TEXT, "card, GB", "prefix cache, GB"), ids=lambda row: row["card, GB"])
def test_the_prefix_cache_of_a_card_is_an_eighth_of_what_the_weights_leave(row):
    cache = (float(row["card, GB"]) * 1e9 - 2 * parameters("8B")) / 8
    assert row["prefix cache, GB"] == f"{cache / 1e9:.1f}"
    assert row["tokens"] == f"{int(cache / 131_072 / 1000)},000"
    assert row["prompts of 1,024 tokens"] == str(int(cache / 131_072 / 1024))


def test_both_models_in_every_precision_are_there():
    assert {(row["model"], name) for row in MEMORY for name in names_in(row["precision"])} == {
        (model, precision) for model in SHAPES for precision in gpu_check.PRECISIONS
    }


@pytest.mark.parametrize("row", rows(TEXT, "flag", "when"), ids=lambda row: name_in(row["flag"]))
def test_every_flag_is_one_of_the_service(row):
    assert name_in(row["flag"]).split()[0] in {flag(setting.name) for setting in fields(Settings)}


def test_every_step_of_the_check_is_there_in_order():
    assert [name_in(row["step"]) for row in rows(TEXT, "step", "what it shows")] == list(gpu_check.STEPS)


OURS = [
    "this onnxruntime has no CUDAExecutionProvider",
    "cannot be used (",
    "the graph would run on CPUExecutionProvider",
    "attention nodes would run on the CPU",
    "precision bf16 runs on CUDA devices only",
    "does not fit into the",
    "the engine failed",
]


@pytest.mark.parametrize("message", OURS)
def test_the_messages_are_those_of_the_code(message):
    page_names = " ".join(row["message"] for row in rows(TEXT, "message", "why"))
    assert message in page_names
    engine = "".join(path.read_text() for path in (ROOT / "service/plaudit_service/engine").glob("*.py"))
    words = message.replace("CUDAExecutionProvider", "{_PROVIDER}").replace("CPUExecutionProvider", "{first}")
    assert words in engine


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)]+)\)", TEXT))))
def test_every_link_leads_somewhere(link):
    assert_leads_somewhere(PAGE, link)


@pytest.mark.parametrize("page", ["README.md", "docs/service.md", "docs/deployment.md", "docs/export.md"])
def test_the_page_is_linked(page):
    assert "gpu.md" in (ROOT / page).read_text()


def test_the_readme_says_on_its_first_screen_what_was_run_on_which_hardware():
    assert "never run on a GPU" in "\n".join((ROOT / "README.md").read_text().splitlines()[:12])
