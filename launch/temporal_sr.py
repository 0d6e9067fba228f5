"""Train temporal super-resolution: the frames between those of a low-rate video.

python launch/temporal_sr.py --recipe tiny
python launch/temporal_sr.py --recipe tiny --help
"""

import sys
from pathlib import Path

# Python puts launch/ first on the path, where `import clip` anywhere would find a launcher.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch.submit import main

if __name__ == "__main__":
    sys.exit(main("temporal_sr"))
