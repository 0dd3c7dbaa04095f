"""Every format of a reward model, as its trainer leaves it on disk, against the trainer's scoring written here again.

The scores that are compared with come from transformers' decoder alone, and from numbers and texts made by what the
trainer's code does; of the package under test nothing takes part in them.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from trainer_texts import CHAT, TEXTS

from plaudit_export.checkpoints.checkpoint import load_checkpoint
from plaudit_export.checkpoints.formats import FORMATS
from plaudit_export.checkpoints.rules import Options, derive_rules
from plaudit_export.errors import SourceError
from plaudit_export.exporter import export_checkpoint
from plaudit_export.quiet import quiet
from plaudit_export.testing import CAUSAL_ARCHITECTURES, tiny_causal_checkpoint, tiny_encoder_checkpoint
from plaudit_service.bundles.bundle import Head, Normalization, Scoring
from plaudit_service.serving.scorer import Scorer
from plaudit_service.text.chat_template import compile_chat_template

ROOT = Path(__file__).parents[3]
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A format: its files, and its scoring.

    Attributes:
        weights: of the model's file, made from those of the decoder (`model.*`) and its head.
        score: of the last hidden states (T, hidden) of a text's ids (T,) and the head's weights.
        config: fields of `config.json` that are other than the decoder's.
        text: the ids of a plain text and of a rendered chat, by the trainer's code.
        architecture: of the decoder.
        files: weights of other files.
        expected: fields of the manifest's `scoring`.
    """

    weights: Callable[[Weights, Weights], Weights]
    score: Callable[[torch.Tensor, torch.Tensor, Weights], torch.Tensor]
    config: dict[str, Any]
    text: Callable[[Any, str, bool], list[int]]
    head: Callable[[Weights], Weights]
    architecture: str = "llama"
    files: dict[str, Callable[[Weights], Weights]] = field(default_factory=dict)
    expected: dict[str, Any] = field(default_factory=dict)


def renamed(decoder: Weights, start: str, of: str = "model.") -> Weights:
    return {name.replace(of, start, 1): weight for name, weight in decoder.items()}


def with_lm_head(decoder: Weights) -> Weights:
    return decoder | {"lm_head.weight": decoder["model.embed_tokens.weight"].clone() * 0.5}


def one_linear(head: Weights, bias: bool = True) -> Weights:
    weights = {"weight": head["score.weight"]}
    return weights | {"bias": torch.tensor([0.37])} if bias else weights


def mlp(head: Weights) -> Weights:
    """Two layers, whose scores spread as those of the linear head."""
    generator = torch.Generator().manual_seed(3)
    hidden = head["score.weight"].shape[1]
    first = torch.randn(24, hidden, generator=generator) * hidden**-0.5
    second = torch.randn(1, 24, generator=generator)
    biases = torch.randn(24, generator=generator), torch.randn(1, generator=generator)
    return {"0.weight": first, "0.bias": biases[0], "2.weight": second, "2.bias": biases[1]}


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {f"{prefix}.{name}": weight for name, weight in weights.items()}


def last(hidden: torch.Tensor, ids: torch.Tensor, head: Weights) -> torch.Tensor:
    return hidden[-1] @ head["weight"][0] + head.get("bias", torch.zeros(1))[0]


def last_by_mlp(hidden: torch.Tensor, ids: torch.Tensor, head: Weights) -> torch.Tensor:
    inner = torch.clamp(head["0.weight"] @ hidden[-1] + head["0.bias"], min=0)
    return head["2.weight"][0] @ inner + head["2.bias"][0]


def before_pad_by_mlp(hidden: torch.Tensor, ids: torch.Tensor, head: Weights) -> torch.Tensor:
    """Of a pad token of id 0; its class takes the index modulo the length, so that none, or the first, is the last."""
    first = int((ids == 0).int().argmax())
    return last_by_mlp(hidden[: first or len(ids)], ids, head)


def before_zero(hidden: torch.Tensor, ids: torch.Tensor, head: Weights) -> torch.Tensor:
    zeros = (ids == 0).nonzero()
    at = int(zeros[0]) if len(zeros) else len(ids)
    return hidden[at - 1] @ head["weight"][0]


def as_tokenizer(tokenizer: Any, text: str, chat: bool) -> list[int]:
    return tokenizer(text, add_special_tokens=not chat)["input_ids"]


