"""The recipe: every setting of a run under its one name, in the file, on the command line and in Python.

A recipe as the person gives it may leave settings open (None = decided from the data or the machine); the recipe in
`RUN/recipe.yaml` has every one of them resolved, so it replays the run.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from siftune.records.budget import Budget
from siftune.records.errors import SiftuneError
from siftune.records.files import check_regular
from siftune.records.names import check_name
from siftune.records.secrets import without_secrets
from siftune.records.yamltext import read_yaml

Direction = Literal["adam", "adam-less", "adam-precond", "sgd", "sign"]
Projection = Literal["sketch", "rademacher", "none"]
Rule = Literal["by-subtask", "round-robin", "top", "mean"]
Method = Literal["less", "blend", "rds+", "embed", "bm25", "ltd", "length", "random"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]
StoreDtype = Literal["int8", "fp16", "bf16", "fp32"]
Mask = Literal["auto", "generation", "known", "prefix"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_targets(value: Any) -> Any:
    """`NAME=FILE` strings, one or many, become a mapping; a mapping stays."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, (list, tuple)):
        targets: dict[str, str] = {}
        for item in value:
            name, equals, source = str(item).partition("=")
            if not equals or not source:
                raise ValueError(f"{item!r} is not NAME=FILE")
            if name in targets:
                raise ValueError(f"the target {name!r} is given twice")
            targets[name] = source
        value = targets
    if isinstance(value, dict):
        for name in value:
            check_name(str(name), "target")
        if len({str(name).lower() for name in value}) < len(value):
            raise ValueError(
                "two targets have the same name but for case, which is one folder on some systems"
            )
    return value


def _as_budget_text(value: Any) -> str:
    return str(Budget.parse(value if isinstance(value, str) else str(value)))


def _as_part_text(value: Any) -> str:
    try:
        part = Budget.parse(value if isinstance(value, str) else str(value))
    except SiftuneError as error:
        raise ValueError(f"it {error.what.removeprefix(repr(value)).strip()}") from error
    if part.kind != "percent" or part.amount >= 100:
        raise ValueError("write a per cent below 100, like 10%")
    return str(part)


