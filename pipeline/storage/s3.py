"""Make the requests to s3://: credentials, endpoint, time limits, retries and multipart uploads are decided here.

boto3 finds the credentials (AWS_* variables, a profile, the instance's role). No message contains them: errors name the
address and S3's error code, never a header or S3's own text. AWS_ENDPOINT_URL names a service other than Amazon's,
AWS_MAX_ATTEMPTS the number of attempts, FRAMEBRIDGE_S3_TIMEOUT_S the seconds without a byte that end an attempt.

Every request goes through `_retried` and ends with the last byte of its answer. boto3's own means do not suffice.
Its retries end where the body of an answer begins, and its paginators and transfers have no others. A transfer asks for
the size of every object first, and does not recognise a finished upload whose answer was lost. An object appears whole,
or not at all: a PUT carries its length and MD5, and a multipart upload exists once it is completed.
"""

import contextlib
import functools
import hashlib
import io
import logging
import os
import random
import sys
import time
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import boto3
import botocore.exceptions as errors
import botocore.session
from botocore.config import Config
from botocore.parsers import ResponseParserError

from ..errors import JobFailed, UserError

log = logging.getLogger("s3")
logging.getLogger("botocore").setLevel(logging.WARNING)  # at INFO it logs where it found credentials

ATTEMPTS = 12  # with the waits below these outlast an outage of a minute or two
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 20.0
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 60.0
PROBE_ATTEMPTS = 3  # for the first request of a job, so that a wrong endpoint fails within seconds
PART = 16 << 20  # bytes of one part of an upload or download; larger objects have several parts
UPLOADS = 4  # parts sent at the same time

# Variables that a job forwards to Ray workers on other machines. Variables that name files of one machine stay.
FORWARDED: tuple[str, ...]
FORWARDED = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_MAX_ATTEMPTS")
FORWARDED += ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "FRAMEBRIDGE_S3_TIMEOUT_S")
# Error codes and exceptions after which another attempt may succeed
TRANSIENT = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "ConditionalRequestConflict"}
TRANSIENT |= {"Throttling", "ThrottlingException", "RequestLimitExceeded", "IncompleteBody", "OperationAborted"}
TRANSIENT |= {"BadDigest"}
NETWORK: tuple[type[Exception], ...] = (errors.HTTPClientError, errors.ConnectionError, errors.IncompleteReadError)
NETWORK += (ResponseParserError, errors.MetadataRetrievalError, errors.CredentialRetrievalError)
# Jitter must differ between workers that were seeded alike, so it has a generator of its own.
_jitter = random.Random()

Place = dict[str, str]  # {"Bucket": ..., "Key": ...}
Result = TypeVar("Result")


class StorageRefused(UserError):
    """The request itself is wrong: no such bucket, no permission, no credentials."""


class StorageUnavailable(JobFailed, OSError):
    """The service failed in all attempts. What was committed stays."""


class Entry(NamedTuple):
    """A file in a listing."""

    address: str
    relative: str  # path below the folder that was listed
    size: int  # bytes
    modified: float  # seconds since the epoch


def split(address: str) -> tuple[str, str]:
    """(bucket, key without slashes at its end) of s3://bucket/key. Raises UserError."""
    bucket, _, key = address.removeprefix("s3://").partition("/")
    if not bucket:
        raise UserError(f"{address}: names no bucket; write s3://bucket/prefix")
    return bucket, key.rstrip("/")


def read(address: str) -> bytes:
    """The content of an object. Raises FileNotFoundError."""
    stream = io.BytesIO()
    download(address, stream)
    return stream.getvalue()


def read_range(address: str, offset: int, length: int) -> bytes:
    """At most `length` bytes from `offset`; fewer where the object ends. Raises FileNotFoundError."""
    return _read_part(address, offset, length)[0]


def download(address: str, stream: IO[bytes]) -> None:
    """Write the object to `stream` part by part, with retries for each. Raises FileNotFoundError."""
    offset, size, etag = 0, 1, None
    while offset < size:
        content, size, etag = _read_part(address, offset, PART, etag)
        stream.write(content)
        offset += len(content)


def _read_part(address: str, offset: int, length: int, etag: str | None = None) -> tuple[bytes, int, str | None]:
    """(bytes, size of the object, its etag). A given etag must still be the object's."""
    wanted = {"Range": f"bytes={offset}-{offset + length - 1}", **({"IfMatch": etag} if etag else {})}

    def request(client: Any, at: Place) -> tuple[bytes, int, str | None]:
        try:
            answer = client.get_object(**at, **wanted)
        except errors.ClientError as error:
            if _status(error)[1] in ("InvalidRange", "416"):  # beyond the end; an empty object has no range at all
                return b"", 0, etag
            raise
        content = answer["Body"].read()
        return content, int(answer.get("ContentRange", f"/{len(content)}").rpartition("/")[2]), answer.get("ETag")

    return _retried(address, request)