def without_special_tokens(tokenizer: Any, text: str, chat: bool) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def openrlhf_text(tokenizer: Any, text: str, chat: bool) -> list[int]:
    text = text.rstrip("\n")
    if not text.endswith(tokenizer.eos_token):
        text += " " + tokenizer.eos_token
    ids = tokenizer(text, max_length=256, truncation=True, add_special_tokens=False)["input_ids"]
    ids[-1] = tokenizer.eos_token_id
    return ids


def safe_rlhf_text(tokenizer: Any, text: str, chat: bool) -> list[int]:
    text = text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token
    return tokenizer(text, add_special_tokens=not chat)["input_ids"]


def athene_text(tokenizer: Any, text: str, chat: bool) -> list[int]:
    return tokenizer(text + "<|im_start|>", add_special_tokens=not chat)["input_ids"]


OPENRLHF = Case(
    head=lambda head: one_linear(head, bias=False),
    weights=lambda decoder, head: decoder | prefixed("value_head", head),
    score=last,
    config={
        "architectures": ["RewardModel"],
        "value_head_prefix": "value_head",
        "mean": 0.5,
        "std": 2.0,
        "normalize_reward": False,
    },
    text=openrlhf_text,
    expected={
        "add_special_tokens": False,
        "append_eos": True,
        "strip_newlines": True,
        "space_before_eos": True,
        "normalization": None,
    },
)
CASES = {
    "OpenRLHF": OPENRLHF,
    "older OpenRLHF": Case(
        head=lambda head: one_linear(head, bias=False),
        weights=lambda decoder, head: decoder | prefixed("score", head),
        score=last,
        config={"architectures": ["LLMForSequenceRegression"]},
        text=openrlhf_text,
    ),
    "LLaMA-Factory": Case(
        head=one_linear,
        weights=lambda decoder, head: with_lm_head(decoder),
        files={"value_head.safetensors": lambda head: prefixed("v_head.summary", head)},
        score=last,
        config={"architectures": ["LlamaForCausalLM"]},
        text=without_special_tokens,
        expected={"add_special_tokens": False},
    ),
    "TRL value head": Case(
        head=one_linear,
        weights=lambda decoder, head: with_lm_head(decoder) | prefixed("v_head.summary", head),
        score=last,
        config={"architectures": ["LlamaForCausalLM"]},
        text=as_tokenizer,
    ),
    "TRL value head, wrapped": Case(
        head=one_linear,
        weights=lambda decoder, head: (
            prefixed("pretrained_model", with_lm_head(decoder)) | prefixed("v_head.summary", head)
        ),
        score=last,
        config={"architectures": ["LlamaForCausalLM"]},
        text=as_tokenizer,
    ),
    "TRL value head, GPT-2": Case(
        head=one_linear,
        weights=lambda decoder, head: prefixed("pretrained_model", decoder) | prefixed("v_head.summary", head),
        score=last,
        config={"architectures": ["GPT2LMHeadModel"]},
        text=as_tokenizer,
        architecture="gpt2",
    ),
    "GRM": Case(
        head=mlp,
        weights=lambda decoder, head: with_lm_head(decoder) | prefixed("v_head.summary", head),
        score=last_by_mlp,
        config={
            "architectures": ["LlamaForCausalLM"],
            "vhead_layer_type": "mlp",
            "vhead_num_neurons": 24,
            "vhead_num_layers": 1,
        },
        text=as_tokenizer,
        expected={"head": "mlp"},
    ),
    "safe-rlhf reward": Case(
        head=lambda head: one_linear(head, bias=False),
        weights=lambda decoder, head: (
            decoder
            | prefixed("score_head", head)
            | {
                "normalizer.mean": torch.tensor([0.5]),
                "normalizer.var": torch.tensor([4.0]),
                "normalizer.count": torch.tensor([7]),
            }
        ),
        score=lambda hidden, ids, head: (last(hidden, ids, head) - 0.5) / (math.sqrt(4.0) + 1e-8),
        config={
            "architectures": ["LlamaForScore"],
            "do_normalize": True,
            "score_type": "reward",
            "score_dim": 1,
            "mean": [0.5],
            "var": [4.0],
        },
        text=safe_rlhf_text,
        expected={"append_eos": True, "strip_newlines": False},
    ),
    "safe-rlhf cost": Case(
        head=one_linear,
        weights=lambda decoder, head: decoder | prefixed("score_head", head),
        score=lambda hidden, ids, head: last(hidden, ids, head) / (math.sqrt(4.0) + 1e-8),
        config={
            "architectures": ["LlamaForScore"],
            "do_normalize": True,
            "score_type": "cost",
            "mean": [0.5],
            "var": [4.0],
        },
        text=safe_rlhf_text,
    ),
    "align-anything": Case(
        head=lambda head: one_linear(head, bias=False),
        weights=lambda decoder, head: with_lm_head(decoder) | prefixed("score_head", head),
        score=last,
        config={"architectures": ["AccustomedLlamaRewardModel"]},
        text=safe_rlhf_text,
        expected={"append_eos": True, "normalization": None},
    ),
    "UltraRM": Case(
        head=lambda head: one_linear(head, bias=False),
        weights=lambda decoder, head: decoder | prefixed("regression_head", head),
        score=last,
        config={"architectures": ["LlamaRewardModel"]},
        text=as_tokenizer,
    ),
    "Eurus-RM": Case(
        head=lambda head: one_linear(head, bias=False),
        weights=lambda decoder, head: decoder | prefixed("regression_head", head),
        score=last,
        config={
            "architectures": ["EurusRewardModel"],
            "auto_map": {"AutoModel": "modeling_eurus_rm.EurusRewardModel"},
        },
        text=as_tokenizer,
        architecture="mistral",
    ),
    "Athene-RM": Case(
        head=lambda head: one_linear(head, bias=False),
        weights=lambda decoder, head: decoder | prefixed("v_head", head),
        score=last,
        config={"architectures": ["AtheneForSequenceClassification"]},
        text=athene_text,
    ),
    "Starling-RM": Case(
        head=lambda head: one_linear(head, bias=False),
        weights=lambda decoder, head: renamed(decoder, "transformer.") | prefixed("v_head", head),
        score=before_zero,
        config={"architectures": ["LlamaForSequenceClassification"]},
        text=as_tokenizer,
        expected={"pooled_before": 0},
    ),
    "OASST": Case(
        head=one_linear,
        weights=lambda decoder, head: decoder | prefixed("out_proj", head),
        score=last,
        config={"architectures": ["GPTNeoXRewardModel"], "model_type": "gpt_neox_reward_model", "pooling": "last"},
        text=as_tokenizer,
        architecture="gpt_neox",
    ),
    "token classification": Case(
        head=one_linear,
        weights=lambda decoder, head: decoder | prefixed("score", head),
        score=last,
        config={"architectures": ["LlamaForTokenClassification"], "id2label": {"0": "LABEL_0"}},
        text=as_tokenizer,
    ),
    "Qwen2.5-Math-RM": Case(
        head=mlp,
        weights=lambda decoder, head: decoder | prefixed("score", head),
        score=last_by_mlp,
        config={
            "architectures": ["Qwen2ForRewardModel"],
            "auto_map": {"AutoModel": "modeling_qwen2_rm.Qwen2ForRewardModel"},
            "pad_token_id": None,
        },
        text=as_tokenizer,
        architecture="qwen2",
        expected={"head": "mlp"},
    ),
    "INF-ORM": Case(
        head=mlp,
        weights=lambda decoder, head: decoder | prefixed("score", head),
        score=before_pad_by_mlp,
        config={"architectures": ["INFORMForSequenceClassification"], "num_labels": 1},
        text=as_tokenizer,
        expected={"head": "mlp", "pooled_before": 0},
    ),
}


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Classifiers that the formats' decoders, heads and tokenizers are taken from."""
    made: dict[str, Path] = {}

    def decoder(architecture: str) -> Path:
        if architecture not in made:
            path = tmp_path_factory.mktemp("decoders") / architecture
            made[architecture] = tiny_causal_checkpoint(
                path, architecture=architecture, add_bos=True, num_hidden_layers=1
            )
        return made[architecture]

    return decoder


