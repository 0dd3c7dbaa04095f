"""Template tokens of any policy are found, and ordinary code, markup and prose never are."""

import gzip
import json
import sysconfig
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from plaudit_service.http.dialects.known_tokens import KnownTokens
from plaudit_service.http.dialects.special_tokens import find_foreign, strip_end
from plaudit_service.items import ChatItem, Message, PromptItem, TextItem

KNOWN = KnownTokens()


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("<|im_start|>user", "<|im_start|>"),
        ("a <end_of_turn>", "<end_of_turn>"),
        ("<\uff5cAssistant\uff5c>", "<\uff5cAssistant\uff5c>"),
        ("<\uff5cend\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
        ("[INST] a", "[INST]"),
        ("<s>a", "<s>"),
        ("a</s>\n", "</s>"),
        ("<pad><bos>a", "<pad>"),
        ("a<eos><pad>", "<pad>"),
        ("<|turn>user\na<turn|>\n", "<turn|>"),  # Gemma 4
        ("a<|tool_call>call:f{}<tool_call|>b", "<|tool_call>"),
        ("[|user|]a\n[|endofturn|]\n", "[|endofturn|]"),  # EXAONE
        ("<seed:bos>user\na<seed:eos>b", "<seed:bos>"),  # Seed-OSS
        ("<SPECIAL_10>System\n\n<SPECIAL_11>User\n", "<SPECIAL_10>"),  # Nemotron
        ("<extra_id_1>User\na", "<extra_id_1>"),
        ("]~!b[]~b]system\na[e~[\n]~b]ai\n", "]~!b["),  # MiniMax
        ("a\n]~b]ai\n", "]~b]"),
        ("a[e~[", "[e~["),
        ("[unused9]a[unused10]b", "[unused9]"),
        ("<s>[INST] a [/INST] b</s><s>[INST] c [/INST] d</s>", "<s>"),
        ("<BOS_TOKEN>a", "<BOS_TOKEN>"),  # Cohere
        ("a<EOS_TOKEN>", "<EOS_TOKEN>"),
        ("<_start><_system>a\n<_user>b<_bot>c<_end>\n", "<_end>"),  # TeleChat
        ("a<_user>b<_bot>", "<_bot>"),
        ("SYSTEM:a [Round 0] USER:b ASSISTANT:c", "[Round 0] USER:"),  # LongCat
        ("a ASSISTANT:b</longcat_s>", "</longcat_s>"),
        ("<longcat_user>a<longcat_assistant>b", "<longcat_user>"),
        ("[THINK]Well", "[THINK]"),  # Magistral
        ("hm[/THINK]a", "[/THINK]"),
        ("<|User|>:a<eoh>\n<|Bot|>:b<eoa>", "<eoa>"),  # InternLM 1
        ("a<eoh>\nb", "<eoh>"),
        ("human: a <sep> assistant: b", "<sep>"),  # Reka
        ("a\n<<SYS>>\nb\n<</SYS>>\n\nc", "<<SYS>>"),  # Llama 2
        ("<role>HUMAN</role>a<|role_end|><role>ASSISTANT</role>", "<role>"),  # Ling
        ("<|prompter|>a<|endoftext|><|assistant|>b", "<|prompter|>"),
        ("a<|endoftext|>b", "<|endoftext|>"),
        ("a <|end|>b", "<|end|>"),
        ("<|user|>a", "<|user|>"),
        ("a.<|user|>b", "<|user|>"),
        ("a\n<|speaker|>b", "<|speaker|>"),
        ("a.<|fini|>\n", "<|fini|>"),
        ("a<|eot_id|>b", "<|eot_id|>"),
        ("a<|extra_0|>b", "<|extra_0|>"),
        ("a<|end-of-turn|>b", "<|end-of-turn|>"),
    ],
)
def test_special_tokens_that_a_tokenizer_does_not_know_are_found(text, token):
    items = [TextItem(text="plain"), TextItem(text=text)]
    assert find_foreign(items, KNOWN, lambda _: False) == (1, token)
    assert find_foreign(items, KNOWN, lambda _: True) is None
    prompt = PromptItem(prompt=text, completion="")
    chat = ChatItem(messages=[Message(role="user", content="a")], completions=[text])
    for item in (prompt, chat):
        assert find_foreign([item], KNOWN, lambda _: False) == (0, token)


