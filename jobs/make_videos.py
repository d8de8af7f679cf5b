"""Make the synthetic videos of the demo and of the shipped models: H.264 files in UCF-101's layout.

    python jobs/make_videos.py --folder ~/framebridge/videos --videos 240 --seed 0

Takes about a tenth of a second a video. Expect FOLDER/CLASS/*.mp4 for eight classes named after their motion, the
train/test lists, captions.json and motion.json. Run again with the same arguments, it changes nothing. --dry-run says
how many it would make.
"""

import argparse
import sys

from pipeline.errors import UserError
from pipeline.shipped.synthetic import make_dataset


def main() -> int:
    """Make the videos; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--videos", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-share", type=float, default=0.1, help="part of the videos that is held out")
    parser.add_argument("--dry-run", action="store_true", help="print the plan; make nothing")
    arguments = parser.parse_args()
    if arguments.videos < 1:
        parser.error(f"--videos {arguments.videos}: expected at least 1")
    if not 0 <= arguments.test_share <= 1:
        parser.error(f"--test-share {arguments.test_share}: expected between 0 and 1")
    if arguments.dry_run:
        print(f"Plan: {arguments.videos} videos, seed {arguments.seed}, in {arguments.folder}")
        return 0
    try:
        made = make_dataset(arguments.folder, arguments.videos, arguments.seed, test_share=arguments.test_share)
    except UserError as error:
        print(f"make_videos.py: {error}", file=sys.stderr)
        return 2
    print(f"{made['made']} videos made, {made['videos'] - made['made']} already there: {arguments.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