def write(case: Case, decoder: Path, path: Path) -> Path:
    """The checkpoint of a format."""
    path.mkdir()
    stored = load_file(decoder / "model.safetensors")
    score = {"score.weight": stored.pop("score.weight")}
    head = case.head(score)
    save_file(case.weights(stored, head), path / "model.safetensors", metadata={"format": "pt"})
    for name, weights in case.files.items():
        save_file(weights(head), path / name, metadata={"format": "pt"})
    config = json.loads((decoder / "config.json").read_text())
    for field_name in ("id2label", "label2id", "num_labels"):
        config.pop(field_name, None)
    (path / "config.json").write_text(json.dumps(config | case.config))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        if (decoder / name).is_file():
            shutil.copy(decoder / name, path / name)
    set_tokenizer(path, cls_token="<|im_start|>")
    return path


def set_tokenizer(path: Path, **fields: object) -> None:
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@dataclass(frozen=True)
class Trained:
    """The trainer's scoring of texts: decoder by transformers, the rest by the case."""

    case: Case
    decoder: Any
    tokenizer: Any
    head: Weights

    def ids(self, item: dict[str, Any]) -> list[int]:
        if "token_ids" in item:
            return item["token_ids"]
        if "messages" in item:
            rendered = self.tokenizer.apply_chat_template(item["messages"], tokenize=False)
            return self.case.text(self.tokenizer, rendered, True)
        text = item["text"] if "text" in item else item["prompt"] + item["completion"]
        return self.case.text(self.tokenizer, text, False)

    def score(self, item: dict[str, Any]) -> float:
        ids = torch.tensor(self.ids(item))
        with torch.no_grad():
            hidden = self.decoder(ids[None]).last_hidden_state[0]
            return float(self.case.score(hidden, ids, self.head))


