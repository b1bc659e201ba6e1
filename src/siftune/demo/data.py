"""The demo's data: rows of a dozen real tasks from the `evals` wheel (MIT), read when the demo runs.

The skill to find is to tell a malicious string from a harmless one (task `naughty_strings`): short rows, answers Yes
and No, and a small model that does no better than always saying No. Its rows are a tenth of the pool, amid eleven and
more other tasks of which some answer with Yes and No as well.

The target task's rows are first thinned until no two are near-copies (attack strings come in families that differ in a
few characters), then dealt to target, test and pool: what is measured was neither seen nor nearly seen. Everything is
ordered by hash, so the same wheel always gives the same three files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siftune.demo.model import cache_folder
from siftune.demo.wheels import package_folder
from siftune.records.errors import SiftuneError
from siftune.records.example import Example
from siftune.records.files import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TARGET_TASK = "naughty_strings"
OPTIONS = ["Yes", "No"]

OTHER_TASKS = (
    "anagrams",
    "first-letters",
    "food",
    "imperial_date_to_string",
    "largest_country",
    "last_word_nth",
    "pantone_to_hex",
    "positive-binary-operations",
    "regex-match",
    "sort_numeric",
    "swap-words",
    "which_is_heavier/which_is_heavier.jsonl",
)
"""Folders below `evals/registry/data` (file `samples.jsonl` unless named).

All fall under the wheel's MIT licence: its LICENSE.md names the folders that don't (theory_of_mind with ToMi and Social
IQA, text_compression, steganography, schelling_point, ballots, already_said_that, sandbagging), and none of them is here.
"""

N_TARGET, N_TEST, N_TARGET_TASK_IN_POOL, N_PER_OTHER_TASK = 8, 60, 20, 15
MAX_TOKENS = 96
MIN_TASKS = 10
NEAR_COPY = 0.5
"""Two rows are near-copies from this share of common 3-character pieces (Jaccard) on."""

_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class DemoData:
    """The three files, and one sentence on each thing a person might ask about them."""

    pool: Path
    target: Path
    test: Path
    notes: list[str]


def demo_data(tokenizer: PreTrainedTokenizerBase) -> DemoData:
    """Write pool.jsonl, target.jsonl and test.jsonl into the cache; rows have `id`, `source` (the task) and `messages`.

    Test rows have `options` and `answer` too. Raises SiftuneError where the wheel is missing or holds other rows than
    the demo was made for.
    """
    registry = package_folder("evals") / "registry" / "data"
    left_out: Counter[str] = Counter()

    rows = _thinned(_fitting(_read_task(registry, TARGET_TASK, left_out), tokenizer, left_out), left_out)
    dealt = _by_answer_in_turn([row for row in rows if _answer(row) in OPTIONS])
    if len(dealt) < N_TARGET + N_TEST + N_TARGET_TASK_IN_POOL:
        raise _other_wheel(
            f"{TARGET_TASK} has only {len(dealt)} distinct rows of at most {MAX_TOKENS} tokens"
        )
    target, test, own = (
        list(islice(rest, n)) for rest in [iter(dealt)] for n in (N_TARGET, N_TEST, N_TARGET_TASK_IN_POOL)
    )

    others = [
        list(islice(_fitting(_read_task(registry, task, left_out), tokenizer, left_out), N_PER_OTHER_TASK))
        for task in OTHER_TASKS
    ]
    n_tasks = 1 + sum(1 for task_rows in others if task_rows)
    if n_tasks < MIN_TASKS:
        raise _other_wheel(f"only {n_tasks} of the demo's tasks could be read")
    pool = sorted(chain(own, *others), key=lambda row: row.fingerprint)

    folder = cache_folder() / "demo-data"
    data = DemoData(
        folder / "pool.jsonl", folder / "target.jsonl", folder / "test.jsonl", _notes(n_tasks, left_out)
    )
    _write(data.pool, (_as_row(row) for row in pool))
    _write(data.target, (_as_row(row) for row in target))
    _write(data.test, ({**_as_row(row), "options": OPTIONS, "answer": _answer(row)} for row in test))
    return data


def _read_task(registry: Path, task: str, left_out: Counter[str]) -> list[Example]:
    """The task's usable rows in the order of their fingerprints, each once; the others are counted by reason."""
    name, _, file_name = task.partition("/")
    path = registry / name / (file_name or "samples.jsonl")
    if not path.is_file():
        raise _other_wheel(f"{path} is missing")
    content = path.read_bytes()
    if content.startswith(_LFS_POINTER):
        left_out["tasks whose file is only a Git LFS pointer"] += 1
        return []
    rows: dict[str, Example] = {}
    for number, line in enumerate(content.decode("utf-8").rstrip("\n").split("\n"), 1):
        row = _as_example(json.loads(line), name, number, path)
        if row is None:
            left_out["rows that are not a plain question with a text as answer"] += 1
        elif row.fingerprint in rows:
            left_out["exact copies"] += 1
        else:
            rows[row.fingerprint] = row
    return [rows[fingerprint] for fingerprint in sorted(rows)]


