"""Texts and a chat on which the rules of trainers differ: newlines and EOS at the end, one letter, many scripts."""

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Ends with a newline\n\n",
    "Ends with EOS already<|im_end|>",
    "a",
    "\n leading, and Grüße aus Köln: 今天",
)
CHAT = [
    {"role": "user", "content": "How do I boil an egg?"},
    {"role": "assistant", "content": "Seven minutes in boiling water."},
]
