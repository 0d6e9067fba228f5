"""Generate videos from texts with the finished runs of a recipe.

python launch/sample.py --recipe tiny --sample.prompts "a red circle moving left"
python launch/sample.py --recipe tiny --sample.prompts-file prompts.txt --tasks 4 --sample.candidates 4
python launch/sample.py --recipe tiny --sample.prompts "a red circle" --sample.start clip.mp4 --sample.seconds 6
python launch/sample.py --watch ID --sample.prompts "a red circle"    # of each new checkpoint of a training
python launch/sample.py --recipe tiny --help

A single prompt that begins with "-": --sample.prompts='-...'; several in a file, one a line. Killed anywhere, the same
command makes what is missing.
"""

import sys
from pathlib import Path

# Python puts launch/ first on the path, where `import clip` anywhere would find a launcher.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch.watching import main

if __name__ == "__main__":
    sys.exit(main("sample"))
