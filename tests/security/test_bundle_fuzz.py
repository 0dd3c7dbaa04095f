"""Bundles that nobody exported: each is refused in one line with exit code 2, or its golden texts are checked.

The hashes are those of the changed files, as whoever makes a hostile bundle would write them. A start that ends in a
stack trace, by a signal, not at all, or that takes more memory than a small bundle needs, is a failure.
"""

import copy
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from plaudit_service.bundles.bundle import sha256_of

MAX_BYTES = 1 << 30
# What Rust's tokenizers library writes where it panics, before we hear of it.
PANIC = re.compile(r"\nthread '[^\n]* panicked at [^\n]*\n[^\n]*\n(note: [^\n]*\n)?")
SCORING_FILES = ("model.onnx", "tokenizer.json", "chat_template.jinja")


@contextmanager
def starter():
    """Starts bundles in children of a process that has imported everything: `start(path)` tells what became of it."""
    command = [sys.executable, Path(__file__).with_name("start_bundles.py")]
    env = {**os.environ, "RUST_BACKTRACE": "0"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:

        def start(path):
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield start
        process.stdin.close()


@pytest.fixture(scope="module")
def start():
    with starter() as start:
        yield start


def seal(bundle, manifest=None):
    """Write the manifest, or its hashes again, so that every file has the hash that it should have."""
    content = manifest if manifest is not None else json.loads((bundle / "bundle.json").read_text())
    for names, hashes in ((SCORING_FILES, content["scoring"]["sha256"]), (("golden.jsonl",), content["sha256"])):
        for name in names:
            if (bundle / name).is_file():
                hashes[name] = sha256_of(bundle / name)
    (bundle / "bundle.json").write_text(json.dumps(content))


def outcome(started) -> str:
    """`refused` or `checked`; anything else is a failure."""
    said = PANIC.sub("", started["said"])
    assert started["bytes"] < MAX_BYTES, started
    if started["code"] == 2:
        assert re.fullmatch(r"plaudit-serve: error: [^\n]{1,1000}\n", said), said
        assert "Traceback" not in said
        return "refused"
    assert started["code"] == 0, said
    events = [json.loads(line)["event"] for line in said.splitlines()]
    assert events[-1] in ("ready", "not_ready"), said
    assert "task_failed" not in events, said
    return "checked"


HUGE = [10**400, -(10**30), 2**63, 2**31, -1, 1e308, 5e-324, True, None, "", "\ud800", "a" * 5000, "../x", "\x1b[31m\n"]


def some_value(source):
    simple = [*HUGE, 0, 1, 0.5, [], {}, [[]], {"a": None}, float("nan"), float("inf")]
    return copy.deepcopy(source.choice(simple))


def nodes(document, path=()):
    yield path
    if isinstance(document, dict | list):
        for key in document if isinstance(document, dict) else range(len(document)):
            yield from nodes(document[key], (*path, key))


def change_json(document, source):
    """Replace, remove or add a few nodes."""
    for _ in range(source.randint(1, 3)):
        places = list(nodes(document))[1:]
        if not places:
            return
        *above, key = source.choice(places)
        parent = document
        for step in above:
            parent = parent[step]
        match source.randrange(4):
            case 0 | 1:
                parent[key] = some_value(source)
            case 2:
                del parent[key]
            case _ if isinstance(parent, dict):
                parent[source.choice([*parent, "new"])] = copy.deepcopy(source.choice(list(parent.values())))
            case _:
                parent.insert(key, copy.deepcopy(source.choice(parent)))


def change_bytes(content, source):
    """Change, remove, repeat or insert a few bytes."""
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(content) + 1)
        end = min(len(content), at + source.randrange(12))
        match source.randrange(4):
            case 0:
                content[at:end] = source.randbytes(end - at)
            case 1:
                del content[at : source.choice([end, len(content)])]
            case 2:
                content[at:at] = content[at:end] * source.randrange(20)
            case _:
                content[at:at] = source.choice([b"\x00", b"\xff\xff\xff\xff\x0f", b"\xed\xa0\x80", b"\n", b"[" * 3000])


