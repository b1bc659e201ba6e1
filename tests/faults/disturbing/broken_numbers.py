"""Weights that are not numbers: in the model, in an adapter to start from, in the weights of a run's own checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

from disturbing.forks import Ended
from disturbing.scene import Outcome, Scene

CASES = ("model, gradients", "model, vectors alone", "adapter to start from", "adapter of a checkpoint")


def not_a_number(scene: Scene, case: str) -> Outcome:
    """A run with such weights ends with an error as a sentence and no selection; with sound ones it goes as ever."""
    like = scene.finished
    with scene.place(like.path if case == "adapter of a checkpoint" else None) as out:
        ended = _tried(scene, case, out)
        told = ended.clear
        chosen = (out / "selections" / ("other" if "checkpoint" in case else "sums")).exists()
        note = "" if told and not chosen else ended.text[-600:]
        return Outcome("weights that are no numbers", case, True, told, not chosen, 0, "", note)


def _tried(scene: Scene, case: str, out: Path) -> Ended:
    given = yaml.safe_load(scene.recipe.read_text(encoding="utf-8"))
    bad = scene.folder / "bad"
    shutil.rmtree(bad, ignore_errors=True)
    if case == "adapter of a checkpoint":
        _spoil(out / "checkpoints" / "1" / "adapter_model.safetensors")
        return scene.forks.run(*scene.score(out))
    if case == "adapter to start from":
        shutil.copytree(scene.finished.path / "checkpoints" / "1", bad)
        _spoil(bad / "adapter_model.safetensors")
        given |= {"adapter": str(bad)}
    else:
        shutil.copytree(given["model"], bad)
        _spoil(bad / "model.safetensors")
        given |= {"model": str(bad), "method": "rds+" if "vectors" in case else "blend"}
    recipe = scene.folder / "bad.yaml"
    recipe.write_text(yaml.safe_dump(given), encoding="utf-8")
    return scene.forks.run("run", "--recipe", recipe, "--out", out, "--quiet")


def _spoil(file: Path) -> None:
    """Some weights of the first layer of attention or MLP, alphabetically, are NaN; of lora_B, which counts from the first step."""
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if "_proj" in name and "lora_A" not in name)
    tensors[name] = tensors[name].clone()
    tensors[name][:, 0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
