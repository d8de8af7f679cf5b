"""Make the report of a run: one HTML file that opens offline, and summary.json with the headline numbers.

    python jobs/report.py --recipe demo
    ray job submit --working-dir . -- python jobs/report.py --recipe demo --run.storage /SHARED

Reads the results of the other jobs in STORAGE/NAME, and names the stages that have not run. Takes seconds. Expect
STORAGE/NAME/report.html (inputs, prior, generated and true clips side by side, loss curves, cache, timings, settings)
and STORAGE/NAME/summary.json.
"""

from pipeline.report.page import STAGES, headline, read_stages, write_report
from pipeline.runtime.job import run_job
from pipeline.settings import Settings


def job(settings: Settings) -> None:
    """Write the report, and print the headline numbers."""
    summary = write_report(settings)
    print(headline(summary))
    print(summary["report"])


def plan(run_folder: str, cache_path: str) -> str:
    """Say which stages have run."""
    stages = read_stages(run_folder, cache_path)
    said = "\n".join(f"  {STAGES[name]}: {'there' if stage else 'not run'}" for name, stage in stages.items())
    return f"Plan: write report.html and summary.json to {run_folder} from\n{said}"


if __name__ == "__main__":
    run_job(job, lambda settings: plan(settings.run.folder, settings.cache_path), __doc__)
