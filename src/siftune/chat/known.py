"""Chat templates known by their text, each with the few edits that mark what the assistant says.

A template is known by the SHA-256 of its text without final newlines (Jinja drops one itself). Its edits put
`{% generation %}` markers around the assistant's words and its end-of-turn, or as near as an edit of one place gets:
a header inside the markers and an end-of-turn outside them are mended for all marked templates alike (marked.py).
That the variant renders what the template renders is checked again for every row.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from siftune.records.errors import SiftuneError

Edit = tuple[str, str]
"""(old, new): a text that occurs exactly once in the template, and what takes its place."""


@dataclass(frozen=True)
class Variant:
    """A training variant: `text` renders what the template renders, and marks what the assistant says."""

    name: str
    text: str


def _only_if(condition: str, words: str) -> str:
    """Ends an output, writes `words`, marked where `condition` holds, and opens another output."""
    return (
        f"}}}}{{% if {condition} %}}{{% generation %}}{{{{ {words} }}}}{{% endgeneration %}}"
        f"{{% else %}}{{{{ {words} }}}}{{% endif %}}{{{{ "
    )


_ASSISTANT = "message['role'] == 'assistant'"
_GEMMA_WORDS = "message['content'] | trim"
_QWEN_END = "{{- '<|im_end|>\\n' }}\n    {%- elif message.role == \"tool\" %}"

_CHATML: list[Edit] = [
    (
        " + message['content'] + '<|im_end|>' + ",
        _only_if(_ASSISTANT, "message['content'] + '<|im_end|>'"),
    )
]
_QWEN2_5: list[Edit] = [
    (
        " + message.content + '<|im_end|>' + ",
        _only_if("message.role == 'assistant'", "message.content + '<|im_end|>'"),
    ),
    ("{{- '<|im_start|>' + message.role }}\n", "{{- '<|im_start|>' + message.role }}{% generation %}\n"),
    (_QWEN_END, _QWEN_END.replace("\n", "{% endgeneration %}\n")),
]
_QWEN3: list[Edit] = [
    (
        "{%- if loop.index0 > ns.last_query_index %}",
        "{%- generation %}{% if loop.index0 > ns.last_query_index %}",
    ),
    (_QWEN_END, _QWEN_END.replace("\n", "{% endgeneration %}\n")),
]
_QWEN3_2507: list[Edit] = [
    (
        "\n        {{- '<|im_start|>' + message.role + '\\n' + content }}\n",
        "\n        {%- generation %}{{- '<|im_start|>' + message.role + '\\n' + content }}\n",
    ),
    (_QWEN_END, _QWEN_END.replace("\n", "{% endgeneration %}\n")),
]
_LLAMA3: list[Edit] = [
    (
        "{{ content }}",
        "{% if message['role'] == 'assistant' %}{% set said = message['content'] | trim + '<|eot_id|>' %}"
        "{{ content[:content | length - said | length] }}{% generation %}{{ said }}{% endgeneration %}"
        "{% else %}{{ content }}{% endif %}",
    )
]
_LLAMA3_1: list[Edit] = [
    (
        "+ message['content'] | trim + '<|eot_id|>' }}",
        _only_if(_ASSISTANT, "message['content'] | trim + '<|eot_id|>'") + "'' }}",
    ),
    (
        "{%- set tool_call = message.tool_calls[0].function %}",
        "{%- generation %}{%- set tool_call = message.tool_calls[0].function %}",
    ),
    (
        '{%- elif message.role == "tool" or message.role == "ipython" %}',
        '{%- endgeneration %}{%- elif message.role == "tool" or message.role == "ipython" %}',
    ),
]
_GEMMA: list[Edit] = [
    (f" + {_GEMMA_WORDS} + '<end_of_turn>", _only_if("role == 'model'", f"{_GEMMA_WORDS}") + "'<end_of_turn>")
]
_GEMMA3: list[Edit] = [
    (f"{{{{ {_GEMMA_WORDS} }}}}", "{{ ''" + _only_if("role == 'model'", _GEMMA_WORDS) + "'' }}"),
]
_PHI3: list[Edit] = [
    (
        "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}",
        "{{'<|assistant|>\n'}}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}{{ '\n'}}",
    )
]
_MISTRAL: list[Edit] = [
    (
        "{{ message['content'] + eos_token",
        "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ ''",
    )
]

_KNOWN: dict[str, tuple[str, list[Edit]]] = {
    "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788": ("SmolLM2", _CHATML),
    "153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3": ("ChatML", _CHATML),
    "fcf7a096fe99a48fd9ad2b250bf9237e96e8f48bffec1c7ea4d3f225176cd40e": ("ChatML", _CHATML),
    "58c1a1f04baa7adaeaba1f90267c3d57d9396f0c1f0129bdde9e76d3c6784af7": ("ChatML", _CHATML),
    "d7b5b8c7b58f7a6bf868aa46a5f73ee976d7292f40fcb9c3e7a1defd8d235cfb": ("ChatML", _CHATML),
    "793202280c0910ab26bc6eb57c8212c2417324c6d8c4efd0d10d59092ab3e3eb": ("Qwen2", _CHATML),
    "f0206845c9ebc3abb4735d44f286eb81ce99238ad2accc710c6fc60e6cb8ccc8": ("Qwen2", _CHATML),
    "55b2f4a26ac9ee719330a61a0c39d9e538b0e9322212f048326318cff4f8674a": ("Qwen2.5", _QWEN2_5),
    "a55ee1b1660128b7098723e0abcd92caa0788061051c62d51cbe87d9cf1974d8": ("Qwen3", _QWEN3),
    "64f85b198065d0fba2a81f37e10ed68161ce2c19a754c7100e67e0ca2ee9c326": ("Qwen3-2507", _QWEN3_2507),
    "ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122": ("Llama-3", _LLAMA3),
    "93c0e9aa3629bbd77e68dbc0f5621f6e6b23aa8d74b932595cdb8d64684526d7": ("Llama-3.1", _LLAMA3_1),
    "d82792f95932f1c9cef5c4bd992f171225e3bf8c7b609b4557c9e1ec96be819f": ("Llama-3.2", _LLAMA3_1),
    "ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6": ("Gemma", _GEMMA),
    "8d9e3a3c114fb2053ec500184677af4f7e5f8ec2582443cd535834e68b3ade29": ("Gemma-3", _GEMMA3),
    "dcaee66df77bfbb789ec541fe713218da30225a526f1db97138fc39ee6dc56aa": ("Phi-3", _PHI3),
    "78d976a442bcde2f0be15aafbb8e3050e1104f86732266f68403251b89982a90": ("Phi-3.5", _PHI3),
    "7e995b379ec01747807246483647cd99030abf331653f1119e16d7ac041a3495": ("Mistral-v0.1", _MISTRAL),
    "26a59556925c987317ce5291811ba3b7f32ec4c647c400c6cc7e3a9993007ba7": ("Mistral-v0.2", _MISTRAL),
}


def training_variant(text: str) -> Variant | None:
    """The training variant of a known template; None for a template that is not known."""
    digest = hashlib.sha256(text.rstrip("\n").encode("utf-8", "surrogatepass")).hexdigest()
    if digest not in _KNOWN:
        return None
    name, edits = _KNOWN[digest]
    for old, new in edits:
        if text.count(old) != 1:
            raise SiftuneError(f"the training edits of the {name} template do not fit its text")
        text = text.replace(old, new)
    return Variant(name, text)