def _as_example(row: dict[str, Any], task: str, number: int, path: Path) -> Example | None:
    """A sample `{"input": text or turns, "ideal": text or texts, best first}` as a conversation."""
    turns, ideal = row.get("input"), row.get("ideal")
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    if isinstance(ideal, list):
        ideal = ideal[0] if ideal else None
    if not isinstance(ideal, str) or not ideal.strip() or not isinstance(turns, list):
        return None
    if [turn["role"] for turn in turns] not in (["user"], ["system", "user"]):
        return None
    messages = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    messages.append({"role": "assistant", "content": ideal})
    return Example(f"{task}/{number}", task, messages, f"{path}:{number}")


def _fitting(
    rows: Iterable[Example], tokenizer: PreTrainedTokenizerBase, left_out: Counter[str]
) -> Iterator[Example]:
    for row in rows:
        text = str(tokenizer.apply_chat_template(row.messages, tokenize=False))
        if len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= MAX_TOKENS:
            yield row
        else:
            left_out[f"rows longer than {MAX_TOKENS} tokens"] += 1


def _thinned(rows: Iterable[Example], left_out: Counter[str]) -> list[Example]:
    """Rows of which no two are near-copies in what they ask: a row goes where one like it was kept before."""
    rows = list(rows)
    common = _common_start([_question(row) for row in rows])
    kept: list[tuple[Example, frozenset[str]]] = []
    for row in rows:
        pieces = _pieces(_question(row)[len(common) :])
        if any(_alike(pieces, other) for _, other in kept):
            left_out[f"near-copies in {TARGET_TASK}"] += 1
        else:
            kept.append((row, pieces))
    return [row for row, _ in kept]


def _by_answer_in_turn(rows: Iterable[Example]) -> list[Example]:
    """Rows reordered so that Yes and No alternate for as long as both last: equal shares in target, test and pool."""
    rows = list(rows)
    by_answer = [[row for row in rows if _answer(row) == option] for option in OPTIONS]
    fewest = min(len(group) for group in by_answer)
    return [row for turn in zip_longest(*(group[:fewest] for group in by_answer)) for row in turn]


def _pieces(text: str) -> frozenset[str]:
    text = f"  {text.lower()}  "
    return frozenset(text[i : i + 3] for i in range(len(text) - 2))


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) >= NEAR_COPY * len(one | other)


def _common_start(texts: list[str]) -> str:
    """What every text begins with (the task's wording), which says nothing about two rows being alike."""
    first, last = min(texts), max(texts)
    length = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
    )
    return first[:length]


def _question(row: Example) -> str:
    return row.messages[-2]["content"]


def _answer(row: Example) -> str:
    return row.messages[-1]["content"]


def _as_row(row: Example) -> dict[str, Any]:
    return {"id": row.id, "source": row.source, "messages": row.messages}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _notes(n_tasks: int, left_out: Counter[str]) -> list[str]:
    return [
        f"{n_tasks} tasks of the evals wheel (MIT); the skill to find is {TARGET_TASK}: is this string malicious?",
        "left out: " + ", ".join(f"{n} {what}" for what, n in left_out.items()),
    ]


def _other_wheel(what: str) -> SiftuneError:
    return SiftuneError(
        f"the evals wheel is not the one the demo was made for: {what}",
        todo="Type: pip install --force-reinstall --no-deps evals==3.0.1.post1",
    )
