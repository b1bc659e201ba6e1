"""The sentence encoder on a tiny BERT, in a plain folder and as sentence-transformers writes one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from siftune.model import sentence
from siftune.model.sentence import SentenceEncoder
from siftune.records.errors import SiftuneError

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "road", "and", "moon", "Cat"],
]
TEXTS = ["the cat sat on the mat", "", "a dog ran", "the moon and the road and the mat and a cat"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "plain"
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def written(folder: Path, **files: Any) -> None:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))


@pytest.fixture
def layout(plain: Path, tmp_path: Path) -> Path:
    """A folder as sentence-transformers writes it; tests change its files."""
    folder = Path(shutil.copytree(plain, tmp_path / "layout"))
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    written(
        folder,
        modules_json=[
            {"type": f"sentence_transformers.models.{kind}", "path": at} for kind, at in kinds.items()
        ],
        sentence_bert_config_json={"max_seq_length": 12, "do_lower_case": False},
        **{"1_Pooling__config_json": {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}},
    )
    return folder


def on_paper(folder: Path, text: str, pooling: str = "mean", limit: int = 40) -> np.ndarray:
    ids = [2, *[WORDS.index(word) if word in WORDS else 1 for word in text.split()][: limit - 2], 3]
    with torch.no_grad():
        model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
        states_T_H = model(input_ids=torch.tensor([ids])).last_hidden_state[0].double().numpy()
    pooled_H = states_T_H[0] if pooling == "cls" else states_T_H.sum(axis=0) / len(ids)
    return pooled_H / np.linalg.norm(pooled_H)


def test_a_plain_folder_pools_by_the_mean_and_keeps_order(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = SentenceEncoder(plain, CPU)
    expected = np.stack([on_paper(plain, text) for text in TEXTS])
    done: list[int] = []
    np.testing.assert_allclose(encoder(TEXTS, done.append), expected, atol=2e-6)
    assert sum(done) == len(TEXTS)
    monkeypatch.setattr(sentence, "BATCH_TOKENS", 1)  # every text alone
    np.testing.assert_allclose(encoder(TEXTS), expected, atol=2e-6)
    assert encoder([]).shape == (0, 16)
    assert encoder.max_length == 40


def test_the_folder_says_how_long_a_text_may_be_and_cuts_are_counted(layout: Path) -> None:
    encoder = SentenceEncoder(layout, CPU)
    assert encoder.max_length == 12
    texts = ["cat " * 30, "dog", "cat " * 10]
    np.testing.assert_allclose(
        encoder(texts), np.stack([on_paper(layout, text, limit=12) for text in texts]), atol=2e-6
    )
    assert encoder.n_cut == 1


@pytest.mark.parametrize("config", [{"pooling_mode_cls_token": True}, {"pooling_mode": "cls"}])
def test_pooling_by_the_first_token(layout: Path, config: dict[str, Any]) -> None:
    written(layout, **{"1_Pooling__config_json": config})
    np.testing.assert_allclose(
        SentenceEncoder(layout, CPU)(TEXTS),
        np.stack([on_paper(layout, t, "cls", 12) for t in TEXTS]),
        atol=2e-6,
    )


def test_lower_case_and_default_prompt_are_as_the_folder_asks(layout: Path) -> None:
    as_given = SentenceEncoder(layout, CPU)(["Cat"])
    written(
        layout,
        sentence_bert_config_json={"do_lower_case": True},
        config_sentence_transformers_json={"prompts": {"find": "the moon "}, "default_prompt_name": "find"},
    )
    found = SentenceEncoder(layout, CPU)(["Cat"])
    np.testing.assert_allclose(found[0], on_paper(layout, "the moon cat"), atol=2e-6)
    np.testing.assert_allclose(as_given[0], on_paper(layout, "Cat"), atol=2e-6)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"1_Pooling__config_json": {"pooling_mode_max_tokens": True}}, "pools by max_tokens"),
        (
            {"1_Pooling__config_json": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}},
            "pools by mean_tokens and cls_token",
        ),
        ({"1_Pooling__config_json": {"pooling_mode": "lasttoken"}}, "pools by lasttoken"),
        (
            {"modules_json": [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]},
            "has a Dense module",
        ),
        (
            {"modules_json": [{"type": "sentence_transformers.models.Pooling", "path": "nowhere"}]},
            "is missing",
        ),
        (
            {"modules_json": [{"type": "sentence_transformers.models.Pooling", "path": "../plain"}]},
            "names the folder '../plain', which is not in it",
        ),
        (
            {"config_json": {"model_type": "t5", "vocab_size": 20, "d_model": 16}},
            "encoder|weights are missing|loaded",
        ),
    ],
)
def test_what_is_not_done_here_is_refused_by_name(layout: Path, files: dict[str, Any], said: str) -> None:
    written(layout, **files)
    with pytest.raises(SiftuneError, match=said):
        SentenceEncoder(layout, CPU)


def test_missing_weights_are_refused(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "deeper"))
    config = json.loads((folder / "config.json").read_text())
    written(folder, config_json={**config, "num_hidden_layers": 3})
    with pytest.raises(SiftuneError, match="weights are missing"):
        SentenceEncoder(folder, CPU)
    with pytest.raises(SiftuneError, match="no such folder"):
        SentenceEncoder(tmp_path / "nowhere", CPU)


def test_weights_that_are_no_safetensors_are_not_opened(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "pickled"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(SiftuneError, match="no weights as safetensors"):
        SentenceEncoder(folder, CPU)


def test_a_config_that_promises_more_than_the_weights_is_refused(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "huge"))
    config = json.loads((folder / "config.json").read_text())
    written(folder, config_json={**config, "vocab_size": 10**12})
    with pytest.raises(SiftuneError, match="does not fit the weights"):
        SentenceEncoder(folder, CPU)


def test_the_digest_is_that_of_the_content(plain: Path, layout: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(plain, tmp_path / "elsewhere"))
    assert SentenceEncoder(plain, CPU).digest == SentenceEncoder(elsewhere, CPU).digest
    assert SentenceEncoder(plain, CPU).digest != SentenceEncoder(layout, CPU).digest  # another max_length
    model = BertModel.from_pretrained(elsewhere, add_pooling_layer=False)
    model.get_input_embeddings().weight.data[4, 0] += 1
    model.save_pretrained(elsewhere)
    assert SentenceEncoder(plain, CPU).digest != SentenceEncoder(elsewhere, CPU).digest
