"""Tasks of EleutherAI's lm-evaluation-harness, measured document by document, so that two models can be compared in pairs.

The harness asks (its prompts, its filters, its metrics); siftune brings the model and takes each document's values. A metric
is kept where the harness's own figure is the mean over documents (acc, acc_norm, exact_match …); one that exists only for a
whole corpus (perplexity, corpus F1, BLEU) can't be paired over documents and is left out. A group of tasks, such as mmlu, is all
its documents together: its mean weighs tasks by their size.

The loss on the gold answer is not measured here.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siftune.chat.encoder import ChatEncoder
from siftune.proof.harness_model import SEED, answerer, lm_eval_module, quiet_harness, seeded
from siftune.proof.measures import DocumentScore, Measure
from siftune.records.errors import SiftuneError
from siftune.records.files import digest_of

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Harness:
    """Which tasks are measured, and how.

    tasks:         names of tasks, groups or tags
    folder:        a folder with YAML files of more tasks, looked at first; None = the harness's own alone. A `!function` in them runs the
                   Python file that it names, as in the harness
    chat_template: put what the harness asks into the model's chat template, few-shot examples as turns
    limit:         the first documents of each task alone, None = all
    """

    tasks: Sequence[str]
    folder: Path | None = None
    chat_template: bool = True
    limit: int | None = None


def harness_of(
    tasks: Sequence[str], folder: str | None, chat_template: bool, limit: int | None
) -> Harness | None:
    """What the command line asks for; None without a task. SiftuneError for a limit of nothing, or settings of no task."""
    if not tasks:
        if folder or limit:
            raise SiftuneError(
                "no task is named", where="--lm-eval-tasks, --lm-eval-limit", todo="Name them: --lm-eval TASK"
            )
        return None
    if limit is not None and limit < 1:
        raise SiftuneError(
            "is no number of documents", where=f"--lm-eval-limit {limit}", todo="Give at least 1"
        )
    return Harness(tuple(tasks), Path(folder) if folder else None, chat_template, limit)


class HarnessTask:
    """One task, group or tag, loaded with its documents.

    digest: of all that decides a value but the model: the harness's version, the task's settings, its documents, how it is asked

    Raises SiftuneError where lm-eval is not installed, or the task is unknown, has no data here, runs a model's code, needs
    more than text, or has no metric that is a mean over documents.
    """

    def __init__(self, name: str, harness: Harness):
        self.name, self._harness = name, harness
        self._tasks = _load(name, harness)
        self._more_is_better = {
            metric: bool(better)
            for task in self._tasks.values()
            for metric, better in _means(task).items()
            if better is not None
        }
        if not self._more_is_better:
            others = sorted({metric for task in self._tasks.values() for metric in task.aggregation()})
            raise _unusable(name, f"none of its metrics is a mean over documents ({', '.join(others)})")
        self.n_documents = sum(_n_documents(task, harness.limit) for task in self._tasks.values())
        self.settings = {
            "task": name,
            "lm_eval": _version(),
            "chat_template": harness.chat_template,
            "limit": harness.limit,
        }
        contents = {key: _contents(task) for key, task in self._tasks.items()}
        self.digest = digest_of([self.settings, contents])[:32]

    def measure(
        self,
        model: nn.Module,
        encoder: ChatEncoder,
        batch_tokens: int,
        *,
        on_requests: Callable[[int], None] = lambda n: None,
    ) -> tuple[list[DocumentScore], int]:
        """The values of every document, in the harness's order, and how many prompts were cut at their start to fit the model.

        batch_tokens: padded tokens of a batch
        on_requests: told the number of requests just answered (an option is one, a generated text is one)
        """
        with quiet_harness(), seeded():
            lm = answerer(model, encoder, batch_tokens, on_requests)
            for task in self._tasks.values():
                task.set_fewshot_seed(seed=SEED)
            found = lm_eval_module("evaluator").evaluate(
                lm=lm,
                task_dict={"tasks": self._tasks},
                limit=self._harness.limit,
                bootstrap_iters=0,
                apply_chat_template=self._harness.chat_template,
                fewshot_as_multiturn=self._harness.chat_template,
            )
        values: dict[str, dict[str, float]] = {}
        for task, samples in found["samples"].items():
            for sample in samples:
                document = values.setdefault(f"{task}/{sample['doc_id']}", {})
                for metric in self._more_is_better:
                    if metric in sample:
                        document[_measure_name(metric, sample["filter"])] = float(sample[metric])
        return [DocumentScore(id, of) for id, of in values.items()], lm.n_cut

    def measures(self, scores: Sequence[DocumentScore]) -> tuple[Measure, ...]:
        """What was measured, the task's first metric first; `scores`: of everything that is compared."""
        names = dict.fromkeys(name for score in scores for name in score.values)
        found = []
        for name in names:
            metric, _, how = name.partition(",")
            better = self._more_is_better[metric]
            is_share = better and all(0 <= score.values.get(name, 0) <= 1 for score in scores)
            words = f"{metric} ({how})" if how else metric
            found.append(Measure(name, words, better, "share" if is_share else "number"))
        return tuple(found)


