"""Every method the whole way: as a run of its own and on a run that was made for another, against its formula on the files on disk."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from sklearn.cluster import KMeans
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from pipeline_helpers import digests, pool_rows, recipe, target_rows, turn, write_inputs, write_rows
from siftune.methods.blend import blended_influence
from siftune.pipeline import training, vectors
from siftune.pipeline.progress import Reporter
from siftune.pipeline.run import append, run, score, select
from siftune.records.errors import SiftuneError

QUIET = Reporter(quiet=True)
N, N_PLANTED = 114, 12
COPY, BROKEN = N - 2, N - 1
LONG = "add 3 and 4 but then please say no more than the one number that I have asked you for"
KEEP = "10%"
SUBTASKS = [row["subtask"] for row in target_rows()]


def the_pool() -> list[dict[str, Any]]:
    """Planted rows of two templates, others, two that are nearly the same, one exact copy, one that can't be used."""
    rows = pool_rows(N - 4, N_PLANTED)
    for i, row in enumerate(rows):
        row["skill"] = "maths" if row["source"] == "planted" else "noise"
        row["template"] = f"t{i % 3}"
    like = [turn(LONG, "The answer is 7."), turn(LONG + " now", "The answer is 7.")]
    rows += [{"id": f"like-{i}", "source": "like", "messages": messages} for i, messages in enumerate(like)]
    rows += [{**next(row for row in rows if row["source"] == "planted"), "id": "copy"}]
    return [*rows, {"id": "broken", "source": "broken", "messages": [{"role": "user", "content": "and?"}]}]


def write_encoder(folder: Path, seed: int) -> Path:
    """A tiny BERT that reads characters, in a folder as `save_pretrained` writes it."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789."
    words = ["[PAD]", "[UNK]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(
            BertConfig(vocab_size=len(words), max_position_embeddings=64, intermediate_size=32, **sizes),
            False,
        )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("inputs")
    settings = write_inputs(folder)
    write_rows(folder / "pool.jsonl", the_pool())
    write_encoder(folder / "tiny-bert", seed=0)
    return {**settings, "keep": KEEP, "encoder": None, "shard_rows": 30, "epochs": 1}


@pytest.fixture(scope="module")
def encoder(given: dict[str, Any]) -> str:
    return str(Path(given["model"]).parent / "tiny-bert")


@pytest.fixture(scope="module")
def done(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of less; tests below may add to it, never change what it has."""
    out = tmp_path_factory.mktemp("runs") / "run"
    run(recipe(given), out, reporter=QUIET)
    return out


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    return shutil.copytree(done, tmp_path / "run")


