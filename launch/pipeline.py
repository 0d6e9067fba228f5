"""Make everything of a recipe: submit the whole chain at once, or, on one machine, run it stage after stage.

python launch/pipeline.py --recipe tiny --data-root demo/data --sample.prompts 'a red circle moving left'
python launch/pipeline.py --recipe celebv_text_64 --data-root DATA --nodes 4 --per-stage decoder.nodes=8 embed.tasks=16
python launch/pipeline.py --recipe tiny --data-root demo/data --until decoder --dry-run

On Slurm each stage's job waits in the queue for the jobs of its parents, however often these are requeued. The same
command again: what is done is skipped, what is at work is left alone, what is lost or failed is submitted again.
"""

import sys
from pathlib import Path

# Python puts launch/ first on the path, where `import clip` anywhere would find a launcher.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch.chain import main

if __name__ == "__main__":
    sys.exit(main())