def change_file(bundle, name, source):
    """Change one file of a bundle, by its nodes where it is JSON, else or sometimes by its bytes; then seal."""
    file = bundle / name
    if name == "model.onnx" or name.endswith(".jinja") or source.random() < 0.3:
        content = bytearray(file.read_bytes())
        change_bytes(content, source)
        file.write_bytes(content)
        if name != "bundle.json":
            seal(bundle)
        return
    if name == "golden.jsonl":
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        change_json(lines, source)
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        seal(bundle)
        return
    document = json.loads(file.read_text())
    change_json(document, source)
    file.write_text(json.dumps(document))
    if name != "bundle.json":
        seal(bundle)


@pytest.mark.parametrize("count", [12, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["bundle.json", "golden.jsonl", *SCORING_FILES])
def test_a_bundle_with_a_changed_file_is_refused_in_one_line_or_checked(start, tiny_bundle, tmp_path, name, count):
    original = tiny_bundle()
    outcomes = Counter()
    for number in range(count):
        bundle = shutil.copytree(original, tmp_path / "changed")
        change_file(bundle, name, random.Random(f"{name} {number}"))
        try:
            outcomes[outcome(start(bundle))] += 1
        except AssertionError as error:
            raise AssertionError(f"number {number}: {error}") from error
        shutil.rmtree(bundle)
    assert outcomes["refused"] > 0, outcomes


def write(name, content):
    def change(bundle):
        (bundle / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        seal(bundle)

    return change


def write_manifest(content):
    return lambda bundle: (bundle / "bundle.json").write_bytes(content)


def first_golden(**changes):
    def change(bundle):
        lines = (bundle / "golden.jsonl").read_text().splitlines()
        record = json.loads(lines[0]) | changes
        write("golden.jsonl", "\n".join([json.dumps(record), *lines[1:]]) + "\n")(bundle)

    return change


def scoring(**changes):
    def change(bundle):
        manifest = json.loads((bundle / "bundle.json").read_text())
        manifest["scoring"] |= changes
        seal(bundle, manifest)

    return change


def other_kind(name, make):
    """Something else than a file has a file's name."""

    def change(bundle):
        (bundle / name).unlink()
        make(bundle / name)

    return change


def sparse(name, num_bytes=1 << 33):
    """A file of 8 GiB that takes no room."""

    def change(bundle):
        os.truncate(bundle / name, num_bytes)

    return change


def graph(*nodes, **initializers):
    """A graph of the contract's inputs and output with these nodes and initializers."""
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in ("input_ids", "attention_mask")
    ]
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", 1])
    made = helper.make_graph(list(nodes), "hostile", ids, [scores], list(initializers.values()))
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return write("model.onnx", model.SerializeToString())


def graph_with_past(shape):
    """A causal graph whose keys have this shape."""

    def change(bundle):
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in ("input_ids",)]
        inputs.append(helper.make_tensor_value_info("past.0.key", TensorProto.FLOAT, shape))
        node = helper.make_node("Cast", ["input_ids"], ["scores"], to=TensorProto.FLOAT)
        scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", "T"])
        model = helper.make_model(
            helper.make_graph([node], "hostile", inputs, [scores]),
            opset_imports=[helper.make_opsetid("", 21)],
            ir_version=10,
        )
        scoring(kind="causal")(bundle)
        write("model.onnx", model.SerializeToString())(bundle)

    return change


def outside_data(location):
    """Weights that lie elsewhere."""
    tensor = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return graph(helper.make_node("ReduceSum", ["outside"], ["scores"], keepdims=1), outside=tensor)


def add(name):
    return lambda bundle: (bundle / name).write_bytes(b"")