def ids(run_path: Path, name: str) -> list[str]:
    lines = (run_path / "selections" / name / "selected.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["id"] for line in lines]


def rows(run_path: Path, name: str) -> list[int]:
    lines = (run_path / "selections" / name / "selected.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["_siftune"]["row"] for line in lines]


def scores(run_path: Path, name: str) -> dict[str, np.ndarray]:
    table = pq.read_table(run_path / "selections" / name / "scores.parquet")
    return {c: table[c].to_numpy(zero_copy_only=False) for c in table.column_names}


def column(run_path: Path, name: str) -> np.ndarray:
    return pq.read_table(run_path / "pool" / "index.parquet")[name].to_numpy(zero_copy_only=False)


# The formulas, once more and slowly

USABLE = [n for n in range(N) if n != BROKEN]
MAY = [n for n in USABLE if n != COPY]
COUNT = len(USABLE) // 10


def stored(run_path: Path, method: str) -> tuple[np.ndarray, np.ndarray]:
    shards = sorted((run_path / "datastore" / method / "0").glob("*.safetensors"))
    pool = np.concatenate([load_file(shard)["features"] for shard in shards])
    return pool, load_file(run_path / "targets/sums/vectors" / f"{method}.safetensors")["features"]


def turns(influence_N_V: np.ndarray, count: int = COUNT) -> list[int]:
    left, order = set(MAY), []
    for k in range(count):
        best = max(left, key=lambda n: (np.float32(influence_N_V[n, k % len(SUBTASKS)]), -n))
        left.remove(best)
        order.append(best)
    return order


def by_cosine(method: str) -> Callable[[Path], list[int]]:
    def expected(run_path: Path) -> list[int]:
        pool, target = stored(run_path, method)
        np.testing.assert_allclose(np.linalg.norm(np.delete(pool, BROKEN, axis=0), axis=1), 1, atol=1e-5)
        assert np.isnan(pool[BROKEN]).all()
        return turns(pool.astype(np.float64) @ target.astype(np.float64).T)

    return expected


def shared_words() -> np.ndarray:
    """BM25's influence on paper, [N, V]; zeros where a row can't be read."""

    def words(row: dict[str, Any]) -> list[str]:
        return re.findall(r"\w+", " ".join(m["content"] for m in row["messages"]).lower())

    texts = {n: Counter(words(row)) for n, row in enumerate(the_pool()) if n != BROKEN}
    mean = sum(sum(text.values()) for text in texts.values()) / len(texts)
    influence = np.zeros((N, len(SUBTASKS)))
    for v, row in enumerate(target_rows()):
        for word in words(row):
            df = sum(word in text for text in texts.values())
            idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
            for n, text in texts.items():
                tf, length = text[word], sum(text.values())
                influence[n, v] += idf * tf / (tf + 1.5 * (0.25 + 0.75 * length / mean))
    return influence


def by_words(run_path: Path) -> list[int]:
    influence = shared_words()
    best = np.max([influence[:, [s == name for s in SUBTASKS]].mean(1) for name in set(SUBTASKS)], axis=0)
    np.testing.assert_allclose(scores(run_path, "sums")["score"][USABLE], best[USABLE], rtol=1e-5, atol=1e-6)
    return turns(influence.round(5))


def covered(vectors_N_D: np.ndarray, target_V_D: np.ndarray, family: list[int]) -> list[int]:
    """Farthest first, from the row nearest to the target's centroid."""
    centroid = target_V_D.mean(axis=0)
    taken = [max(family, key=lambda n: (vectors_N_D[n] @ centroid, -n))]
    while len(taken) < COUNT:
        near = {n: min(np.linalg.norm(vectors_N_D[n] - vectors_N_D[t]) for t in taken) for n in family}
        taken.append(max((n for n in family if n not in taken), key=lambda n: (near[n], -n)))
    return taken


def by_clusters(run_path: Path) -> list[int]:
    pool, target = stored(run_path, "embed")
    kmeans = KMeans(round(math.sqrt(len(MAY) / 2)), n_init="auto", random_state=0)
    cluster_of = np.asarray(kmeans.fit_predict(pool[MAY])).tolist()
    wanted = set(np.asarray(kmeans.predict(target)).tolist())
    return covered(pool, target, [n for n, c in zip(MAY, cluster_of, strict=True) if c in wanted])


def longest(run_path: Path) -> list[int]:
    trained = column(run_path, "n_trained")
    return sorted(MAY, key=lambda n: (-trained[n], n))[:COUNT]


def drawn(run_path: Path) -> list[int]:
    drawn_N = np.random.Generator(np.random.Philox(key=0)).random(N, dtype=np.float32)
    return sorted(MAY, key=lambda n: -drawn_N[n])[:COUNT]


METHODS: dict[str, tuple[dict[str, Any], Callable[[Path], list[int]]]] = {
    "rds+": ({}, by_cosine("rds+")),
    "embed": ({}, by_cosine("embed")),
    "embed by encoder": ({"method": "embed", "encoder": "tiny-bert"}, by_cosine("embed-tiny-bert")),
    "bm25": ({}, by_words),
    "ltd": ({}, by_clusters),
    "length": ({}, longest),
    "random": ({}, drawn),
}
NEEDS_NOTHING = {"bm25", "length", "random"}


def settings_of(name: str, encoder: str) -> dict[str, Any]:
    settings = {"method": name, **METHODS[name][0]}
    return {**settings, "encoder": encoder} if "encoder" in settings else settings


@pytest.mark.parametrize("method", METHODS)
def test_a_method_chooses_by_its_formula_in_a_run_of_its_own_and_in_another(
    method: str, given: dict[str, Any], encoder: str, done: Path, tmp_path: Path
) -> None:
    own, settings = tmp_path / "run", settings_of(method, encoder)
    made = run(recipe(given, **settings), own, reporter=QUIET).selections["sums"]
    expected = METHODS[method][1](own)
    found = rows(own, "sums")
    assert found == expected
    assert len(found) == COUNT == made.summary["n_selected"]
    name = "in-" + method.replace("+", "p").replace(" ", "-")
    select(done, {**settings, "name": name}, reporter=QUIET)
    select(done, {**settings, "name": name + "-again"}, reporter=QUIET)
    mine, other = "selections/sums/selected.jsonl", f"selections/{name}/selected.jsonl"
    assert (own / mine).read_bytes() == (done / other).read_bytes()
    assert (done / other).read_bytes() == (done / f"selections/{name}-again/selected.jsonl").read_bytes()

    assert not list((own / "checkpoints").glob("[0-9]*"))
    assert not (own / "datastore" / "less").exists()
    if method in NEEDS_NOTHING:
        assert not (own / "checkpoints").exists()
        assert not (own / "datastore").exists()
    table = scores(own, "sums")
    ruled = method not in {"ltd", "length", "random"}
    assert list(table) == [
        *("row", "id", "source", "n_tokens", "n_trained", "loss", "grad_norm", "score", "rank"),
        *("best_subtask", "selected", "in_warmup"),
        *(("subtask:kind 0", "subtask:kind 1") if ruled else ()),
    ]
    assert np.isnan(table["loss"].astype(float)).all()
    assert np.isnan(table["score"]).tolist() == [n == BROKEN for n in range(N)]
    assert sorted(table["rank"][USABLE]) == list(range(1, N))
    assert [int(table["rank"][row]) for row in found] == list(range(1, COUNT + 1))
    assert np.flatnonzero(table["selected"] == True).tolist() == sorted(found)  # noqa: E712  null where quarantined
    assert {subtask is None for subtask in table["best_subtask"][USABLE]} == {not ruled}
    summary = made.summary
    assert summary["n_pool"] == summary["n_scorable"] + summary["n_quarantined"] == N
    with pytest.raises(SiftuneError, match="exists with keep"):
        select(done, {**settings, "keep": "5%", "name": name}, reporter=QUIET)


def test_blend_adds_gradients_likeness_and_words_on_one_scale(
    given: dict[str, Any], copy: Path, tmp_path: Path
) -> None:
    select(copy, {"method": "blend", "name": "both"}, reporter=QUIET)
    shards = sorted((copy / "targets/sums/influence/1").glob("*.safetensors"))
    less = np.concatenate([load_file(shard)["influence"] for shard in shards]).astype(np.float64)
    pool, target = stored(copy, "rds+")
    total = np.full((N, len(SUBTASKS)), np.nan)
    for part in (less, pool.astype(np.float64) @ target.astype(np.float64).T, shared_words()):
        usable = part[USABLE]
        standard = (usable - usable.mean(axis=0)) / usable.std(axis=0)
        total[USABLE] = standard if np.isnan(total[USABLE[0]]).all() else total[USABLE] + standard
    assert rows(copy, "both") == turns(total)
    kinds = [[s == name for s in SUBTASKS] for name in ("kind 0", "kind 1")]
    best = np.max([total[:, kind].mean(axis=1) for kind in kinds], axis=0)
    np.testing.assert_allclose(scores(copy, "both")["score"], best, rtol=1e-4, atol=1e-5)

    own = tmp_path / "own"
    run(recipe(given, method="blend"), own, reporter=QUIET)
    both, mine = (f"selections/{name}/selected.jsonl" for name in ("both", "sums"))
    assert (own / mine).read_bytes() == (copy / both).read_bytes()
    select(own, {"method": "less", "name": "less"}, reporter=QUIET)
    assert ids(own, "less") == ids(copy, "sums")

    without = tmp_path / "without"
    run(recipe(given, method="rds+"), without, reporter=QUIET)
    with pytest.raises(SiftuneError, match=r"no checkpoints.*--method blend"):
        select(without, {"method": "blend", "name": "both"}, reporter=QUIET)
    run(recipe({"method": "blend", "name": "both"}), without, reporter=QUIET)
    assert ids(without, "both") == ids(copy, "both")


def test_a_column_of_one_value_says_nothing_in_a_blend() -> None:
    less = np.array([[0.5, 1.0], [0.5, 3.0], [np.nan, np.nan], [0.5, 2.0]], np.float32)
    likeness = np.array([[1.0, 0.25], [3.0, 0.25], [2.0, 0.25], [2.0, 0.25]], np.float32)
    step = math.sqrt(1.5)
    expected = [[-step, -step], [step, step], [np.nan, np.nan], [0, 0]]
    np.testing.assert_allclose(blended_influence([less, likeness]), expected, atol=1e-6)


def test_shards_and_batches_change_no_choice(
    given: dict[str, Any], encoder: str, done: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run(recipe(given, method="rds+", shard_rows=17, batch_tokens=100), out, reporter=QUIET)
    for method in ("embed", "embed by encoder", "bm25", "ltd", "rds+"):
        name, settings = "by-" + method.replace("+", "p").replace(" ", "-"), settings_of(method, encoder)
        select(out, {**settings, "name": name}, reporter=QUIET)
        select(done, {**settings, "name": name}, reporter=QUIET)
        assert ids(out, name) == ids(done, name), method


def test_vectors_are_made_once_and_again_where_a_shard_is_gone(
    copy: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    select(copy, {"method": "rds+", "name": "first"}, reporter=QUIET)
    select(copy, {**settings_of("embed by encoder", encoder), "name": "enc"}, reporter=QUIET)
    before = digests(copy, "datastore", "targets")
    assert any(name.startswith("datastore/rds+/0/shard-") for name in before)
    shard = copy / "datastore/rds+/0/shard-00001.safetensors"
    shard.unlink()
    select(copy, {"method": "rds+", "name": "second"}, reporter=QUIET)
    assert digests(copy, "datastore", "targets") == before
    assert ids(copy, "second") == ids(copy, "first")

    def no_model(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model is not needed")

    monkeypatch.setattr(training, "load_model", no_model)
    monkeypatch.setattr(vectors, "build_vectors", no_model)
    select(copy, {"method": "rds+", "rule": "top", "name": "third"}, reporter=QUIET)
    select(copy, {**settings_of("embed by encoder", encoder), "keep": "5", "name": "fourth"}, reporter=QUIET)
    select(copy, {**settings_of("embed by encoder", encoder), "method": "ltd", "name": "5"}, reporter=QUIET)
    run(recipe({"method": "rds+", "name": "sixth", "keep": "7"}), copy, reporter=QUIET)
    assert len(ids(copy, "sixth")) == 7
    assert digests(copy, "datastore", "targets") == before


def test_another_encoder_in_a_folder_of_the_same_name_is_refused(
    copy: Path, encoder: str, tmp_path: Path
) -> None:
    settings = settings_of("embed by encoder", encoder)
    select(copy, {**settings, "name": "first"}, reporter=QUIET)
    other = write_encoder(tmp_path / "other" / "tiny-bert", seed=1)
    for changed in ({"encoder": str(other)}, {"encoder": str(other), "keep": "3"}):
        with pytest.raises(SiftuneError, match="made with encoder"):
            select(copy, {**settings, **changed, "name": "second"}, reporter=QUIET)
    shutil.rmtree(other)  # a folder that is gone can't be another one: what was made stands
    select(copy, {**settings, "encoder": str(other), "name": "third"}, reporter=QUIET)
    assert ids(copy, "third") == ids(copy, "first")


def test_rows_are_not_appended_to_vectors_whose_encoder_is_gone(
    given: dict[str, Any], encoder: str, tmp_path: Path
) -> None:
    path, away = tmp_path / "run", shutil.copytree(encoder, tmp_path / "encoder")
    run(recipe({**given, "method": "embed", "encoder": str(away)}), path, reporter=QUIET)
    before, more = (
        digests(path, "pool", "datastore"),
        write_rows(tmp_path / "more.jsonl", pool_rows(20, seed=9)),
    )
    shutil.rmtree(away)
    with pytest.raises(SiftuneError, match="is not there; nothing was appended"):
        append(path, [str(more)], reporter=QUIET)
    assert digests(path, "pool", "datastore") == before
    shutil.copytree(encoder, away)
    assert append(path, [str(more)], reporter=QUIET) == 20
    assert select(path, {"keep": "5", "name": "again"}, reporter=QUIET).selections["again"]


def test_a_second_target_and_more_rows_with_another_method_than_the_runs(copy: Path, tmp_path: Path) -> None:
    before = digests(copy, "datastore/less", "checkpoints")
    file = write_rows(tmp_path / "new.jsonl", target_rows(3, seed=7))
    asked = {"method": "rds+", "keep": "4", "name": "new"}
    score(copy, {"fresh": str(file)}, asked, reporter=QUIET)
    assert len(ids(copy, "new")) == 4
    kept = yaml.safe_load((copy / "recipe.yaml").read_text())
    assert set(kept["target"]) == {"sums", "fresh"}
    first = {"method": "less", "keep": KEEP, "name": None, "drop_worst": None}
    assert {name: kept[name] for name in first} == first  # those of the run's first choice
    with pytest.raises(SiftuneError, match=r"'fresh' lacks .* shards.*--method less"):
        select(copy, {"name": "less-of-new"}, targets=["fresh"], reporter=QUIET)
    run(recipe({}), copy, reporter=QUIET)
    select(copy, {"name": "less-of-new"}, targets=["fresh"], reporter=QUIET)

    more = write_rows(tmp_path / "more.jsonl", pool_rows(20, 5, seed=5))
    assert append(copy, [str(more)], reporter=QUIET) == 20
    with pytest.raises(SiftuneError, match="now it has 134"):
        select(copy, asked, targets=["fresh"], reporter=QUIET)
    select(copy, {**asked, "name": "grown", "keep": "17"}, targets=["fresh"], reporter=QUIET)
    assert before.items() <= digests(copy, "datastore/less", "checkpoints").items()
    assert any(name.startswith("row-5-") for name in ids(copy, "grown"))
    vectors_of = digests(copy, "datastore/rds+")
    assert len([name for name in vectors_of if name.endswith(".safetensors")]) == 5


def test_ltd_keeps_to_a_family_its_templates_and_its_clusters(done: Path) -> None:
    def chosen(name: str, **settings: Any) -> list[dict[str, Any]]:
        made = select(done, {"method": "ltd", "keep": "5", "name": name, **settings}, reporter=QUIET)
        return made.selections[name].rows()

    found = chosen("maths", family="skill=maths")
    pool, target = stored(done, "embed")
    given = the_pool()
    family = [n for n in MAY if given[n].get("skill") == "maths"]
    assert [row["_siftune"]["row"] for row in found] == covered(pool, target, family)[:5]
    by_source = chosen("planted", family="source=planted")
    assert [row["id"] for row in by_source] == [row["id"] for row in found]

    centroid = target.mean(axis=0)
    nearness = {
        t: np.mean([pool[n] @ centroid for n in family if given[n]["template"] == t])
        for t in ("t0", "t1", "t2")
    }
    best = sorted(nearness, key=lambda t: -nearness[t])
    two = chosen("two", family="skill=maths", templates=2)
    assert {row["template"] for row in two} <= set(best[:2])
    assert [row["template"] for row in chosen("one", family="skill=maths", templates=1, keep="2")] == [
        best[0]
    ] * 2
    by_column = chosen("skill", templates=1, template_column="skill")
    assert len({row["skill"] for row in by_column}) == 1
    everything = chosen("whole", clusters=1, keep="100%")
    assert len(everything) == len(MAY)
    assert (
        everything[0]["_siftune"]["row"] == covered(pool, target, MAY)[0]
    )  # one cluster: the family is the pool


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"family": "skill"}, "'skill' is not COLUMN=VALUE"),
        ({"family": "=maths"}, "'=maths' is not COLUMN=VALUE"),
        ({"family": "nowhere=maths"}, "no row of the pool has a column 'nowhere'"),
        ({"family": "skill=none"}, "no pool row that has a vector is of the target's task family"),
        (
            {"templates": 2, "template_column": "nowhere"},
            "no row of the target's family names an instruction template",
        ),
        ({"clusters": 10_000}, "clusters can't be made of 112 rows"),
        ({"method": "random", "drop_worst": "10%"}, "random does not say which rows are against"),
        ({"method": "length", "drop_worst": "10%"}, "length does not say"),
        ({"drop_worst": "10%"}, "ltd does not say"),
        ({"method": "less", "drop_worst": "10%", "near_duplicates": 0.5}, "drop_worst keeps all but"),
        ({"method": "bm25", "drop_worst": "10%", "per_source": "5"}, "drop_worst keeps all but"),
        ({"method": "less", "drop_worst": "10%", "keep": "5%"}, "exclude each other"),
        ({"method": "less", "drop_worst": "100%"}, "per cent below 100"),
        ({"method": "less", "drop_worst": "7"}, "per cent below 100"),
        ({"per_source": "many"}, "'many' is not a budget"),
        ({"method": "embed", "encoder": "nowhere"}, "there is no such folder"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence_and_leaves_nothing(
    settings: dict[str, Any], said: str, done: Path, given: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(SiftuneError, match=said):
        select(done, {"method": "ltd", "name": "never", **settings}, reporter=QUIET)
    assert not (done / "selections/never").exists()
    early = {"nowhere=maths", "skill=none", "nowhere"}.isdisjoint(
        map(str, settings.values())
    ) and "clusters" not in settings
    if early:  # what can be known is said before the pool is read
        whole = {"method": "ltd", **settings}
        with pytest.raises(SiftuneError, match=said):
            run(recipe({**given, "keep": None}, **whole), tmp_path / "run", reporter=QUIET)
        assert not (tmp_path / "run/pool").exists()


def test_the_worst_are_left_out_and_nothing_else(copy: Path, done: Path, given: dict[str, Any]) -> None:
    for method in ("less", "bm25"):
        found = select(
            copy, {"method": method, "drop_worst": "10%", "name": f"w-{method}"}, reporter=QUIET
        ).selections[f"w-{method}"]
        select(copy, {"method": method, "rule": "mean", "name": f"m-{method}"}, reporter=QUIET)
        mean = scores(copy, f"m-{method}")["score"]
        table = scores(copy, f"w-{method}")
        np.testing.assert_array_equal(table["score"], mean)
        kept, worst_first = rows(copy, f"w-{method}"), sorted(USABLE, key=lambda n: (mean[n], -n))
        worst = set(worst_first[: len(USABLE) // 10])
        assert set(kept) == set(USABLE) - worst - {COPY}
        assert kept == sorted(kept, key=lambda n: (-mean[n], n))
        assert found.settings["keep"] is None
        assert found.settings["rule"] == "mean"
        assert found.summary["n_duplicates_left_out"] == 1
    # Being unlike the target is not being against it: of blend, the gradients decide
    select(copy, {"method": "blend", "drop_worst": "10%", "name": "w-blend"}, reporter=QUIET)
    assert rows(copy, "w-blend") == rows(copy, "w-less")
    same = select(copy, {"drop_worst": "10%", "repeats": True, "name": "with-copies"}, reporter=QUIET)
    assert len(same.selections["with-copies"].rows()) == len(USABLE) - len(USABLE) // 10
    assert len(select(copy, {"drop_worst": "0.1%", "name": "all"}).selections["all"].rows()) == len(MAY)


def test_limits_pass_over_rows_and_say_how_many(copy: Path) -> None:
    whole = select(copy, {"rule": "top", "keep": "100%", "name": "every-row"}, reporter=QUIET)
    assert whole.selections["every-row"].summary["passed_over"] == {}
    given, order = the_pool(), rows(copy, "every-row")

    def grams(row: int) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", " ".join(m["content"] for m in given[row]["messages"]).lower())
        return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}

    def walked(threshold: float | None, most: int | None, count: int) -> tuple[list[int], dict[str, int]]:
        taken: list[int] = []
        passed = {
            **({} if most is None else {"per_source": 0}),
            **({} if threshold is None else {"near_duplicates": 0}),
        }
        for row in order:
            same = [t for t in taken if given[t]["source"] == given[row]["source"]]
            like = [len(grams(t) & grams(row)) / len(grams(t) | grams(row)) for t in taken]
            if len(taken) == count:
                break
            if most is not None and len(same) >= most:
                passed["per_source"] += 1
            elif threshold is not None and like and max(like) >= threshold:
                passed["near_duplicates"] += 1
            else:
                taken.append(row)
        return taken, passed

    for name, settings, expected in (
        ("near", {"near_duplicates": 0.5, "keep": "100%"}, walked(0.5, None, N)),
        ("source", {"per_source": "50%"}, walked(None, COUNT // 2, COUNT)),
        ("both", {"near_duplicates": 0.5, "per_source": "6"}, walked(0.5, 6, COUNT)),
    ):
        found = select(copy, {"rule": "top", "name": name, **settings}, reporter=QUIET).selections[name]
        assert (rows(copy, name), found.summary["passed_over"]) == expected
        assert [int(r) for r in scores(copy, name)["rank"][rows(copy, name)]] == [
            *range(1, len(expected[0]) + 1)
        ]
    assert walked(0.5, None, N)[1]["near_duplicates"] >= 1
    assert walked(None, COUNT // 2, COUNT)[1]["per_source"] >= 1
    short = select(copy, {"per_source": "1", "keep": "9", "name": "short"}, reporter=QUIET)
    assert short.selections["short"].summary["n_selected"] == 3  # as many sources as can be used


def test_a_run_made_without_its_worst_can_choose_by_keep_later(
    given: dict[str, Any], done: Path, tmp_path: Path
) -> None:
    out, file = tmp_path / "run", write_rows(tmp_path / "new.jsonl", target_rows(3, seed=7))
    run(recipe({**given, "keep": None}, method="bm25", drop_worst="10%"), out, reporter=QUIET)
    assert len(ids(out, "sums")) == len(USABLE) - len(USABLE) // 10 - 1
    few = select(out, {"keep": "5", "name": "few"}, reporter=QUIET).selections["few"]
    assert len(few.rows()) == 5
    assert few.settings["drop_worst"] is None
    assert few.settings["rule"] == "by-subtask"
    new = score(out, {"fresh": str(file)}, {"keep": "6"}, reporter=QUIET).selections["fresh"]
    assert len(new.rows()) == 6
    by_run = run(
        recipe({"keep": "7", "name": "seven", "target": {"sums": given["target"]["sums"]}}),
        out,
        reporter=QUIET,
    )
    with pytest.raises(SiftuneError, match="one name can't serve"):
        run(recipe({"keep": "7", "name": "seven"}), out, reporter=QUIET)
    assert len(by_run.selections["seven"].rows()) == 7