ORDINARY = r"""
let xs = [| 1; 2 |] in xs |> Array.map (fun x -> x + 1) |> printfn "%A" <| ()
[|x|] [||] (|Even|Odd|) <||| <seed>
let user = 1 in [|user|]; [|system; user|]; f [|tool|] |> g
parser = foo <|> bar <|?> (x, y) <||> (p <| q |> r); [e|x|]
assoc = <|"a" -> 1, b -> <|c -> 2|>|>; <||>
std::vector<SPECIAL_T> v; template <typename s> struct A<s> {}; a<b||c>d; map<int,vector<pad>> x; cout<<s>>t;
<p>was <s>$20</s>, now <b>$10</b></p><image src='a'/><user>x</user><mask></mask> <s>old</s> and <s>older</s>
<s>Monday</s> Tuesday is fine
the price is <s>$20</s>
<?xml version="1.0"?><seed:row xmlns:seed="x"><bos>1</bos><eos/><pad>2</pad></seed:row><seed:bar/><_user>a</_user>
cat <<EOF | sort <in |& tee out; [[ -n $x || -z $y ]] && echo '<|>' | sed 's/[^]~b]//g'; prog [ARGS] [PREFIX]
vocab = {'<pad>': 0, '<s>': 1, '</s>': 2, '<unk>': 3}; tokens = ['[CLS]', 'a', '[SEP]', '[PAD]']
[IMG]https://a/b.png[/IMG] [B]x[/B] [THINK]
| a | b |<br>|---|---| | <b>|</b> | [x] | - [ ] todo <|
1 <| 2 |> 3, <|x|> = |<x>|, <psi|phi>, |a|<|b|, a<|b|+|c|
<(?:b|i|u|)>|[]~b]|[^]~b]|\[[a-z|]+\]|<[^>|]*>|(<br|>)
### Instruction: x USER: y
let h = f<|xs|>g in g<|xs.Length|>h; parse<|text|>print; a<|user|>b; List.map f<|(x)|>ignore
let v: vector<|int|> = [|<|int|>|]; <|S21|>
the mean magnitude <|S21|> of <|v_x|>, <|psi_0|>, <|a-b|>, <|x|> and <|psi|>
<|S21|> is a mean, <|int|>
it is a vector<|float|>
its mean is <|phase|>
t[arr[i]~b]; arr[i]~b] = 1; a[b[i]~b]~c
<message><_user>a</_user><_bot/><role>ADMIN</role><role>HUMAN</role><text>b</text><eoh>c</eoh></message>
<role>HUMAN</role>
prog <role> <sep> <file>; "a<sep>b".split("<sep>"); std::set<role> r; /api/<_user>
fields are joined with <sep>
cat <<SYS>>log; <<SYS>> is a stereotype; [Round 1] USER: hi; [Round 1] won by USER: [Round 2]; [THINK] twice
tokenizer.add_tokens(["<BOS_TOKEN>", "<EOS_TOKEN>", "[THINK]", "<_end>", '<_user>', `<eoh>`])
"""


@pytest.mark.parametrize("text", [ORDINARY, *filter(None, ORDINARY.splitlines())])
def test_ordinary_text_is_never_refused_nor_cut(text):
    assert find_foreign([TextItem(text=text)], KNOWN, lambda _: False) is None
    assert strip_end(text, KNOWN) == (text, False)


WORDS = [
    "let",
    "x",
    "xs",
    "1",
    "<|",
    "|>",
    "<||",
    "||>",
    "[|",
    "|]",
    "<seed>",
    "(|",
    "|)",
    "<",
    ">",
    "|",
    ";",
    "->",
    "::",
]


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=40).map(" ".join))
def test_operators_with_spaces_around_them_are_never_a_token(text):
    assert list(KNOWN.find(text)) == []
    assert strip_end(text, KNOWN) == (text, False)


def test_no_file_of_pythons_standard_library_holds_a_token():
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in folder.rglob("*.py") if not {"site-packages", "test"} & set(file.parts)]
    assert len(files) > 300
    for file in files:
        assert list(KNOWN.find(file.read_text(encoding="utf-8", errors="replace"))) == [], file


