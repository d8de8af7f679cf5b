"""Make the synthetic videos that the demo and the shipped models stand on: H.264 files in UCF-101's layout.

    python jobs/make_videos.py --folder ~/framebridge/videos --videos 240 --seed 0

Takes about a tenth of a second a video. Expect FOLDER/CLASS/*.mp4 for eight classes named after their motion, the
train/test lists, captions.json and motion.json. Run again with the same arguments, it leaves everything as it is.
"""

import argparse
import sys

from pipeline.errors import UserError
from pipeline.shipped.synthetic import make_dataset


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--videos", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-share", type=float, default=0.1, help="part of the videos that is held out")
    arguments = parser.parse_args()
    if arguments.videos < 1:
        parser.error(f"--videos {arguments.videos}: expected at least 1")
    if not 0 <= arguments.test_share <= 1:
        parser.error(f"--test-share {arguments.test_share}: expected between 0 and 1")
    try:
        made = make_dataset(arguments.folder, arguments.videos, arguments.seed, test_share=arguments.test_share)
    except UserError as error:
        print(f"make_videos.py: {error}", file=sys.stderr)
        return 2
    print(f"{made['made']} videos made, {made['videos'] - made['made']} already there: {arguments.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
