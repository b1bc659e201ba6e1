"""Templates that set traps: each is masked exactly or refused with a sentence that says why."""

from __future__ import annotations

import copy
import functools
import re

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from tokenizers import AddedToken

from chat_helpers import CALL, WEATHER, example, smollm2, trl_template, with_template
from siftune.chat.encoder import ChatEncoder, Encoded

HEAD = "{% for m in messages %}"
TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
FOOT = "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
ASK = ("user", "Why?")
SAY = ("assistant", "Because.")
MULTI = example(ASK, SAY, ("user", "Really?"), ("assistant", "Yes."))


def encode(template, conversation, mask="auto", **settings) -> Encoded | str:
    tokenizer = copy.copy(smollm2())
    tokenizer.chat_template = template
    return ChatEncoder(tokenizer, max_length=4096, mask=mask, **settings).encode(conversation)


def said(result: Encoded | str) -> list[str]:
    assert isinstance(result, Encoded), result
    edges = np.flatnonzero(np.diff(result.trained.astype(int), prepend=0, append=0))
    return [
        smollm2().decode(result.token_ids[a:b].tolist()) for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]


def split(before="'<|im_start|>' + m['role'] + '\n'", marked="m['content'] + '<|im_end|>'", after="'\n'"):
    """A template with generation markers around what `marked` writes."""
    assistant = (
        f"{{{{ {before} }}}}{{% generation %}}{{{{ {marked} }}}}{{% endgeneration %}}{{{{ {after} }}}}"
    )
    return f"{HEAD}{{% if m['role'] == 'assistant' %}}{assistant}{{% else %}}{TURN}{{% endif %}}{FOOT}"


BOTH = ["Because.<|im_end|>", "Yes.<|im_end|>"]
PROVED = {
    "plain": HEAD + TURN + FOOT,
    "strips content": HEAD + TURN.replace("m['content']", "m['content'].strip()") + FOOT,
    "default system turn": "{{ '<|im_start|>system\nHi<|im_end|>\n' }}" + HEAD + TURN + FOOT,
    "begins with bos": "{{ bos_token }}" + HEAD + TURN + FOOT,
    "text after the last turn": HEAD + TURN + FOOT.replace("{% endfor %}", "{% endfor %}{{ '<|endoftext|>' if not add_generation_prompt }}"),
    "always adds the prompt": HEAD + TURN + "{% endfor %}{{ '<|im_start|>assistant\n' }}",
    "no newline after a turn": HEAD + TURN.replace("<|im_end|>\n", "<|im_end|>") + FOOT,
}  # fmt: skip


@pytest.mark.parametrize("name", PROVED)
def test_prefixes_prove(name):
    result = encode(PROVED[name], MULTI)
    assert said(result) == BOTH
    assert isinstance(result, Encoded)
    assert result.way == "prefix"


@pytest.mark.parametrize(
    ("template", "way"),
    [
        (split(), "generation"),
        (split(marked="m['content'] + '<|im_end|>\n'", after="''"), "generation"),
        (split(marked="m['content']", after="'<|im_end|>\n'"), "generation+end"),
        (split("'<|im_start|>assistant'", "'\n' + m['content'] + '<|im_end|>'"), "generation"),
        (split("''", "'<|im_start|>assistant\n' + m['content'] + '<|im_end|>\n'", "''"), "generation"),
    ],
)
def test_markers_are_mended(template, way):
    result = encode(template, MULTI)
    assert said(result) == BOTH
    assert isinstance(result, Encoded)
    assert result.way == way
    prefix = encode(template, MULTI, mask="prefix")
    assert isinstance(prefix, Encoded)
    np.testing.assert_array_equal(result.trained, prefix.trained)


def test_end_of_turn_that_is_no_special_token():
    template = (HEAD + TURN + FOOT).replace("<|im_end|>", "</s>")
    assert said(encode(template, MULTI)) == ["Because.</s>", "Yes.</s>"]


def test_two_special_tokens_end_a_turn():
    template = (HEAD + TURN + FOOT).replace("<|im_end|>", "<|im_end|><|endoftext|>")
    assert said(encode(template, MULTI)) == ["Because.<|im_end|><|endoftext|>", "Yes.<|im_end|><|endoftext|>"]


