"""Every script of examples/ runs as its README says, one after the other, on a tiny model."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from model_helpers import write_tiny_model

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
