"""TRL's own class of a language model with a value head saves itself, and scores texts; imported whole.

python trl_value_head.py BASE OUTPUT ITEMS     ITEMS: JSON, texts; the scores go to OUTPUT.json
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer
from trl import AutoModelForCausalLMWithValueHead


def main(base, output, items):
    torch.manual_seed(0)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(base, v_head_init_strategy="normal").eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    with torch.no_grad():
        scores = [model(**tokenizer(item, return_tensors="pt"))[-1][0, -1].item() for item in json.loads(items)]
    Path(f"{output}.json").write_text(json.dumps(scores))


if __name__ == "__main__":
    main(*sys.argv[1:])
