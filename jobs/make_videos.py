"""Make the synthetic videos of the demo and of the shipped models: H.264 files in UCF-101's layout.

    python jobs/make_videos.py --folder ~/framebridge/videos --videos 240 --seed 0

Takes about a tenth of a second a video. Expect FOLDER/CLASS/*.mp4 for eight classes named after their motion, the
train/test lists, captions.json and motion.json. Run again with the same arguments, it changes nothing. --dry-run prints
how many it would make.
"""

import argparse

from pipeline.errors import UserError
from pipeline.shipped.synthetic import make_dataset


def main() -> None:
    """Make the videos. Exits with status 2 for wrong arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--videos", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-share", type=float, default=0.1, help="part of the videos that is held out")
    parser.add_argument("--dry-run", action="store_true", help="print the plan; make nothing")
    asked = parser.parse_args()
    if asked.videos < 1:
        parser.error(f"--videos {asked.videos}: expected at least 1")
    if not 0 <= asked.test_share <= 1:
        parser.error(f"--test-share {asked.test_share}: expected between 0 and 1")
    if asked.dry_run:
        print(f"Plan: {asked.videos} videos, seed {asked.seed}, in {asked.folder}")
        return
    try:
        made = make_dataset(asked.folder, asked.videos, asked.seed, test_share=asked.test_share)
    except UserError as error:
        parser.exit(error.status, f"{parser.prog}: {error}\n")
    print(f"{made} videos made, {asked.videos - made} already there: {asked.folder}")


if __name__ == "__main__":
    main()
