import gzip
import json
import os
import subprocess
import sys

import pyarrow
import pytest
from datasets import Dataset, DatasetDict
from local_hub import COMMIT, local_hub
from pyarrow import parquet

from plaudit_ppo.errors import PromptError
from plaudit_ppo.rollout import prompt_sources
from plaudit_ppo.rollout.prompts import read_prompts

ROWS = [{"prompt": "one", "label": 1.5}, {"prompt": "two", "label": None}]


def texts(source):
    return [prompt.text for prompt in read_prompts(source)]


def write_lines(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": name}) + "\n" for name in names))
    return path


def test_a_parquet_file_holds_the_prompts_of_the_same_rows_as_jsonl(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    lines, table = (read_prompts(tmp_path / name) for name in ("a.jsonl", "a.parquet"))
    assert lines == table
    assert [prompt.columns for prompt in lines] == [prompt.columns for prompt in table] == [{"label": 1.5}, {}]
    assert table[1].where == f"{tmp_path / 'a.parquet'} row 2"


def test_what_json_has_no_form_for_is_kept_as_text_or_counts_as_not_there(tmp_path):
    row = {"prompt": "a", "raw": b"\xff", "score": float("nan"), "deep": {"list": [1, None]}}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "score": NaN, "broken": "\\ud800", "deep": {"list": [1, null]}}')
    assert read_prompts(tmp_path / "a.parquet")[0].columns == {"raw": str(b"\xff"), "deep": {"list": [1, None]}}
    assert read_prompts(tmp_path / "a.jsonl")[0].columns == {"broken": "\ufffd", "deep": {"list": [1, None]}}


def test_a_directory_is_all_its_files_in_order(tmp_path):
    write_lines(tmp_path / "b.jsonl", "three")
    write_lines(tmp_path / "a" / "b.jsonl", "one")
    with gzip.open(tmp_path / "a" / "c.jsonl.gz", "wt") as file:
        file.write('{"prompt": "two"}\n')
    (tmp_path / "README.md").write_text("no prompt")
    assert texts(tmp_path) == ["one", "two", "three"]
    with pytest.raises(PromptError, match=r"holds no files \(.jsonl, .json"):
        read_prompts(prompt_sources.Path(__file__).parent)


def test_of_a_directory_with_splits_one_has_to_be_named(tmp_path):
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test.jsonl"):
        write_lines(tmp_path / "data" / name, name)
    with pytest.raises(PromptError, match=rf"holds the splits train, test; name one: {tmp_path}#train"):
        read_prompts(tmp_path)
    assert texts(f"{tmp_path}#train") == ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]
    assert texts(f"{tmp_path}#test") == ["test.jsonl"]
    with pytest.raises(PromptError, match="holds no files of the split dev"):
        read_prompts(f"{tmp_path}#dev")


def test_what_the_package_datasets_has_saved_is_read(tmp_path):
    whole = Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "one")
    DatasetDict(train=whole, test=whole.select([1])).save_to_disk(tmp_path / "two")
    assert texts(tmp_path / "one") == ["one", "two"]
    assert texts(f"{tmp_path / 'two'}#test") == ["two"]
    with pytest.raises(PromptError, match=r"holds the splits train, test; name one: .*two#train"):
        read_prompts(tmp_path / "two")
    with pytest.raises(PromptError, match="holds no split dev; it has train, test"):
        read_prompts(f"{tmp_path / 'two'}#dev")


def test_a_data_set_of_the_hub_is_read_by_revision_and_split(tmp_path):
    """By a process of its own, because the hub's client looks for its address when it is imported."""
    repository = tmp_path / "repository"
    write_lines(repository / "train.jsonl", "a", "b")
    write_lines(repository / "test.jsonl", "c", "d", "e")
    code = (
        "from plaudit_ppo.errors import PromptError\n"
        "from plaudit_ppo.rollout.prompts import read_prompts\n"
        f"for source in ('org/prompts', 'org/prompts@v1#test[:2]', 'org/prompts@{COMMIT}#test', 'org/absent'):\n"
        "    try: print([(prompt.text, prompt.where) for prompt in read_prompts(source)])\n"
        "    except PromptError as error: print(error)\n"
    )
    with local_hub(org__prompts=repository) as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
    assert done.stderr == ""
    train, first_two, test, absent = done.stdout.splitlines()
    assert train == "[('a', 'org/prompts row 1'), ('b', 'org/prompts row 2')]"
    assert first_two == "[('c', 'org/prompts@v1#test[:2] row 1'), ('d', 'org/prompts@v1#test[:2] row 2')]"
    assert "'e'" in test
    assert absent.startswith("org/absent: no such file or directory, and it cannot be downloaded from the hub (")


def test_what_is_no_source_is_refused(tmp_path):
    for source in (tmp_path / "absent", f"{tmp_path}/absent#train", "absent.jsonl", "data/absent.parquet"):
        with pytest.raises(PromptError, match=r"absent.*: cannot be read \(No such file or directory\); a source of"):
            read_prompts(source)


def test_a_table_that_is_none_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_text("no table")
    with pytest.raises(PromptError, match=r"a.parquet: cannot be read"):
        read_prompts(tmp_path / "a.parquet")


def test_a_line_that_is_no_json_is_named_with_its_column(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n{"prompt": }\n')
    with pytest.raises(PromptError, match=r"a.jsonl line 2: not JSON \(Expecting value, column 12\); each line is"):
        read_prompts(tmp_path / "a.jsonl")


def test_a_source_has_a_limit_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_sources, "MAX_ROWS", 2)
    assert texts(write_lines(tmp_path / "two.jsonl", "a", "b")) == ["a", "b"]
    with pytest.raises(PromptError, match=r"three.jsonl: more than 2 rows"):
        read_prompts(write_lines(tmp_path / "three.jsonl", "a", "b", "c"))
