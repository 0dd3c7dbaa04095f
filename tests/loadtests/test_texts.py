import statistics

import pytest
import texts
from texts import Dialogue, Texts

DIALOGUES = [Dialogue(f"p{n}", f" c{n // 2}") for n in range(200)]  # every completion twice


def test_a_dialogue_is_cut_before_the_last_answer():
    text = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"
    cut = texts.split_dialogue(text)
    assert cut == Dialogue("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", " d")
    assert cut.text == text


def test_lots_do_not_overlap():
    dealt = Texts(DIALOGUES, "here")
    lots = [dealt.singles(lot, 50) for lot in range(4)]
    assert len({text for lot in lots for text in lot}) == 200


def test_a_group_has_its_own_completion_first_and_no_completion_twice():
    for number, item in enumerate(Texts(DIALOGUES, "here").groups(1, 20)):
        assert item["prompt"] == f"p{20 + number}"
        assert item["completions"][0] == f" c{(20 + number) // 2}"
        assert len(set(item["completions"])) == 8


def test_a_group_has_only_completions_that_the_model_can_read_with_its_prompt():
    (item,) = Texts(DIALOGUES, "here", fits=lambda text: not text.endswith("5")).groups(0, 1)
    assert item["completions"] == [" c0", " c40", " c41", " c42", " c43", " c44", " c46", " c47"]


def test_generated_dialogues_are_different_and_the_same_every_time():
    generated = texts.generate_dialogues(2000)
    assert len({each.text for each in generated}) == 2000
    assert texts.generate_dialogues(10) == generated[:10]


def test_generated_dialogues_are_as_long_as_the_real_ones(data_dir, monkeypatch):
    monkeypatch.setenv("PLAUDIT_DATA", str(data_dir))
    real, origin = texts.all_dialogues()
    assert origin == "hh-harmless"
    medians = [
        statistics.median(len(each.text.split()) for each in dialogues)
        for dialogues in (real, texts.generate_dialogues(2000))
    ]
    assert medians[1] == pytest.approx(medians[0], rel=0.2)


def test_only_texts_that_the_model_can_read_are_dealt_out(encoder_bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("PLAUDIT_DATA", str(tmp_path))
    from plaudit_service import Scorer

    read = texts.read_texts(encoder_bundle)
    assert read.origin == "generated"
    assert 0 < len(read.dialogues) < 1000
    assert all(score.ok for score in Scorer(encoder_bundle).score(read.singles(0, 50)))


def test_a_sharing_group_shares_its_prefix_and_nothing_more():
    items = texts.sharing_group(3)
    assert [len(item["token_ids"]) for item in items] == [640] * 8
    assert len({tuple(item["token_ids"][:512]) for item in items}) == 1
    assert len({item["token_ids"][512] for item in items}) == 8
    assert items == texts.sharing_group(3) != texts.sharing_group(4)


def test_texts_that_share_nothing_begin_with_different_tokens():
    items = texts.sharing_nothing(3, [5, 7, 9])
    assert [len(item["token_ids"]) for item in items] == [5, 7, 9]
    assert len({item["token_ids"][0] for item in items}) == 3
