"""Special tokens of any policy, as far as they can be told from ordinary text. Pure; the lists are facts of tokenizers.

Hundreds of tokenizers declare `<|word|>`, or DeepSeek's form with the wide bar U+FF5C in its place. The lists hold the
words, and what other families declare in tokenizer_config.json or write in their chat templates. What is ordinary text,
too, counts only where it cannot be: F#'s `f<|xs|>g` and `vector<|int|>` are none, since `xs` and `int` are no words of
tokenizers, and `f<|user|>g` is none between two operands; `<_user>` is none where `</_user>` closes it, `<role>` only
before a role as Ling writes it, `<sep>` only before a speaker as Reka writes it; `<pad>` and HTML's `<s>` only at the
start or the end of a text. What cannot be told apart at all (`<image>`, BBCode's `[IMG]`, OCaml's `[|user|]`) is left
out: a rendered chat of its family has another one that can.
"""

import re
from collections.abc import Iterator
from itertools import islice

from plaudit_service.http.dialects.special_tokens import MAX_AT_END, LastToken, any_of

_TURNS = (
    *("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"),  # Gemma 1 to 3
    *("<|turn>", "<turn|>"),  # Gemma 4
    "[|endofturn|]",  # EXAONE 3 and 4
    *("<seed:bos>", "<seed:eos>"),  # Seed-OSS
    *("<beginning_of_sentence>", "<end_of_sentence>", "]~!b[", "[e~["),  # MiniMax 1 and 2
    *("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),  # Llama 2, Mistral
    "[gMASK]",  # GLM
    "<end_of_utterance>",  # Idefics, SmolVLM
    *("<longcat_s>", "</longcat_s>", "<longcat_system>", "<longcat_user>", "<longcat_assistant>"),  # LongCat
)
# Parts of a turn: an end of these is something that the policy wrote, and no end of the turn.
_PARTS = (
    *("<|channel>", "<channel|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>"),  # Gemma 4
    *("<|tool_response>", "<tool_response|>"),
    *("<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>"),  # Seed-OSS
    *("<seed:cot_budget_reflect>", "</seed:cot_budget_reflect>"),
    *("[/THINK]", "<</SYS>>"),  # Magistral, Llama 2
    *("<longcat_think>", "</longcat_think>", "<longcat_tool_call>", "</longcat_tool_call>"),
    *("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),  # Mistral
)
# The same of the forms: Cohere, LFM2, Kimi, Phi 4 mini, Qwen VL, DeepSeek.
_PARTS_OF_FORMS = (
    *("<|END_RESPONSE|>", "<|END_ACTION|>", "<|END_THINKING|>", "<|END_TOOL_RESULT|>"),
    *("<|tool_call_end|>", "<|tool_calls_section_end|>", "<|tool_list_end|>", "<|tool_response_end|>"),
    *("<|/tool|>", "<|/tool_call|>", "<|vision_end|>"),
    *("<\uff5ctool\u2581call\u2581end\uff5c>", "<\uff5ctool\u2581calls\u2581end\uff5c>"),
    *("<\uff5ctool\u2581output\u2581end\uff5c>", "<\uff5ctool\u2581outputs\u2581end\uff5c>"),
)
_ENDS_NO_TURN = frozenset({*_PARTS, *_PARTS_OF_FORMS})
_PADDING = frozenset(
    {"<pad>", "[PAD]", "<PAD>", "<_pad>", "<seed:pad>", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>"}
)
_BOS = ("<s>", "<bos>", "[CLS]", "[BOS]", "<BOS_TOKEN>", *_PADDING)
_HTML_END = "</s>"
# Words of prose, too: an answer may end in one, behind a space, and then nothing says which it is.
_WORDS = frozenset(
    {"<eos>", "<eoa>", "<eop>", "<eod>", "[SEP]", "[EOS]", "<EOS_TOKEN>", "<pad>", "[PAD]", "<PAD>", "<_pad>"}
)
_EOS = (_HTML_END, *_WORDS, *_PADDING)
# TeleChat and InternLM 1, which XML may have as elements.
_ELEMENTS = ("_start", "_end", "_system", "_user", "_bot", "_observation", "eoh")

# Names that stand alone in `<|word|>`: such that code has for no value, and such that it may have.
_NAMES = (
    r"(?:end|start|begin)[a-z]*|eo[tmsdpuah]|bo[ms]|so[tmspu]|assistant|prompter|ipython|constrain|nothink|moss"
    r"|placeholder\d*"
)
_VALUES = (
    "user|usr|human|bot|gpt|system|sys|developer|environment|role|turn|stop|title|date|pad|padding|unk|mask|cls|sep"
    "|message|channel|return|call|refusal|think|thinking|answer|question|prompt|response|instruction|inst|context"
    "|tools?|functions?|observation|plugin|interpreter|action|code|python|query|search|results?|passage|documents?"
    "|image|video|audio|vision|text|file|diff|repo|ref|box|quad"
)
_BEHIND_NO_OPERAND, _BEFORE_NO_OPERAND = r"(?<![\w)\]\"']<\|)", r"(?![\w(\[\"'])"

# Every alternative begins with a plain character, so that the search can skip to the next of these.
_FORMS = (
    r"<\|/?(?=\w*(?:[^\W\d_]{2}[_:-][^\W\d_]{2}|[^\W\d_]{5}_\d))\w[\w./:-]{1,62}\|>"  # several words
    rf"|<\|/?(?i:{_NAMES})\|>"
    rf"|<\|{_BEHIND_NO_OPERAND}/?(?i:{_VALUES})\|>|<\|/?(?i:{_VALUES})\|>{_BEFORE_NO_OPERAND}"
    # Another one at the beginning of a line or behind the last sentence, where an operator lacks what it works on.
    r"|<\|(?<![^\n>]<\|)[^\W\d_]{4,62}\|>(?=[^\W\d_]|\n|\Z)"
    r"|<\|(?<![\w \t)\]]<\|)[^\W\d_]{4,62}\|>(?=\s*\Z)"
    r"|<\uff5c[^<>\s]{1,64}\uff5c>"
)
_NUMBERED = (
    r"<SPECIAL_\d{1,4}>|<extra_id_\d{1,4}>"  # Nemotron H and Nano; 3 and 4
    r"|<reserved_\d{1,4}>|\[unused\d{1,4}\]"  # Baichuan; openPangu
)
_PLACED = (
    # MiniMax 2, behind its BOS or at the beginning of a line.
    r"\](?:(?<=~!b\[\])|(?<![^\n]\]))~b\](?=\w|\s|\Z)"
    r"|\[Round \d{1,4}\] USER:(?! )"  # LongCat, which writes the text right behind
    r"|<<SYS>>(?=\n)"  # Llama 2
    r"|<role>(?=(?:HUMAN|ASSISTANT|SYSTEM|OBSERVATION)</role>[^\s<])"  # Ling
    r"|<sep>(?=\s{0,2}(?:human|assistant|system):)"  # Reka
)
_SOMEWHERE = f"{_FORMS}|{_NUMBERED}|{_PLACED}|{any_of((*_TURNS, *_PARTS))}"
# Not in quotes, nor a part of a path.
_ELEMENT = rf"""<(?<!/<)(?:(?<!["'`]<)|(?=\w+>(?!["'`])))(?P<element>{any_of(_ELEMENTS)})>"""
_ANYWHERE = re.compile(f"{_SOMEWHERE}|{_ELEMENT}")
_AT_START = re.compile(rf"\s*({any_of(_BOS)}|\[THINK\](?=\w))")
_AT_END = re.compile(rf"(?:{_SOMEWHERE}|{_ELEMENT}|{any_of(_EOS)})\Z")
_MAX_TOKEN_CHARS = 80
# The tags with which HTML strikes a text through; in quotes, they are only spoken of.
_TAG = re.compile(r"""(?P<quote>["'`])</?s>(?P=quote)|(?P<opens><s(?:\s[^<>]{0,200})?>)|</s>""")
_BEGINNING = re.compile(rf"(?:\s*(?:{any_of(_BOS)}))*")
_NO_TEXT_FOLLOWS = re.compile(rf"\s*(?:\Z|{_SOMEWHERE}|{any_of((*_BOS, *_EOS))})")
# Elements on lines of their own, as no sequence begins and ends.
_BLOCK_BEGINS = re.compile(r"<s>[ \t]*\n\s*<[a-z]\w{0,20}(?:\s[^<>]{0,200})?>")
_BLOCK_ENDS = re.compile(r"</[a-z]\w{0,20}>[ \t]*\n[ \t]*</s>\Z")


class KnownTokens:
    """The special tokens of any policy.

    `</s>` after an unclosed `<s>` is HTML, and so is that `<s>`; but where `<s>` begins a whole text and no text
    follows on its `</s>`, they are BOS and EOS.
    """

    def find(self, text: str) -> Iterator[str]:
        """Each one in a text that was decoded."""
        edges = _without(text, _struck(text, is_whole=True)) if _HTML_END in text else text
        at = 0
        while (first := _AT_START.match(edges, at)) is not None:
            yield first.group(1)
            at = first.end()
        yield from (token for _, token in islice(_from_end(edges), MAX_AT_END))
        closed = {name for name in _ELEMENTS if f"</{name}>" in text}
        yield from (match.group() for match in _ANYWHERE.finditer(text) if match["element"] not in closed)

    def last(self, text: str) -> LastToken | None:
        """The one that ends a turn at the very end of a text, spaces aside; None: there is none."""
        run = list(islice(_from_end(text), MAX_AT_END))
        if not run:
            return None
        (start, token), (begin, _) = run[0], run[-1]
        is_word = _WORDS.issuperset(each for _, each in run) and text[:begin].endswith((" ", "\t"))
        is_html = token == _HTML_END and any(end > start for _, end in _struck(text, is_whole=False))
        return None if is_word or is_html or token in _ENDS_NO_TURN else LastToken(start, token in _PADDING)


def _struck(text: str, *, is_whole: bool) -> list[tuple[int, int]]:
    """Where HTML strikes a text through, from each `<s>` that is not within another to the end of its `</s>`.

    Args:
        text: What was decoded.
        is_whole: Whether BOS may begin it; otherwise it is a completion.
    """
    spans: list[tuple[int, int]] = []
    opened: list[tuple[int, bool]] = []  # where, and whether it may be BOS
    beginning = _BEGINNING.match(text) if is_whole else None
    after_bos = beginning.end() if beginning else 0
    after_eos = len(text)
    for tag in _TAG.finditer(text):
        start, end = tag.span()
        if tag["quote"]:
            continue
        if tag["opens"]:
            follows_eos = start >= after_eos and not text[after_eos:start].strip()
            opened.append((start, tag["opens"] == "<s>" and (start < after_bos or follows_eos)))
            after_eos = len(text)
            continue
        begin, may_be_bos = opened.pop() if opened else (end, True)
        if begin == end or (may_be_bos and _NO_TEXT_FOLLOWS.match(text, end) and not _is_block(text, begin, end)):
            after_eos = end
            continue
        while spans and spans[-1][0] > begin:
            spans.pop()
        spans.append((begin, end))
    return spans


def _is_block(text: str, begin: int, end: int) -> bool:
    return bool(
        _BLOCK_BEGINS.match(text, begin, end) and _BLOCK_ENDS.search(text[max(begin, end - _MAX_TOKEN_CHARS) : end])
    )


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    """A text with a word in place of each span, so that no token comes to an edge."""
    starts = [0, *(end for _, end in spans)]
    ends = [*(start for start, _ in spans), len(text)]
    return "struck".join(text[start:end] for start, end in zip(starts, ends, strict=True))


def _from_end(text: str) -> Iterator[tuple[int, str]]:
    """The tokens at the end of a text, from the last one on, and where they begin."""
    end = len(text)
    while True:
        end = len(text[:end].rstrip())
        tail = max(0, end - _MAX_TOKEN_CHARS)
        match = _AT_END.search(text[tail:end])
        if match is None or (match["element"] and f"</{match['element']}>" in text):
            return
        end = tail + match.start()
        yield end, match.group()
