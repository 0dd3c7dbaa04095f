"""What is exported once, what is exported anew, and what is left when an export ends early."""

import os
import threading
from pathlib import Path

import pytest

from plaudit_export import export_cache
from plaudit_export.errors import ExportError, SourceError
from plaudit_export.export_cache import cached_bundle


class Exports:
    """An export that takes no time; `sources` are those that were exported."""

    def __init__(self, on_export=lambda: None):
        self.sources = []
        self.on_export = on_export

    def __call__(self, source, directory):
        self.sources.append(source)
        directory.mkdir()
        (directory / "bundle.json").write_text("{}")
        self.on_export()


@pytest.fixture
def checkpoint(tmp_path):
    directory = tmp_path / "rm"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"weights")
    return directory


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def replace_keeping_times(file: Path, content: bytes):
    before = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_checkpoint_is_exported_once(checkpoint, cache):
    export, said = Exports(), []
    bundle = cached_bundle(str(checkpoint), {}, export, cache=cache)
    assert (bundle.parent.parent, bundle.name) == (cache, "bundle")
    assert bundle.parent.name.startswith("rm-")
    (checkpoint / "README.md").write_text("not of the model")
    (checkpoint / "optimizer.pt").write_bytes(b"neither")
    os.utime(checkpoint / "model.safetensors")
    assert cached_bundle(str(checkpoint), {}, export, cache=cache, say=said.append) == bundle
    assert export.sources == [str(checkpoint)]
    assert said == [f"using {bundle}, which was exported before"]


def test_other_weights_of_the_same_size_and_time_are_exported_anew(checkpoint, cache):
    export = Exports()
    first = cached_bundle(str(checkpoint), {}, export, cache=cache)
    replace_keeping_times(checkpoint / "model.safetensors", b"WEIGHTS")
    assert cached_bundle(str(checkpoint), {}, export, cache=cache) != first
    assert len(export.sources) == 2


def test_other_options_and_other_versions_are_exported_anew(checkpoint, cache, monkeypatch):
    export = Exports()
    cached_bundle(str(checkpoint), {"append_eos": None}, export, cache=cache)
    cached_bundle(str(checkpoint), {"append_eos": True}, export, cache=cache)
    assert len(export.sources) == 2
    monkeypatch.setattr(export_cache, "versions", lambda *_: {"plaudit": "9.9"})
    cached_bundle(str(checkpoint), {"append_eos": True}, export, cache=cache)
    assert len(export.sources) == 3


def test_a_file_of_the_options_counts_by_its_content(checkpoint, cache, tmp_path):
    export, golden, other = Exports(), tmp_path / "golden.jsonl", tmp_path / "other.jsonl"
    golden.write_text('{"text": "a"}')
    other.write_text('{"text": "a"}')
    cached_bundle(str(checkpoint), {"golden": golden}, export, cache=cache)
    cached_bundle(str(checkpoint), {"golden": other}, export, cache=cache)
    assert len(export.sources) == 1
    other.write_text('{"text": "b"}')
    cached_bundle(str(checkpoint), {"golden": other}, export, cache=cache)
    assert len(export.sources) == 2
    with pytest.raises(SourceError, match=r"missing\.jsonl: cannot be read \(No such file"):
        cached_bundle(str(checkpoint), {"golden": tmp_path / "missing.jsonl"}, export, cache=cache)


def test_a_checkpoint_that_changes_while_it_is_exported_is_refused_and_nothing_is_kept(checkpoint, cache):
    export = Exports(lambda: (checkpoint / "model.safetensors").write_bytes(b"the next step of training"))
    with pytest.raises(ExportError, match="rm: was changed while it was exported"):
        cached_bundle(str(checkpoint), {}, export, cache=cache)
    export.on_export = lambda: None
    assert cached_bundle(str(checkpoint), {}, export, cache=cache).is_dir()
    assert len(export.sources) == 2


def test_what_a_killed_export_has_left_is_removed_by_the_next_one(checkpoint, cache):
    def fail():
        raise ExportError("killed")

    export = Exports(fail)
    with pytest.raises(ExportError, match="killed"):
        cached_bundle(str(checkpoint), {}, export, cache=cache)
    (folder,) = cache.iterdir()
    (folder / ".unfinished.12ab.partial").mkdir()
    export.on_export = lambda: None
    bundle = cached_bundle(str(checkpoint), {}, export, cache=cache)
    assert bundle.parent == folder
    assert names(folder) == ["bundle", "lock"]


def test_one_exports_while_the_other_waits(checkpoint, cache):
    begun, waits, said = threading.Event(), threading.Event(), []

    def export_until_somebody_waits():
        begun.set()
        assert waits.wait(60)

    def note(line):
        said.append(line)
        waits.set()

    export = Exports(export_until_somebody_waits)
    first = threading.Thread(target=cached_bundle, args=(str(checkpoint), {}, export), kwargs={"cache": cache})
    first.start()
    assert begun.wait(60)
    bundle = cached_bundle(str(checkpoint), {}, export, cache=cache, say=note)
    first.join()
    assert len(export.sources) == 1
    assert said == [
        f"waiting for another process, which exports the same checkpoint into {bundle.parent}",
        f"using {bundle}, which was exported before",
    ]


def test_a_cache_that_cannot_be_written_is_one_line_unless_the_bundle_is_there(checkpoint, cache, tmp_path):
    export = Exports()
    (tmp_path / "file").write_text("")
    with pytest.raises(
        SourceError, match=r"file/rm-\w+: cannot be written \(Not a directory\); give another directory"
    ):
        cached_bundle(str(checkpoint), {}, export, cache=tmp_path / "file")
    bundle = cached_bundle(str(checkpoint), {}, export, cache=cache)
    (bundle.parent / "lock").unlink()
    (bundle.parent / "lock").mkdir()  # as if it could not be opened
    assert cached_bundle(str(checkpoint), {}, export, cache=cache) == bundle


def test_the_cache_is_the_users(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cached_bundle(str(checkpoint), {}, Exports()).is_relative_to(tmp_path / "xdg" / "plaudit" / "bundles")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    bundle = cached_bundle(str(checkpoint), {}, Exports())
    assert bundle.is_relative_to(tmp_path / "home" / ".cache" / "plaudit" / "bundles")


def test_without_a_home_the_cache_has_to_be_named(checkpoint, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(SourceError, match="no home directory for the cache; give a directory with --cache"):
        cached_bundle(str(checkpoint), {}, Exports())
