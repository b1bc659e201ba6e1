"""What 16-bit activations do to a measured loss: the demo's test rows on its untrained model kept in bf16, in batches of several sizes.

python benchmarks/measuring.py
"""

from __future__ import annotations

from statistics import fmean

from record import write_result
from siftune.chat.encoder import ChatEncoder
from siftune.chat.tokenizer import load_tokenizer
from siftune.demo.data import demo_data
from siftune.demo.model import demo_model
from siftune.model.load import load_model
from siftune.proof.evaluate import Measuring, evaluate
from siftune.records.readers import read_target

BATCH_TOKENS = (1, 250, 1000, 4000)


def main() -> None:
    folder = str(demo_model())
    tokenizer = load_tokenizer(folder)
    rows = [row.example for row in read_target(str(demo_data(tokenizer).test), "test")]
    model, encoder = load_model(folder, dtype="bf16"), ChatEncoder(tokenizer, max_length=512)
    mean_of: dict[str, list[float]] = {}
    for name, precise in (("fp32", True), ("bf16", False)):
        how = Measuring(generate=False, precise=precise)
        scores_of = [evaluate(model, encoder, rows, batch_tokens, how) for batch_tokens in BATCH_TOKENS]
        mean_of[name] = [round(fmean(score.loss for score in scores), 5) for scores in scores_of]
    spread = {name: round(max(means) - min(means), 5) for name, means in mean_of.items()}
    print(
        write_result(
            "measuring",
            {"rows": len(rows), "batch_tokens": BATCH_TOKENS, "mean_loss": mean_of, "spread": spread},
        )
    )


if __name__ == "__main__":
    main()
