"""A reward that is a rule and no model, for plaudit-ppo: is the first number of the answer the one that is wanted?

python examples/rule_reward.py 5000

Then, in the settings of plaudit-ppo:

    prompts = "questions.jsonl"          # {"prompt": "2 + 3 =", "answer": "5"}
    label_column = "answer"
    scorer_urls = ["openrlhf+http://127.0.0.1:5000/get_reward"]

The service speaks OpenRLHF's form: it gets `query` (prompt and completion), `prompts` and `labels`, and answers
`rewards`.
"""

import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def reward(prompt: str, query: str, label: str) -> float:
    """1 where the first number of the completion is the label, else 0."""
    numbers = re.findall(r"-?\d+", query.removeprefix(prompt))
    return float(bool(numbers) and numbers[0] == label)


class Handler(BaseHTTPRequestHandler):
    """Answers POST with one reward for each query."""

    def do_POST(self) -> None:
        """Read the queries, apply the rule, answer."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        rewards = [reward(*row) for row in zip(body["prompts"], body["query"], body["labels"], strict=True)]
        answer = json.dumps({"rewards": rewards}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


def main(port: str) -> None:
    """Serve on this machine until stopped."""
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    print(f"listening on port {server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
