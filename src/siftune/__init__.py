"""siftune: find the few per cent of an instruction pool that teach your model one capability.

    import siftune

    recipe = siftune.Recipe(model="MODEL", pool=["pool.jsonl"], target={"maths": "few.jsonl"}, keep="5%")
    result = siftune.run(recipe, "RUN")
    result.selections["maths"].rows()      # the chosen rows, best first
    result.selections["maths"].scores()    # a row per pool row, as Arrow

    plan = siftune.Comparison(tests={"maths": "test.jsonl"}, methods=["blend", "rds+"])
    siftune.compare("RUN", plan)["maths"]["tables"][0]["sentence"]      # is the choice worth it?
    siftune.report("RUN").page                                          # what was selected and why

Names are imported when first used: `import siftune` alone does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from siftune.datastore.pool import Pool
    from siftune.datastore.store import Datastore
    from siftune.datastore.targets import Target
    from siftune.pipeline.checking import CheckResult, check
    from siftune.pipeline.comparing import Comparison, compare
    from siftune.pipeline.progress import Reporter
    from siftune.pipeline.reporting import Report, report
    from siftune.pipeline.run import RunResult, append, run, score, select
    from siftune.records.errors import SiftuneError
    from siftune.records.recipe import Recipe
    from siftune.selection.selection import Selection

__all__ = [
    "CheckResult",
    "Comparison",
    "Datastore",
    "Pool",
    "Recipe",
    "Report",
    "Reporter",
    "RunResult",
    "Selection",
    "SiftuneError",
    "Target",
    "append",
    "check",
    "compare",
    "report",
    "run",
    "score",
    "select",
]

_WHERE = {
    "CheckResult": "siftune.pipeline.checking",
    "Comparison": "siftune.pipeline.comparing",
    "Datastore": "siftune.datastore.store",
    "Pool": "siftune.datastore.pool",
    "Recipe": "siftune.records.recipe",
    "Report": "siftune.pipeline.reporting",
    "Reporter": "siftune.pipeline.progress",
    "RunResult": "siftune.pipeline.run",
    "Selection": "siftune.selection.selection",
    "SiftuneError": "siftune.records.errors",
    "Target": "siftune.datastore.targets",
    "append": "siftune.pipeline.run",
    "check": "siftune.pipeline.checking",
    "compare": "siftune.pipeline.comparing",
    "report": "siftune.pipeline.reporting",
    "run": "siftune.pipeline.run",
    "score": "siftune.pipeline.run",
    "select": "siftune.pipeline.run",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'siftune' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
