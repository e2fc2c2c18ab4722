"""Each party's part of the model: one structure at all three, with content only where that party holds it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from privtensors.deploy.config import TASKS, Deployment
from privtensors.errors import InvalidInput
from privtensors.hf.families import Family, family_for, family_of
from privtensors.hf.prepare import client_modules
from privtensors.hf.wrap import computing_technique


def load_server_model(deployment: Deployment, folder: Path) -> Any:
    """The server's whole model, float32, from a Hugging Face folder.

    Raises:
        InvalidInput: The folder holds no such model.
        UnknownFamily: The model is of no known family.
    """
    _check_folder(folder, "server")
    with _loading(folder):
        model = _auto_class(deployment.task).from_pretrained(str(folder), dtype=torch.float32, local_files_only=True)
    family_of(model.config.model_type)
    return model.eval()


def load_client_model(deployment: Deployment, folder: Path) -> Any:
    """The client's part: its tables from ``folder``, everything else without content.

    Args:
        deployment: Names the task.
        folder: A Hugging Face folder, or one that ``PrivateModel.save_pretrained`` wrote.

    Raises:
        InvalidInput: The folder lacks a configuration or one of the client's tables, or a table has another shape.
        UnknownFamily: The model is of no known family.
    """
    model = _from_config(deployment, folder, "client")
    family = family_in(deployment, model)
    fronts = client_modules(model, family)
    hollow(model, family)
    wanted = {f"{name}.{inner}": p for name, front in fronts.items() for inner, p in front.named_parameters()}
    found = _read_tables(folder, frozenset(wanted), model.base_model_prefix)
    for name, parameter in wanted.items():
        table = found.get(name)
        if table is None or table.shape != parameter.shape:
            problem = f"the client's table {name!r} is missing" if table is None else f"table {name!r} has shape {tuple(table.shape)}"
            raise InvalidInput(problem, where=str(folder), fix="give the folder that the wrapped model's save_pretrained wrote")
        parameter.data = table.to(torch.float32)
    return model


def load_dealer_model(deployment: Deployment, folder: Path) -> Any:
    """The dealer's part: the structure alone. Raises as :func:`load_client_model`."""
    model = _from_config(deployment, folder, "dealer")
    hollow(model, family_in(deployment, model))
    return model


def family_in(deployment: Deployment, model: Any) -> Family:
    """The model's family, as the deployment's technique lays it out; raises as :func:`~privtensors.hf.families.family_for`."""
    return family_for(model.config.model_type, computing_technique(deployment.policy))


def _auto_class(task: str) -> Any:
    import transformers

    return getattr(transformers, TASKS[task])


def _check_folder(folder: Path, role: str) -> None:
    if not (folder / "config.json").is_file():
        fix = f"correct deployment.{role}.model, or pass the folder on the command line"
        raise InvalidInput("there is no config.json", where=str(folder), fix=fix)


@contextlib.contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Loads in silence, and turns what transformers raises into one line."""
    import transformers

    logging: Any = transformers.utils.logging
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InvalidInput(f"no model can be loaded: {error}", where=str(folder), fix="give a folder with a model for this task") from None
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()


def _from_config(deployment: Deployment, folder: Path, role: str) -> Any:
    from transformers import AutoConfig

    _check_folder(folder, role)
    with _loading(folder), torch.random.fork_rng(devices=[]):
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
        family_of(config.model_type)
        model = _auto_class(deployment.task).from_config(config, dtype=torch.float32)
    return model.eval()


def hollow(model: Any, family: Family) -> None:
    """Replace everything the server holds, batch statistics included, by tensors on the meta device; sharing is kept."""
    clients = {id(m) for front in client_modules(model, family).values() for m in front.modules()}
    done: dict[int, nn.Parameter] = {}
    originals = list(model.parameters())  # kept until the end, so that no id is given twice
    for module in model.modules():
        if id(module) in clients:
            continue
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = done.setdefault(id(p), nn.Parameter(p.detach().to("meta"), requires_grad=False))
        if isinstance(module, _BatchNorm):
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to("meta")
    del originals


def _read_tables(folder: Path, wanted: frozenset[str], prefix: str) -> dict[str, Tensor]:
    """The tensors of those names in the folder's safetensors files; a checkpoint of the bare backbone lacks the prefix."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, Tensor] = {}
    aliases = {name.removeprefix(f"{prefix}."): name for name in wanted} | {f"{prefix}.{name}": name for name in wanted}
    aliases |= {name: name for name in wanted}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  (not a dict)
                    if key in aliases:
                        found[aliases[key]] = file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise InvalidInput(f"{path.name} cannot be read ({type(error).__name__})", where=str(folder), fix="write it again") from None
    return found
