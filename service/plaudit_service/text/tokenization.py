"""Items to sequences of token ids, equal to what transformers gives for the same input.

Knows nothing of batches, engines or HTTP. The rules and the one exception (no second BOS): docs/scoring.md.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer, models

from plaudit_service.bundles.bundle import TOKENIZER, Bundle, SpecialToken
from plaudit_service.errors import BundleError, InvalidRequest
from plaudit_service.items import Along, Item, Truncation
from plaudit_service.results import Result, Status
from plaudit_service.text.places import Places, as_spans, find_places, step_tokens
from plaudit_service.text.sources import Source, Sources
from plaudit_service.text.token_ids import Ids

# A step of tokenization ends behind this many characters: tens of milliseconds.
_STEP_CHARS = 65_536


@dataclass(frozen=True, eq=False)
class TokenizedText:
    """One sequence, ready for the engine.

    Attributes:
        token_ids: shape (T,), int64, 1 <= T <= max_tokens; of a causal model it ends with the pooled token.
        type_ids: shape (T,), int64, or None where all are 0.
        num_tokens: tokens of the whole text, before truncation.
        truncated: whether tokens were left out.
        places: of the tokens that a value is asked for; None: none is.
        text: what is scored, where that is asked for and there is a text.
        index: which of the request's sequences it is; outcomes and results go by it.
    """

    token_ids: Ids
    type_ids: Ids | None
    num_tokens: int
    truncated: bool
    places: Places | None = None
    text: str | None = None
    index: int = 0


@dataclass(frozen=True)
class Asked:
    """What is asked for besides the score, and of a text that is too long."""

    truncation: Truncation = "error"
    along: Along = "none"
    explain: bool = False


@dataclass(frozen=True)
class _Encoded:
    """What the tokenizer made of one text.

    Attributes:
        ids: of the tokens.
        type_ids: one for each.
        num_trailing: special tokens that it added at the end.
        spans: (start, end) of each token in the text, in code points; None where there is no text, or nobody asks.
        num_before: first tokens in which no step ends.
    """

    ids: list[int]
    type_ids: list[int]
    num_trailing: int
    spans: Ids | None = None
    num_before: int = 0


class TokenizerPanic(Exception):  # noqa: N818  named as what Rust calls it
    """The Rust library found a bug in itself, or was given a tokenizer that it did not check."""


class Tokenization:
    """The tokenizer and chat template of one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self._scoring = bundle.scoring
        self._name = bundle.name
        try:
            self._tokenizer = _call(Tokenizer.from_file, str(bundle.path / TOKENIZER))
        except Exception as error:  # the Rust library raises plain Exception
            raise BundleError(f"bundle {bundle.path}: {TOKENIZER} cannot be read ({error}); export it again") from error
        if self._tokenizer.truncation is not None or self._tokenizer.padding is not None:
            raise BundleError(
                f"bundle {bundle.path}: {TOKENIZER} truncates or pads, so scores would be wrong; export again"
            )
        added = self._tokenizer.get_added_tokens_decoder()
        special = {id_ for id_, token in added.items() if token.special} - self._unknown_ids()
        self._special_ids = np.array(sorted(special), dtype=np.int64)
        self._sources = Sources(bundle)

    def has_token(self, text: str) -> bool:
        """Whether the vocabulary has this text as one token."""
        return self._tokenizer.token_to_id(text) is not None

    def tokenize(self, items: Sequence[Item], asked: Asked = Asked()) -> list[TokenizedText | Result]:
        """Make the sequences of all items, in order; a `Result` stands where there is nothing to compute.

        Raises:
            InvalidRequest: an item has a form that this bundle cannot score, or an id outside of the vocabulary.
        """
        return [text for step in self.steps(items, asked) for text in step]

    def steps(
        self,
        items: Sequence[Item],
        asked: Asked = Asked(),
    ) -> Iterator[list[TokenizedText | Result]]:
        """What `tokenize` does, in steps of bounded work: the next sequences of each, in order.

        Raises:
            InvalidRequest: as there.
        """
        sources: list[Source] = []
        size = index = 0
        for number, item in enumerate(items):
            for source in self._sources.of(f"items[{number}]", item, asked.along):
                sources.append(replace(source, index=index))
                index += 1
                size += source.size
                if size >= _STEP_CHARS:
                    yield self._step(sources, asked)
                    sources, size = [], 0
        if sources:
            yield self._step(sources, asked)

    def _step(self, sources: Sequence[Source], asked: Asked) -> list[TokenizedText | Result]:
        encoded = self._encode(sources, with_spans=asked.along != "none")
        return [
            replace(
                self._finish(source, ids, asked),
                text=source.text if asked.explain and isinstance(source.text, str) else None,
                index=source.index,
            )
            for source, ids in zip(sources, encoded, strict=True)
        ]

    def _encode(self, sources: Sequence[Source], *, with_spans: bool) -> list[_Encoded | str]:
        """The tokens of each source, or an error text."""
        encoded: list[_Encoded | str] = [
            _Encoded(source.token_ids or [], [], 0) if source.error is None else source.error for source in sources
        ]
        for at, source in enumerate(sources):
            if source.pieces is not None:
                encoded[at] = self._encode_pieces(source.pieces)
        for add_special_tokens in (False, True):
            places = [
                at
                for at, source in enumerate(sources)
                if source.text is not None and source.pieces is None and source.add_special_tokens is add_special_tokens
            ]
            texts = [sources[at].text for at in places]
            try:
                encodings = _call(self._tokenizer.encode_batch, texts, add_special_tokens=add_special_tokens)
            except Exception:  # noqa: BLE001  one text that the tokenizer cannot take must not fail its mates
                for at in places:
                    encoded[at] = self._encode_alone(sources[at], with_spans=with_spans)
            else:
                for at, encoding in zip(places, encodings, strict=True):
                    encoded[at] = _as_encoded(encoding, with_spans=with_spans)
        return encoded

    def _encode_pieces(self, pieces: Sequence[str]) -> _Encoded | str:
        """Each piece by itself, behind BOS where the tokenizer has one and the text does not begin with it."""
        try:
            different = list(dict.fromkeys(pieces))
            made = _call(self._tokenizer.encode_batch, different, add_special_tokens=False)
        except Exception as error:  # noqa: BLE001  the Rust library raises plain Exception
            return f"the tokenizer failed: {type(error).__name__}"
        bos = self._scoring.bos
        by_piece = dict(zip(different, made, strict=True))
        encodings = [by_piece[piece] for piece in pieces]
        first = next((encoding.ids[0] for encoding in encodings if encoding.ids), None)
        ids: list[int] = [] if bos is None or first == bos.id else [bos.id]
        offsets = [(0, 0)] * len(ids)
        num_before = len(ids) + len(encodings[0].ids)
        start = 0
        for piece, encoding in zip(pieces, encodings, strict=True):
            ids += encoding.ids
            offsets += [(start + begin, start + stop) for begin, stop in encoding.offsets]
            start += len(piece)
        return _Encoded(ids, [], 0, as_spans(offsets) if ids else None, num_before)

    def _encode_alone(self, source: Source, *, with_spans: bool) -> _Encoded | str:
        try:
            (encoding,) = _call(
                self._tokenizer.encode_batch, [source.text], add_special_tokens=source.add_special_tokens
            )
        except Exception as error:  # noqa: BLE001  the Rust library raises plain Exception
            return f"the tokenizer failed: {type(error).__name__}"
        return _as_encoded(encoding, with_spans=with_spans)

    def _finish(self, source: Source, encoded: _Encoded | str, asked: Asked) -> TokenizedText | Result:
        if isinstance(encoded, str):
            return Result(Status.FAILED, None, 0, detail=f"{source.where}: {encoded}")
        ids = np.array(encoded.ids, dtype=np.int64)
        if self._is_empty(source, ids):
            detail = f"{source.where}: there is no token besides special ones"
            return Result(Status.EMPTY, None, len(ids), detail=detail)
        if ids.max() >= self._scoring.vocab_size:
            return self._outside_of_vocabulary(source, ids)
        type_ids = np.array(encoded.type_ids, dtype=np.int64) if any(encoded.type_ids) else None
        num_trailing, spans = encoded.num_trailing, encoded.spans
        if self._has_second_bos(source, ids):
            ids, type_ids = ids[1:], None if type_ids is None else type_ids[1:]
            spans = None if spans is None else spans[1:]
        for token in self._ending(source):
            if ids[-1] != token.id:
                ids = np.append(ids, token.id)
                type_ids = None if type_ids is None else np.append(type_ids, type_ids[-1])
                spans = None if spans is None else np.append(spans, [spans[-1, [1, 1]]], axis=0)
                num_trailing += 1
            num_trailing = max(num_trailing, 1)
        if self._scoring.steps is None:
            return self._fit(source, ids, type_ids, spans, num_trailing, asked)
        ends = np.flatnonzero(ids == self._scoring.steps.token.id)
        ends = ends[ends >= encoded.num_before]
        if source.num_steps not in {None, len(ends)}:
            detail = f"{source.where}: {len(ends)} steps end in the text, but {source.num_steps} steps were given"
            return Result(Status.FAILED, None, len(ids), detail=detail)
        return self._fit(source, ids, type_ids, spans, num_trailing, asked, ends)

    def _ending(self, source: Source) -> list[SpecialToken]:
        """The tokens that a text ends with by the model's rules; ids of the caller's are scored as they are."""
        if source.text is None:
            return []
        ending = [self._scoring.eos if source.append_eos else None, self._scoring.class_token]
        return [token for token in ending if token is not None]

    def _outside_of_vocabulary(self, source: Source, ids: Ids) -> Result:
        """The caller's ids show another tokenizer, and that every item is wrong; a text's show a wrong bundle."""
        detail = (
            f'{source.where}: token id {ids.max()}, but the vocabulary of model "{self._name}" has '
            f"{self._scoring.vocab_size} entries"
        )
        if source.token_ids is not None:
            raise InvalidRequest(f"{detail}; send ids of its own tokenizer")
        return Result(Status.FAILED, None, len(ids), detail=f"{detail}; its tokenizer has more tokens than the model")

    def _fit(
        self,
        source: Source,
        ids: Ids,
        type_ids: Ids | None,
        spans: Ids | None,
        num_trailing: int,
        asked: Asked,
        ends: Ids | None = None,
    ) -> TokenizedText | Result:
        """Bring a sequence to the model's positions, and a causal one to its pooled token.

        `ends` are the tokens that end a step, where the model knows steps.
        """
        scoring, num_tokens = self._scoring, len(ids)
        truncated = num_tokens > scoring.max_tokens
        if truncated and asked.truncation == "error":
            detail = (
                f'{source.where}: {num_tokens} tokens, limit {scoring.max_tokens} (model "{self._name}"); shorten it '
                'or send truncation="left"'
            )
            return Result(Status.TOO_LONG, None, num_tokens, detail=detail)
        kept = self._kept(ids, num_trailing, asked.truncation) if truncated else np.arange(num_tokens)
        if truncated:
            ids, type_ids = ids[kept], None if type_ids is None else type_ids[kept]
        if ends is not None:
            there = np.flatnonzero(np.isin(kept, ends))
            if len(there) == 0:
                return Result(Status.EMPTY, None, num_tokens, truncated, f"{source.where}: no step ends in the text")
            ids, type_ids = ids[: there[-1] + 1], None
        elif scoring.kind == "causal":
            ids, type_ids = ids[: pooled_index(ids, scoring.pad_token_id, scoring.pooled_before) + 1], None
        places = None
        if asked.along != "none":
            steps = ends
            if asked.along == "tokens":
                steps = None
            elif steps is None:
                assert spans is not None
                assert source.marks.step_ends is not None
                steps = step_tokens(spans, source.marks.step_ends)
            places = find_places(kept[: len(ids)], spans, source.marks, steps)
        return TokenizedText(ids, type_ids, num_tokens, truncated, places)

    def _is_empty(self, source: Source, ids: Ids) -> bool:
        """Ids are scored as they are, special or not; a text has to hold something besides special tokens."""
        if source.token_ids is not None or len(ids) == 0:
            return len(ids) == 0
        return bool(np.isin(ids, self._special_ids).all())

    def _has_second_bos(self, source: Source, ids: Ids) -> bool:
        """Whether the tokenizer put a BOS before a text that begins with one."""
        bos = self._scoring.bos
        if bos is None or source.text is None or not source.add_special_tokens:
            return False
        text = source.text if isinstance(source.text, str) else source.text[0]
        return text.startswith(bos.text) and ids[:2].tolist() == [bos.id, bos.id]

    def _kept(self, ids: Ids, num_trailing: int, truncation: Truncation) -> Ids:
        """Positions that stay: the end and the leading special tokens, or the start and the added trailing ones."""
        limit = self._scoring.max_tokens
        at = np.arange(len(ids))
        if truncation == "left":
            num_leading = min(int(np.argmin(np.isin(ids, self._special_ids))), limit - 1)
            return np.concatenate([at[:num_leading], at[len(ids) - (limit - num_leading) :]])
        num_trailing = min(num_trailing, limit - 1)
        return np.concatenate([at[: limit - num_trailing], at[len(ids) - num_trailing :]])

    def _unknown_ids(self) -> set[int]:
        """The id that stands for what the vocabulary lacks: it is content, though tokenizers flag it as special.

        Not where the model uses one id for both, as GPT-2 does.
        """
        model = self._tokenizer.model
        if isinstance(model, models.Unigram):
            unknown = json.loads(self._tokenizer.to_str())["model"]["unk_id"]
        else:
            unknown = self._tokenizer.token_to_id(getattr(model, "unk_token", None) or "")
        bos, eos = self._scoring.bos, self._scoring.eos
        return {unknown} - {self._scoring.pad_token_id, bos and bos.id, eos and eos.id}


