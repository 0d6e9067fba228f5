"""Judge a trained CLIP by retrieval on a split: an array of tasks, then one list of figures with their intervals.

python launch/evaluate.py --recipe tiny --evaluate.split val
python launch/evaluate.py --recipe tiny --help
"""

import sys
from pathlib import Path

# Python puts launch/ first on the path, where `import clip` anywhere would find a launcher.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch.submit import main

if __name__ == "__main__":
    sys.exit(main("evaluate"))
