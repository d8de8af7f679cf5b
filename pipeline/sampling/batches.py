"""ITEMS -> CLIPS, over Ray Data actors: plan, leave out what is done, make the rest, summarise.

jobs/sample.py and jobs/bivdiff.py share this page. An item is a mapping with a "key", which names its files.

Batches are cut from the whole list of items before anything is left out, and a batch is made whole. So a clip has the
same neighbours, and the same bits, whatever was done before and however many actors there are. On a CPU that holds for
one value of cluster.sample.num_cpus, which is the number of PyTorch's threads, and one kind of processor.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np

from ..errors import UserError
from ..media import decode_mp4, encode_mp4, encode_png, frames_side_by_side, tile
from ..runtime.connect import start_ray
from ..runtime.metrics import count_sampled
from ..runtime.placement import check_room
from ..runtime.pools import map_rows, stage_device
from ..runtime.progress import Progress
from ..settings import ActorResources, ClusterSettings
from ..storage.files import exists, list_files, read_bytes, read_json, write_bytes, write_json
from .items import BatchResult, Record, Rejection

log = logging.getLogger("sample")

GRID_ITEMS, GRID_LINES = 64, 16  # clips in grid.mp4 and in grid.png

ItemT = TypeVar("ItemT", bound=Mapping[str, Any])
Work = Callable[[list[Any]], BatchResult]  # makes the clips of a batch's items


@dataclass(frozen=True)
class ClipPlan(Generic[ItemT]):
    """The clips to make, known before Ray starts."""

    source: str  # where the items come from, for messages
    folder: str
    batches: list[list[ItemT]]
    rejected: list[Rejection]
    settings: dict[str, Any]  # all that decides the clips, besides the items
    fingerprints: dict[str, str]  # of all that decides a clip, by key, in order

    @cached_property
    def found(self) -> dict[str, Record]:
        """Records of the clips whose files were there at the first look, by key."""
        names = {address.rsplit("/", 1)[-1] for address in list_files(self.folder)}
        there = [key for key in self.fingerprints if {f"{key}.json", f"{key}.generated.mp4"} <= names]
        return {key: read_json(f"{self.folder}/{key}.json") for key in there}

    @cached_property
    def done(self) -> dict[str, Record]:
        """Those of the found records that were made with the same weights and settings."""
        return {key: one for key, one in self.found.items() if one.get("fingerprint") == self.fingerprints[key]}

    @property
    def pending(self) -> int:
        """The number of clips to make."""
        return len(self.fingerprints) - len(self.done)

    @property
    def unfinished(self) -> list[list[ItemT]]:
        """The batches with a clip to make."""
        return [batch for batch in self.batches if any(item["key"] not in self.done for item in batch)]

    @property
    def remade(self) -> str:
        """A line on clips that were found but are not done; "" if there are none."""
        other = len(self.found) - len(self.done)
        return f"\n{other} of them were made with other weights or settings and are made again" if other else ""


def fingerprint(deciding: Any) -> str:
    """BLAKE2b of a text, or of other values as JSON."""
    text = deciding if isinstance(deciding, str) else json.dumps(deciding, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def make_clip_batch(
    work: Work, items: list[Any], fingerprints: Mapping[str, str], folder: str
) -> tuple[list[Record], list[Rejection]]:
    """Make the clips of a batch and write their files. A clip's KEY.json comes last and makes it done."""
    made, rejected = work(items)
    for record, files in made:
        key = record["key"]
        record["fingerprint"] = fingerprints[key]
        for name, content in files.items():
            write_bytes(f"{folder}/{key}.{name}", content)
        write_json(f"{folder}/{key}.json", record)
    return [record for record, _ in made], rejected


