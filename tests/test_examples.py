"""Every script of examples/ runs as its README says, and so does the Python of the tutorial and of the Python page, on tiny models."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model_helpers import write_tiny_model
from pipeline_helpers import pool_rows, target_rows, write_rows

ROOT = Path(__file__).parents[1]


def commands(model: Path, run: Path, out: Path) -> list[list[str]]:
    """The command lines of examples/README.md with these paths for their capitals."""
    readme = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    block = readme.split("```bash\n")[1].split("```")[0]
    given = {"MODEL": str(model), "RUN": str(run), "OUT.jsonl": str(out)}
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    return [[given.get(word, word.replace("RUN/", f"{run}/")) for word in line] for line in lines if line]


def test_examples_run_as_their_readme_says(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", "llama")
    run, out = tmp_path / "run", tmp_path / "out.jsonl"
    beside_python = str(Path(sys.executable).parent)  # where `siftune` is
    environment = {
        **os.environ,
        "PATH": f"{beside_python}{os.pathsep}{os.environ['PATH']}",
        "HF_HOME": str(tmp_path / "hf"),
    }
    said = ""
    for command in commands(model, run, out):
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
        said += done.stdout

    ran = {word for command in commands(model, run, out) for word in command if word.startswith("examples/")}
    assert ran == {
        f"examples/{path.name}" for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".sh")
    }
    pairs = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(pairs) == 15  # a quarter of 60
    assert [pair["score"] for pair in pairs] != sorted(pair["score"] for pair in pairs)
    assert all(pair["prompt"] and "The answer is" in pair["completion"] for pair in pairs)
    assert "word-sums" in said


def test_python_of_the_pages_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_model(tmp_path / "my-model", "llama")
    write_rows(tmp_path / "pool.jsonl", pool_rows(60))
    write_rows(tmp_path / "few_shot.jsonl", target_rows())
    names: dict[str, Any] = {}
    for page in ("reference/python.md", "tutorial.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            exec(block, names)
        if page == "reference/python.md":  # the tutorial looks at the demo's run, which has the same files
            selections = tmp_path / "siftune-demo" / "selections"
            selections.mkdir(parents=True)
            (selections / "malicious-strings").symlink_to(tmp_path / "RUN" / "selections" / "maths")
    assert names["features_N_D"].shape == (60, 8192)
    assert len(names["smaller"].rows()) == 1
    assert names["scores"].num_rows == 60
