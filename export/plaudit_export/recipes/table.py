"""The text rules of trainers, one row each, under the names that users know."""

from dataclasses import dataclass

from plaudit_service.bundles.bundle import ChatEnd


@dataclass(frozen=True)
class TextRule:
    """How a trainer made its texts, by the fields of the manifest's `scoring`."""

    add_special_tokens: bool = True
    chat_special_tokens: bool = False
    append_eos: bool = False
    strip_newlines: bool = False
    space_before_eos: bool = False
    chat_end: ChatEnd = "as_text"


@dataclass(frozen=True)
class Recipe:
    """A trainer's text rule.

    Attributes:
        name: what users call it.
        whose: who makes texts so.
        rule: how.
        own_template: chats are written by a template of the trainer's own, which need not be the tokenizer's.
    """

    name: str
    whose: str
    rule: TextRule
    own_template: bool = False

    def describe(self) -> str:
        """The rule in words."""
        return f"{_of_texts(self.rule)}; {_of_chats(self.rule, own_template=self.own_template)}"


TEMPLATE = Recipe("template", "tokenizer(text) and apply_chat_template(chat) of transformers", TextRule())
HF = Recipe(
    "hf",
    "model cards that call tokenizer(rendered chat), and TRL before 0.24",
    TextRule(chat_special_tokens=True),
)
TRL = Recipe("trl", "RewardTrainer of TRL 0.24 and later", TextRule(append_eos=True, chat_end="template"))
OPENRLHF = Recipe(
    "openrlhf",
    "OpenRLHF",
    TextRule(add_special_tokens=False, append_eos=True, strip_newlines=True, space_before_eos=True),
)
LLAMAFACTORY = Recipe("llamafactory", "LLaMA-Factory", TextRule(add_special_tokens=False), own_template=True)
SAFE_RLHF = Recipe("safe-rlhf", "safe-rlhf and align-anything", TextRule(append_eos=True), own_template=True)

RECIPES = {recipe.name: recipe for recipe in (TEMPLATE, HF, TRL, OPENRLHF, LLAMAFACTORY, SAFE_RLHF)}


def _of_texts(rule: TextRule) -> str:
    special = "the tokenizer's special tokens" if rule.add_special_tokens else "no special tokens"
    said = [f"text and prompt + completion get {special}"]
    if rule.strip_newlines:
        said.append("newlines at their end are stripped")
    if rule.append_eos:
        said.append("a space and EOS are appended" if rule.space_before_eos else "EOS is appended")
    else:
        said.append("no EOS is appended")
    return ", ".join(said)


def _of_chats(rule: TextRule, *, own_template: bool) -> str:
    template = "the trainer's own template (--chat-template)" if own_template else "their template"
    special = "with the special tokens too, but no second BOS" if rule.chat_special_tokens else "and no more"
    if not rule.append_eos:
        return f"chats are what {template} writes, {special}"
    endings: dict[ChatEnd, str] = {
        "as_text": "end as texts do",
        "template": "end as the template ends them",
        "eos": "end with EOS, newlines at their end stripped",
    }
    return f"chats are what {template} writes, {special}, and {endings[rule.chat_end]}"
