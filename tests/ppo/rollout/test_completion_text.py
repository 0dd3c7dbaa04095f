from hypothesis import given
from hypothesis import strategies as st
from tiny_trainer import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from plaudit_ppo.rollout.completion_text import StopStrings, before_stop, text_behind

TOKENIZER = tiny_tokenizer(eos_token="<eos>", pad_token="<pad>")


def byte_tokenizer():
    """A token is a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def test_a_text_goes_up_to_the_first_stop_string():
    assert before_stop("a b c b", ["b", "c"]) == "a "
    assert before_stop("a b c", ["c", "b c"]) == "a "
    assert before_stop("a b c", ["d"]) == "a b c"
    assert before_stop("a b c", []) == "a b c"


def test_a_stop_string_may_be_cut_into_tokens_anywhere_and_begins_behind_the_prompt():
    tokenizer = byte_tokenizer()
    prompt, completion = (tokenizer.encode(text) for text in ("Q: a\n", "\nb\u20ac\n\nc"))
    stop = StopStrings(["\u20ac\n\n", "never"], tokenizer)
    assert stop.texts == ("\u20ac\n\n", "never")
    assert stop.find(prompt, completion) == len("\nb\u20ac\n\n".encode())
    ends = [stop.end_here(prompt + completion[:count], count) for count in range(1, len(completion) + 1)]
    assert ends.index(True) + 1 == stop.find(prompt, completion)
    assert StopStrings(["\n\n\n"], tokenizer).find(prompt, completion) is None


def test_the_space_before_the_first_token_belongs_to_the_completion():
    stop = StopStrings([" w5"], TOKENIZER)
    assert text_behind([2, 3], [5, 6], TOKENIZER) == " w5 w6"
    assert stop.find([2, 3], [5, 6]) == 1
    assert stop.end_here([2, 3, 5], 1)
    assert not stop.end_here([2, 5, 3], 1)  # it is the prompt's


@given(
    prompt=st.lists(st.integers(2, 31), min_size=1, max_size=4),
    completion=st.lists(st.integers(2, 8), min_size=1, max_size=40),
    texts=st.lists(st.sampled_from([" w3", "w4 w5", " w6 w6 w6", "w7", "2 w"]), min_size=1, max_size=3),
)
def test_the_look_at_the_last_tokens_finds_what_the_whole_text_shows(prompt, completion, texts):
    stop = StopStrings(texts, TOKENIZER)
    seen = (n for n in range(1, len(completion) + 1) if stop.end_here(prompt + completion[:n], n))
    assert next(seen, None) == stop.find(prompt, completion)


def test_a_special_token_can_be_a_stop_string():
    assert StopStrings(["<pad>"], TOKENIZER).find([2], [3, 1, 4]) == 2
