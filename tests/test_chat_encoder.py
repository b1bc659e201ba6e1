"""Encoding: lengths, reasons, the default template, named templates, the fingerprint; loading a tokenizer."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from chat_helpers import CALL, CONVERSATIONS, WEATHER, example, smollm2, trl_template
from siftune.chat.encoder import ChatEncoder, Encoded
from siftune.chat.show import show
from siftune.chat.tokenizer import load_tokenizer, saved_template
from siftune.records.errors import SiftuneError

MULTI = CONVERSATIONS["multi-turn"]
LONG = example(("user", "Count."), ("assistant", "one two three " * 50))


def of(template="keep", **settings):
    tokenizer = copy.copy(smollm2())
    if template != "keep":
        tokenizer.chat_template = template
    return ChatEncoder(tokenizer, **{"max_length": 4096, **settings})


def test_truncates_at_the_end():
    whole, cut = of().encode(LONG), of(max_length=50).encode(LONG)
    assert isinstance(whole, Encoded)
    assert isinstance(cut, Encoded)
    assert not whole.truncated
    assert cut.truncated
    np.testing.assert_array_equal(cut.token_ids, whole.token_ids[:50])
    np.testing.assert_array_equal(cut.trained, whole.trained[:50])


def test_exact_length_is_not_too_long():
    whole = of().encode(LONG)
    assert isinstance(whole, Encoded)
    n = len(whole.token_ids)
    same = of(max_length=n, too_long="quarantine").encode(LONG)
    assert isinstance(same, Encoded)
    assert not same.truncated
    assert (
        of(max_length=n - 1, too_long="quarantine").encode(LONG)
        == f"{n} tokens, more than max_length ({n - 1})"
    )


def test_prompt_fills_max_length():
    reason = of(max_length=8).encode(LONG)
    whole = of().encode(LONG)
    assert isinstance(whole, Encoded)
    n = len(whole.token_ids)
    assert reason == f"the prompt fills max_length (8 of {n} tokens): no trained token is left"


def test_default_template():
    encoder = of(None)
    result = encoder.encode(CONVERSATIONS["system"])
    assert isinstance(result, Encoded)
    assert encoder.template_name == result.way == "default template"
    text = "<|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nHello!<|im_end|>\n"
    assert smollm2().decode(result.token_ids.tolist()) == text
    assert smollm2().decode(result.token_ids[result.trained].tolist()) == "Hello!<|im_end|>"
    tools = encoder.encode(CONVERSATIONS["tools"])
    assert isinstance(tools, Encoded)
    said = smollm2().decode(tools.token_ids[tools.trained].tolist())
    assert json.loads(said.split("<|im_end|>")[0]) == CALL["tool_calls"][0]["function"]
    text = smollm2().decode(tools.token_ids.tolist())
    assert '"description": "The weather in a city"' in text
    assert "<|tool|>\n18 °C\n<|assistant|>" in text
    prefix = of(None, mask="prefix")
    for title, conversation in CONVERSATIONS.items():
        a, b = encoder.encode(conversation), prefix.encode(conversation)
        assert isinstance(a, Encoded), title
        if isinstance(b, Encoded):
            np.testing.assert_array_equal(a.trained, b.trained)


def test_default_template_begins_as_the_tokenizer_would():
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(smollm2())
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    result = ChatEncoder(tokenizer, max_length=99).encode(MULTI)
    assert isinstance(result, Encoded)
    assert result.token_ids[0] == tokenizer.bos_token_id
    assert (result.token_ids == tokenizer.bos_token_id).sum() == 1


def test_named_way_that_the_template_lacks():
    with pytest.raises(SiftuneError, match=r"mask: generation: .*SmolLM2.* has no .* generation"):
        of(mask="generation")
    with pytest.raises(SiftuneError, match="is not one of the known ones"):
        of(trl_template("glm4moe"), mask="known")
    assert isinstance(of(mask="prefix").encode(MULTI), Encoded)


def test_named_templates_are_chosen_as_transformers_does():
    plain = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
    prompt = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    encoder = of(
        {
            "default": plain + prompt,
            "tool_use": "{{ tools[0]['function']['name'] }}" + plain + prompt,
            "rag": "x",
        }
    )
    without = encoder.encode(MULTI)
    with_tools = encoder.encode(example(("user", "a"), ("assistant", "b"), tools=[WEATHER]))
    assert isinstance(without, Encoded)
    # The probe has no tools, and this template cannot do without: refused, not guessed.
    assert isinstance(with_tools, str)
    assert with_tools.startswith("a probe conversation")
    safe = "{{ tools[0]['function']['name'] if tools }}"
    encoder = of({"default": plain + prompt, "tool_use": safe + plain + prompt})
    with_tools = encoder.encode(example(("user", "a"), ("assistant", "b"), tools=[WEATHER]))
    assert isinstance(with_tools, Encoded)
    assert smollm2().decode(with_tools.token_ids.tolist()).startswith("get_weather<|im_start|>user")
    assert "tool_use template" in encoder.describe()
    with pytest.raises(SiftuneError, match="no default one"):
        of({"rag": plain})


def test_hard_rows_do_not_raise():
    encoder = of(max_length=10**7)
    for content in ("\x00", "\u202e\u2066", "a" * 10**6, "🏳️‍🌈" * 1000, "{{ 1/0 }}{% generation %}", "\ud800"):
        result = encoder.encode(example(("user", content), ("assistant", "ok")))
        if content == "\ud800":
            assert isinstance(result, str)
            assert result.startswith("it cannot be tokenised: ")
        else:
            assert isinstance(result, Encoded)
            assert smollm2().decode(result.token_ids[result.trained].tolist()) == "ok<|im_end|>"
    assert isinstance(encoder.encode(example(("user", "x"), ("assistant", ""))), Encoded)
    assert isinstance(encoder.encode(example(("user", "x"))), str)
    assert isinstance(encoder.encode(example()), str)


def test_a_tokenizer_left_truncating_and_padding():
    tokenizer = copy.deepcopy(smollm2())
    encoder = ChatEncoder(tokenizer, max_length=4096)
    before = encoder.encode(LONG)
    tokenizer("x", padding="max_length", truncation=True, max_length=5)
    after = encoder.encode(LONG)
    assert isinstance(before, Encoded)
    assert isinstance(after, Encoded)
    np.testing.assert_array_equal(before.token_ids, after.token_ids)
    assert ChatEncoder(tokenizer, max_length=4096).fingerprint == encoder.fingerprint


def test_fingerprint_changes_with_what_changes_tokens_or_masks():
    other = copy.deepcopy(smollm2())
    other.add_tokens(["zebra"])
    different = [
        of(),
        of(max_length=9),
        of(too_long="quarantine"),
        of(mask="prefix"),
        of(None),
        of(trl_template("phi3")),
        ChatEncoder(other, max_length=4096),
    ]
    assert len({encoder.fingerprint for encoder in different}) == len(different)
    assert of().fingerprint == of().fingerprint


def test_load_tokenizer(tmp_path):
    smollm2().save_pretrained(tmp_path / "model")
    plain = load_tokenizer(str(tmp_path / "model"))
    assert plain.chat_template == smollm2().chat_template
    assert ChatEncoder(plain, max_length=4096).fingerprint == of().fingerprint

    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    assert saved_template(checkpoint) is None
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": "from config"}))
    assert saved_template(checkpoint) == "from config"
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert load_tokenizer(str(tmp_path / "model"), None, checkpoint).chat_template == {
        "default": "a",
        "tool_use": "b",
    }
    (checkpoint / "chat_template.jinja").write_text("from jinja")
    assert load_tokenizer(str(tmp_path / "model"), None, checkpoint).chat_template == "from jinja"
    (checkpoint / "chat_template.jinja").unlink()
    (checkpoint / "tokenizer_config.json").write_text("{")
    with pytest.raises(SiftuneError, match="cannot be read"):
        saved_template(checkpoint)


@pytest.mark.parametrize("files", [{}, {"config.json": '{"model_type": "llama"}'}, {"tokenizer.json": "{"}])
def test_folder_without_a_tokenizer(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SiftuneError, match="tokenizer") as error:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(error.value)
    assert "tokenizer.json" in str(error.value)


def test_show():
    result = of().encode(example(("user", "a\x1b[31mred\x07\u202e"), ("assistant", "Grüße\x1b[0m\n")))
    assert isinstance(result, Encoded)
    plain = show(result, smollm2(), colour=False).plain
    assert "⟦Grüße\\x1b[0m\n<|im_end|>⟧\n" in plain
    assert "a\\x1b[31mred\\x07\\u202e<|im_end|>" in plain
    assert plain.count("⟦") == 1
    coloured = show(result, smollm2())
    assert [
        coloured.plain[span.start : span.end] for span in coloured.spans if span.style == "bold green"
    ] == ["Grüße\\x1b[0m\n<|im_end|>"]
    assert "\x1b" not in coloured.plain
