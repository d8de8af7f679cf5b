"""BATCHES OF ITEMS -> FILES AND RECORDS, over Ray Data actors: what jobs/sample.py and jobs/bivdiff.py share.

Batches are cut from the whole list of items before anything is left out, and a batch is made whole, so that a clip has
the same neighbours, and the same bits, whatever was done before and however many actors there are. On a CPU that holds
for one value of cluster.sample.num_cpus, which is the number of PyTorch's threads, and one kind of processor.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError
from ..media import decode_mp4, encode_mp4, encode_png, frames_side_by_side, tile
from ..runtime.connect import bars_for_people_only, start_ray
from ..runtime.metrics import count_sampled
from ..runtime.placement import check_room
from ..runtime.pools import map_rows, stage_device
from ..runtime.progress import Progress
from ..settings import ActorResources, ClusterSettings
from ..storage.files import list_files, read_bytes, read_json, write_bytes
from .items import Rejection

log = logging.getLogger("sample")

GRID_ITEMS, GRID_LINES = 64, 16  # clips in grid.mp4 and in grid.png

Record = dict[str, Any]  # of a clip, as in KEY.json
Fingerprints = Callable[[Any], str]  # of an item: what decides its clip
# (items, their fingerprints) of a batch -> the records of what was made, and what could not be
Work = Callable[[list[Any], list[str]], tuple[list[Record], list[Rejection]]]


class Done(NamedTuple):
    records: dict[str, Record]  # of items that are there, by key
    other: int  # items that are there, made with other settings or weights


class BatchActor:
    """map_batches over actors, one batch of items in, one row out: {"records": JSON, "refused": JSON, "problem": ""}.

    `build(device)` loads the models, once for each actor. What is wrong with them is an answer, for the job to
    say: Ray would start an actor that fails again and again.
    """

    def __init__(self, build: Callable[[str], Work], resources: ActorResources) -> None:
        self._problem = ""
        try:
            self._work = build(stage_device(resources))
        except UserError as error:
            self._problem = str(error)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        if self._problem:
            none = ["[]"] * len(batch["items"])
            return {"records": none, "refused": none, "problem": [self._problem] * len(none)}
        answers: list[tuple[Any, ...]] = [
            self._work(json.loads(items), json.loads(fingerprints))
            for items, fingerprints in zip(batch["items"], batch["fingerprints"], strict=True)
        ]
        said = {name: [json.dumps(answer[i]) for answer in answers] for i, name in enumerate(("records", "refused"))}
        return said | {"problem": [""] * len(answers)}


def find_done(folder: str, items: Sequence[Mapping[str, Any]], fingerprint_of: Fingerprints) -> Done:
    """The items whose files are in `folder`, and those among them that were made as they would be now."""
    there = {address.rsplit("/", 1)[-1] for address in list_files(folder)}
    done, other = {}, 0
    for item in items:
        key = item["key"]
        if f"{key}.json" in there and f"{key}.generated.mp4" in there:
            record = read_json(f"{folder}/{key}.json")
            if record.get("fingerprint") == fingerprint_of(item):
                done[key] = record
            else:
                other += 1
    return Done(done, other)


def unfinished(
    batches: Sequence[Sequence[Mapping[str, Any]]], done: Mapping[str, Record]
) -> list[Sequence[Mapping[str, Any]]]:
    """The batches that hold anything to do."""
    return [batch for batch in batches if any(item["key"] not in done for item in batch)]


def run_batches(
    build: Callable[[str], Work],
    batches: Sequence[Sequence[Mapping[str, Any]]],
    done: Mapping[str, Record],
    fingerprint_of: Fingerprints,
    run: str,
    cluster: ClusterSettings,
) -> tuple[dict[str, Record], list[Rejection]]:
    """Make the unfinished batches, and say after each how far it is. Their records by key, and what was rejected.

    Raises UserError for models that cannot be loaded, or do not go together.
    """
    start_ray(cluster)
    check_room("sample", cluster.sample, 1, "the sampling actors")
    bars_for_people_only()
    rows = [
        {"items": json.dumps(batch), "fingerprints": json.dumps([fingerprint_of(item) for item in batch])}
        for batch in unfinished(batches, done)
    ]
    pending = sum(item["key"] not in done for batch in batches for item in batch)
    progress = Progress(pending, "clips")
    records: dict[str, Record] = {}
    rejected: list[Rejection] = []
    for row in map_rows(BatchActor, rows, cluster.sample, build=build, resources=cluster.sample).iter_rows():
        if row["problem"]:
            raise UserError(row["problem"])
        made = {record["key"]: record for record in json.loads(row["records"])}
        records |= made
        count_sampled(run, len(made))
        for one in (Rejection(*pair) for pair in json.loads(row["refused"])):
            log.warning("%s: %s; left out", one.name, one.reason)
            rejected.append(one)
        progress.done = len(records.keys() - done.keys()) + len(rejected)
        log.info(progress.line())
    return records, rejected


def write_grid(folder: str, keys: list[str], fps: int) -> None:
    """grid.mp4: the generated clips of the first items, playing side by side; grid.png: frames of them, a line a clip."""
    clips = [decode_mp4(read_bytes(f"{folder}/{key}.generated.mp4")) for key in keys[:GRID_ITEMS]]
    write_bytes(f"{folder}/grid.mp4", encode_mp4(tile(clips), fps))
    write_bytes(f"{folder}/grid.png", encode_png(frames_side_by_side(clips[:GRID_LINES])))
