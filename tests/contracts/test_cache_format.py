"""The lines of docs/cache-format.md, as they stand there, read a cache."""

import re
from pathlib import Path

import pytest
from helpers.tiny_cache import tiny_settings, write_cache

from pipeline.settings import ROOT

EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "cache-format.md").read_text(), re.DOTALL)


@pytest.mark.ray
@pytest.mark.parametrize("library", ["webdataset", "ray"])
def test_the_documented_lines_read_every_committed_clip(
    ray_cluster: None, tmp_path: Path, library: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = write_cache(tiny_settings(tmp_path))
    Path(cache.path, "shards", "left-over.tar").write_bytes(b"half a tar of a killed job")
    (lines,) = (example for example in EXAMPLES if f"{library}\n" in example)
    assert sum(bool(line.strip()) for line in lines.splitlines()) == 5
    assert '"/data/runs/ucf101/cache"' in lines
    capsys.readouterr()
    exec(lines.replace("/data/runs/ucf101/cache", cache.path), {})
    printed = [line for line in capsys.readouterr().out.splitlines() if line.endswith("(2, 4, 4, 4, 4)")]
    assert sorted(printed) == sorted(f"{row['key']} {row['label']} (2, 4, 4, 4, 4)" for row in cache.rows)
