"""``wrap``: a user's Hugging Face model under a policy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from privtensors.core.safetensor import SafeTensor
from privtensors.core.session import Session, current_session
from privtensors.errors import InvalidInput, PolicyError, UnknownFamily
from privtensors.hf import argmax
from privtensors.hf.boundary import Boundary, Requests
from privtensors.hf.families import family_for, known_families
from privtensors.hf.model import PrivateModel
from privtensors.hf.prepare import (
    check_state,
    client_modules,
    copy_structure,
    fold_batch_norms,
    looked_up,
    protect_weights,
    without_content,
)
from privtensors.hf.training import trains
from privtensors.obfuscation.technique import Obfuscation
from privtensors.policy import Policy, Role, Technique
from privtensors.policy.assets import Outputs


def wrap(model: Any, policy: Policy, *, session: Session | None = None, progress: bool | None = None) -> PrivateModel:
    """Put a stock Hugging Face model under a policy. The model given is left as it is.

    A copy of its structure shares the client's embedding tables with it and holds every other parameter as a SafeTensor
    of the technique that computes in the policy's ``infer`` stage. Guarantee class: that technique's.

    Where the policy's ``train`` stage names the same technique, parameters with ``requires_grad`` can be trained: the result's
    ``parameters()`` go into a stock optimizer, and a call with ``labels=`` returns a protected loss.

    Where the ``train`` stage is ``DP``, the model given is trained in plain, in place, by the result's ``fit``; an ``infer`` stage then
    computes what was trained, and without one the model answers in plain. Any model of transformers will do for that.

    Where the ``infer`` stage is ``Obfuscation``, the result computes on transformed weights and keyed inputs: see ``hf.obfuscated``.

    Args:
        model: A ``transformers`` model of a known family, on the CPU, or a PEFT model around one.
        policy: A policy with an ``infer`` stage.
        session: Backend, meter and ledger to use; default the current session.
        progress: Show a progress bar; default only where stderr is a terminal.

    Returns:
        A :class:`PrivateModel`; under ``DP`` a :class:`~privtensors.hf.trainable.TrainableModel`, under ``Obfuscation`` an
        :class:`~privtensors.hf.obfuscated.ObfuscatedModel`.

    Raises:
        PolicyError: Neither ``DP`` nor an ``infer`` stage, or one that no single technique with a backend computes; or the policy
            reveals only the index of the largest logit, and the model has no logits or not one label per row.
        UnknownFamily: The model is not of a known family.
        InvalidInput: The model has state that would stay in plain, or a parameter that cannot be protected.
        OutOfRange: A parameter the backend cannot represent.
        WrongKey, ObfuscationError: Under ``Obfuscation``: the key file cannot be used, or the model cannot be transformed.
    """
    if not isinstance(policy, Policy):
        raise PolicyError(f"expected a Policy, got {type(policy).__name__}", where="wrap", fix="pass Policy(infer=[MPC()])")
    if policy.train and policy.holder("train", Role.NOISER) is not None:
        return trainable(model, policy, session or current_session(), progress)
    stock = stock_model(model)
    return serving(model, stock, policy, session or current_session(), progress)()


def serving(model: Any, stock: Any, policy: Policy, session: Session, progress: bool | None) -> Callable[[], PrivateModel]:
    """How the ``infer`` stage computes the model, ready to be called. What can be refused is refused here. Errors as :func:`wrap`.

    Args:
        model: As given to :func:`wrap`.
        stock: The stock model in it.
        policy: With an ``infer`` stage.
        session: As for :func:`wrap`.
        progress: As for :func:`wrap`.
    """
    technique = policy.holder("infer", Role.NONLINEAR)
    if isinstance(technique, Obfuscation):
        from privtensors.hf import obfuscated

        key = obfuscated.key_of(technique)  # a key that cannot be used is found before a training run, not after
        obfuscated.check_model(model)
        return partial(obfuscated.obfuscate, model, policy, technique, session, key, progress=progress)
    technique = computing_technique(policy)
    if policy.outputs == Outputs.ARGMAX:
        argmax.check_model(stock)
    return partial(assemble, stock, policy, technique, session, progress=progress)


def assemble(
    model: Any,
    policy: Policy,
    technique: Technique,
    session: Session,
    *,
    progress: bool | None = None,
    client_here: bool = True,
    requests: Requests | None = None,
) -> PrivateModel:
    """The private copy itself, for one process that plays every party or for one party of a deployment.

    In a deployment every party calls this at the same time, with the same structure: parameters that another party holds are
    on the meta device.

    Args:
        model: As for :func:`wrap`, checked.
        policy: As for :func:`wrap`.
        technique: The technique that computes it.
        session: Its backend is the one of this party.
        progress: As for :func:`wrap`.
        client_here: Whether the client's inputs and tables are in this process. Where not, its submodules run without content.
        requests: What a deployment's client does before and after each forward.

    Raises:
        UnknownFamily, InvalidInput, OutOfRange: As :func:`wrap`.
    """
    family = family_for(model.config.model_type, technique)
    if policy.outputs == Outputs.ARGMAX:
        argmax.check_model(model)
    from privtensors.hf import attention  # imports transformers only when called

    private = copy_structure(model)
    fronts, tables = client_modules(private, family), looked_up(private, family)
    check_state(private, family, fronts)
    fold_batch_norms(private, family)
    if not client_here:
        for front in fronts.values():
            without_content(front)
    training = trains(policy, technique)
    protect_weights(private, fronts, technique, session, tables=tables.values(), trains=training, progress=progress)
    attention.register()
    boundary = Boundary(family, technique, session, policy.receiver, policy.outputs, client_here, requests, training)
    boundary.install(private, fronts, tables)
    return PrivateModel(private, policy, family, technique, session, tuple(fronts))


def trainable(model: Any, policy: Policy, session: Session, progress: bool | None) -> PrivateModel:
    """The model under a policy whose train stage adds noise: see ``hf.trainable``. Errors as :func:`wrap`."""
    from privtensors.hf.trainable import TrainableModel, promise_of  # the training loop is imported only when needed

    promise, stock = promise_of(policy), stock_model(model)
    if not policy.infer:
        return TrainableModel(model, policy, promise, None, session, None)
    serve = serving(model, stock, policy, session, progress)
    return TrainableModel(model, policy, promise, policy.holder("infer", Role.NONLINEAR), session, serve)


def stock_model(model: Any) -> Any:
    """The Hugging Face model in ``model``: it, or what a PeftModel is around, with its adapters in place.

    Raises:
        InvalidInput: It is wrapped already.
        UnknownFamily: It is no such model.
    """
    if isinstance(model, PrivateModel) or (isinstance(model, nn.Module) and any(isinstance(p, SafeTensor) for p in model.parameters())):
        raise InvalidInput("the model is wrapped already", where="wrap", fix="wrap the plain model again, with the other policy")
    if hasattr(model, "get_base_model"):  # a PeftModel: the stock model, with its adapters in place
        model = model.get_base_model()
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(model, nn.Module) or not model_type or not hasattr(model, "base_model"):
        raise UnknownFamily(
            f"{type(model).__name__} is not a Hugging Face model",
            where="wrap",
            fix=f"pass a transformers model of a known family ({', '.join(known_families())}); for any other nn.Module call"
            " privtensors.protect on its parameters and inputs yourself",
        )
    return model


def computing_technique(policy: Policy) -> Technique:
    """The one technique that computes linear and nonlinear layers in the ``infer`` stage.

    Raises:
        PolicyError: There is no such stage, or no such technique, or it has no backend.
    """
    if not policy.infer:
        raise PolicyError("it has no infer stage", where="wrap", fix="Policy(infer=[MPC()])")
    technique, linear = policy.holder("infer", Role.NONLINEAR), policy.holder("infer", Role.LINEAR)
    if isinstance(technique, Obfuscation):
        fix = "privtensors convert writes a client and a server folder for it, and privtensors serve runs the server's"
        raise PolicyError("obfuscation transforms a model and has no backend to compute on", where="policy.infer", fix=fix)
    if technique is None or technique != linear or technique.backend is None:
        names = ", ".join(t.name for t in policy.infer)
        what = f"no single technique of {names} computes the whole model"
        raise PolicyError(what, where="wrap, policy.infer", fix="use MPC() in the infer stage")
    return technique
