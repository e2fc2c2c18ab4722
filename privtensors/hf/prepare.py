"""From a user's model to its private copy: structure copied, batch norms folded, the server's parameters protected."""

from __future__ import annotations

import copy
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from privtensors.core.backend import TechniqueSpec
from privtensors.core.safetensor import SafeTensor, protect
from privtensors.core.session import Session
from privtensors.errors import InvalidInput, UnknownFamily
from privtensors.hf.families import Family

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def client_modules(model: Any, family: Family) -> dict[str, nn.Module]:
    """The submodules that the client holds, by their full name in ``model``.

    Raises:
        UnknownFamily: The model has no submodule of that name.
    """
    return _submodules(model, family, family.client)


def looked_up(model: Any, family: Family) -> dict[str, nn.Embedding]:
    """The server's embeddings in which the client looks rows up privately, by their full name in ``model``.

    Raises:
        UnknownFamily: The model has no submodule of a name that the family lists.
    """
    positions = _submodules(model, family, (family.positions,) if family.positions and family.tables else ())
    public = {id(module) for module in positions.values()}
    return {
        f"{name}.{inner}".rstrip("."): module
        for name, part in _submodules(model, family, family.tables).items()
        for inner, module in part.named_modules()
        if isinstance(module, nn.Embedding) and id(module) not in public
    }


def _submodules(model: Any, family: Family, names: tuple[str, ...]) -> dict[str, nn.Module]:
    backbone: nn.Module = model.base_model
    prefix = "" if backbone is model else f"{model.base_model_prefix}."
    found = {}
    for name in names:
        try:
            found[prefix + name] = backbone.get_submodule(name)
        except AttributeError as error:
            raise UnknownFamily(
                f"{type(model).__name__} has no submodule {prefix + name!r}, which embeds the input of a {family.model_type} model",
                where="wrap",
                fix="wrap a stock class of this family, or add a family of your own; see docs/guides/huggingface.md",
            ) from error
    return found


def copy_structure(model: nn.Module) -> Any:
    """A copy of the modules that shares every parameter and buffer with ``model``, in evaluation mode."""
    shared = {id(t): t for t in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared).eval()


def check_state(model: nn.Module, family: Family, plain: dict[str, nn.Module]) -> None:
    """Refuse state of the server that would stay in plain: a persistent buffer or a loose tensor that nobody declared public.

    Raises:
        InvalidInput: Names it.
    """
    clients = {id(m) for front in plain.values() for m in front.modules()}
    for where, module in model.named_modules():
        if id(module) in clients:
            continue
        for name, buffer in module._buffers.items():
            declared = name in family.public_buffers or name in module._non_persistent_buffers_set
            folded = isinstance(module, _BatchNorm) and name in _STATISTICS
            if buffer is not None and not declared and not folded:
                raise InvalidInput(
                    f"the persistent buffer {name!r} may hold data of the model and would stay in plain",
                    where=f"wrap, {where or 'model'}",
                    fix="make it an nn.Parameter, or, if it is a public constant, list it in the family's public_buffers",
                )
        loose = [name for name, value in vars(module).items() if isinstance(value, Tensor) and value.is_floating_point()]
        if loose:
            raise InvalidInput(
                f"the tensor {loose[0]!r} is neither a parameter nor a buffer and would stay in plain",
                where=f"wrap, {where or 'model'}",
                fix="make it an nn.Parameter or a non-persistent buffer",
            )


def _affine(norm: _BatchNorm, where: str) -> tuple[Tensor, Tensor]:
    """Factor and shift that batch normalisation with stored statistics amounts to, float64."""
    if norm.running_mean is None or norm.running_var is None:
        raise InvalidInput("batch normalisation without stored statistics", where=f"wrap, {where}", fix="use track_running_stats=True")
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.detach().double()
    shift = -norm.running_mean.double() * factor
    return factor, shift + norm.bias.detach().double() if norm.bias is not None else shift


def fold_batch_norms(model: nn.Module, family: Family) -> None:
    """Fold stored statistics into weights, in plain at their owner, so that no statistic and no division is left to protect.

    A batch normalisation that follows a convolution goes into it and becomes the identity; any other keeps one factor
    and one shift. New tensors are assigned; the user's are not written.

    Raises:
        InvalidInput: A batch normalisation keeps no statistics.
    """
    following: dict[int, nn.Conv2d] = {}
    for module in model.modules():
        for first, second in family.folds:
            convolution, norm = getattr(module, first, None), getattr(module, second, None)
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                following[id(norm)] = convolution
    for where, norm in model.named_modules():
        if not isinstance(norm, _BatchNorm):
            continue
        factor, shift = _affine(norm, where)
        assert norm.running_mean is not None and norm.running_var is not None
        dtype = norm.running_mean.dtype
        convolution = following.get(id(norm))
        if convolution is None:
            norm.weight, norm.bias = _frozen(factor.to(dtype)), _frozen(shift.to(dtype))
        else:
            dtype = convolution.weight.dtype
            bias = shift if convolution.bias is None else shift + factor * convolution.bias.detach().double()
            convolution.weight = _frozen((convolution.weight.detach().double() * factor.view(-1, 1, 1, 1)).to(dtype))
            convolution.bias = _frozen(bias.to(dtype))
            norm.affine, norm.weight, norm.bias = False, None, None  # type: ignore[assignment]
        norm.eps = 0.0  # (1 + 0)^(-1/2) is exactly one
        # Public constants now, so they have content at every party.
        norm.running_mean, norm.running_var = (
            torch.zeros_like(norm.running_mean, device="cpu"),
            torch.ones_like(norm.running_var, device="cpu"),
        )
        norm.num_batches_tracked = None


