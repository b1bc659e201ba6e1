"""Commands that prove: compare, check."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from siftune.cli.app import app, only_given, reporter, told
from siftune.cli.options import (
    DATA,
    MACHINE,
    PROOF,
    AsJson,
    Debug,
    Float,
    Int,
    Quiet,
    RunDir,
    Text,
    Texts,
    option,
)


@app.command()
def compare(
    run_dir: RunDir,
    test: Annotated[
        Texts, option("--test", "Held-out rows that measure the target NAME.", DATA, "NAME=FILE")
    ] = None,
    methods: Annotated[
        Text,
        option(
            "--methods",
            "Comma-separated; less:rule=top for other settings of a choice; the first is judged (the run's own).",
            DATA,
        ),
    ] = None,
    also: Annotated[
        Texts, option("--also", "Rows that somebody else chose, in any format of a pool.", DATA, "NAME=FILE")
    ] = None,
    keep: Annotated[Text, option("--keep", "Budgets, comma-separated; default the run's.", DATA)] = None,
    seeds: Annotated[
        int, option("--seeds", "Trainings of each choice (3); random has 3 at least.", PROOF)
    ] = 3,
    reading: Annotated[
        str, option("--reading", "steps (the default), epochs or both: what is equal between arms.", PROOF)
    ] = "steps",
    train_model: Annotated[
        Text, option("--train-model", "Train another model than the one that chose.", PROOF)
    ] = None,
    epochs: Annotated[Int, option("--epochs", "Epochs of the chosen rows; default the run's.", PROOF)] = None,
    learning_rate: Annotated[Float, option("--learning-rate", "Peak; default the run's.", PROOF)] = None,
    batch: Annotated[
        Int, option("--batch", "Rows a step; default chosen rows/16 between 4 and 128.", PROOF)
    ] = None,
    rank: Annotated[Int, option("--rank", "LoRA rank; default the run's.", PROOF)] = None,
    alpha: Annotated[Float, option("--alpha", "LoRA alpha; default the run's.", PROOF)] = None,
    generate: Annotated[
        bool,
        typer.Option(
            "--generate/--no-generate",
            help="Exact match and F1 by generation where rows have an answer and no options (default: yes).",
            rich_help_panel=PROOF,
            show_default=False,
        ),
    ] = True,
    extract: Annotated[
        Text,
        option("--extract", "The answer inside a generated text; its last match counts.", PROOF, "REGEX"),
    ] = None,
    max_new_tokens: Annotated[int, option("--max-new-tokens", "Longest answer (256).", PROOF)] = 256,
    precise: Annotated[
        bool,
        typer.Option(
            "--precise/--no-precise",
            help="Measure in fp32 whatever the training's dtype (default: yes), since 16 bits round means by as much as choices differ.",
            rich_help_panel=PROOF,
            show_default=False,
        ),
    ] = True,
    lm_eval: Annotated[
        Text,
        option(
            "--lm-eval",
            "Measure on tasks of the lm-eval harness too, comma-separated: gsm8k,arc_easy.",
            PROOF,
            "TASK",
        ),
    ] = None,
    lm_eval_tasks: Annotated[
        Text,
        option(
            "--lm-eval-tasks",
            "A folder with YAML files of more tasks; Python that they name is run.",
            PROOF,
            "DIR",
        ),
    ] = None,
    lm_eval_chat: Annotated[
        bool,
        typer.Option(
            "--lm-eval-chat/--no-lm-eval-chat",
            help="Put the harness's prompts into the chat template (default: yes).",
            rich_help_panel=PROOF,
            show_default=False,
        ),
    ] = True,
    lm_eval_limit: Annotated[
        Int, option("--lm-eval-limit", "The first documents of each task alone.", PROOF)
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Is the choice worth it? Trains on what each method chooses and measures on test rows. Goes on where it was."""
    training = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch": batch,
        "rank": rank,
        "alpha": alpha,
    }
    with told(debug):
        from siftune.pipeline.comparing import Comparison, readings_of
        from siftune.pipeline.comparing import compare as comparison
        from siftune.pipeline.settings import named_files
        from siftune.proof.evaluate import Measuring
        from siftune.proof.harness import harness_of

        asked = Comparison(
            tests=named_files(test or [], "--test"),
            methods=None if methods is None else _listed(methods),
            keep=_listed(keep or ""),
            seeds=seeds,
            readings=readings_of(reading),
            also=named_files(also or [], "--also"),
            training=only_given(training),
            model=train_model,
            measuring=Measuring(
                generate=generate, extract=extract, max_new_tokens=max_new_tokens, precise=precise
            ),
            harness=harness_of(_listed(lm_eval or ""), lm_eval_tasks, lm_eval_chat, lm_eval_limit),
        )
        teller = reporter(quiet)
        if lm_eval_tasks:
            teller.warn(
                f"Python code that the task files in {lm_eval_tasks} name is run: give only what you trust"
            )
        results = comparison(run_dir, asked, reporter=teller)
        if as_json:
            typer.echo(json.dumps(results, indent=2))
        else:
            from siftune.pipeline.summary import show_comparison

            show_comparison(run_dir, results)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@app.command()
def check(
    run_dir: RunDir,
    target: Annotated[
        Texts, option("--target", "Names of targets in the run; default all.", DATA, "NAME")
    ] = None,
    batches: Annotated[int, option("--batches", "Random batches at each checkpoint (32).", PROOF)] = 32,
    rows: Annotated[int, option("--rows", "Pool rows a batch (8).", PROOF)] = 8,
    learning_rate: Annotated[
        Float, option("--learning-rate", "Of the step; default each checkpoint's own mean.", PROOF)
    ] = None,
    seed: Annotated[Int, option("--seed", "Of the batches; default the run's.", MACHINE)] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Predicted against measured loss change: takes real optimizer steps on random pool batches. Goes on where it was."""
    with told(debug):
        from siftune.pipeline.checking import check as first_order_check

        result = first_order_check(
            run_dir,
            batches=batches,
            rows=rows,
            seed=seed,
            targets=target or [],
            learning_rate=learning_rate,
            reporter=reporter(quiet),
        )
        if as_json:
            typer.echo(json.dumps(result.as_values(), indent=2))
        else:
            from siftune.pipeline.summary import show_check

            show_check(result)
