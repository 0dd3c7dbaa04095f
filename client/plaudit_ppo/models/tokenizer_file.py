"""The policy's and the critic's tokenizer: `tokenizer.json` as it lies on disk.

transformers 5 rebuilds the normalizer and the pre-tokenizer of many checkpoints from the class that it takes a
tokenizer for, so its AutoTokenizer may give other ids than the file. plaudit-export does the same for reward models.
"""

import importlib.util
import json
from pathlib import Path

from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from plaudit_ppo.errors import CheckpointError
from plaudit_ppo.models.networks import load_pretrained

_FILE = "tokenizer.json"
_CONFIG = "tokenizer_config.json"


def load_tokenizer(path: str | Path, what: str) -> PreTrainedTokenizerBase:
    """AutoTokenizer's, with the ids of `tokenizer.json` where there is one.

    Tokens that the other files add, and `add_bos_token` of tokenizer_config.json, are honoured. A special token that
    only the tokenizer's class names, and that the vocabulary does not have, is none.

    Args:
        path: directory of the checkpoint.
        what: how messages name it.

    Raises:
        CheckpointError: the directory is missing or cannot be loaded.
    """
    file = Path(path) / _FILE
    if not file.is_file():
        _check_sentencepiece(Path(path), what)
    tokenizer: PreTrainedTokenizerBase = load_pretrained(AutoTokenizer, path, what)
    if not file.is_file():
        return tokenizer
    backend = Tokenizer.from_file(str(file))
    backend.no_truncation()
    backend.no_padding()
    declared = load_pretrained(PreTrainedTokenizerFast, path, what)
    backend.add_tokens([token for _, token in sorted(declared.added_tokens_decoder.items())])
    _set_bos(backend, declared.bos_token, Path(path) / _CONFIG)
    tokenizer._tokenizer = backend  # the only way to keep all else that its class knows
    for name, token in tokenizer.special_tokens_map.items():
        if isinstance(token, str) and backend.token_to_id(token) is None:
            setattr(tokenizer, name, None)
    return tokenizer


def _check_sentencepiece(path: Path, what: str) -> None:
    """Refuse what transformers takes for tiktoken's, and asks for tiktoken, where sentencepiece is missing."""
    models = sorted(path.glob("*.model"))
    if models and importlib.util.find_spec("sentencepiece") is None:
        raise CheckpointError(
            f"{what}: {models[0]} is a sentencepiece model without {_FILE}; reading it needs sentencepiece: pip "
            "install sentencepiece protobuf"
        )


def _set_bos(backend: Tokenizer, bos: str | None, config: Path) -> None:
    """BOS before every text, or not, where `add_bos_token` says otherwise than the file does.

    `add_eos_token` has no effect: whatever stands behind a prompt is taken off (`encode_prompt`).

    Raises:
        CheckpointError: it is neither true nor false.
    """
    add_bos = json.loads(config.read_bytes()).get("add_bos_token") if config.is_file() else None
    if not isinstance(add_bos, bool | None):
        raise CheckpointError(f"{config}: add_bos_token {add_bos!r} is neither true nor false; correct it")
    if bos is None or add_bos is None or add_bos == (backend.encode("").tokens[:1] == [bos]):
        return
    leading, ids = ([bos], [(bos, backend.token_to_id(bos))]) if add_bos else ([], [])
    backend.post_processor = processors.TemplateProcessing(
        single=[*leading, "$A"], pair=[*leading, "$A", *leading, "$B"], special_tokens=ids
    )
