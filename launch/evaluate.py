"""Judge what was trained or generated: an array of tasks, then one list of figures with their intervals.

python launch/evaluate.py --recipe tiny --evaluate.split val       # CLIP: retrieval
python launch/evaluate.py --of ID      # a CLIP, a prior (cosines), a decoder (bits/dim) or a sample run (CLIP score,
                                       # Frechet and kernel distances; --evaluate.video-features i3d.pt: FVD)
python launch/evaluate.py --watch ID   # each new checkpoint of a training, until it is done
python launch/evaluate.py --help
"""

import sys
from pathlib import Path

# Python puts launch/ first on the path, where `import clip` anywhere would find a launcher.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch.watching import main

if __name__ == "__main__":
    sys.exit(main("evaluate"))
