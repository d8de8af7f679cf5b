"""How many failures end a run."""

import pytest
import ray.train

from pipeline.errors import JobFailed
from pipeline.train.failures import FailurePolicy


def test_failures_count_only_with_no_checkpoint_in_between() -> None:
    lost: dict[int, Exception] = {0: RuntimeError("the worker died")}
    checkpoint = ray.train.Checkpoint("/checkpoint")
    judge = FailurePolicy("/run", 1)
    for _ in range(5):
        judge.after_exception(None, lost)
        judge.after_report(None, [{}], None)
        judge.after_report(None, [{}], checkpoint)
    judge.after_exception(None, lost)
    with pytest.raises(ray.train.ControllerError) as ended:
        judge.after_exception(None, lost)
    failure = ended.value.controller_failure
    assert isinstance(failure, JobFailed) and "max_failures = 1 times with no checkpoint in between" in str(failure)


def test_any_number_of_failures_may_be_allowed() -> None:
    judge = FailurePolicy("/run", -1)
    for _ in range(100):
        judge.after_exception(None, {1: RuntimeError("the worker died")})


def test_errors_that_a_retry_repeats_end_the_run_at_once() -> None:
    judge = FailurePolicy("/run", -1)
    with pytest.raises(ray.train.ControllerError) as ended:
        judge.after_exception(None, {0: RuntimeError("gloo: the other is gone"), 1: JobFailed("no room left")})
    assert str(ended.value.controller_failure) == "no room left"
