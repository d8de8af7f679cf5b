"""Measure how much a checkpoint slows training: 100 steps that begin with a save, relative to the 100 steps after them.

    python benchmarks/checkpointing.py        # four minutes on two idle cores

One Ray Train worker trains four of the twelve blocks of a Latte-S/2, whose checkpoint (weights and AdamW's moments) has
0.14 GB. Latents are so small that a step takes a fraction of a second: the less there is to compute, the more a save
weighs. It saves every 200 steps, so that stretches of 100 steps with one save and without take turns in one run.
`stretch_ratio` is the whole cost: copying the state, for which training waits, and writing it, which takes processor
time from the steps. `waiting_share` is the copying alone, by the loop's own clock. The result is
benchmarks/results/checkpointing.json.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from circumstances import circumstances

from pipeline.settings import ROOT
from pipeline.train.plan import prepare
from pipeline.train.report.history import HISTORY
from pipeline.train.report.rows import read_history
from pipeline.train.run import run_training

sys.path.insert(0, str(ROOT / "tests"))
from helpers.tiny_cache import tiny_settings, write_cache

RESULT = Path(__file__).parent / "results" / "checkpointing.json"
SAVES, STRETCH = 3, 100


def main() -> None:
    """Train, compare the stretches, and write the result file."""
    with tempfile.TemporaryDirectory() as folder:
        changes = {"model.hidden_size": 384, "model.depth": 4, "model.num_heads": 6}
        changes |= {"train.steps": 2 * SAVES * STRETCH + 2 * STRETCH, "train.log_every": STRETCH}
        changes |= {"train.checkpoint_every": 2 * STRETCH, "train.validate_every": 10**6, "train.global_batch": 1}
        changes |= {"train.keep_checkpoints": 2, "train.zero_stage": 2}
        changes |= {"cluster.train.workers": 1, "cluster.train.num_cpus": 2}
        settings = tiny_settings(Path(folder), *(f"--{key}={value}" for key, value in changes.items()))
        write_cache(settings)
        run = prepare("finetune", settings)
        summary = run_training(run)
        rows = {int(row["step"] or 0): row for row in read_history(f"{run.spec.folder}/{HISTORY}")}
        size = next((Path(run.spec.folder) / "checkpoints").glob("checkpoint_*/state-*.safetensors")).stat().st_size

    def seconds(step: int) -> float:
        """Seconds of the stretch that ends at `step`."""
        return float(rows[step]["seconds"] or 0) - float(rows[step - STRETCH]["seconds"] or 0)

    saves = [2 * STRETCH * number for number in range(1, SAVES + 1)]
    ratios = [seconds(save + STRETCH) / seconds(save + 2 * STRETCH) for save in saves]
    result: dict[str, Any] = {
        **circumstances(),
        "steps_a_save": STRETCH,
        "checkpoint_gb": size / 1e9,
        "parameters": summary["parameters"],
        "step_s_without_a_save": statistics.median(seconds(save + 2 * STRETCH) for save in saves) / STRETCH,
        "stretch_ratio_median": statistics.median(ratios),
        "stretch_ratios": ratios,
        "waiting_share_median": statistics.median(float(rows[save + STRETCH]["checkpoint"] or 0) for save in saves),
    }
    text = json.dumps(result, indent=1)
    print(text)
    RESULT.write_text(text + "\n")


if __name__ == "__main__":
    main()
