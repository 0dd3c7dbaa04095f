from plaudit_client.testing import FakeScorer
from plaudit_ppo.rollout.prompts import Prompt
from plaudit_ppo.scoring.items import to_item
from plaudit_ppo.scoring.pool import call_scorer


def test_an_item_is_text_and_says_whether_the_completion_ended():
    """Detail 6: the scorer's tokenizer may be another one, so text is sent."""
    assert to_item(Prompt(text="a"), " b", finished=True) == {"prompt": "a", "completion": " b", "finished": True}
    chat = Prompt(messages=({"role": "user", "content": "a"},))
    assert to_item(chat, "b", finished=False) == {
        "messages": [{"role": "user", "content": "a"}],
        "completions": ["b"],
        "finished": False,
    }


def test_the_client_accepts_the_items():
    scorer = FakeScorer(lambda item: float(len(item.get("completion", "chat"))))
    chat = Prompt(messages=({"role": "user", "content": "a"},))
    items = [to_item(Prompt(text="a"), " bb", finished=False), to_item(chat, "b", finished=True)]
    assert call_scorer(scorer, items).scores.tolist() == [3.0, 4.0]