def test_no_text_of_people_holds_a_token(data_dir):
    with gzip.open(data_dir / "hh-harmless" / "pairs.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            assert list(KNOWN.find(" ".join(str(value) for value in json.loads(line).values()))) == []


@given(st.text(), st.sampled_from(["", "<|eot_id|>", "<eos>\n", "[SEP]", "<turn|>\n", "<seed:eos>"]), st.integers(1, 3))
@example("<s>1", "</s>", 1)
def test_only_special_tokens_at_the_end_are_taken_off(text, token, repeats):
    stripped, finished = strip_end(text + token * repeats, KNOWN)
    assert (text + token * repeats).startswith(stripped)
    taken_off = (text + token * repeats)[len(stripped) :]
    assert finished or not taken_off or "pad" in taken_off.lower()
    is_word = token == "[SEP]" and text.endswith((" ", "\t"))
    if token and token != "</s>" and not is_word:
        assert finished
        assert text.startswith(stripped)


@pytest.mark.parametrize(
    ("completion", "stripped", "finished"),
    [
        ("fine<turn|>", "fine", True),
        ("fine[|endofturn|]\n", "fine", True),
        ("fine<seed:eos>", "fine", True),
        ("fine\n<SPECIAL_12>\n", "fine\n", True),
        ("fine[e~[", "fine", True),
        ("fine<|im_end|><|endoftext|><|endoftext|>", "fine", True),
        ("fine<pad><pad>", "fine", False),  # cut by length, then padded
        ("fine<eos><pad>", "fine", True),
        ("<|tool_call>call:f{}<tool_call|><turn|>", "<|tool_call>call:f{}<tool_call|>", True),
        ("<|START_RESPONSE|>fine<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", "<|START_RESPONSE|>fine<|END_RESPONSE|>", True),
        ("fine <s>bad</s>", "fine <s>bad</s>", False),
        ("fine</s>", "fine", True),
        ("fine |>", "fine |>", False),
        ("fine<EOS_TOKEN>", "fine", True),
        ("fine<_end>\n", "fine", True),
        ("fine</longcat_s>", "fine", True),
        ("hm[/THINK]", "hm[/THINK]", False),
        ("fine<eoa>\n<eos>", "fine", True),
        ("fine\n<eos>", "fine\n", True),
        ("fine</s> <pad> <pad>", "fine", True),
        ("call f<|xs|>g", "call f<|xs|>g", False),
        ("it is a vector<|int|>", "it is a vector<|int|>", False),
    ],
)
def test_what_ends_a_turn_is_taken_off_and_what_belongs_to_it_stays(completion, stripped, finished):
    assert strip_end(completion, KNOWN) == (stripped, finished)


@pytest.mark.parametrize("word", ["[SEP]", "<pad>", "<eos>", "[PAD]", "<EOS_TOKEN>"])
def test_an_answer_that_ends_in_the_words_of_a_token_keeps_them_and_is_refused_for_what_it_may_be(word):
    for text in (f"The token is {word}", f"They are <bos> {word}", f"Twice: {word} {word}\n"):
        assert strip_end(text, KNOWN) == (text, False)
        assert strip_end(f"{text}<|im_end|>", KNOWN) == (text, True)
        assert find_foreign([TextItem(text=text)], KNOWN, lambda _: False) == (0, word)
    text = f"The token is `{word}`."
    assert strip_end(text, KNOWN) == (text, False)
    assert find_foreign([TextItem(text=text)], KNOWN, lambda _: False) is None


@given(st.text())
def test_an_end_is_looked_for_in_bounded_work(text):
    stripped, _ = strip_end(text + "</s>" * 100, KNOWN)
    assert stripped.endswith("</s>" * (100 - 8))


STRUCK = [
    "see <s>fine\nbad</s>",
    "This is <s>old <b>price</b></s>",
    "<s>$20 <i>x</i></s> now $10",
    "<s>\n<li>a</li>\n</s>",
    "<p><s>a <s>b</s> c</s>\n",
    "was <s>a</s><s>b</s>",
    'was <s class="old">a</s>',
    "<s>a</s><br>b",
]


@pytest.mark.parametrize("text", STRUCK)
def test_html_that_strikes_a_text_through_is_never_refused_nor_cut(text):
    assert find_foreign([TextItem(text=text)], KNOWN, lambda _: False) is None
    assert strip_end(text, KNOWN) == (text, False)
    assert strip_end(f"{text}</s>", KNOWN) == (text, True)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("<s>a</s>", ["<s>", "</s>"]),
        ("<s>a\n<b>b</b></s>\n", ["<s>", "</s>"]),
        ("<pad><s>a <s>old</s> b</s><pad>", ["<pad>", "<s>", "<pad>", "</s>"]),
        ("<s>a <s>old</s>", ["<s>"]),  # cut by length
        ("a</s> <s>b</s>", ["</s>"]),
        ("the token `<s>` begins it</s>", ["</s>"]),
        ("<s>a\nb</s> c", []),
    ],
)
def test_a_whole_sequence_begins_with_bos_and_ends_with_eos_whatever_html_it_holds(text, tokens):
    assert list(KNOWN.find(text)) == tokens


@pytest.mark.parametrize(
    "part",
    [
        "<s>",
        "</s>",
        "<s>a</s>",
        "<s ",
        "<s>\n<a ",
        "<_user>",
        "<|a",
        "<|abcd|>",
        "<|abcd|> ",
        "</s>" + " " * 50,
        " ",
        "</s> <s>",
    ],
)
def test_html_is_looked_for_in_linear_time(part):
    text = part * (400_000 // len(part)) + "</s>"
    begun = time.process_time()
    list(KNOWN.find(text))
    strip_end(text, KNOWN)
    assert time.process_time() - begun < 20  # a second; quadratic: hours
