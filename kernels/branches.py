"""What the kernels of a cell read besides maps: which operation runs where, as numbers in device memory.

A branch is one sampled operation on one edge. Its row in the branch table (int32 [J, COLUMNS]) names
everything that depends on the sample, so a launch has the same shape whatever was sampled and the host never
looks. Rows of one node lie together, in the order of its edges and then of the ranks; a launch takes a range
of rows (`branches[first:last]`, contiguous) of one node.

Shape suffixes: I inputs of the cell, N nodes, B batch, H height, W width, C channels, J branches of a launch,
T rows of the depthwise arena (taps), S slots of the pointwise arena, D slots of the dense arena, E edges,
O operations. Maps are NHWC.

    inputs_IBHWC   the cell's prepared inputs
    nodes          all nodes of the cell: DARTS keeps them side by side in one row, [B, H', W', N * C];
                   NAS-Bench-201 one after the other, [N, B, H', W', C]. Geometry has the strides.
    depthwise_TC   fp32; the k * k taps of one depthwise convolution are k * k rows, in row-major order
    pointwise_SCC  [out, in]; FactorizedReduce has one slot: its two [C / 2, C] weights, one above the other
    dense_D9CC     [tap, in, out]; 3x3 convolutions of NAS-Bench-201
    z_JBHWC        outputs of the branches before their BatchNorm
    z1_JBHWC       outputs of the first stage of sep_conv before its BatchNorm; other branches' planes are
                   never written or read
    stats_J2C      fp32 (mean, 1 / sqrt(variance + eps)); (0, 1) for operations without BatchNorm
    sums_J2C       fp32 (sum of dy, sum of dy * xhat) over B, H', W'; zeros for operations without BatchNorm

Maps are stored in fp32, bf16 or fp64; sums and statistics are fp32, or fp64 with fp64 maps.
"""

from __future__ import annotations

from dataclasses import dataclass

# Columns of the branch table.
CODE, SOURCE, OUTPUT, GATE, TAPS0, TAPS1, POINT0, POINT1 = range(8)
COLUMNS = 8

# Operation codes. NONE and SKIP have no map z; SKIP is the identity at stride 1.
# AVG_DIRECT is a mean without BatchNorm (NAS-Bench-201); MAX and AVG are followed by BatchNorm (DARTS).
# REDUCE is FactorizedReduce; CONV1 and CONV3 are ReLU, dense convolution, BatchNorm.
# From SEP3 on: depthwise-separable, (side, dilation, stages) below.
NONE, SKIP, AVG_DIRECT, MAX, AVG, REDUCE, CONV1, CONV3, SEP3, SEP5, DIL3, DIL5 = range(12)
SIDE = {SEP3: 3, SEP5: 5, DIL3: 3, DIL5: 5}
DILATION = {SEP3: 1, SEP5: 1, DIL3: 2, DIL5: 2}
STAGES = {SEP3: 2, SEP5: 2, DIL3: 1, DIL5: 1}

# TAPS0, TAPS1: first row of the depthwise arena of stage 0 and 1. POINT0, POINT1: slot of the pointwise arena of
# stage 0 and 1 (POINT0 is also the slot of REDUCE and CONV1, and CONV3's slot of the dense arena). A stage that an
# operation does not have is -1. GATE: index into gates_EO, flattened (-1 for NONE). SOURCE: number of the state
# (below I an input, else node SOURCE - I). OUTPUT: number of the node (0 to N - 1) that the branch adds to; all
# rows of one launch have the same.


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes and strides of one cell, in elements.

    Attributes:
        batch, height, width, channels: of the inputs' maps.
        out_height, out_width: of the nodes' maps; ceil(height / stride).
        inputs, nodes: how many of each.
        stride: of the edges from the inputs, 1 or 2; edges between nodes have stride 1.
        node_stride: between a pixel of one node and the same pixel of the next.
        row_stride: between a pixel of a node and the next pixel.
    """

    batch: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    inputs: int
    nodes: int
    stride: int
    node_stride: int
    row_stride: int

    @property
    def pixels(self) -> int:
        """P, pixels of one node's map over the whole batch."""
        return self.batch * self.out_height * self.out_width