def trained(case: Case, decoder: Path) -> Trained:
    with quiet():
        model = transformers.AutoModel.from_pretrained(decoder, dtype=torch.float32).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(decoder)
    stored = load_file(decoder / "model.safetensors")
    return Trained(case, model, tokenizer, case.head({"score.weight": stored["score.weight"]}))


ITEMS: list[dict[str, Any]] = [
    *({"text": text} for text in TEXTS),
    {"prompt": "What is un", "completion": "believable?"},
    {"messages": CHAT},
    {"token_ids": [9, 8, 7, 0, 60, 0]},
]


def assert_scores(bundle: Path, trained: Trained, items: Sequence[dict[str, Any]] = ITEMS) -> None:
    for item, result in zip(items, Scorer(bundle).score(list(items)), strict=True):
        reference = trained.score(item)
        assert result.score is not None, result
        assert abs(result.score - reference) <= 1e-5 * max(1, abs(reference)), item


# One for each kind of head, file, pooling and rule; an export takes seconds.
QUICK = {"OpenRLHF", "LLaMA-Factory", "safe-rlhf cost", "Athene-RM", "INF-ORM"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CASES]
)
def test_a_format_is_served_with_its_trainers_scores(name, decoders, tmp_path):
    case = CASES[name]
    decoder = decoders(case.architecture)
    exported = export_checkpoint(str(write(case, decoder, tmp_path / "it")), tmp_path / "bundle")
    assert exported.parity.ok
    assert exported.parity.batch_invariant, exported.parity.batch_max_abs_diff
    assert_scores(tmp_path / "bundle", trained(case, decoder))
    scoring: Scoring = exported.bundle.scoring
    for name_, value in case.expected.items():
        assert getattr(scoring, name_) == value


def language_model(decoder: Path, path: Path, **config: Any) -> Path:
    """A language model with a head of its own over the vocabulary."""
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = transformers.AutoModelForCausalLM.from_pretrained(decoder, **config)
        model.get_output_embeddings().weight.data.normal_(std=0.3)
        model.save_pretrained(path)
        transformers.AutoTokenizer.from_pretrained(decoder).save_pretrained(path)
    return path


def token_weights(path: Path, weights: dict[str, float]) -> dict[int, float]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    return {
        int(token[3:]) if token.startswith("id:") else tokenizer.convert_tokens_to_ids(token): weight
        for token, weight in weights.items()
    }


@pytest.mark.parametrize(
    ("architecture", "config", "weights"),
    [
        pytest.param("llama", {"tie_word_embeddings": True}, {"id:7": 0.5, "id:9": 2.0}, marks=pytest.mark.slow),
        ("gemma2", {"final_logit_softcapping": 0.5, "attn_implementation": "eager"}, {"he": 1.0, "in": -1.0}),
    ],
    ids=["tied", "soft cap"],
)
def test_the_logits_of_tokens_are_the_score_of_a_language_model(architecture, config, weights, decoders, tmp_path):
    path = language_model(decoders(architecture), tmp_path / "it", **config)
    options = Options(token_logits=[Head(name=name, weight=weight) for name, weight in weights.items()])
    exported = export_checkpoint(str(path), tmp_path / "bundle", options)
    assert exported.parity.ok
    assert exported.parity.batch_invariant
    assert exported.bundle.scoring.head == "token_logits"
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation="eager",  # sdpa leaves out Gemma's soft cap in transformers 4
        ).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    rows = token_weights(path, weights)
    texts = [text for text in TEXTS if text.strip()]
    for text, result in zip(texts, Scorer(tmp_path / "bundle").score(texts), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1].double()
        reference = sum(weight * float(logits[row]) for row, weight in rows.items())
        assert abs(result.score - reference) <= 1e-5 * max(1, abs(reference))
        if len(weights) > 1:
            assert list(result.heads) == list(weights)


