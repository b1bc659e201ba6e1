"""The three ways to trained tokens agree with each other, with trl's training templates and with transformers."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest

from chat_helpers import CONVERSATIONS, TEMPLATES, example, smollm2, trl_template, with_template
from siftune.chat.encoder import ChatEncoder, Encoded
from siftune.chat.known import training_variant
from siftune.chat.template import MARKERS
from siftune.records.errors import SiftuneError

NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
PAIRS = [name for name in NAMES if f"{name}_training" in NAMES]
KNOWN = {
    "qwen2_5": "Qwen2.5",
    "qwen3": "Qwen3",
    "qwen3_instruct_2507": "Qwen3-2507",
    "llama3": "Llama-3",
    "llama3_1": "Llama-3.1",
    "llama3_2": "Llama-3.2",
    "gemma": "Gemma",
    "gemma3": "Gemma-3",
    "phi3": "Phi-3",
    "phi3_5": "Phi-3.5",
}
# Templates of which every conversation is refused, each with what its reasons say.
REFUSED = {
    "deepseek_r1_distill": "generation prompt|reasoning|tools",
    "deepseekv3": "generation prompt|reasoning|TypeError",
    "glm4moe": "no end-of-turn",
    "gptoss": "otherwise than earlier ones",
    "idefics3": "leaves out|refuses it",
    "idefics3_training": "leaves out|refuses it",
    "llava_next": "refuses it",
    "llava_next_training": "refuses it",
    "nemotron_3_5_lightning": "generation prompt|tools",
    "nemotron_3_nano": "generation prompt",
    "nemotron_3_super": "generation prompt",
    "nemotron_3_ultra": "generation prompt",
    "qwen3_8": "share a token",
    "smolvlm": "leaves out|refuses it",
    "smolvlm_training": "leaves out|refuses it",
}


@pytest.fixture(scope="module")
def everything():
    """One tokenizer with the special tokens of all templates."""
    return with_template("".join(trl_template(name) for name in NAMES))


def encoder(tokenizer, name, mask) -> ChatEncoder | None:
    tokenizer.chat_template = trl_template(name)
    try:
        return ChatEncoder(tokenizer, max_length=4096, mask=mask)
    except SiftuneError:
        return None


def said(tokenizer, encoded: Encoded) -> list[str]:
    """The text of each run of trained tokens."""
    edges = np.flatnonzero(np.diff(encoded.trained.astype(int), prepend=0, append=0))
    return [
        tokenizer.decode(encoded.token_ids[a:b].tolist())
        for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_ways_agree_and_refusals_have_reasons(everything, name):
    encoders = [
        found for mask in ("generation", "known", "prefix") if (found := encoder(everything, name, mask))
    ]
    accepted = 0
    for title, conversation in CONVERSATIONS.items():
        results = [each.encode(conversation) for each in encoders]
        good = [result for result in results if isinstance(result, Encoded)]
        for reason in (result for result in results if isinstance(result, str)):
            assert len(reason) > 15, title
            assert "\n" not in reason, title
            if name in REFUSED:
                assert re.search(REFUSED[name], reason), title
        for result in good:
            accepted += 1
            assert result.trained.dtype == bool
            assert result.token_ids.dtype == np.int32
            assert result.trained.any(), title
            assert not result.trained[0], title
            assert not result.trained.all(), title
            np.testing.assert_array_equal(result.token_ids, good[0].token_ids)
            np.testing.assert_array_equal(result.trained, good[0].trained, err_msg=title)
            for run in said(everything, result):
                assert run.strip(), f"{title}: only whitespace is trained"
                assert run == run.rstrip(), f"{title}: whitespace after the end-of-turn is trained"
    assert (accepted == 0) == (name in REFUSED)


@pytest.mark.parametrize("name", PAIRS)
def test_same_mask_as_trl_training_template(everything, name):
    """Wherever trl's training template renders the same tokens, ours are trained alike."""
    ours, theirs = encoder(everything, name, "auto"), encoder(everything, f"{name}_training", "generation")
    assert ours
    assert theirs
    compared = 0
    for title, conversation in CONVERSATIONS.items():
        a, b = ours.encode(conversation), theirs.encode(conversation)
        if isinstance(a, Encoded) and isinstance(b, Encoded) and np.array_equal(a.token_ids, b.token_ids):
            np.testing.assert_array_equal(a.trained, b.trained, err_msg=title)
            compared += 1
    if name in KNOWN:
        # Gemma refuses system turns, and trl changes what Qwen3 renders for earlier turns.
        assert compared >= (4 if name == "qwen3" else 8)


