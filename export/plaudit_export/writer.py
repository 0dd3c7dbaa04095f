"""Writes a bundle's files aside and puts them in place at the end, so that there is never half a bundle.

Knows nothing of models.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from tokenizers import Tokenizer

from plaudit_export.errors import ExportError, SourceError
from plaudit_service.bundles.bundle import (
    CHAT_TEMPLATE,
    GOLDEN,
    MANIFEST,
    TOKENIZER,
    Golden,
    Manifest,
    ScoringFile,
    sha256_of,
)
from plaudit_service.whole_files import whole_directory


@contextmanager
def staged(bundle: Path, *, force: bool) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `bundle` when the block ends well, and vanishes otherwise.

    Args:
        bundle: where the files belong; its parents are made.
        force: replace a bundle that is there already.

    Raises:
        SourceError: something is there already that must not be replaced.
        ExportError: the directory cannot be written.
    """
    try:
        bundle = bundle.expanduser().resolve()
        str(bundle).encode()
        _check_target(bundle, force=force)
    except (OSError, RuntimeError, UnicodeEncodeError) as error:  # such as a loop of links, or a name that is no UTF-8
        raise SourceError(f"{bundle}: cannot be written ({error}); choose another path") from error
    aside = None
    try:
        with whole_directory(bundle, replace=True) as aside:
            yield aside
    except OSError as error:
        if aside is None:
            raise SourceError(f"{bundle}: cannot be written ({error.strerror})") from error
        raise ExportError(f"{bundle}: cannot be written ({error})") from error


def _check_target(bundle: Path, *, force: bool) -> None:
    if not bundle.exists():
        return
    if not bundle.is_dir() or (any(bundle.iterdir()) and not (bundle / MANIFEST).is_file()):
        raise SourceError(f"{bundle}: exists and is not a bundle; choose another path")
    if (bundle / MANIFEST).is_file() and not force:
        raise SourceError(f"{bundle}: already exists; choose another path, or replace the bundle with --force")


def write_tokenizer(backend: Tokenizer, directory: Path) -> None:
    """Serialize the loaded tokenizer without truncation and padding.

    A copy of the checkpoint's file would keep its truncation (MiniLM's cuts at 128 tokens), and without an error.
    """
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(directory / TOKENIZER), pretty=False)


def write_chat_template(template: str, directory: Path) -> None:
    """Write the template's text as it is."""
    (directory / CHAT_TEMPLATE).write_bytes(template.encode())


def write_golden(records: Iterable[Golden], directory: Path) -> None:
    """Write one reference text per line."""
    lines = [
        json.dumps(
            {"item": record.item, "token_ids": record.token_ids, "heads": record.heads, "score": record.score}
            | ({} if record.along is None else {"along": record.along}),
            ensure_ascii=False,
        )
        for record in records
    ]
    (directory / GOLDEN).write_bytes("".join(f"{line}\n" for line in lines).encode())


def scoring_hashes(directory: Path) -> dict[ScoringFile, str]:
    """Hashes of the files that can change a score, as far as they are there."""
    return {name: sha256_of(directory / name) for name in get_args(ScoringFile) if (directory / name).is_file()}


def write_manifest(manifest: Manifest, directory: Path) -> None:
    """Write `bundle.json`, for people to read."""
    write_json(manifest.model_dump(mode="json"), directory / MANIFEST)


def write_json(content: Any, path: Path) -> None:
    """Write indented JSON with sorted keys."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
