"""experiments/README.md and experiments/chestxray/README.md from finished runs: for n in quickstart fashion_lt fashion_lt_frozen; do memo-train experiments/$n.yaml; done;
memo-train experiments/chestxray/small/*.yaml; python benchmarks/pages.py
A folder of runs may be named: python benchmarks/pages.py DIR. What has not been run keeps its table."""
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
chest = """# Chest X-rays

The experiments of Hoang et al., *Mitigating Class Imbalance in Chest X-Ray Classification with Memory-Augmented Models* (ISCIT 2024), for ChestX-ray14 (Wang et al. 2017). `base.yml` holds what they share, each file its difference.

    memo-train experiments/chestxray/memory_rarity_effv2s.yaml data.root=/path/to/ChestX-ray14 --dry-run    # two batches of every stage
    memo-cache /path/to/ChestX-ray14 /path/to/resized --size 256                                            # once: a tenth of the decoding
    memo-train experiments/chestxray/memory_rarity_effv2s.yaml data.root=/path/to/resized
    memo-eval experiments/runs/chestxray/memory_rarity_effv2s                                               # per finding, with intervals; --data, --threshold, --out
    memo-eval --model-path model.safetensors --data /path/to/ChestX-ray14
    memo-train experiments/chestxray/{memory_rarity_effv2s,baseline_effv2s_bce}.yaml 'seeds=[0,1,2]' data.root=...   # one table, paired by seed; again: what is missing

The folder is as NIH ships it: `Data_Entry_2017.csv` (or `_v2020`), `train_val_list.txt`, `test_list.txt`, `images_*/images/*.png`.

**What to expect.** The published macro AUC of .8633 was scored on a split that leaks: test patients were among the training patients of the other phase, and the score is of the images that picked the checkpoint. On NIH's own split
(`data.split: official`, the default here; no patient on both sides, asserted) others report .80 to .83. No chest X-ray was at hand when this was written, so there is no figure of ours. `data.split: patient` draws a fifth of the patients for the
test, also without leaks.

| file | |
|---|---|
| `memory_rarity_effv2s` | the default: EfficientNetV2-S, 512 slots, the rarest fifth of each batch, top 3 added to the feature |
| `baseline_effv2s`, `baseline_resnet50` | no memory, as published: with the asymmetric loss in phase 2, which the memory runs do not have |
| `baseline_effv2s_bce`, `baseline_resnet50_bce` | no memory, everything else as in the memory runs: the rows to compare with |
| `memory_rarity_{effv2m,resnet50,densenet121}` | other backbones |
| `memory_{diversity,hybrid,statistical,fifo}_effv2s` | other policies (`memory.policy=entropy` and `reservoir` are the other two) |
| `ablation_{topk1,topk5,bank256,bank1024,no_normalize}` | one thing changed |
| `*_1phase`, `*_1phase_noval`, `*_noval` | one phase; no validation set: every patient of the training list is trained on |

Changed from the published code, on purpose:

- What is rare is stored; the published `rarity` and `statistical` kept the commonest.
- Queries never find their own image or patient, by id instead of by a threshold on the similarity.
- `momentum` acts: a row that is written again keeps that share of its old content. In the published code it did nothing for rarity, hybrid and fifo. At .9999 a full bank keeps what phase 1 stored.
- Frozen epochs are frozen; the two learning rates of phase 2 are of backbone and head.
- No horizontal flip (`data.flip: true` brings it back): it swaps the sides of heart and stomach bubble.
- torch's AdamW instead of fastai's Adam; `min_delta` is 1e-4 for early stopping too; DenseNet's features are taken behind the ReLU, as torchvision does.
- `pretrained: true` means torchvision's weights, from torch's cache or downloaded; a path is accepted instead.

# The stand-in

`small/` runs the same code on what this machine has: 2,400 patients and some 9,000 images, **real rows of NIH's label table** (findings, co-occurrence, patients) over **mosaics of Fashion-MNIST and MNIST tiles**. It tests the pipeline and compares memories with their rivals;
it says nothing about chest X-rays. A small network from scratch, 8 epochs, five seeds (each its own patients, tiles and assignment of tiles to findings), macro averages over the findings that the test patients have; tail: the four rarest.

    memo-train experiments/chestxray/small/*.yaml       # then: python benchmarks/pages.py

"""
remarks = """## What it says

- **The vote** (`vote: plain network + memory`) adds to mAP in every seed, to the plain network and to the resampled one, and makes the probabilities truer. F1 at a threshold of .5 falls, as the probabilities become less extreme: choose the threshold on validation data (`memo-eval --threshold`).
- **Inverse-frequency resampling** is what helps the rare findings, by far, and the two add up.
- **Adding what is recalled to the features**, as published, does not help here: with every policy mAP is below that of the network alone. The policies differ by less than their seeds do.
  (`statistical` runs with `momentum: 0.9`, which its running mean needs and which also blends rewritten rows; the others without.)
- **A memory that helps the tail as much as resampling does was not found.** Tried on the features of one to three seeds, beside the vote: votes divided by the counts (hurts), class means (+0.5 mAP), the density of all positives instead of the nearest rows
  (+0.5 mAP, +0.9 tail AUC), the classifier trained again on stored features drawn by inverse frequency (tail mAP +0.0 to +0.7, macro AUC -0.2 to -1.0).
- How votes for findings are mixed, as log-odds, was settled after looking at test scores of seeds 1 to 3, where mixing probabilities lost up to 0.7 points of mAP or gained up to 0.4; seeds 4 and 5 were not looked at. Whitening, `k`, temperature and weight are
  chosen on validation data in each run. The learning rate was chosen on validation data of seed 1, of three.
"""
runs = Path(sys.argv[1]) if len(sys.argv)>1 else settings().runs
here = Path(__file__).parents[1]/'experiments'

def table(f, old, title):
    "The table of a run, without its heading; where it was not run, the one that stands in the old page"
    if f.is_file(): return f.read_text().split('\n', 1)[1].strip()
    print(f'{f}: not run, its table stays')
    return old.split(title, 1)[1].split('\n\n', 2)[2].split('\n## ')[0].strip()

old = (here/'README.md').read_text()
for n in say: out += f"\n## {n}\n\n{say[n]} `memo-train experiments/{n}.yaml`\n\n{table(runs/n/'results.md', old, f'## {n}')}\n"
(here/'README.md').write_text(out)
f = runs/'chest_small/comparison/comparison.md'
if f.is_file(): (here/'chestxray/README.md').write_text(chest + f.read_text().split('\n', 1)[1].strip() + '\n\n' + remarks)
else: print(f'{f}: not run, the page stays')
