"""Small networks and losses for the engine's tests."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from msgdas.engine.learning.sampler import Sampler
from msgdas.engine.settings.recipes import demo
from msgdas.engine.spaces.space import space_named
from msgdas.engine.supernet.operation import Drop
from msgdas.engine.supernet.paths import Sample
from msgdas.engine.supernet.supernet import SuperNet
from msgdas.engine.supernet.weights import CellWeights
from torch import Tensor


def sampler_of(space: str = "darts", *, dtype: torch.dtype = torch.float64, **overrides: object) -> Sampler:
    """A sampler with alpha spread out, so that its softmax is far from uniform."""
    sizes: dict[str, object] = {} if "method" in overrides else {"mode": "subgraphs"}
    sizes |= {"layers": 3, "image": 32, "channels": 4}
    sampler = Sampler(space_named(space), demo(space=space, **{**sizes, **overrides})).to(dtype)
    with torch.no_grad():
        for alpha in sampler.alpha.values():
            alpha.mul_(1000)
    return sampler


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in fp64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pulled_back(sampler: Sampler, sample: Sample, v_EO: Tensor) -> Tensor:
    """Gradient in alpha where v is that of the first network's gates."""
    gates_EO = sample.networks[0]["normal"].gates_EO
    (grad,) = torch.autograd.grad((gates_EO * v_EO).sum(), sampler.alpha["normal"], retain_graph=True)
    return grad


def gradients(
    sampler: Sampler,
    policy: str,
    *,
    stem: str = "cifar",
    channels: int = 4,
    layers: int = 3,
    image: int = 16,
    batch: int = 3,
    step: int = 1,
    tau: float = 1.3,
    weights: bool = True,
    alpha: bool = True,
    drop: Drop | None = None,
    dtype: torch.dtype = torch.float64,
    **net_options: object,
) -> tuple[float, dict[str, Tensor | None]]:
    """(loss, gradients by name) of all networks of one draw.

    Alpha's names start with "alpha."; an operation's weights are "layers.<cell>.edges.<edge>.<name>.<number>".
    """
    net = SuperNet(
        sampler.space, channels=channels, layers=layers, stem=stem, classes=5, policy=policy.split(","), dtype=dtype,
        **net_options,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, image, image, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(0, 5, (batch,), generator=generator)
    sampler.zero_grad()
    sample = sampler.draw(step, tau, grad=alpha)
    with nullcontext() if weights else net.frozen():
        losses = [F.cross_entropy(net(x, paths, drop), y) for paths in sample.networks]
        torch.stack(losses).mean().backward()
    grads = weight_gradients(net)
    grads |= {f"alpha.{kind}": parameter.grad for kind, parameter in sampler.alpha.items()}
    grads |= {f"beta.{kind}": parameter.grad for kind, parameter in sampler.beta.items()}
    mean_loss = torch.stack(losses).detach().mean().item()
    return mean_loss, {name: None if g is None else g.clone() for name, g in grads.items()}


def weight_gradients(net: SuperNet) -> dict[str, Tensor | None]:
    """Gradients of the parameters, those of a cell's arenas cut into the operations' own tensors."""
    grads = {name: parameter.grad for name, parameter in net.named_parameters()}
    for number, layer in enumerate(net.layers):
        if not isinstance(layer, CellWeights):
            continue
        arenas = [parameter.grad for parameter in layer.arenas()]
        for name in [name for name in grads if name.startswith(f"layers.{number}.") and "preprocess" not in name]:
            del grads[name]
        fixed = net.skeleton.layers[number].fixed
        names = (fixed,) if fixed else net.space.operations
        for row, edge in enumerate(layer.layout.places):
            for operation, places in zip(names, edge, strict=True):
                for index, place in enumerate(places):
                    grad = None if arenas[place.arena] is None else place.view(arenas)
                    grads[f"layers.{number}.edges.{row}.{operation}.{index}"] = grad
    return grads


def worst_error(ours: dict[str, Tensor | None], oracle: dict[str, Tensor | None]) -> float:
    """The largest relative error of a tensor; a gradient that only one side has counts as 1 unless it is zero."""
    worst = 0.0
    for name, expected in oracle.items():
        got = ours[name]
        if expected is None or got is None:
            present = expected if got is None else got
            worst = max(worst, 0.0 if present is None or not present.abs().max() else 1.0)
            continue
        norm = expected.norm().item()
        worst = max(worst, (got - expected).norm().item() / (norm if norm > 1e-12 else 1.0))
    return worst
