"""What each of the headline claims takes for granted, as the page lists it."""

from __future__ import annotations

ASSUMED: dict[str, list[str]] = {
    "throughout": [
        "Published graphs are stand-ins: made graphs of the same mean degree in 16 communities, partitioned by METIS, all"
        " counts grown to the published size. 5 % or 25 % of the edges leave their community; what it is for the real "
        "graphs is not known.",
        "Operations' costs were measured on a CPU, GCN layers of 64 in float32, and moved to the GPU by the rates of "
        "memory and of matrix products and by launches. A standard deviation of 0.5 of a logarithm is assumed; ranges "
        "have all operations of all ranks slower or faster alike by that. The error of the stand-ins is not in them.",
        "GraphSAGE's operations were never calibrated: they are priced by GCN's classes or their kind, and its second "
        "product for the gradient of the inputs, which GCN does not have, as the first.",
        "What gloo's messages cost their ends was calibrated on the CPU, over links of 100 and 200 Mbit/s. Copies between"
        " GPU and host memory are not simulated, though gloo makes them.",
        "The time between operations is that of the CPU that was calibrated.",
    ],
    "AdaQP": [
        "Published: up to 3.01 x over training without overlap at 32 bits (abstract). Which graph and model reach it, and"
        " the network between the machines, are in the paper's tables, which were not at hand: all four graphs, both "
        "models and three networks are shown, and the best of ours stands beside the best of theirs.",
        "Three layers of 256, LayerNorm, dropout 0.5, gloo, 2 machines of 4 workers: github.com/raywan-110/AdaQP, its "
        "configurations and scripts.",
        "GPUs of a machine exchange over PCIe 3 x16, each with a port of its own.",
        "Adaptive widths depend on values, which statistics do not have: a third of each exchange's rows at 2, 4 and 8 "
        "bits is assumed. The columns of one width bound it.",
        "The line with the published share takes the bytes from the forecast and the share of messages in an epoch from "
        "AdaQP's README (two epochs on one machine of 4); quantising is not counted in it, nor what is hidden under "
        "central rows.",
        "Assigning the widths is not counted.",
    ],
    "SAR": [
        "Three GraphSAGE layers of 256 with batch normalisation, 128 features, 172 classes, float32: "
        "github.com/IntelLabs/SAR. The published gigabytes are as they are quoted; the chart that they are read off was "
        "not at hand.",
        "Counted, for the machine that needs most: the most bytes of buffers alive at once in an epoch of halocast's own "
        "method sar, a round fetched ahead (activations, gradients, the rows of two peers under way and what is gathered "
        "for them); features; the adjacency in DGL's three formats, 48 bytes an entry; labels and masks; parameters, "
        "gradients and Adam's state.",
        "A layer that narrows the rows multiplies before it aggregates, as DGL's SAGEConv does; of halocast's other savings "
        "none is used. The most is held going backward through the last layer: gradients of its output, of the multiplied "
        "rows and of its input at once.",
        "Not counted: the interpreter and its libraries, what loading leaves behind, the allocator's fragmentation, "
        "temporaries inside an operator, the transport's buffers, evaluation. The published peak is the process's and has"
        " them all.",
        "The stand-in has 200,000 nodes in 512 communities, 25 % of its edges leave theirs; it is partitioned into 32, "
        "64, 128.",
        "No time is forecast: no run of this method was ever calibrated.",
    ],
    "PipeGCN": [
        "Published: 1.7 to 28.5 x (abstract), over several systems. Which factors are over the same training without "
        "pipelining is in tables that were not at hand: ours stands beside the lowest.",
        "Configurations: github.com/GATECH-EIC/PipeGCN, scripts/reddit.sh and ogbn-products.sh, the first layer "
        "aggregated once (--use-pp). yelp.sh has linear layers, which halocast's models have not, and is left out.",
        "GPUs of 11 GB, as its README asks for, taken to be RTX 2080 Ti (benchmarks/headline_hardware.toml), on one "
        "machine over PCIe 3 x16, gloo.",
        "Bound: plain / max(computing, plain - computing), at most 2 by its form. `computing` is the epoch simulated with"
        " messages that take no time.",
    ],
}
