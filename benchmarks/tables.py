"""experiments/README.md from finished runs: for n in quickstart fashion_lt fashion_lt_frozen; do memo-train experiments/$n.yaml; done; python benchmarks/tables.py
A folder of runs may be named: python benchmarks/tables.py DIR"""
import sys
from pathlib import Path
from memo.core import settings

say = dict(quickstart="Handwritten digits (scikit-learn), 100 images of the largest class and 2 of the smallest, small CNN from scratch.",
 fashion_lt="Fashion-MNIST, 1,000 images of the largest class and 10 of the smallest, small CNN from scratch, 15 epochs.",
 fashion_lt_frozen="The same on frozen EfficientNet-Lite0 features at 64 px (ImageNet weights), a regularised linear classifier. The memory sits on the features.")
out = """# Experiments

One YAML file an experiment, `base:` for what they share. `memo-train experiments/NAME.yaml` makes the tables below (and pictures, predictions, the model) in `experiments/runs/NAME`;
`memo-eval` makes them again from the run folder. Validation and test sets are balanced and disjoint from training; weight, temperature, `k` and whitening of the vote are chosen
on the validation set. Few, medium and many are the 3, 4 and 3 rarest to most frequent classes. Three seeds: which classes are rare changes with the seed, so look at the paired
differences, not at the levels. Logit adjustment (Menon et al. 2021, post hoc, tau 1) and class-balanced sampling are the rivals to beat; both have a row with memory as well.
"""
runs = Path(sys.argv[1]) if len(sys.argv)>1 else settings().runs
for n in say:
    t = (runs/n/'results.md').read_text().split('\n', 1)[1].strip()
    out += f"\n## {n}\n\n{say[n]} `memo-train experiments/{n}.yaml`\n\n{t}\n"
(Path(__file__).parents[1]/'experiments/README.md').write_text(out)
