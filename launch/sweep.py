"""Try a stage with many settings: a grid, random draws, or both; one run a point, a table and a plot of all.

python launch/sweep.py --stage prior --recipe tiny --grid prior.optim.lr=1e-4,3e-4,1e-3 prior.transformer.dim=64,128
python launch/sweep.py --stage prior --recipe tiny --random 20 --range prior.optim.lr=log:1e-5..1e-2 --parallel 4
python launch/sweep.py --stage prior --recipe tiny --grid prior.optim.lr=1e-4,3e-4 --show

Further options are those of the stage's launcher. The same command again submits only what is missing, and so does one
with more values or more draws: what was tried already is the same run.
"""

import sys
from pathlib import Path

# Python puts launch/ first on the path, where `import clip` anywhere would find a launcher.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch.sweeping import main

if __name__ == "__main__":
    sys.exit(main())
