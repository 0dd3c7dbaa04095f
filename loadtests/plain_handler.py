"""What plaudit is compared with: a FastAPI handler around a transformers model, as people write it by hand.

In eval mode, without gradients, the texts of a request in batches of 16, each padded to its longest. Not done, because
such handlers do not do it: batching across requests, sorting by length, sharing of prefixes. Prints its URL.

    python loadtests/plain_handler.py CHECKPOINT --dtype bfloat16
"""

import argparse
import socket

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BATCH_SIZE = 16


class Request(BaseModel):
    """Texts to score."""

    texts: list[str]


class Answer(BaseModel):
    """One score for each text, in order."""

    scores: list[float]


def build_app(checkpoint: str, dtype: torch.dtype) -> FastAPI:
    """The application with its model loaded."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=dtype).eval()
    app = FastAPI()

    # Not a plain `def`: its threads would run several forward passes at once on the same cores, which is slower.
    @app.post("/score")
    async def score(request: Request) -> Answer:
        scores: list[float] = []
        with torch.inference_mode():
            for at in range(0, len(request.texts), BATCH_SIZE):
                batch = request.texts[at : at + BATCH_SIZE]
                inputs = tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
                scores += model(**inputs).logits.squeeze(-1).float().tolist()
        return Answer(scores=scores)

    return app


def main() -> None:
    """Serve on a free port of this machine until stopped."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", help="directory of a *ForSequenceClassification model and its tokenizer")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="default: %(default)s")
    options = parser.parse_args()
    app = build_app(options.checkpoint, getattr(torch, options.dtype))
    # With the protocol named, as uvicorn's own sockets have it: without, asyncio leaves Nagle's algorithm on.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