LAST_ONLY = (
    HEAD + TURN.replace("<|im_end|>", "") + FOOT.replace("{% endfor %}", "{% endfor %}{{ '<|im_end|>' }}")
)
REFUSED = {
    "ignores add_generation_prompt": (HEAD + TURN + "{% endfor %}", MULTI, "ignores add_generation_prompt"),
    "prompt is another header": (HEAD + TURN + FOOT.replace("assistant", "model"), MULTI, "not what the assistant"),
    "no end-of-turn": (HEAD + TURN.replace("<|im_end|>", "") + FOOT, MULTI, "no end-of-turn"),
    "end-of-turn at the very end alone": (LAST_ONLY, MULTI, "otherwise than earlier ones"),
    "numbers the turns from the end": (
        HEAD + "{{ loop.revindex }}" + TURN + FOOT.replace("{{ '", "{{ '0' + '"),
        MULTI,
        "rewrites earlier turns|not what the assistant turn opens with",
    ),
    "role order": (HEAD + "{{ raise_exception('No\nsystem turns!') if m['role'] == 'system' }}" + TURN + FOOT,
                   example(("system", "x"), ASK, SAY), "refuses it: TemplateError: No$"),
    "drops tool calls": ("{{ tools if tools }}" + HEAD + TURN + FOOT, example(ASK, {**CALL, "content": "Let me see."}, tools=[WEATHER]),
                         "turn 2: the template leaves out the call of 'get_weather'"),
    "drops tools": (HEAD + TURN + FOOT, example(ASK, SAY, tools=[WEATHER]), "does not show the tools"),
    "drops a role": (HEAD + "{% if m['role'] != 'tool' %}" + TURN + "{% endif %}" + FOOT,
                     example(ASK, SAY, {"role": "tool", "content": "18"}, SAY), r"leaves out turn 3 \(tool\)"),
    "drops the last reasoning": (HEAD + TURN.replace("m['content']", "m['content'].split('</think>')[-1]") + FOOT,
                                 example(ASK, ("assistant", "<think>hmm</think>Because.")), "leaves out the reasoning of turn 2"),
    "knows no reasoning": (HEAD + TURN + FOOT, example(ASK, {"role": "assistant", "content": "B", "reasoning_content": "hm"}),
                           "does not know reasoning_content"),
    "begins with the assistant": (HEAD + TURN + FOOT, example(SAY, ASK, SAY), "turn 1 is the assistant's"),
    "header and answer share a token": (HEAD + TURN + FOOT, example(ASK, ("assistant", "    indented")), "share a token"),
    "prompt tokenises otherwise": ((HEAD + TURN + FOOT).replace("+ '\n' +", "+ '\n\n' +").replace("assistant\n", "assistant\n\n"),
                                   MULTI, "has other tokens when the answer follows"),
    "markers leave out words": (split(marked="m['content'][:3] + '<|im_end|>'", after="m['content'][3:]"), MULTI,
                                "leave out what turn 2 says|otherwise"),
    "one word is the whole text": ("{% for m in messages %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% endfor %}",
                                   MULTI, "mark what the user says too"),
    "syntax error": ("{% for m in messages %}", MULTI, "refuses it: TemplateSyntaxError"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    template, conversation, reason = REFUSED[name]
    result = encode(template, conversation, mask="generation" if "one word" in name else "auto")
    assert isinstance(result, str)
    assert re.search(reason, result), result


def test_indented_answers_are_kept_where_markers_say_so():
    result = encode(split(), example(ASK, ("assistant", "    indented")))
    assert said(result) == ["\n    indented<|im_end|>"]
    assert isinstance(result, Encoded)
    assert result.way == "generation+shared"


def test_date_is_pinned():
    template = "{{ strftime_now('%d %b %Y, %B %Y-%m-%d') }}" + HEAD + TURN + FOOT
    result = encode(template, MULTI)
    assert isinstance(result, Encoded)
    text = smollm2().decode(result.token_ids.tolist())
    assert text.startswith("26 Jul 2024, July 2024-07-26<|im_start|>user")
    tokenizer = with_template(trl_template("llama3_2"))
    result = ChatEncoder(tokenizer, max_length=99, mask="known").encode(MULTI)
    assert isinstance(result, Encoded)
    assert "Today Date: 26 Jul 2024" in tokenizer.decode(result.token_ids.tolist())


def test_added_tokens_that_swallow_whitespace():
    """Phi-3's header and end-of-turn tokens take the newline after them."""
    tokenizer = copy.deepcopy(smollm2())
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                AddedToken(mark, rstrip=True, special=True, normalized=False)
                for mark in ("<|assistant|>", "<|user|>", "<|end|>")
            ]
        }
    )
    tokenizer.chat_template = trl_template("phi3")
    for mask in ("known", "prefix"):
        result = ChatEncoder(tokenizer, max_length=99, mask=mask).encode(
            example(ASK, ("assistant", "  Because."), ASK)
        )
        assert isinstance(result, Encoded)
        assert tokenizer.decode(result.token_ids[result.trained].tolist()).strip() == "Because.<|end|>"


pieces = st.characters(exclude_categories=["Cs"]) | st.sampled_from(
    ["<|im_end|>", "<|im_start|>", "\n", " ", "\x00"]
)
text = st.lists(pieces, min_size=1, max_size=20).map("".join)


@functools.cache
def smollm2_encoder(mask):
    return ChatEncoder(smollm2(), max_length=10**6, mask=mask)


@given(st.lists(st.tuples(text, text), min_size=1, max_size=3))
def test_any_text_gives_the_oracle_mask_or_a_reason(turns):
    """Oracle: tokenise the pieces one by one; equal wherever joined text tokenises as its pieces do."""
    tokenizer = smollm2()
    conversation = example(*(turn for ask, say in turns for turn in (("user", ask), ("assistant", say))))
    known = smollm2_encoder("known").encode(conversation)
    assert isinstance(known, Encoded)
    ids: list[int] = []
    trained: list[bool] = []
    header = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    )
    for ask, say in turns:
        for piece, said_ in (
            (f"{header}<|im_start|>user\n{ask}<|im_end|>\n<|im_start|>assistant\n", False),
            (f"{say}<|im_end|>", True),
        ):
            some = tokenizer(piece, add_special_tokens=False).input_ids
            ids += some
            trained += [said_] * len(some)
        header = "\n"
    end = tokenizer("\n", add_special_tokens=False).input_ids
    ids, trained = ids + end, trained + [False] * len(end)
    plain = ids == known.token_ids.tolist()
    event(f"pieces tokenise alone as they do together: {plain}")
    if plain:
        assert known.trained.tolist() == trained
    prefix = smollm2_encoder("prefix").encode(conversation)
    if isinstance(prefix, Encoded):
        np.testing.assert_array_equal(prefix.trained, known.trained)
    else:
        assert "token" in prefix
