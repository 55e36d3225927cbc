"""The words of docs/benchmarks.md; its figures come from page.py."""

from __future__ import annotations

HEAD = """# Benchmarks

Written by `python -m msgdas.bench page` from the rows in [bench/results](../bench/results); not edited by hand, and
`tests/bench/test_page.py` compares. Every table is the output of the command above it, on the machine below it.

**Measured** is everything but the section [Predictions](#predictions). No GPU has timed anything on this page.

**How.** One super-net, one data set, one set-up for memory and time ([bench/step.py](../bench/step.py),
[bench/variants.py](../bench/variants.py)). *As published* is how the authors' code runs a method: plain autograd,
NCHW, every gradient, those that a step throws away included; in our super-net, not in theirs. *min*, *bn*, *nodes* and
*all* are the engine's [policies](memory.md#what-is-kept). Before anything is measured the gradients of every method,
weights and alpha, are compared with plain autograd's: fp64 to 1e-12, fp32 to 2e-5 (in one of three nets); a method that
fails has no figure, and the command ends with exit code 11. A method that only one of the two runs has nothing to be
compared with.

**What it should reach**

{targets}

No ratio here is the best of n: times are medians of interleaved rounds, memory is the median of draws.
"""

MEMORY = """
## Memory

*kept*: live between forward and backward of one network of a W step. *peak*: of a whole step, alpha and weights, above
weights and optimizer state; median, *least* and *most* over draws, which differ in the operations that they sample; a
method that runs all operations has one. Both are slopes between two batches, *fixed* is the rest: gradients of weights,
which do not grow with the batch. Bytes are counted storage by storage and do not depend on the machine's load;
`tests/bench/test_step.py` holds the counter against the allocator's own events and against autograd's saved tensors.

![Memory against K](bench-memory.png)

"""

SPEED = """
## Time

All variants take turns in one process; one warm-up round is left out, and so are input and evaluation. *of which* tells
what the speed-up of K=2 is made of, each share a ratio of two medians of the same run.

![Throughput against K](bench-throughput.png)

![Memory and time](bench-pareto.png)
*Green: no other variant is better in both.*

"""

QUALITY = """
## Quality

Searches on CIFAR-10 in the space of NAS-Bench-201, each found cell looked up in the table: its test accuracy after 200
epochs. The settings were fixed on other seeds than these; small super-nets, two cores, CPU minutes of the process.
*tau*: Kendall's with the table's accuracy on the same random cells, of the super-net's losses on held-out images and on
those that it was trained on, and of the number of parameters. Every mean stands with all its searches, none is left
out. `nasbench201-conv-skip` leaves `none` and pooling out of every edge and is not MSG-DAS: [quality.md](quality.md).

![Quality against cost](bench-quality.png)
*Dots are searches, large ones their means; a triangle is below 70 %.*

"""

ABLATIONS = """
## Ablations

One axis of the reconstruction changed at a time, the rest as [method.md](method.md) has it; same super-net, images,
seeds and budget for all. The searches are short: a difference says something where its interval leaves out zero.

"""

COLLAPSE = """
## Collapse

Skip-connects among the eight operations of the normal cell on the spaces of Zela et al. (ICLR 2020), in which DARTS
falls into them, with Dropblock-Identity off, as dropout of single values, and as DropBlock. Small, short searches.

![Skip-connects over time](bench-collapse.png)
*Mean over seeds; the band is from the least to the most.*

"""

KERNELS = """
## Kernels

Each C++ kernel and plain PyTorch for the same job, in turn, medians of single calls; `PyTorch` is what the engine runs
where the kernels are not built, or torch's own `convolution_backward`. Traffic of the Triton kernels is counted, not
timed: bytes moved in Triton's interpreter against the least that the tensors allow, caches left out.

"""

LOADERS = """
## Input

CPU time of an image, file to normalised float32 crop: ImageFolder with Pillow and torchvision's transforms against both
loaders of the project, in turn, the same crops for both of ours. Of wall-clock time nothing is said: ImageFolder runs
in one process here.

"""

LATENCY = """
## Latency

CPU latency of whole derived networks, quickest of interleaved rounds; half of them fit the predictor of
[resources.md](resources.md), the other half judge it.

"""

TRAIN = """
## Training

A step of a derived network with drop-path and auxiliary head ([training.md](training.md)) against the same network in
plain eager NCHW; CPU time, in turn.

"""

GPU = """
## On a GPU

Medians and spread of whole steps, the device waited for after each; peak of allocated memory.

"""

PREDICTION = """
## Predictions

A roofline of an H100 from data-sheet figures and compiled instruction counts ([kernels.md](kernels.md)). **Not
measured.** `make gpu` measures, and there has been no GPU to run it on.

"""

REGRESSIONS = """
## Regressions

```bash
BASE=bench/results/regressions/amd-epyc-2-cores.json
pytest bench --benchmark-only --benchmark-compare=$BASE --benchmark-compare-fail=median:25%   # exit code 1 if slower
pytest bench --benchmark-only --benchmark-json=$BASE                                          # a new baseline
```

Steps and C++ kernels, one thread, three minutes; no part of `make test`. A baseline belongs to its machine: times of
another are not compared, the run stops with exit code 4.
"""

NOTHING = "Nothing is recorded yet: `python -m msgdas.bench {command} --out FILE.jsonl` with a file in bench/results.\n"
