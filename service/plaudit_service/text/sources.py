"""Items to the texts that are tokenized: what is put together, what the chat template writes, and how a text ends.

Knows nothing of tokens. The rules: docs/scoring.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import JsonValue

from plaudit_service.bundles.bundle import Bundle, Scoring, Steps
from plaudit_service.errors import BundleError, InvalidRequest
from plaudit_service.items import Along, ChatItem, Item, PromptItem, TextItem, TokenItem
from plaudit_service.text.chat_template import ChatTemplateError, compile_chat_template
from plaudit_service.text.places import (
    NO_MARKS,
    Marks,
    end_steps,
    is_ended,
    read_marks,
    step_ends,
    step_pieces,
    with_marks,
)

# What a sequence costs besides its text, in characters.
_SOURCE_CHARS = 64


@dataclass(frozen=True)
class Source:
    """What one sequence is made from: text (or a pair of texts) to encode, or ids, or an error already.

    `index` says which of the request's sequences it is, `where` which of its items.
    `pieces` are what the text is made of, where they are encoded one by one: what comes before the steps, then a step
    and an end in turn. `num_steps` counts the steps that the caller gave to a model that knows steps.
    """

    where: str
    text: str | tuple[str, str] | None = None
    pieces: tuple[str, ...] | None = None
    num_steps: int | None = None
    token_ids: list[int] | None = None
    error: str | None = None
    add_special_tokens: bool = False
    append_eos: bool = False
    marks: Marks = NO_MARKS
    index: int = 0

    @property
    def size(self) -> int:
        """About what its tokenization costs, in characters."""
        text = self.text or self.token_ids or ""
        return _SOURCE_CHARS + (len(text) if not isinstance(text, tuple) else len(text[0]) + len(text[1]))


class Sources:
    """The rules and the chat template of one bundle.

    Raises:
        BundleError: the template cannot be compiled.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._scoring = bundle.scoring
        self._name = bundle.name
        self._render = None
        if bundle.chat_template is not None:
            try:
                self._render = compile_chat_template(bundle.chat_template, _template_tokens(self._scoring))
            except ChatTemplateError as error:
                raise BundleError(f"bundle {bundle.path}: {error}") from error

    def of(self, where: str, item: Item, along: Along) -> Iterator[Source]:
        """What the sequences of an item are made from.

        Args:
            where: The item's place in the request.
            item: One entry of it.
            along: What is asked for along the texts.

        Raises:
            InvalidRequest: it has a form that this bundle cannot score.
        """
        knows_steps = self._scoring.steps is not None
        if along == "steps" and not knows_steps and (isinstance(item, TextItem | TokenItem) or item.steps is None):
            raise InvalidRequest(
                f'{where}: along is "steps", and neither the item nor model "{self._name}" says what a step is; give '
                'steps: [str] in place of the completion, or ask for "tokens"'
            )
        match item:
            case TokenItem():
                self._refuse_if_pair(where)
                yield Source(where, token_ids=item.token_ids)
            case TextItem():
                self._refuse_if_pair(where)
                if self._scoring.steps is not None:
                    yield self._in_steps(where, "", item.text, item.finished)
                else:
                    yield self._source(where, item.text, item.finished)
            case PromptItem():
                completions = [item.completion or ""] if item.completions is None else item.completions
                marks = NO_MARKS
                if self._scoring.steps is not None:
                    for completion in [item.steps] if item.steps is not None else completions:
                        yield self._in_steps(where, item.prompt, completion, item.finished)
                    return
                if item.steps is not None:
                    completions, marks = ["".join(item.steps)], Marks(None, step_ends(len(item.prompt), item.steps))
                for completion in completions:
                    text = (item.prompt, completion) if self._scoring.pair else item.prompt + completion
                    yield replace(self._source(where, text, item.finished), marks=marks)
            case ChatItem():
                yield from self._chat(where, item, along)

    def _refuse_if_pair(self, where: str) -> None:
        if self._scoring.pair:
            raise InvalidRequest(
                f'{where}: model "{self._name}" was trained on pairs and scores prompt with completion only, '
                "or one user and one assistant turn"
            )

    def _source(self, where: str, text: str | tuple[str, str], finished: bool) -> Source:
        return Source(
            where,
            text=self._ended(text, self._scoring.strip_newlines) if finished and isinstance(text, str) else text,
            add_special_tokens=self._scoring.add_special_tokens,
            append_eos=self._scoring.append_eos and finished,
        )

    def _in_steps(self, where: str, prompt: str, steps: Sequence[str] | str, finished: bool) -> Source:
        """A text of a model that knows steps, whose completion is given in steps or whole."""
        rule = self._scoring.steps
        assert rule is not None
        written, num_steps = _written(steps, rule, finished=finished)
        if not rule.apart:
            return replace(self._source(where, prompt + written, finished), num_steps=num_steps)
        return Source(where, prompt + written, pieces=(prompt, *step_pieces(written, rule.end)), num_steps=num_steps)

    def _ended(self, text: str, strip_newlines: bool) -> str:
        """A finished text as its ending begins; EOS itself is appended to the ids where the text has none yet."""
        scoring = self._scoring
        if strip_newlines:
            text = text.rstrip("\n")
        if text and scoring.space_before_eos and scoring.eos and not text.endswith(scoring.eos.text):
            return f"{text} {scoring.eos.text}"
        return text

    def _chat(self, where: str, item: ChatItem, along: Along) -> Iterator[Source]:
        chat_end = self._scoring.chat_end
        ended = item.finished and chat_end != "template"
        strip_newlines = self._scoring.strip_newlines or chat_end == "eos"
        head = [message.to_template() for message in item.messages]
        tails: list[list[dict[str, JsonValue]]] = [[]]
        completions = ["".join(item.steps)] if item.steps is not None else item.completions
        num_steps = None
        rule = self._scoring.steps
        if rule is not None and item.steps is not None:
            written, num_steps = _written(item.steps, rule, finished=item.finished)
            completions = [written]
        elif rule is not None and completions is not None:
            completions = [_written(each, rule, finished=item.finished)[0] for each in completions]
        elif rule is not None and isinstance(content := head[-1].get("content"), str):
            head[-1] |= {"content": _written(content, rule, finished=item.finished)[0]}
        if completions is not None:
            tails = [[{"role": "assistant", "content": completion}] for completion in completions]
        for tail in tails:
            messages = head + tail
            if self._scoring.pair:
                yield self._source(where, self._pair(where, messages), item.finished)
                continue
            if self._render is None:
                raise InvalidRequest(
                    f'{where}: model "{self._name}" has no chat template; send prompt and completion, or export the '
                    "bundle again with --chat-template FILE"
                )
            try:
                text = self._render(messages)
            except ChatTemplateError as error:
                yield Source(where, error=str(error))
                continue
            marks = NO_MARKS if along == "none" else self._marks(messages, text, None if rule else item.steps)
            if along == "steps" and marks.step_ends is None and rule is None:
                yield Source(where, error="the chat template changes the steps; send a prompt in place of a chat")
            else:
                yield Source(
                    where,
                    text=self._ended(text, strip_newlines) if ended else text,
                    add_special_tokens=self._scoring.chat_special_tokens,
                    append_eos=self._scoring.append_eos and ended,
                    marks=marks,
                    num_steps=num_steps,
                )

    def _marks(self, messages: Sequence[Mapping[str, JsonValue]], text: str, steps: Sequence[str] | None) -> Marks:
        """Where a rendered chat has its messages, and the steps of the last one."""
        assert self._render is not None
        marked = with_marks(messages, () if steps is None else step_ends(0, steps))
        try:
            rendered = self._render(marked)
        except ChatTemplateError:  # a template that looks at what the contents say
            return Marks(messages=())
        return read_marks(text, rendered, None if steps is None else len(steps))

    def _pair(self, where: str, messages: Sequence[Mapping[str, JsonValue]]) -> tuple[str, str]:
        """The two texts of a chat, for a model that was trained on pairs.

        Raises:
            InvalidRequest: it is not one text of a user and one of an assistant, and nothing else.
        """
        model = f'{where}: model "{self._name}" was trained on pairs and scores'
        if [message["role"] for message in messages] != ["user", "assistant"]:
            raise InvalidRequest(f"{model} one user and one assistant turn; this chat has {len(messages)} turns")
        if others := {key for message in messages for key in message} - {"role", "content"}:
            raise InvalidRequest(f"{model} texts alone; leave {', '.join(sorted(others))} out")
        prompt, completion = (message["content"] for message in messages)
        assert isinstance(prompt, str)
        assert isinstance(completion, str)
        return prompt, completion


def _written(steps: Sequence[str] | str, rule: Steps, *, finished: bool) -> tuple[str, int | None]:
    """A completion as a model that knows steps reads it, and how many steps end in it where that is known."""
    whole = isinstance(steps, str)
    ended = end_steps([steps] if isinstance(steps, str) else steps, rule.end, finished=finished)
    return "".join(ended), None if whole else sum(is_ended(step, rule.end) for step in ended)


def _template_tokens(scoring: Scoring) -> dict[str, str | list[str]]:
    """The special tokens that the chat template finds by name; as in transformers, one that is missing is undefined."""
    named = {"bos_token": scoring.bos, "eos_token": scoring.eos}
    return scoring.template_tokens | {name: token.text for name, token in named.items() if token is not None}