def without_content(front: nn.Module) -> None:
    """Make a submodule of the client run on shapes alone, at a party that holds neither its tables nor its input."""
    for module in front.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = None if parameter is None else _frozen(parameter.to("meta"))
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to("meta")

    def to_meta(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def moved(value: Any) -> Any:
            return value.to("meta") if isinstance(value, Tensor) else value

        return tuple(map(moved, args)), {name: moved(value) for name, value in kwargs.items()}

    front.register_forward_pre_hook(to_meta, with_kwargs=True)


def _frozen(x: Tensor) -> nn.Parameter:
    return nn.Parameter(x.detach(), requires_grad=False)


def protect_weights(
    model: nn.Module,
    plain: dict[str, nn.Module],
    technique: TechniqueSpec,
    session: Session,
    *,
    tables: Collection[nn.Module] = (),
    trains: bool = False,
    progress: bool | None,
) -> None:
    """Replace every parameter outside the client's submodules by its protected form, owned by the server.

    A parameter used in several places is protected once; one that the client also holds (a tied head) gets a protected
    copy of its own. Backends that can open weights under masks ahead of use do so here.

    Args:
        model: The private copy.
        plain: The client's submodules.
        technique: Holds the parameters.
        session: Whose backend is used.
        tables: Embeddings of the server in which the client will look rows up privately.
        trains: Keep ``requires_grad`` of the parameters as it was set, for training. A parameter that trains is not opened
            ahead of use, because every optimizer step replaces it.
        progress: As for ``wrap``.

    Raises:
        InvalidInput: A parameter has NaN or infinities, is off the CPU, or is no floating point tensor.
        OutOfRange: The backend cannot represent a value.
    """
    clients = {id(m) for front in plain.values() for m in front.modules()}
    backend = session.backend(technique)
    done: dict[int, nn.Parameter] = {}
    ready: set[tuple[int, str]] = set()  # a tied head is looked up in, and multiplied with
    todo = [(where, m, name, p) for where, m in model.named_modules() for name, p in m._parameters.items() if p is not None]
    with _bar(len(todo), progress) as advance:
        for where, module, name, parameter in todo:
            if id(module) in clients:
                module._parameters[name] = _frozen(parameter)
            else:
                if id(parameter) not in done:
                    done[id(parameter)] = _protected(parameter, f"{where}.{name}", technique, session, trains)
                # Biases are only added; an embedding at public positions is only indexed.
                how = "prepare_table" if module in tables else "" if isinstance(module, nn.Embedding) else "prepare"
                prepare = getattr(backend, how, None) if how and name == "weight" else None
                if prepare is not None and (id(parameter), how) not in ready and not done[id(parameter)].requires_grad:
                    ready.add((id(parameter), how))
                    layout = {"transposed": True} if how == "prepare" and isinstance(module, nn.Linear) else {}
                    prepare(_payload(done[id(parameter)]), **layout)
                module._parameters[name] = done[id(parameter)]
            advance()


def _protected(parameter: Tensor, where: str, technique: TechniqueSpec, session: Session, trains: bool) -> nn.Parameter:
    if not parameter.is_floating_point():
        what = f"the parameter has dtype {parameter.dtype}"
        raise InvalidInput(what, where=f"wrap, {where}", fix="load the model unquantized, in float32")
    try:
        kept = protect(parameter.detach(), technique, owner="server", session=session)
        return nn.Parameter(kept, requires_grad=trains and parameter.requires_grad)
    except InvalidInput as error:
        raise type(error)(error.what, where=f"wrap, parameter {where}", fix=error.fix) from None


def _payload(parameter: Tensor) -> Any:
    assert isinstance(parameter, SafeTensor)
    return parameter._state.payload


@contextmanager
def _bar(total: int, wanted: bool | None) -> Iterator[Any]:
    """A progress bar on stderr: by default where that is a terminal."""
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("protecting weights", total=total)
        yield lambda: bar.advance(task)
