"""A recipe with what the user says instead of a part of it, and what the user has to know of it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from plaudit_export.errors import SourceError
from plaudit_export.recipes.on_disk import Named
from plaudit_export.recipes.table import TRL, Recipe, TextRule
from plaudit_service.text.chat_template import ChatTemplateError, compile_chat_template

_PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})

# What the user said of the fields of a `TextRule`; None: nothing.
Said = Mapping[str, bool | None]


def settle(recipe: Recipe, said: Said, *, has_template: bool, template_ends_with_eos: bool) -> TextRule:
    """The rule of a recipe with what the user said instead.

    Args:
        recipe: where nothing was said.
        said: fields but for `chat_end`.
        has_template: chats are scored as one text.
        template_ends_with_eos: a chat's text ends with EOS, and newlines behind it.
    """
    rule = replace(recipe.rule, **_said(said))
    if not rule.append_eos:  # what leads up to EOS goes with it, but for what the user said
        strip_newlines, space = bool(said.get("strip_newlines")), bool(said.get("space_before_eos"))
        return replace(rule, strip_newlines=strip_newlines, space_before_eos=space, chat_end="as_text")
    chat_end = rule.chat_end
    if not recipe.rule.append_eos and template_ends_with_eos:
        chat_end = "eos"  # a second EOS behind those newlines is what no trainer makes
    return replace(rule, chat_end=chat_end if has_template and not rule.strip_newlines else "as_text")


def _said(said: Said) -> dict[str, Any]:
    return {name: value for name, value in said.items() if value is not None}


def refuse_contradiction(recipe: Recipe, said: Said) -> None:
    """Raise where the user named a recipe, and said otherwise of a part of it.

    Raises:
        SourceError: names the option.
    """
    for name, value in _said(said).items():
        if value != getattr(recipe.rule, name):
            option = name.replace("_", "-")
            raise SourceError(
                f"--{option if value else f'no-{option}'}: the recipe {recipe.name} says otherwise "
                f"({recipe.describe()}); leave out one of the two"
            )


def notes_on(chosen: Named, said: Said, name: str | None, could_append: str | None) -> list[str]:
    """Which recipe was taken, why, and how to take another.

    Args:
        chosen: the recipe, and why; `by` is empty where nothing names one.
        said: by the user.
        name: of the recipe that the rule is with all that the user said, None where it is nobody's.
        could_append: the text of EOS, where a trainer might have appended it.
    """
    recipe = chosen.recipe
    if chosen.by:
        otherwise = [field for field, value in _said(said).items() if value != getattr(recipe.rule, field)]
        but = f"; but for {', '.join(otherwise)}, as the options say" if otherwise else ""
        return [f"recipe {recipe.name}, because {chosen.by}: {recipe.describe()}{but} (--recipe)"]
    notes = []
    if name == recipe.name:
        notes.append(
            f"recipe {recipe.name}, because nothing on disk names a trainer: {recipe.whose} (--recipe); preference "
            "pairs can tell whether it is right (plaudit-export rules SOURCE --pairs FILE)"
        )
    if said["add_special_tokens"] is None:
        notes.append(
            "text and prompt + completion get the tokenizer's special tokens, as tokenizer(text) gives "
            "(--no-add-special-tokens)"
        )
    if said["append_eos"] is None and could_append is not None:
        notes.append(
            f"no EOS is appended; if the reward model was trained on texts that end with {could_append!r}, its scores "
            f"need --recipe {TRL.name}, which appends it to texts and not to chats, or --append-eos, which does to both"
        )
    return notes


def ends_with_eos(template: str, eos: str, tokens: Mapping[str, Any]) -> bool:
    """Whether a template ends a chat with EOS and newlines behind it, as ChatML does."""
    try:
        rendered = compile_chat_template(template, tokens)(_PROBE)
    except ChatTemplateError:
        return False
    return rendered.endswith("\n") and rendered.rstrip("\n").endswith(eos)