def write(address: str, content: bytes) -> None:
    """Write an object. It appears whole, or the old one stays."""
    if len(content) > PART:
        _write_parts(address, content)
    else:
        _retried(address, lambda client, at: client.put_object(**at, Body=content, **_digest(content)))


def _write_parts(address: str, content: bytes) -> None:
    mark = uuid.uuid4().hex  # recognises this upload if the answer to its completion is lost
    begun = _retried(address, lambda client, at: client.create_multipart_upload(**at, Metadata={"upload": mark}))
    upload = begun["UploadId"]

    def send(number: int) -> dict[str, Any]:
        part = {"PartNumber": number, "UploadId": upload}
        body = content[(number - 1) * PART : number * PART]
        sent = _retried(address, lambda client, at: client.upload_part(**at, **part, Body=body, **_digest(body)))
        return {"PartNumber": number, "ETag": sent["ETag"]}

    def complete(client: Any, at: Place) -> None:
        try:
            client.complete_multipart_upload(**at, UploadId=upload, MultipartUpload={"Parts": parts})
        except errors.ClientError as error:
            if _status(error)[1] != "NoSuchUpload" or client.head_object(**at)["Metadata"].get("upload") != mark:
                raise

    try:
        with ThreadPoolExecutor(UPLOADS) as pool:
            parts = list(pool.map(send, range(1, -(-len(content) // PART) + 1)))
        _retried(address, complete)
    except BaseException:
        try:
            abort_upload(address, upload, attempts=PROBE_ATTEMPTS)
        except (OSError, UserError):
            log.warning("%s: parts of an unfinished upload remain; jobs/gc_cache.py removes them", address)
        raise


def _digest(content: bytes) -> dict[str, str]:
    """The header that lets every S3 service refuse a body that was damaged on the way."""
    return {"ContentMD5": b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()}


def remove(address: str) -> None:
    """Delete an object; one that is not there is no error."""
    _retried(address, lambda client, at: client.delete_object(**at))


def exists(address: str) -> bool:
    """Whether there is such an object, or any below it."""
    key = split(address)[1]
    if key:
        with contextlib.suppress(FileNotFoundError):
            _retried(address, lambda client, at: client.head_object(**at))
            return True
    found = _retried(address, _first_below)
    return not key or found["KeyCount"] > 0


def entries(folder: str, recursive: bool) -> Iterator[Entry]:
    """The objects in (or below) `folder`, sorted by key; they come in pages of 1000."""
    bucket, key = split(folder)
    page = {} if recursive else {"Delimiter": "/"}
    while True:
        answer = _retried(folder, lambda client, at: client.list_objects_v2(**_below(at), **page))
        for found in answer.get("Contents", ()):
            if not found["Key"].endswith("/"):
                relative = found["Key"].removeprefix(key and f"{key}/")
                address = f"s3://{bucket}/{found['Key']}"
                yield Entry(address, relative, found["Size"], found["LastModified"].timestamp())
        if not answer.get("IsTruncated"):
            return
        page["ContinuationToken"] = answer["NextContinuationToken"]


def unfinished_uploads(folder: str) -> list[tuple[str, str, float]]:
    """(address, upload id, seconds since the epoch) of unfinished multipart uploads below `folder`."""
    bucket, _ = split(folder)
    found = _retried(folder, lambda client, at: client.list_multipart_uploads(**_below(at))).get("Uploads", ())
    return [(f"s3://{bucket}/{one['Key']}", one["UploadId"], one["Initiated"].timestamp()) for one in found]


def abort_upload(address: str, upload: str, attempts: int | None = None) -> None:
    """Delete the parts of an unfinished multipart upload."""
    _retried(address, lambda client, at: client.abort_multipart_upload(**at, UploadId=upload), attempts)


def check(address: str) -> None:
    """Raise StorageRefused within seconds if nothing can be listed at `address`."""
    try:
        _retried(address, _first_below, PROBE_ATTEMPTS, CONNECT_TIMEOUT_S)
    except StorageUnavailable as error:
        raise StorageRefused(str(error)) from None


def endpoint() -> str | None:
    """The URL of the service; None for Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def region() -> str:
    """The region, us-east-1 where none is set."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def timeout_s() -> float:
    """Seconds without a byte that end an attempt. Raises UserError unless the variable is a number above 0."""
    return _part_number("FRAMEBRIDGE_S3_TIMEOUT_S", READ_TIMEOUT_S)


def attempts_allowed() -> int:
    """The number of attempts for a request. Raises UserError unless the variable is a number above 0."""
    return max(1, round(_part_number("AWS_MAX_ATTEMPTS", ATTEMPTS)))


def environment() -> dict[str, str]:
    """The variables that Ray workers need to reach what this process reaches."""
    return {name: os.environ[name] for name in FORWARDED if name in os.environ}


def _part_number(variable: str, default: float) -> float:
    text = os.environ.get(variable)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise UserError(f"{variable} = {text}: expected a number above 0; correct it in the environment, or unset it")
    return value


@functools.lru_cache(maxsize=8)
def _client(process: int, variables: tuple[tuple[str, str], ...], read_timeout: float) -> Any:
    """One client for each process, since connections do not survive a fork, and for each environment."""
    session = botocore.session.get_session()
    # the machine's role comes from a service that answers slowly when many workers ask at once
    for name, value in (("metadata_service_timeout", 3), ("metadata_service_num_attempts", 4)):
        if f"AWS_{name.upper()}" not in os.environ:
            session.set_config_variable(name, value)
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=read_timeout,
        retries={"total_max_attempts": 1},
        max_pool_connections=32,
        tcp_keepalive=True,
        request_checksum_calculation="when_required",  # other services do not know the newer checksums
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"} if endpoint() else {},
    )
    try:
        boto_session = boto3.Session(botocore_session=session, region_name=region())
        return boto_session.client("s3", endpoint_url=endpoint(), config=config)
    except errors.ProfileNotFound as error:
        profile = os.environ.get("AWS_PROFILE")
        raise StorageRefused(f"AWS_PROFILE = {profile}: no such profile on this machine") from error
    except ValueError as error:  # an endpoint that is no URL
        url = _shown(endpoint())
        raise StorageRefused(f"AWS_ENDPOINT_URL = {url}: not a URL, such as https://host:port") from error


def _retried(
    address: str, request: Callable[[Any, Place], Result], attempts: int | None = None, longest: float | None = None
) -> Result:
    """Return request(client, {"Bucket": ..., "Key": ...}); try again after growing random waits.

    Raises FileNotFoundError, StorageRefused where another attempt cannot help, StorageUnavailable after the last
    attempt.
    """
    attempts = min(attempts or sys.maxsize, attempts_allowed())
    bucket, key = split(address)
    client = _client(os.getpid(), tuple(environment().items()), min(timeout_s(), longest or sys.maxsize))
    for attempt in range(1, attempts + 1):
        try:
            return request(client, {"Bucket": bucket, "Key": key})
        except errors.ClientError as error:
            status, code = _status(error)
            if status < 500 and status != 429 and code not in TRANSIENT:
                raise _refused(address, status, code) from None
            trouble = f"{code} ({status})"
        except NETWORK as error:
            trouble = type(error).__name__
        except (errors.NoCredentialsError, errors.PartialCredentialsError):
            raise StorageRefused(
                f"{address}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role"
            ) from None
        if attempt < attempts:
            wait = _jitter.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)))
            level = logging.WARNING if attempt > 3 else logging.DEBUG
            log.log(level, "%s: %s, attempt %d of %d; again in %.1f s", address, trouble, attempt, attempts, wait)
            time.sleep(wait)
    raise StorageUnavailable(
        f"{address}: S3{f' at {_shown(endpoint())}' if endpoint() else ''} failed {attempts} times, last with "
        f"{trouble}; check AWS_ENDPOINT_URL and the network; what was finished stays, run again for the rest"
    ) from None