@pytest.mark.parametrize("name", [name for name in NAMES if MARKERS.search(trl_template(name))])
def test_against_transformers_own_mask(everything, name):
    """Way 1 is transformers' mask but for scaffold: role headers, the end-of-turn, whitespace around them."""
    ours = encoder(everything, name, "generation")
    assert ours
    for title, conversation in CONVERSATIONS.items():
        result = ours.encode(conversation)
        if isinstance(result, str):
            continue
        theirs = everything.apply_chat_template(
            conversation.messages,
            tools=conversation.tools,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        if list(theirs["input_ids"]) != result.token_ids.tolist():
            assert "strftime_now" in trl_template(name), title
            continue
        mask = np.array(theirs["assistant_masks"], dtype=bool)
        only_ours = {everything.decode([i]) for i in result.token_ids[result.trained & ~mask]}
        assert all(token in everything.all_special_tokens for token in only_ours), title
        only_theirs = everything.decode(result.token_ids[mask & ~result.trained].tolist())
        for scaffold in (
            "<|im_start|>",
            "<|start|>",
            "<｜Assistant｜>",
            "assistant",
            "<think>",
            "</think>",
            "<|im_end|>",
        ):
            only_theirs = only_theirs.replace(scaffold, "")
        assert not only_theirs.strip(), title


@pytest.mark.parametrize("name", KNOWN)
def test_known_variant_renders_the_same_text(everything, name):
    """Also for conversations that begin with the assistant, where headers follow nothing."""
    known = encoder(everything, name, "known")
    assert known
    assert known.template_name == KNOWN[name]
    for title, conversation in CONVERSATIONS.items():
        result = known.encode(conversation)
        if isinstance(result, str):
            assert "training variant" not in result, title
            assert re.search("refuses it|does not show the tools", result), title
        else:
            assert result.way.removesuffix("+shared") == "known"
    first = known.encode(example(("assistant", "I begin."), ("user", "Go on."), ("assistant", "I go on.")))
    if isinstance(first, Encoded):
        assert [re.sub(r"<think>\s*</think>\s*|<[^<]*>$", "", run) for run in said(everything, first)] == [
            "I begin.",
            "I go on.",
        ]


EXPECTED = {
    "llama3": ("<|eot_id|>", ["Two.", "Four.\n\nFive."]),
    "phi3": ("<|end|>", ["Two.", "Four.\n\nFive."]),
    "gemma3": ("<end_of_turn>", ["Two.", "Four.\n\nFive."]),
    "qwen2_5": ("<|im_end|>", ["Two.", "Four.\n\nFive."]),
    "qwen3": ("<|im_end|>", ["Two.", "<think>\n\n</think>\n\nFour.\n\nFive."]),
    "cohere2": ("<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", ["Two.", "Four.\n\nFive."]),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_trained_in_words(everything, name):
    end, answers = EXPECTED[name]
    found = encoder(everything, name, "auto")
    assert found
    result = found.encode(CONVERSATIONS["multi-turn"])
    assert isinstance(result, Encoded)
    assert said(everything, result) == [answer + end for answer in answers]
    quoting = found.encode(CONVERSATIONS["quotes markers"])
    assert isinstance(quoting, Encoded)
    turns = [
        turn["content"] for turn in CONVERSATIONS["quotes markers"].messages if turn["role"] == "assistant"
    ]
    runs = [run.replace("<think>\n\n</think>\n\n", "") for run in said(everything, quoting)]
    assert runs == [turn + end for turn in turns]


def test_qwen3_rewrites_are_seen_by_the_prefix_way(everything):
    prefix, known = encoder(everything, "qwen3", "prefix"), encoder(everything, "qwen3", "known")
    assert prefix
    assert known
    reason = prefix.encode(CONVERSATIONS["think twice"])
    assert reason == "the template rewrites earlier turns: turn 2 renders differently once turn 3 follows"
    result = known.encode(CONVERSATIONS["think twice"])
    assert isinstance(result, Encoded)
    assert said(everything, result) == [
        "It is 4.<|im_end|>",
        "<think>\nThree and three.\n</think>\n\nIt is 6.<|im_end|>",
    ]


def test_tool_calls_are_trained(everything):
    for name in ("qwen2_5", "qwen3", "llama3_1", "llama3_2"):
        found = encoder(everything, name, "auto")
        assert found
        result = found.encode(CONVERSATIONS["tools"])
        assert isinstance(result, Encoded)
        call, answer = said(everything, result)
        assert '"get_weather"' in call
        assert "Zürich" in call
        assert answer.replace("<think>\n\n</think>\n\n", "").startswith("It is 18 °C.<")


MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (MISTRAL, "Mistral-v0.2"),
        (MISTRAL.replace("eos_token}}", "eos_token + ' ' }}"), "Mistral-v0.1"),
        (CHATML, "ChatML"),
        (CHATML.replace("\n", "\\n"), "ChatML"),
        (smollm2().chat_template, "SmolLM2"),
    ],
)
def test_known_ones_that_trl_has_not(template, name):
    tokenizer = copy.deepcopy(smollm2())
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "<|im_end|>"})
    variant = training_variant(template)
    assert variant
    assert variant.name == name
    known, prefix = (ChatEncoder(tokenizer, max_length=999, mask=mask) for mask in ("known", "prefix"))
    both = 0
    for title, conversation in CONVERSATIONS.items():
        a, b = known.encode(conversation), prefix.encode(conversation)
        if isinstance(a, Encoded) and isinstance(b, Encoded):
            np.testing.assert_array_equal(a.trained, b.trained, err_msg=title)
            both += 1
    assert both >= 7


def test_pad_equal_to_end_of_turn_changes_nothing():
    tokenizer = smollm2()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    result = ChatEncoder(tokenizer, max_length=99).encode(CONVERSATIONS["multi-turn"])
    assert isinstance(result, Encoded)
    ends = result.token_ids == tokenizer.eos_token_id
    assert ends.sum() == 5
    assert result.trained[ends].tolist() == [False, False, True, False, True]