RERANKER = re.findall(r"```jinja\n(.*?)```", (ROOT / "docs" / "checkpoint-formats.md").read_text(), flags=re.DOTALL)[0]


def reranker_parts(query: str, document: str, task: str | None = None) -> tuple[str, str, str]:
    """What the model card's code puts together; it encodes each part alone."""
    task = task or "Given a web search query, retrieve relevant passages that answer the query"
    before = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    behind = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    return before, f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}", behind


TASK = {"role": "system", "content": "Find what an instruction asks for"}
QUERY, DOCUMENT = CHAT[0]["content"], CHAT[1]["content"]


@pytest.mark.parametrize(("chat", "task"), [(CHAT, None), ([TASK, *CHAT], TASK["content"])])
def test_the_instruction_of_qwen3_reranker_is_that_of_its_card(chat, task):
    rendered = compile_chat_template(RERANKER, {})(chat)
    assert rendered == "".join(reranker_parts(QUERY, DOCUMENT, task))


def loaded(path: Path) -> tuple[Any, Any]:
    """A language model and its tokenizer."""
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        return model, transformers.AutoTokenizer.from_pretrained(path)


def test_a_query_and_a_document_are_scored_by_the_instruction_of_qwen3_reranker(decoders, tmp_path):
    path = language_model(decoders("qwen3"), tmp_path / "it", max_position_embeddings=1024)  # letters are tokens here
    yes, no = "he", "in"  # which the tiny vocabulary has
    heads = [Head(name=yes, weight=1.0), Head(name=no, weight=-1.0)]
    exported = export_checkpoint(str(path), tmp_path / "bundle", Options(token_logits=heads, chat_template=RERANKER))
    assert exported.parity.ok
    assert exported.parity.batch_invariant
    model, tokenizer = loaded(path)
    ids = [id_ for part in reranker_parts(QUERY, DOCUMENT) for id_ in tokenizer.encode(part, add_special_tokens=False)]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1, tokenizer.convert_tokens_to_ids([no, yes])]
    (result,) = Scorer(tmp_path / "bundle").score([{"messages": CHAT}])
    assert result.score == pytest.approx(float(logits[1] - logits[0]), rel=1e-5, abs=1e-5)
    assert list(result.heads) == [yes, no]
    probability = torch.log_softmax(logits, dim=0)[1].exp().item()  # what the card calls the score
    assert 1 / (1 + math.exp(-result.score)) == pytest.approx(probability, abs=1e-5)


def test_a_chat_is_scored_as_the_card_of_nemotron_reward_scores_it(decoders, tmp_path):
    """The score of id 0 for the token that would be generated behind the chat, without a generation prompt."""
    path = language_model(decoders("llama"), tmp_path / "it")
    exported = export_checkpoint(str(path), tmp_path / "bundle", Options(token_logits=[Head(name="id:0", weight=1.0)]))
    assert exported.parity.ok
    assert exported.parity.batch_invariant
    model, tokenizer = loaded(path)
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=False, return_tensors="pt", return_dict=True)
    with quiet():
        generated = model.generate(
            **ids, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_scores=True
        )
    reward = generated["scores"][0][0][0].item()
    assert Scorer(tmp_path / "bundle").score([{"messages": CHAT}]).floats == pytest.approx([reward], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["no such token"], r"has no token 'no such token'; give it as it stands in the vocabulary, or by its id"),
        (["id:99999"], r"--token-logits: id 99999, and the head of .* has \d+ tokens"),
    ],
)
def test_a_token_that_the_vocabulary_lacks_is_refused(tokens, message, decoders, tmp_path):
    path = language_model(decoders("llama"), tmp_path / "it")
    with pytest.raises(SourceError, match=message):
        load_checkpoint(str(path), token_logits=tokens)


def test_the_logits_of_a_classifier_are_no_score(decoders):
    with pytest.raises(SourceError, match=r"missing weights, such as lm_head\.weight"):
        load_checkpoint(str(decoders("llama")), token_logits=["id:0"])


