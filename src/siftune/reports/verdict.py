"""Section 1: the whole report in a sentence, with what a person should look at before using the choice."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from siftune.records.files import digest_of
from siftune.reports.composition import percent
from siftune.selection.selection import Selection

CHECKPOINTS_APART = 0.2
_CHOICE = (
    "rule", "keep", "drop_worst", "near_duplicates", "per_source", "seed", "family", "clusters", "templates", "template_column",
)  # fmt: skip

_LOOKED_AT = ("rule", "centre", "family", "clusters", "templates", "template_column")
_LIMITS = ("near_duplicates", "per_source")


def fingerprint_of(fingerprints: list[str]) -> str:
    """32 hex digits of the chosen rows, in order."""
    return digest_of(fingerprints)[:32]


def command_of(run: str, selection: Selection) -> str:
    """What makes this selection again from the run's datastore."""
    settings = selection.settings
    words = ["siftune", "select", run]
    if settings["target"]:
        words += ["--target", settings["target"]]
    words += ["--method", settings["method"]]
    for name in _CHOICE:
        if settings.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(settings[name])]
    words += ["--centre"] if settings.get("centre") else []
    words += ["--repeats"] if settings.get("repeats") else []
    return shlex.join([*words, "--name", "AGAIN"])


def verdict_section(
    run: str,
    selection: Selection,
    fingerprint: str,
    found: Mapping[str, Any],
    common: Mapping[str, Any],
    recipe: Mapping[str, Any],
) -> dict[str, Any]:
    """found: the other sections of this selection; common: those of the run; recipe: the run's."""
    s, settings = selection.summary, selection.settings
    n, of = s["n_selected"], s["n_scorable"]
    aim = (
        f"for {settings['target']}, by {settings['method']}"
        if settings["target"]
        else f"by {settings['method']}"
    )
    rule = f", rule {settings['rule']}" if settings["rule"] else ""
    text = f"{n:,} of {of:,} rows ({n / of:.1%}, {s['tokens_selected']:,} tokens) were chosen {aim}{rule}."
    sources = found["composition"][0]
    top = sources["rows"][0]
    if len(sources["rows"]) > 1:
        more = sources["apart"] - sources["apart_by_chance"]
        unlike = "as like" if more < 0.05 else "somewhat unlike" if more < 0.25 else "very unlike"
        than = " as random rows are" if more < 0.05 else ""
        text += (
            f" By source the choice is {unlike} the pool{than} (their mixtures differ by {sources['apart']:.0%}, those of random rows by"
            f" {sources['apart_by_chance']:.0%}); {percent(top['chosen_share'])} of it comes from {top['value']}, which is {percent(top['pool_share'])} of the pool."
        )
    return {
        "sentence": text,
        "warnings": _warnings(selection, found, common, recipe),
        "command": command_of(run, selection),
        "fingerprint": fingerprint,
        "selected": n,
        "scorable": of,
        "tokens": s["tokens_selected"],
        "unlike_pool": sources["apart"],
        "unlike_by_chance": sources["apart_by_chance"],
    }


def _warnings(
    selection: Selection, found: Mapping[str, Any], common: Mapping[str, Any], recipe: Mapping[str, Any]
) -> list[str]:
    name, target, warnings = selection.path.name, selection.settings["target"], []
    for leak in common["leakage"]:
        if leak["kind"] == "test" and (leak["exact"] or leak["overlapping"]):
            warnings.append(
                f"Leakage: {leak['exact']:,} pool rows are rows of the test {leak['name']} and {leak['overlapping']:,} share 13 words with one;"
                f" {leak['chosen'][name]:,} of them were chosen. What is measured on that test is partly memory."
            )
        for other, n in leak["in_targets"].items():
            warnings.append(
                f"Leakage: {n:,} of the {leak['rows']:,} rows of the test {leak['name']} are rows of the target {other}, which chose what was trained on."
            )
        if leak["kind"] == "target" and leak["exact"] and leak["name"] == target:
            warnings.append(
                f"{leak['exact']:,} pool rows are rows of the target itself; {leak['chosen'][name]:,} chosen rows are in the target or overlap it."
            )
    if found["length"]["flagged"]:
        warnings.append(f"{found['length']['finding']} Look whether the choice is a choice of lengths.")
    if found["subtasks"] and found["subtasks"]["flagged"]:
        warnings.append(
            f"One subtask takes over: {found['subtasks']['finding']} The rule by-subtask lets all take turns."
        )
    if found["redundancy"]["flagged"]:
        warnings.append(f"{found['redundancy']['finding']} --near-duplicates 0.7 passes over them.")
    if found["scores"]["tied_but_left_out"] > selection.summary["n_selected"] * 0.1:
        warnings.append(
            f"{found['scores']['tied_but_left_out']:,} rows with the very score of the cut were left out: the method can't tell them from chosen ones."
        )
    agreement = [pair["spearman"] for pair in found["scores"]["agreement"] if pair["spearman"] is not None]
    if agreement and min(agreement) < CHECKPOINTS_APART:
        warnings.append(
            f"Checkpoints disagree on the pool (Spearman {min(agreement):.2f}): a longer or gentler warm-up may help."
        )
    quarantined = common["integrity"]["status"].get("quarantined", 0)
    if quarantined > 0.05 * common["integrity"]["rows"]:
        warnings.append(
            f"{quarantined:,} of {common['integrity']['rows']:,} pool rows are in quarantine; most often: {common['integrity']['reasons'][0]['reason']}."
        )
    if appended := common["integrity"]["rows"] - selection.summary["n_pool"]:
        warnings.append(
            f"{appended:,} rows were appended after this choice was made: choosing again looks at them too."
        )
    tables = [
        of for test in common["outcome"]["comparisons"] if test["target"] == target for of in test["tables"]
    ]
    arms = [
        (of, arm[0]) for of in tables for arm in of["arms"] if _is_of(selection, of["keep"], arm[0], recipe)
    ]
    if worse := [arm for of, arm in arms if arm in of["worse_than_random"]]:
        warnings.append(f"Rows by {worse[0]} were measured to be worse than random rows: see the outcome.")
    if not arms and not common["outcome"]["demo"] and target is not None:
        warnings.append(
            "This choice was not measured yet: 'siftune compare' says whether it is better than random rows."
        )
    return warnings


def _is_of(selection: Selection, keep: str | None, arm: str, recipe: Mapping[str, Any]) -> bool:
    """Is an arm of a comparison (`less:rule=top`) a choice like this one: by its budget, its method and what that looks at?

    What an arm doesn't say is as in the recipe, but for limits to a choice, of which it then has none.
    """
    method, *parts = arm.split(":")
    settings = selection.settings
    if (keep, method) != (settings["keep"], settings["method"]):
        return False
    said = {
        name.strip().replace("-", "_"): value for name, _, value in (part.partition("=") for part in parts)
    }
    of_recipe = {name: recipe[name] for name in _LOOKED_AT if settings[name] is not None}
    asked = of_recipe | dict.fromkeys(_LIMITS) | said
    return all(str(value).lower() == str(settings.get(name)).lower() for name, value in asked.items())