def _below(at: Place) -> Place:
    """The arguments that list what lies below a place."""
    return {"Bucket": at["Bucket"], "Prefix": at["Key"] and f"{at['Key']}/"}


def _first_below(client: Any, at: Place) -> Any:
    """List one object below a place."""
    return client.list_objects_v2(**_below(at), MaxKeys=1)


def _status(error: errors.ClientError) -> tuple[int, str]:
    """(HTTP status, S3's error code)."""
    response = error.response
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)), response.get("Error", {}).get("Code", "")


def _refused(address: str, status: int, code: str) -> Exception:
    """The error for an answer that another attempt cannot change, without S3's own text, which may hold a key's id."""
    if code == "NoSuchBucket":
        return StorageRefused(f"{address}: no bucket {split(address)[0]}; create it, or correct the address")
    if code == "PreconditionFailed":
        return StorageUnavailable(f"{address}: changed while it was read; run again when nobody writes there")
    if status == 404:
        return FileNotFoundError(f"{address}: no such object")
    if code in ("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestExpired"):
        return StorageUnavailable(f"{address}: the credentials have expired ({code}); renew them and run again")
    if status in (401, 403):
        return StorageRefused(
            f"{address}: access denied ({code}); the credentials in use need s3:GetObject, s3:PutObject, "
            "s3:DeleteObject and s3:ListBucket there, or the address is wrong"
        )
    return StorageRefused(f"{address}: S3 refused the request with {code} ({status}); correct the address or endpoint")


def _shown(url: str | None) -> str:
    """An endpoint without its user and password."""
    return (url or "").replace(urlsplit(url or "").netloc, urlsplit(url or "").netloc.rpartition("@")[2])
