import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from plaudit_ppo.rollout.rollouts import Rollouts, completion_texts, concatenate

EOS, PAD = 0, 1


def rollout(prompt, completion, *, finished):
    ids = torch.tensor([completion])
    return Rollouts(
        prompt_ids=torch.tensor([prompt]),
        prompt_mask=torch.ones(1, len(prompt), dtype=torch.bool),
        completion_ids=ids,
        completion_mask=torch.ones_like(ids, dtype=torch.bool),
        finished=torch.tensor([finished]),
        sampled_logprobs=torch.zeros(ids.shape),
    )


def test_batches_are_joined_with_prompts_left_and_completions_right():
    """Detail 1: prompts padded left, completions right."""
    joined = concatenate([rollout([2], [3, 0], finished=True), rollout([4, 5], [6], finished=False)], PAD)
    assert joined.prompt_ids.tolist() == [[PAD, 2], [4, 5]]
    assert joined.prompt_mask.tolist() == [[False, True], [True, True]]
    assert joined.completion_ids.tolist() == [[3, 0], [6, PAD]]
    assert joined.completion_mask.tolist() == [[True, True], [True, False]]
    assert joined.finished.tolist() == [True, False]


def test_selected_rows_lose_the_padding_that_they_share():
    joined = concatenate([rollout([2], [3, 0], finished=True), rollout([4, 5], [6, 7, 8], finished=False)], PAD)
    assert joined.select(torch.tensor([0])).completion_ids.tolist() == [[3, 0]]
    assert joined.select(torch.tensor([0])).prompt_ids.tolist() == [[2]]
    assert joined.select(torch.tensor([1, 0])).completion_ids.tolist() == [[6, 7, 8], [3, 0, PAD]]


def test_the_text_of_a_completion_has_its_eos_only_on_demand(tokenizer):
    """Detail 6: text, and EOS only where it is wanted."""
    finished = rollout([2, 3], [4, 5, EOS], finished=True)
    cut = rollout([2, 3], [4, 5], finished=False)
    for with_eos, ending in ((False, ""), (True, " <eos>")):
        assert completion_texts(finished, tokenizer, with_eos=[with_eos]) == [" w4 w5" + ending]
        assert completion_texts(cut, tokenizer, with_eos=[with_eos]) == [" w4 w5"]


def test_the_text_of_a_completion_goes_up_to_its_stop_string_and_has_no_eos(tokenizer):
    """Detail 36."""
    stopped, ended = rollout([2, 3], [4, 5, 6], finished=True), rollout([2, 3], [4, EOS], finished=True)
    for with_eos in ([False], [True]):
        assert completion_texts(stopped, tokenizer, with_eos=with_eos, stop=[" w6", "w9"]) == [" w4 w5"]
    assert completion_texts(ended, tokenizer, with_eos=[False], stop=["w6"]) == [" w4"]
    assert completion_texts(ended, tokenizer, with_eos=[True], stop=["w6"]) == [" w4 <eos>"]
    assert completion_texts(ended, tokenizer, with_eos=[True], stop=["<eos>"]) == [" w4 "]


def test_the_space_between_prompt_and_completion_survives(tokenizer):
    """Detail 6: a tokenizer that drops the first space of a text does not glue prompt and completion together."""
    core = Tokenizer(models.BPE({"▁a": 0, "▁b": 1, "</s>": 2, "c": 3}, []))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    metaspace = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    assert metaspace.decode([1]) == "b"
    assert completion_texts(rollout([0], [1, 3, 2], finished=True), metaspace, with_eos=[False, False]) == [" bc"]
    assert completion_texts(rollout([0], [3, 1], finished=False), metaspace, with_eos=[False, False]) == ["c b"]


def test_padding_is_no_part_of_the_text(tokenizer):
    joined = concatenate([rollout([2], [3, EOS], finished=True), rollout([4, 5], [6, 7, 8], finished=False)], PAD)
    assert completion_texts(joined, tokenizer, with_eos=[False, False]) == [" w3", " w6 w7 w8"]
