"""Under faults, files on S3 are neither lost nor half-written, and storage that cannot be used is reported clearly."""

import io
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from helpers.faulty_s3 import FAULTS, IN_A_ROW, FaultyS3, Plan, faulty_s3

from pipeline.data.cache.verify import find_orphans, remove_orphans
from pipeline.runtime.job import run_job
from pipeline.storage import s3
from pipeline.storage.files import (
    check_reachable,
    download,
    exists,
    list_files,
    read_bytes,
    read_range,
    remove,
    walk,
    write_bytes,
)
from pipeline.storage.s3 import StorageRefused, StorageUnavailable

SECRET = "not-to-be-seen-4711"
PART = 5 << 20  # S3's least
QUICK = tuple(kind for kind in FAULTS if kind != "stall")
FOLDER = "s3://bucket/some folder"


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    with faulty_s3() as running:
        yield running


@pytest.fixture
def service(server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """A service with an empty bucket named bucket, without faults until the test sets `plan`."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("FRAMEBRIDGE_S3_TIMEOUT_S", "2")
    monkeypatch.setattr(s3, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(s3, "PART", PART)
    client = around(server)
    client.create_bucket(Bucket="bucket")
    server.plan = Plan()
    yield server
    server.plan = Plan()
    for found in client.list_objects_v2(Bucket="bucket").get("Contents", ()):
        client.delete_object(Bucket="bucket", Key=found["Key"])


def around(service: FaultyS3) -> Any:
    """A client that meets no faults."""
    return boto3.client(
        "s3",
        region_name="us-east-1",
        endpoint_url=service.direct,
        aws_access_key_id="tester",
        aws_secret_access_key=SECRET,
    )


def test_everything_written_under_faults_is_read_back(service: FaultyS3) -> None:
    service.plan = Plan(share=0.4, seed=1, kinds=(*QUICK * 2, "stall"), stall_s=2.1)
    large = os.urandom(2 * PART + 99)
    write_bytes(f"{FOLDER}/large", large)
    assert read_bytes(f"{FOLDER}/large") == large
    copy = io.BytesIO()
    download(f"{FOLDER}/large", copy)
    assert copy.getvalue() == large
    assert read_range(f"{FOLDER}/large", PART - 7, 20) == large[PART - 7 : PART + 13]
    for index in range(12):
        write_bytes(f"{FOLDER}/small/{index}.txt", b"%d" % index)
    write_bytes(f"{FOLDER}/small/empty", b"")
    assert [read_bytes(f"{FOLDER}/small/{index}.txt") for index in range(12)] == [b"%d" % index for index in range(12)]
    assert read_bytes(f"{FOLDER}/small/empty") == b""
    assert list_files(f"{FOLDER}/small", ".txt") == sorted(f"{FOLDER}/small/{index}.txt" for index in range(12))
    assert [(name, size) for _, name, size in walk(FOLDER) if size > 2] == [("large", len(large))]
    remove(f"{FOLDER}/large")
    assert exists(f"{FOLDER}/small") and not exists(f"{FOLDER}/large") and not exists(f"{FOLDER}/smal")
    assert set(service.plan.met) == set(FAULTS), "a fault that was never met proves nothing"


FATAL = [  # requests that fail for good, how, and the bytes to be written
    ("POST .*uploads", "internal error", 2 * PART + 1),
    ("PUT .*partNumber=3", "internal error", 2 * PART + 1),
    ("PUT .*partNumber=2", "cut upload", 2 * PART + 1),
    ("POST .*uploadId", "slow down", 2 * PART + 1),
    ("PUT ", "internal error", PART),
    ("PUT ", "cut upload", PART),
]


def test_an_upload_is_seen_whole_or_not_at_all(service: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds during an upload, under faults, and after any of its requests failed for good."""
    seen: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        client = around(service)
        while not done.is_set():
            seen.update(found["Size"] for found in client.list_objects_v2(Bucket="bucket").get("Contents", ()))
            time.sleep(0.01)

    old, new = b"old" * 1000, os.urandom(2 * PART + 1)
    write_bytes(f"{FOLDER}/file", old)
    watcher = threading.Thread(target=watch)
    watcher.start()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    try:
        for only, kind, size in FATAL:
            service.plan = Plan(share=1, kinds=(kind,), only=only, always=True)
            with pytest.raises(StorageUnavailable, match=r"s3://bucket/some folder/file: .*failed 2 times"):
                write_bytes(f"{FOLDER}/file", new[:size])
            assert read_bytes(f"{FOLDER}/file") == old
    finally:
        monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    assert not s3.unfinished_uploads("s3://bucket"), "parts that nobody will finish cost money"
    service.plan = Plan(share=0.5, seed=2, kinds=("cut upload", "slow down", "internal error"))
    write_bytes(f"{FOLDER}/file", new)
    done.set()
    watcher.join()
    assert seen <= {len(old), len(new)} and len(old) in seen
    assert read_bytes(f"{FOLDER}/file") == new


def test_an_upload_whose_answer_was_lost_is_recognised_as_finished(service: FaultyS3) -> None:
    service.plan = Plan(share=1, kinds=("lost answer",), only="POST .*uploadId")
    service.log.clear()
    content = os.urandom(PART + 1)
    write_bytes(f"{FOLDER}/file", content)
    assert service.plan.met["lost answer"] >= 1 and read_bytes(f"{FOLDER}/file") == content
    assert sum("partNumber" in request for request in service.log) == 2, "nothing was uploaded twice"


def test_attempts_are_counted_and_growing_waits_are_random(
    service: FaultyS3, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "6")
    waits: list[float] = []
    monkeypatch.setattr(s3.time, "sleep", waits.append)
    service.plan = Plan(share=1, kinds=("slow down",), only="GET .*file", always=True)
    service.log.clear()
    with pytest.raises(StorageUnavailable, match=r"failed 6 times, last with SlowDown .503.") as error:
        read_bytes(f"{FOLDER}/file")
    assert len(service.log) == 6 and len(waits) == len(set(waits)) == 5
    assert all(wait <= s3.FIRST_WAIT_S * 2**attempt for attempt, wait in enumerate(waits))
    assert "attempt 5 of 6" in caplog.text and SECRET not in caplog.text + str(error.value)


def test_a_missing_object_is_a_missing_file_at_once(service: FaultyS3) -> None:
    service.log.clear()
    with pytest.raises(FileNotFoundError, match="s3://bucket/some folder/none"):
        read_bytes(f"{FOLDER}/none")
    assert len(service.log) == 1 and list_files(f"{FOLDER}/none") == []


def refused(service: FaultyS3, monkeypatch: pytest.MonkeyPatch, how: str) -> str:
    """Make the storage unusable in one way; return the address to try."""
    if how == "denied":
        service.plan = Plan(share=1, kinds=("denied",), always=True)
    if how == "unreachable":
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@127.0.0.1:9")
    if how == "silent":
        monkeypatch.setenv("FRAMEBRIDGE_S3_TIMEOUT_S", "0.3")
        service.plan = Plan(share=1, kinds=("stall",), always=True, stall_s=0.6)
    if how == "no credentials":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("HOME", "/nonexistent")
    return "s3://wrong/runs" if how == "no bucket" else "s3://bucket/runs"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no bucket", "s3://wrong/runs.*: no bucket wrong; create it"),
        ("denied", "access denied .AccessDenied.; the credentials in use need s3:GetObject"),
        (
            "unreachable",
            "S3 at http://127.0.0.1:9 failed 3 times, last with EndpointConnectionError; check AWS_ENDPOINT",
        ),
        ("silent", "failed 3 times, last with ReadTimeoutError"),
        ("no credentials", "no credentials; set AWS_ACCESS_KEY_ID"),
    ],
)
def test_unusable_storage_ends_the_job_with_one_line_and_status_2(
    service: FaultyS3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str, words: str
) -> None:
    storage = refused(service, monkeypatch, how)
    with pytest.raises(StorageRefused, match=words):
        check_reachable(storage)
    monkeypatch.setattr("sys.argv", ["job.py", "--recipe", "demo", "--run.storage", storage])
    started = time.monotonic()
    with pytest.raises(SystemExit, match="2"):
        run_job(lambda *_: pytest.fail("the job ran"), lambda *_: "", "")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(f"job.py: {storage}") and SECRET not in said
    assert time.monotonic() - started < 10