class BatchActor:
    """map_batches over actors: {"batch": JSON of items and fingerprints} in, {"answer": JSON} of records out.

    An answer has the records, the rejected items, and the problem with the models, or "". The job raises the problem:
    Ray would start an actor that fails again and again.
    """

    def __init__(self, build: Callable[[str], Work], resources: ActorResources, folder: str) -> None:
        """Load the models, by `build(device)`."""
        self._folder, self._problem = folder, ""
        try:
            self._work = build(stage_device(resources))
        except UserError as error:
            self._problem = str(error)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Answer each batch."""
        return {"answer": [json.dumps(self._answer(*json.loads(content))) for content in batch["batch"]]}

    def _answer(self, items: list[Any], fingerprints: dict[str, str]) -> tuple[list[Record], list[Rejection], str]:
        if self._problem:
            return [], [], self._problem
        return *make_clip_batch(self._work, items, fingerprints, self._folder), ""


def run_plan(
    plan: ClipPlan[Any],
    build: Callable[[str], Work],
    finished: dict[str, Any],
    describe: Callable[[list[Record]], dict[str, Any]],
    fps: int,
    run: str,
    cluster: ClusterSettings,
) -> dict[str, Any]:
    """Make every clip that is not there yet, and write grid.mp4, grid.png and summary.json. Return the summary.

    There is nothing to do if the summary of an earlier run has the entries `finished`, a "fingerprint" among them.
    `describe` gives the entries that are the job's own. Raises UserError, before anything is written, for models that
    cannot be loaded or do not go together, and where no item can be used.
    """
    started = time.monotonic()
    log_rejected(plan.rejected)
    address = f"{plan.folder}/summary.json"
    earlier = read_json(address) if exists(address) else {}
    if all(earlier.get(name) == value for name, value in finished.items()):
        log.info("nothing to do: %d clips are already made in %s", len(plan.done), plan.folder)
        return earlier | {"made_this_run": 0}
    if plan.remade:
        log.info(plan.remade.strip())
    made, rejected = run_batches(plan, build, run, cluster) if plan.unfinished else ({}, [])
    records = plan.done | made
    ordered = [records[key] for key in plan.fingerprints if key in records]
    rejected = plan.rejected + rejected
    if not ordered:
        raise UserError(f"{plan.source}: none of its {len(rejected)} items can be used, see above; give others")
    write_grid(plan.folder, [record["key"] for record in ordered], fps)
    seconds = time.monotonic() - started
    summary = describe(ordered) | {
        "fingerprint": finished["fingerprint"],
        "settings": plan.settings,
        "count": len(ordered),
        "seconds": seconds + (earlier.get("seconds", 0.0) if plan.done else 0.0),
        "refused": [one._asdict() for one in rejected],
        "items": [record["key"] for record in ordered],
    }
    write_json(address, summary)
    log.info("%d clips in %s, %d left out, %.0f s", len(ordered), plan.folder, len(rejected), seconds)
    return summary | {"made_this_run": len(ordered) - len(plan.done)}


def run_batches(
    plan: ClipPlan[Any], build: Callable[[str], Work], run: str, cluster: ClusterSettings
) -> tuple[dict[str, Record], list[Rejection]]:
    """Make the unfinished batches; log progress after each. Return records by key, and the rejected items."""
    start_ray(cluster)
    check_room("sample", cluster.sample, 1, "the sampling actors")
    rows = [
        {"batch": json.dumps([batch, {item["key"]: plan.fingerprints[item["key"]] for item in batch}])}
        for batch in plan.unfinished
    ]
    progress = Progress(plan.pending, "clips")
    records: dict[str, Record] = {}
    rejected: list[Rejection] = []
    actors = map_rows(BatchActor, rows, cluster.sample, build=build, resources=cluster.sample, folder=plan.folder)
    for row in actors.iter_rows():
        made, left_out, problem = json.loads(row["answer"])
        if problem:
            raise UserError(problem)
        records |= {record["key"]: record for record in made}
        count_sampled(run, len(made))
        log_rejected(left_out)
        rejected += [Rejection(*pair) for pair in left_out]
        progress.done = len(records.keys() - plan.done.keys()) + len(rejected)
        log.info(progress.line())
    return records, rejected


def log_rejected(rejected: Iterable[tuple[str, str]]) -> None:
    """Log one line for each rejected item."""
    for name, reason in rejected:
        log.warning("%s: %s; left out", name, reason)


def write_grid(folder: str, keys: list[str], fps: int) -> None:
    """Write grid.mp4, the first generated clips side by side, and grid.png, a line of frames for each."""
    clips = [decode_mp4(read_bytes(f"{folder}/{key}.generated.mp4")) for key in keys[:GRID_ITEMS]]
    write_bytes(f"{folder}/grid.mp4", encode_mp4(tile(clips), fps))
    write_bytes(f"{folder}/grid.png", encode_png(frames_side_by_side(clips[:GRID_LINES])))
