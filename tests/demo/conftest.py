"""Made-up results of a run, for the tests of what is drawn and written."""

import pytest
import torch
from tiny_trainer import tiny_tokenizer

from plaudit_demo.data.sampling import Completion
from plaudit_demo.report.evaluation import Evaluation
from plaudit_demo.report.results import Results
from plaudit_demo.service import Latency
from plaudit_demo.settings import DemoSettings


@pytest.fixture(autouse=True)
def one_thread():
    """Of each test alone: the exporter's tests, which come after, compare with processes of all threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tokenizer():
    return tiny_tokenizer(eos_token="<eos>", pad_token="<pad>")


def _evaluation(gold, scores, kl):
    completions = [Completion(f" A <b>text</b> & {value}.", True, 5) for value in gold]
    return Evaluation(completions, gold, scores, kl, "sha256:abc")


@pytest.fixture
def results():
    log = [
        {
            "eval/scores": 0.1 * step,
            "scoring/score_mean": 0.2 * step,
            "objective/kl": 0.3 * step - 0.1,
            "scoring/call_s": 0.02,
            "scoring/exposed_wait_s": 0.001,
            "time/iteration_s": 2.0,
        }
        for step in range(12)
    ]
    return Results(
        settings=DemoSettings(),
        prompts=["Prompt one:", "Prompt two:"],
        before=_evaluation([0.0, 2.0], [1.0, 2.0], [0.0, 0.0]),
        after=_evaluation([3.0, 5.0], [2.0, 4.0], [6.0, 8.0]),
        log=log,
        pair_accuracy=0.75,
        best_pair_accuracy=0.8,
        num_pairs=100,
        latency=Latency((0.01, 0.1, float("inf")), (2, 2, 0), 0.03),
        exposed_wait_share=0.000123,
        masked_share=0.0,
        seconds=12.345,
        stage_seconds={"warm up": 1.234},
    )