class Recipe(BaseModel):
    """The settings of one run. Units and meaning stand beside each field; names are a contract."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    # What is brought
    model: str | None = Field(None, description="the model: a Transformers folder or hub id")
    revision: str | None = Field(None, description="revision of a hub model")
    quantize: Literal["8bit", "4bit"] | None = Field(
        None, description="load the base in 8 or 4 bit (needs bitsandbytes)"
    )
    adapter: str | None = Field(None, description="a LoRA adapter folder that the warm-up starts from")
    adopt: str | None = Field(
        None, description="a Trainer, TRL or Axolotl output folder to use instead of a warm-up"
    )
    weights: list[float] | None = Field(
        None, description="a weight per adopted checkpoint, where its log holds none"
    )
    pool: Annotated[list[str], BeforeValidator(_as_list)] = Field(
        [], description="files, folders or hub ids of the pool"
    )
    target: Annotated[dict[str, str], BeforeValidator(_as_targets)] = Field(
        {}, description="NAME=FILE of target rows"
    )

    # Tokens
    max_length: int = Field(2048, ge=2, le=2**31 - 1, description="tokens a row may have")
    too_long: Literal["truncate", "quarantine"] = Field(
        "truncate", description="what happens to a longer row"
    )
    mask: Mask = Field("auto", description="how trained tokens are found")

    # Warm-up
    warmup_fraction: float | None = Field(
        None, gt=0, le=1, description="part of the pool; default max(5 %, 128 rows)"
    )
    epochs: int = Field(4, ge=1, le=100, description="epochs of the warm-up, one checkpoint each")
    rank: int = Field(16, ge=1, le=2**16, description="LoRA rank")
    alpha: float = Field(64, gt=0, allow_inf_nan=False, description="LoRA alpha")
    dropout: float = Field(0.0, ge=0, lt=1, description="LoRA dropout in training (off for gradients)")
    lora_targets: Annotated[list[str], BeforeValidator(_as_list)] = Field(
        ["auto"], min_length=1, description="module names, all-linear, or auto: the attention projections"
    )
    learning_rate: float = Field(2e-4, gt=0, le=1, description="peak, linear decay, 3 % warm-up steps")
    batch: int | None = Field(
        None, ge=1, le=2**31 - 1, description="rows a step; default rows/16 between 4 and 128"
    )

    # Gradients and datastore
    method: Method = Field("blend", description="how the pool is scored; less is gradient influence alone")
    encoder: str | None = Field(
        None, description="a sentence encoder's folder, for embed and ltd; default the model itself"
    )
    direction: Direction = Field("sgd", description="the update a pool row would cause")
    projection: Projection = Field("sketch", description="random projection of a direction")
    features: int = Field(8192, ge=1, le=2**20, description="numbers a feature has")
    store_dtype: StoreDtype = Field("int8", description="numbers in the datastore")

    # Selection
    centre: bool = Field(False, description="subtract the pool's mean feature before comparing")
    rule: Rule = Field("by-subtask", description="how influence becomes a choice")
    keep: Annotated[str | None, BeforeValidator(lambda v: v if v is None else _as_budget_text(v))] = Field(
        None, description="budget: 5%, 1000, or '2M tokens'"
    )
    drop_worst: Annotated[str | None, BeforeValidator(lambda v: v if v is None else _as_part_text(v))] = (
        Field(
            None,
            description="per cent of the rows to leave out, those most against the target, instead of keep",
        )
    )
    repeats: bool = Field(False, description="let exact duplicates be chosen more than once")
    near_duplicates: float | None = Field(
        None,
        gt=0,
        le=1,
        description="pass over a row as like as this to one chosen before (Jaccard of word 5-grams)",
    )
    per_source: Annotated[str | None, BeforeValidator(lambda v: v if v is None else str(v))] = Field(
        None, description="most that one source may give: 20% of the budget, or a count of rows"
    )
    family: str | None = Field(
        None, description="COLUMN=VALUE of the target's task family, for ltd; default its clusters"
    )
    clusters: int | None = Field(
        None, ge=1, description="K-means clusters of the pool, for ltd; default sqrt(rows/2)"
    )
    templates: int | None = Field(
        None, ge=1, description="instruction templates that ltd may choose from; default all"
    )
    template_column: str = Field("template", description="the column that names a row's instruction template")
    name: Annotated[
        str | None, BeforeValidator(lambda v: v if v is None else check_name(str(v), "selection"))
    ] = Field(None, description="the selection's name; default its target's")

    # Privacy
    no_text: bool = Field(False, description="leave the text of rows out of report, quarantine and log")

    # Machine
    seed: int = Field(
        0, ge=0, lt=2**63, description="of warm-up rows, LoRA, data order, projection, random method"
    )
    dtype: Dtype = Field("auto", description="numbers of the frozen base")
    attn: str | None = Field(None, description="attention implementation (sdpa, eager, flash_attention_2 …)")
    gradient_checkpointing: bool = Field(False, description="less memory, a third more time")
    device: str | None = Field(None, description="cpu, cuda, cuda:1 …; default cuda where there is one")
    threads: int | None = Field(
        None, ge=1, le=4096, description="CPU threads; default all; pinned because they order sums"
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="processes that make features; default one per visible GPU, or one per CPU thread",
    )
    worker_threads: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="CPU threads of each of them; default `threads` shared out to the first `workers`",
    )
    batch_tokens: int | None = Field(
        None, ge=1, le=2**31 - 1, description="padded tokens in a batch of gradients"
    )
    shard_rows: int = Field(256, ge=1, le=100_000, description="pool rows in a shard: the unit of work")

    def with_settings(self, settings: dict[str, Any]) -> Recipe:
        """A copy with some settings replaced, validated."""
        return make_recipe({**self.model_dump(), **settings})


PRESETS: dict[str, dict[str, Any]] = {
    "less": {  # Xia et al. 2024, arXiv 2402.04333, section 4.1 and appendix; the released warm-up script
        "warmup_fraction": 0.05,
        "epochs": 4,
        "rank": 128,
        "alpha": 512,
        "dropout": 0.1,
        "lora_targets": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "learning_rate": 2e-5,
        "batch": 128,
        "max_length": 2048,
        "method": "less",
        "direction": "adam",
        "store_dtype": "fp16",  # its store: 16 bits a number
        "rule": "top",
        "centre": False,
    }
}


def make_recipe(settings: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validate settings.

    Raises SiftuneError naming the setting: unknown (with the nearest right name), of the wrong type or out of range.
    """
    for key in settings:
        if key not in Recipe.model_fields:
            near = difflib.get_close_matches(key, Recipe.model_fields, n=1)
            todo = f"Did you mean {near[0]!r}?" if near else f"Settings are: {', '.join(Recipe.model_fields)}"
            raise SiftuneError(f"there is no setting {key!r}", where=where, todo=todo)
    _check_secrets(settings, where)
    try:
        return Recipe(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        about = Recipe.model_fields[field].description
        raise SiftuneError(
            f"{_shown(first.get('input'))} is not accepted: {first['msg'].removeprefix('Value error, ')}",
            where=f"{where}, {field}",
            todo=f"{field} is {about}",
        ) from error


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings in a YAML recipe. A run's own `recipe.yaml` works too: its `made_with` part is left aside."""
    try:
        check_regular(path)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SiftuneError(
            "there is no such recipe", where=str(path), todo="Check the path after --recipe"
        ) from error
    except (UnicodeDecodeError, OSError) as error:
        raise SiftuneError(f"cannot be read ({error})", where=str(path), todo="Correct the file") from error
    settings = read_yaml(text, str(path))
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise SiftuneError(
            "a recipe is a mapping of settings", where=str(path), todo="Write lines like 'keep: 5%'"
        )
    if not isinstance(settings.pop("made_with", None) or {}, dict):
        raise SiftuneError(
            "made_with is no mapping",
            where=str(path),
            todo="Take that part out of the file: siftune writes it",
        )
    return {str(key): value for key, value in settings.items()}


def _check_secrets(settings: dict[str, Any], where: str) -> None:
    """Recipes are kept and passed on, so none may hold a hub token or a password."""
    for key, value in settings.items():
        parts = [
            value,
            *(value.values() if isinstance(value, dict) else value if isinstance(value, list) else []),
        ]
        if any(isinstance(part, str) and without_secrets(part) != part for part in parts):
            raise SiftuneError(
                "holds a token or password, which would be written into the run",
                where=f"{where}, {key}",
                todo="Put the token into the environment variable HF_TOKEN",
            )


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python prints no number of thousands of digits
        return "this number"
    return text if len(text) <= 80 else text[:77] + "…"
