"""Embed every window of the store with a trained CLIP: an array of tasks, each of which owns shards.

python launch/embed.py --recipe tiny
python launch/embed.py --recipe tiny --help
"""

import sys
from pathlib import Path

# Python puts launch/ first on the path, where `import clip` anywhere would find a launcher.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch.submit import main

if __name__ == "__main__":
    sys.exit(main("embed"))