def lora(base: Path, path: Path, **config: Any) -> Any:
    """Saves a random LoRA adapter of a language model; its B is not the zero that training starts from."""
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if (num_tokens := config.pop("num_tokens", None)) is not None:
            model.resize_token_embeddings(num_tokens, mean_resizing=False)
        targets = {"target_modules": ["q_proj", "v_proj"]}
        tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, **targets | config))
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.2)
            elif "modules_to_save" in name:
                parameter.data += torch.randn(parameter.shape) * 0.05
        tuned.save_pretrained(path)
    return tuned.eval()


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"num_tokens": 340, "modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=["plain", "modules_to_save", "resized"],
)
def test_a_language_models_adapter_with_a_value_head_beside_it_is_served(config, decoders, tmp_path):
    base = language_model(decoders("llama"), tmp_path / "base")
    tuned = lora(base, tmp_path / "adapter", **config)
    head = one_linear(load_file(decoders("llama") / "model.safetensors"))
    save_file(prefixed("v_head.summary", head), tmp_path / "adapter" / "value_head.safetensors")
    exported = export_checkpoint(str(tmp_path / "adapter"), tmp_path / "bundle")
    assert exported.parity.ok
    assert exported.parity.batch_invariant
    assert exported.bundle.manifest.source.format == "LLaMA-Factory"
    backbone = tuned.get_base_model().model
    with quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    case = CASES["LLaMA-Factory"]
    assert_scores(tmp_path / "bundle", Trained(case, backbone, tokenizer, head))


def test_a_value_head_among_the_adapters_weights_is_served(decoders, tmp_path):
    base = language_model(decoders("llama"), tmp_path / "base")
    tuned = lora(base, tmp_path / "adapter")
    head = mlp(load_file(decoders("llama") / "model.safetensors"))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(load_file(file) | prefixed("v_head.summary", head), file)
    exported = export_checkpoint(str(tmp_path / "adapter"), tmp_path / "bundle")
    assert exported.parity.ok
    assert exported.bundle.manifest.source.format == "GRM"
    with quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    assert_scores(tmp_path / "bundle", Trained(CASES["GRM"], tuned.get_base_model().model, tokenizer, head))