def test_injected_faults_end_before_the_last_attempt() -> None:
    assert IN_A_ROW < s3.ATTEMPTS


def test_unfinished_uploads_are_found_and_aborted(service: FaultyS3) -> None:
    client = around(service)
    begun = client.create_multipart_upload(Bucket="bucket", Key="some folder/shards/killed.tar")
    client.upload_part(
        Bucket="bucket", Key=begun["Key"], UploadId=begun["UploadId"], PartNumber=1, Body=b"half of a shard"
    )
    write_bytes(f"{FOLDER}/shards/left.tar", b"a whole shard that was not committed")
    assert [upload for _, upload, _ in s3.unfinished_uploads("s3://bucket")] == [begun["UploadId"]]
    old, _ = find_orphans(FOLDER, older_than=3600)  # moto says of every upload that it began in 2010
    assert [orphan.upload for orphan in old] == [begun["UploadId"]]
    orphans, missing = find_orphans(FOLDER, older_than=-60)
    assert [(orphan.address, orphan.upload) for orphan in orphans] == [
        (f"{FOLDER}/shards/killed.tar", begun["UploadId"]),
        (f"{FOLDER}/shards/left.tar", None),
    ]
    assert not missing
    remove_orphans(orphans)
    assert not s3.unfinished_uploads(FOLDER) and list_files(f"{FOLDER}/shards") == []