HOSTILE = {
    "an empty manifest": write_manifest(b""),
    "a manifest nested deep": write_manifest(b"[" * 500_000),
    "a manifest of nested objects": write_manifest(b'{"scoring":' * 90_000),
    "a manifest of NaN": write_manifest(b'{"format": NaN}'),
    "a manifest with a number of a million digits": write_manifest(b'{"format": ' + b"9" * 1_000_000 + b"}"),
    "a manifest that is a list": write_manifest(b"[]"),
    "a manifest in UTF-16": write_manifest('{"format": 1}'.encode("utf-16")),
    "a manifest with an unknown key of control characters": write_manifest(b'{"format": 1, "\\u001b[31m\\nred": 1}'),
    "a manifest of 8 GiB": sparse("bundle.json"),
    "a manifest that is a directory": other_kind("bundle.json", Path.mkdir),
    "a manifest that is a fifo": other_kind("bundle.json", os.mkfifo),
    "a manifest that is a device": other_kind(
        "bundle.json", lambda path: os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))
    ),
    "a manifest that is a link": other_kind("bundle.json", lambda path: path.symlink_to("/dev/zero")),
    "golden texts of 8 GiB": sparse("golden.jsonl"),
    "golden texts that are a fifo": other_kind("golden.jsonl", os.mkfifo),
    "golden texts that are a link to a device": other_kind("golden.jsonl", lambda path: path.symlink_to("/dev/zero")),
    "no golden text": write("golden.jsonl", ""),
    "golden texts of blank lines": write("golden.jsonl", "\n\n\n"),
    "a golden text nested deep": write("golden.jsonl", "[" * 500_000),
    "a golden token id that is infinite": first_golden(token_ids=[float("inf")]),
    "a golden token id beyond 64 bits": first_golden(token_ids=[2**70]),
    "a golden score of 400 digits": first_golden(score=10**400),
    "golden heads that are words": first_golden(heads=["1", "one"]),
    "a golden text that is no item": first_golden(item={"text": 7}),
    "a golden text with an unknown key": first_golden(item={"text": "good", "\n": 1}),
    "a golden text that is a list": write("golden.jsonl", "[1]\n"),
    "a golden text of a vocabulary that is not there": first_golden(item={"token_ids": [2**31 - 1]}),
    "a tokenizer of 8 GiB": sparse("tokenizer.json"),
    "an empty tokenizer": write("tokenizer.json", ""),
    "a tokenizer nested deep": write("tokenizer.json", "[" * 500_000),
    "a tokenizer that is a fifo": other_kind("tokenizer.json", os.mkfifo),
    "a tokenizer that is no model": write("tokenizer.json", "{}"),
    "a template of 8 GiB": sparse("chat_template.jinja"),
    "a template nested deep": write("chat_template.jinja", "{{" + "(" * 100_000),
    "a template of nested blocks": write("chat_template.jinja", "{% if a %}" * 10_000),
    "a template without an end": write("chat_template.jinja", "{% for a in b"),
    "a template that reaches Python": write("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a graph with a past of one axis": graph_with_past([1]),
    "a graph with a past of 10^18 heads": graph_with_past(["N", 10**18, "P", 10**18]),
    "an empty graph": write("model.onnx", b""),
    "a graph that is text": write("model.onnx", "no graph\n" * 1000),
    "a graph of 8 GiB": sparse("model.onnx"),
    "a graph that is a fifo": other_kind("model.onnx", os.mkfifo),
    "a graph of an unknown operator": graph(helper.make_node("Steal", ["input_ids"], ["scores"])),
    "a graph of a custom domain": graph(helper.make_node("Steal", ["input_ids"], ["scores"], domain="evil")),
    "a graph with weights outside": outside_data("../../../../etc/passwd"),
    "a graph with weights at an absolute path": outside_data("/etc/passwd"),
    "a graph with weights in another file of the bundle": outside_data("bundle.json"),
    "a file that nothing names": add("library.so"),
    "a file whose name has a line break": add("a\nb\x1b[31m"),
    "a file whose name is no UTF-8": lambda bundle: Path(os.fsdecode(os.fsencode(bundle) + b"/\xff")).write_bytes(b""),
    "a context of 10^18 tokens": scoring(max_tokens=10**18),
    "a vocabulary of 10^18 tokens": scoring(vocab_size=10**18),
    "a padding id of 10^30": scoring(pad_token_id=10**30),
    "a template token that shadows the messages": scoring(template_tokens={"messages": "x", "self": "y"}),
    "100,000 heads": scoring(heads=[{"name": f"head {number}"} for number in range(100_000)]),
    "a weight of 10^308": scoring(heads=[{"name": "score", "weight": 1e308}]),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_bundle_is_refused_in_one_line_or_checked(start, tiny_bundle, change):
    bundle = tiny_bundle()
    change(bundle)
    assert outcome(start(bundle)) in ("refused", "checked")


@pytest.mark.parametrize("location", ["../secret", "../../../../../../etc/passwd", "/etc/passwd"])
def test_weights_outside_of_the_bundle_are_refused(start, tiny_bundle, location):
    bundle = tiny_bundle()
    (bundle.parent / "secret").write_bytes(bytes(16))
    outside_data(location)(bundle)
    started = start(bundle)
    assert outcome(started) == "refused"
    assert "model.onnx cannot be loaded" in started["said"]
    assert "xternal data" in started["said"]
