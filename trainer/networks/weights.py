"""Weights of a file, safetensors or torch's .pt/.pth, loaded into a network with a new head.

Nothing is unpickled but tensors (`weights_only`). Where the file's head has another size the
network keeps its own; anything else that does not fit is refused in one list.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import nn

from trainer.errors import NetworkError, some

_NESTED = ("state_dict", "model", "model_state_dict")
_TORCH = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_COUNTER = "num_batches_tracked"  # older files have none, and nothing reads it in eval mode


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file, by name, on the CPU.

    A dictionary within (`state_dict`, `model`) is looked into, and the prefix `module.` of
    DataParallel and `_orig_mod.` of torch.compile removed.

    Raises:
        NetworkError: the file cannot be read, or holds no tensors by name.
    """
    try:
        if path.is_dir():
            raise NetworkError(f"the weights {path} are a directory; give the file in it")
        if path.suffix.lower() in _TORCH:
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            state = load_file(path)
    except OSError as error:
        raise NetworkError(f"cannot read the weights {path}: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise NetworkError(
            f"{path} does not hold weights alone, or was cut short: nothing but tensors is "
            "unpickled. Save network.state_dict(), by torch.save to a .pt or .pth or by "
            f"safetensors ({str(error).splitlines()[0][:200] if str(error) else error!r})"
        ) from error
    except safetensors.SafetensorError as error:
        raise NetworkError(
            f"{path} is not a whole safetensors file ({error}); a file of torch.save ends in .pt "
            "or .pth"
        ) from error
    while isinstance(state, Mapping) and not _is_state(state):
        inner = [state[key] for key in _NESTED if isinstance(state.get(key), Mapping)]
        if not inner:
            break
        state = inner[0]
    if not isinstance(state, Mapping) or not _is_state(state):
        found = some(state) if isinstance(state, Mapping) else type(state).__name__
        raise NetworkError(
            f"{path} holds no weights by name (found {found}): save network.state_dict()"
        )
    return _without_prefix(state)


def _is_state(state: Mapping) -> bool:
    return bool(state) and all(isinstance(value, torch.Tensor) for value in state.values())


def _without_prefix(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for prefix in ("module.", "_orig_mod.") * 2:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)


def load_state(
    network: nn.Module, state: Mapping[str, torch.Tensor], origin: str, head: tuple[str, ...]
) -> tuple[str, ...]:
    """Copy tensors into a network, on its own device; notes on what it kept of its own.

    Args:
        network: parameters and buffers are written.
        state: by the names of the network's state dict; tied ones need be there once.
        origin: of the tensors, for messages.
        head: names of the parameters of the layer that makes the logits; where one has another
            shape or is absent, all of them stay as they are.

    Raises:
        NetworkError: a name is missing or unknown, or a shape differs; all are listed, and the
            network is left as it was.
    """
    own = network.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for name, tensor in own.items():
        if name in state or id(tensor) not in first:
            first[id(tensor)] = name
    wanted = {name: tensor for name, tensor in own.items() if first[id(tensor)] == name}
    other = [n for n in head if n not in state or state[n].shape != own[n].shape]
    kept = {name for name in head if name in own} if other else set()
    faults = [
        f"{name} is missing"
        for name in wanted
        if name not in state and name not in kept and not name.endswith(_COUNTER)
    ]
    faults += [f"{name} is not in the network" for name in state if name not in own]
    for name in sorted(own.keys() & state.keys() - kept):
        if own[name].shape != state[name].shape:
            faults.append(
                f"{name} is {tuple(state[name].shape)}, the network's {tuple(own[name].shape)}"
            )
    if faults:
        raise NetworkError(
            f"the weights of {origin} do not fit the network in {len(faults)} place(s): "
            f"{some(sorted(faults), 20)}"
        )
    with torch.no_grad():
        for name in own.keys() & state.keys() - kept:
            own[name].copy_(state[name])
    if not kept:
        return ()
    sizes = [f"{n} of {' × '.join(map(str, state[n].shape))}" for n in head if n in state]
    had = some(sizes) if sizes else "none"
    return (
        f"the head of {origin} ({had}) has another size: the network's own new head is trained.",
    )