def test_the_logits_of_an_adapted_language_model_are_served(decoders, tmp_path):
    base = language_model(decoders("llama"), tmp_path / "base")
    tuned = lora(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    options = Options(token_logits=[Head(name="id:7", weight=1.0), Head(name="id:9", weight=-1.0)])
    exported = export_checkpoint(str(tmp_path / "adapter"), tmp_path / "bundle", options)
    assert exported.parity.ok
    with quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    (result,) = Scorer(tmp_path / "bundle").score([TEXTS[0]])
    with torch.no_grad():
        logits = tuned(torch.tensor([tokenizer(TEXTS[0])["input_ids"]])).logits[0, -1]
    assert result.score == pytest.approx(float(logits[7] - logits[9]), abs=1e-5)


@pytest.mark.parametrize("name", ["value_head.bin", "pytorch_model.bin"])
def test_a_pickled_head_beside_an_adapter_is_refused_with_its_conversion(name, decoders, tmp_path):
    base = language_model(decoders("llama"), tmp_path / "base")
    lora(base, tmp_path / "adapter")
    (tmp_path / "adapter" / name).write_bytes(b"\x80\x02")
    with pytest.raises(SourceError, match=rf"{name} is pickled.*convert it there: python -c .*value_head\.safetensors"):
        load_checkpoint(str(tmp_path / "adapter"))


def test_a_pickled_head_beside_a_model_is_refused_with_its_conversion(decoders, tmp_path):
    case = CASES["LLaMA-Factory"]
    path = write(case, decoders("llama"), tmp_path / "it")
    (path / "value_head.safetensors").unlink()
    (path / "value_head.bin").write_bytes(b"\x80\x02")
    with pytest.raises(SourceError, match=r"value_head\.bin is pickled.*convert it there"):
        load_checkpoint(str(path))


def set_config(path: Path, **fields: object) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def add_weights(path: Path, **weights: torch.Tensor) -> None:
    file = path / "model.safetensors"
    stored = load_file(file)
    save_file(stored | {name.replace("__", "."): weight for name, weight in weights.items()}, file)


REFUSED = {
    "ArmoRM": ({"architectures": ["LlamaForRewardModelWithGating"]}, {}, "ArmoRM.*a gating network"),
    "gating": ({}, {"gating__0__weight": torch.zeros(2)}, r"ArmoRM, by its weight gating\.0\.weight"),
    "QRM": ({}, {"gating_network__weight": torch.zeros(2)}, "QRM.*quantiles of a distribution"),
    "URM": ({"architectures": ["LlamaForSequenceClassificationWithNormal_Weights"]}, {}, "URM.*means and deviations"),
    "LDL": ({"architectures": ["LDLRewardModel27B"]}, {}, "LDL-Reward.*distribution over labels"),
    "PairRM": ({"architectures": ["DebertaV2PairRM"]}, {}, "PairRM.*compares two texts"),
    "InternLM2": ({"model_type": "internlm2"}, {}, "InternLM2-reward.*no class for its backbone"),
    "DeepSpeed-Chat": ({}, {"rwtransformer__x": torch.zeros(2)}, "DeepSpeed-Chat"),
    "critic": ({"architectures": ["CriticModel"]}, {}, "a critic has a value for each token"),
    "a second head": (
        {},
        {"v_head__summary__weight": torch.zeros(1, 32)},
        r"has two heads, value_head \(OpenRLHF\) and v_head",
    ),
    "an unknown weight": ({}, {"adjust__weight": torch.zeros(2)}, r"adjust\.weight is a weight that"),
    "an unknown head": ({}, {"reward_head__weight": torch.zeros(2)}, r"reward_head\.weight is a weight of the head"),
    "a head of another size": ({}, {"value_head__weight": torch.zeros(1, 8)}, r"value_head\.weight has shape \(1, 8\)"),
    "a bias of another size": (
        {},
        {"value_head__bias": torch.zeros(3)},
        r"bias of value_head\.weight has shape \(3,\)",
    ),
    "a head of another name": (
        {"value_head_prefix": "head"},
        {},
        r"is a RewardModel \(OpenRLHF\), and has no .* head, head;",
    ),
    "two classes": (
        {"architectures": ["RewardModel", "LlamaForSequenceClassification"], "value_head_prefix": "score"},
        {"score__weight": torch.zeros(1, 32)},
        "two classes, RewardModel and LlamaForSequenceClassification, and nothing says which one gives",
    ),
    "a switch of words": ({"normalize_reward": "false"}, {}, "normalize_reward 'false' .* is neither true nor false"),
    "std true": ({"std": True}, {}, "std True is not one finite number"),
    "std 0": ({"std": 0.0}, {}, "std 0.0 of its config.json: scores cannot be divided by it"),
    "std of words": ({"std": "1"}, {}, "std '1' is not one finite number"),
    "own code": ({"auto_map": {"AutoModel": "modeling.Mine"}}, {}, "modeling.Mine for AutoModel: custom code of the"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_to_be_scored_right_is_refused_by_name(name, decoders, tmp_path):
    config, weights, message = REFUSED[name]
    path = write(OPENRLHF, decoders("llama"), tmp_path / "it")
    set_config(path, **config)
    add_weights(path, **weights)
    with pytest.raises(SourceError, match=message) as raised:
        load_checkpoint(str(path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", CASES)
def test_a_weight_that_no_rule_accounts_for_is_refused_by_name_in_every_format(name, decoders, tmp_path):
    case = CASES[name]
    path = write(case, decoders(case.architecture), tmp_path / "it")
    for file in ("model.safetensors", *case.files):
        weights = load_file(path / file)
        save_file(weights | {"adjust.weight": torch.ones(2)}, path / file, metadata={"format": "pt"})
        with pytest.raises(SourceError, match=r"adjust\.weight (of \S+ )?is a weight that") as raised:
            load_checkpoint(str(path))
        assert "\n" not in str(raised.value)
        save_file(weights, path / file, metadata={"format": "pt"})
    assert load_checkpoint(str(path)).format_name in {row.name for row in FORMATS}


def test_every_format_of_the_table_has_a_case(decoders, tmp_path):
    names = set()
    for index, case in enumerate(CASES.values()):
        path = write(case, decoders(case.architecture), tmp_path / str(index))
        names.add(load_checkpoint(str(path)).format_name)
    assert names == {row.name for row in FORMATS if row.step_token is None}  # the others: test_step_formats.py


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("OASST", {"pooling": "mean"}, r"pooling 'mean' of its config\.json .*supported is 'last'"),
        ("safe-rlhf reward", {"score_type": "critic"}, r"score_type 'critic' .*supported is 'reward' or 'cost'"),
        ("GRM", {"vhead_layer_type": "other"}, r"vhead_layer_type 'other'"),
    ],
)
def test_a_format_that_pools_or_scores_otherwise_is_refused(name, config, message, decoders, tmp_path):
    case = CASES[name]
    path = write(case, decoders(case.architecture), tmp_path / "it")
    set_config(path, **config)
    with pytest.raises(SourceError, match=message):
        load_checkpoint(str(path))


def test_a_token_classifier_of_several_labels_is_refused(decoders, tmp_path):
    head = lambda head: {"weight": head["score.weight"].repeat(3, 1), "bias": torch.zeros(3)}  # noqa: E731
    path = write(replace(CASES["token classification"], head=head), decoders("llama"), tmp_path / "it")
    with pytest.raises(SourceError, match="3 labels, supported are 1 or 2; nothing says what more labels mean"):
        load_checkpoint(str(path))


def test_a_head_on_an_encoder_is_refused(decoders, tmp_path):
    path = write(CASES["UltraRM"], decoders("llama"), tmp_path / "it")
    encoder = tiny_encoder_checkpoint(tmp_path / "encoder", hidden_size=32)
    weights = {name: weight for name, weight in load_file(encoder / "model.safetensors").items() if "bert." in name}
    save_file(weights | {"regression_head.weight": torch.ones(1, 32)}, path / "model.safetensors")
    set_config(encoder, architectures=["BertModel"])
    shutil.copy(encoder / "config.json", path / "config.json")
    with pytest.raises(SourceError, match="BertModel is not a decoder"):
        load_checkpoint(str(path))


def test_a_format_has_the_recipe_of_its_trainer_and_files_that_name_another_one_are_told(decoders, tmp_path):
    path = write(OPENRLHF, decoders("llama"), tmp_path / "it")
    (path / "README.md").write_text("---\ntags: [trl, reward-trainer]\n---\n- TRL: 1.0.0\n")
    rules = derive_rules(load_checkpoint(str(path)), Options())
    assert rules.recipe == "openrlhf"
    said = "because its format is that of OpenRLHF, although README.md names RewardTrainer of TRL 1.0: "
    assert any(said in note for note in rules.notes)


def test_a_class_token_that_the_tokenizer_lacks_is_refused(decoders, tmp_path):
    case = CASES["Athene-RM"]
    path = write(case, decoders("llama"), tmp_path / "it")
    set_tokenizer(path, cls_token=None)
    with pytest.raises(SourceError, match=r"names none \(cls_token\) and has none of id 128003"):
        export_checkpoint(str(path), tmp_path / "bundle")


def test_openrlhfs_normalization_is_applied_when_asked(decoders, tmp_path):
    path = write(OPENRLHF, decoders("llama"), tmp_path / "it")
    checkpoint = load_checkpoint(str(path))
    asked = derive_rules(checkpoint, Options(normalize_saved=True))
    assert asked.normalization == Normalization(mean=0.5, std=2.0)
    assert derive_rules(checkpoint, Options()).normalization is None
    assert any("(raw - 0.5) / 2; it is not applied" in note for note in derive_rules(checkpoint, Options()).notes)
    set_config(path, normalize_reward=True)
    checkpoint = load_checkpoint(str(path))
    assert derive_rules(checkpoint, Options()).normalization == Normalization(mean=0.5, std=2.0)
    assert derive_rules(checkpoint, Options(normalize_saved=False)).normalization is None


def test_a_normalization_that_nobody_kept_is_refused(decoders, tmp_path):
    path = write(CASES["UltraRM"], decoders("llama"), tmp_path / "it")
    with pytest.raises(SourceError, match="--normalize saved: it keeps no mean and deviation"):
        derive_rules(load_checkpoint(str(path)), Options(normalize_saved=True))


EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 32, "head_dim": 8},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8, "sliding_window": 64},
    "phimoe": {"num_local_experts": 4, "sliding_window": None},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 0,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
        "head_dim": 8,
    },
}


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4 has no experts that can be traced")
@pytest.mark.parametrize(
    "architecture", [name if name == "qwen3_moe" else pytest.param(name, marks=pytest.mark.slow) for name in EXPERTS]
)
def test_a_mixture_of_experts_is_served_with_its_own_scores(architecture, tmp_path, monkeypatch):
    monkeypatch.setitem(CAUSAL_ARCHITECTURES, architecture, {"num_experts_per_tok": 2} | EXPERTS[architecture])
    path = tiny_causal_checkpoint(tmp_path / "it", architecture=architecture, num_hidden_layers=1)
    exported = export_checkpoint(str(path), tmp_path / "bundle")
    assert exported.parity.ok
    assert exported.parity.batch_invariant, exported.parity.batch_max_abs_diff
    with quiet():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(path, experts_implementation="eager")
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    (result,) = Scorer(tmp_path / "bundle").score([TEXTS[0]])
    with torch.no_grad():
        reference = model.eval()(torch.tensor([tokenizer(TEXTS[0])["input_ids"]])).logits.item()
    assert abs(result.score - reference) <= 1e-5 * max(1, abs(reference))
