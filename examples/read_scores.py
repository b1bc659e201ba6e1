"""What a selection's scores say, read as any Parquet file:  python examples/read_scores.py RUN/selections/NAME"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq


def main(selection: str) -> None:
    """Print the mean score by source, how far scores follow length, and the best rows that were not chosen."""
    scores = pq.read_table(Path(selection) / "scores.parquet")
    scores = scores.filter(scores["score"].is_valid())  # null: in quarantine

    by_source = scores.group_by("source").aggregate(
        [("score", "mean"), ("selected", "sum"), ("row", "count")]
    )
    for source in by_source.sort_by([("score_mean", "descending")]).to_pylist():
        print(
            f"{source['source']:<12} mean score {source['score_mean']:7.2f}, {source['selected_sum']} of {source['row_count']} rows chosen"
        )

    table = scores.to_pandas()
    print(f"Spearman of score and length: {table['score'].corr(table['n_trained'], method='spearman'):.2f}")
    left = table[~table["selected"].astype(bool)].nsmallest(3, "rank")
    print("best rows left out:", ", ".join(left["id"]))


if __name__ == "__main__":
    main(sys.argv[1])