def _call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call the Rust library. Its panic is no `Exception`, so it would end whole requests.

    Raises:
        TokenizerPanic: it panicked; the library itself has written why to standard error.
    """
    try:
        return function(*arguments, **options)
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise TokenizerPanic from error
        raise


def _as_encoded(encoding: Encoding, *, with_spans: bool) -> _Encoded:
    added = encoding.special_tokens_mask[::-1]
    spans = as_spans(encoding.offsets) if with_spans and encoding.ids else None
    return _Encoded(encoding.ids, encoding.type_ids, added.index(0) if 0 in added else 0, spans)


def pooled_index(
    token_ids: Ids, pad_token_id: int | None, pooled_before: int | None = None, step_token_id: int | None = None
) -> int:
    """Which token of a causal model's sequence is scored: the rightmost that is no padding.

    transformers, `GenericForSequenceClassification.forward`: by id, whatever the mask, so that with pad == EOS a final
    EOS is not pooled; no pad id: the last token; nothing but pads: index 0.

    Where `pooled_before` is an id: the token before the first one of that id, as classes of other trainers count; none
    of that id, or it is the very first: the last token.

    Where `step_token_id` is one: the rightmost token of that id; none: the last token.
    """
    if step_token_id is not None:
        ends = np.flatnonzero(token_ids == step_token_id)
        return int(ends[-1]) if len(ends) else len(token_ids) - 1
    if pooled_before is not None:
        found = np.flatnonzero(token_ids == pooled_before)
        return (int(found[0]) - 1 if len(found) else -1) % len(token_ids)
    if pad_token_id is None:
        return len(token_ids) - 1
    real = np.flatnonzero(token_ids != pad_token_id)
    return int(real[-1]) if len(real) else 0