def _measure_name(metric: str, how: str) -> str:
    """As the harness writes it, `exact_match,strict-match`, without its word for no filter."""
    return metric if how == "none" else f"{metric},{how}"


def _load(name: str, harness: Harness) -> dict[str, Any]:
    """The leaf tasks of a name, ready to be asked."""
    if find_spec("lm_eval") is None:
        raise SiftuneError(
            "lm-eval is not installed", where="--lm-eval", todo="pip install 'siftune[lm-eval]'"
        )
    if harness.folder is not None and not harness.folder.is_dir():
        raise SiftuneError(
            "there is no such folder",
            where=f"--lm-eval-tasks {harness.folder}",
            todo="Give the folder that holds the tasks' YAML files",
        )
    with quiet_harness(), seeded():
        manager = _manager(harness.folder)
        if name not in manager.all_tasks:
            manager = _manager(None)
        if name not in manager.all_tasks:
            raise _unusable(name, "the harness knows no such task", "See 'lm-eval ls tasks' for the names")
        try:
            tasks: dict[str, Any] = manager.load([name])["tasks"]
        except Exception as error:  # whatever a task's own code or a hub raises
            raise _unusable(
                name,
                f"it can't be loaded ({type(error).__name__}: {str(error)[:300]})",
                "Its data comes from the hub unless its YAML names local files",
            ) from error
    for key, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise _unusable(name, f"{key} runs code that the model writes")
        if getattr(task, "MULTIMODAL", False):
            raise _unusable(name, f"{key} needs more than text")
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return tasks


@lru_cache
def _manager(folder: Path | None) -> Any:
    """The tasks of a folder, or the harness's own, of which reading the thousands of files takes a while."""
    manager = lm_eval_module("tasks").TaskManager
    if folder is None:
        return manager()
    return manager(include_path=str(folder), include_defaults=False)


def _means(task: Any) -> dict[str, bool | None]:
    """The metrics that are means over documents, and whether more is better."""
    mean = lm_eval_module("api.metrics").mean
    direction = task.higher_is_better()
    return {metric: direction.get(metric) for metric, over in task.aggregation().items() if over is mean}


def _n_documents(task: Any, limit: int | None) -> int:
    n = len(task.eval_docs)
    return n if limit is None else min(n, limit)


def _contents(task: Any) -> str:
    """Digest of a task's settings and documents, those of its few-shot examples too."""
    shots = list(task.fewshot_docs()) if task.get_config("num_fewshot") else []
    text = json.dumps([task.dump_config(), list(task.eval_docs), shots], sort_keys=True, default=_as_text)
    return digest_of(text)


def _as_text(value: Any) -> str:
    """What JSON has no word for. A function is its source: its address would be another in every process."""
    if not callable(value):
        return str(value)
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        return getattr(value, "__qualname__", type(value).__qualname__)


def _version() -> str:
    return version("lm_eval")


def _unusable(name: str, why: str, todo: str = "Leave it out") -> SiftuneError:
    return SiftuneError(why, where=f"--lm-eval {name}", todo=todo)
