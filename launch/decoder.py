"""Train the decoder: from a CLIP video embedding and a caption to a low-rate video.

python launch/decoder.py --recipe tiny
python launch/decoder.py --recipe tiny --help
"""

import sys
from pathlib import Path

# Python puts launch/ first on the path, where `import clip` anywhere would find a launcher.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch.submit import main

if __name__ == "__main__":
    sys.exit(main("decoder"))
