"""``wrap``: a user's Hugging Face model under a policy."""

from __future__ import annotations

from typing import Any

from torch import nn

from privtensors.core.safetensor import SafeTensor
from privtensors.core.session import Session, current_session
from privtensors.errors import InvalidInput, PolicyError, UnknownFamily
from privtensors.hf.boundary import Boundary
from privtensors.hf.families import family_of, known_families
from privtensors.hf.model import PrivateModel
from privtensors.hf.prepare import check_state, client_modules, copy_structure, fold_batch_norms, protect_weights
from privtensors.policy import Policy, Role, Technique


def wrap(model: Any, policy: Policy, *, session: Session | None = None, progress: bool | None = None) -> PrivateModel:
    """Put a stock Hugging Face model under a policy. The model given is left as it is.

    A copy of its structure shares the client's embedding tables with it and holds every other parameter as a SafeTensor
    of the technique that computes in the policy's ``infer`` stage. Guarantee class: that technique's.

    Args:
        model: A ``transformers`` model of a known family, on the CPU.
        policy: A policy with an ``infer`` stage.
        session: Backend, meter and ledger to use; default the current session.
        progress: Show a progress bar; default only where stderr is a terminal.

    Returns:
        A :class:`PrivateModel`.

    Raises:
        PolicyError: No ``infer`` stage, or one that no single technique with a backend computes.
        UnknownFamily: The model is not of a known family.
        InvalidInput: The model has state that would stay in plain, or a parameter that cannot be protected.
        OutOfRange: A parameter the backend cannot represent.
    """
    if not isinstance(policy, Policy):
        raise PolicyError(f"expected a Policy, got {type(policy).__name__}", where="wrap", fix="pass Policy(infer=[MPC()])")
    technique = computing_technique(policy)
    if isinstance(model, PrivateModel) or (isinstance(model, nn.Module) and any(isinstance(p, SafeTensor) for p in model.parameters())):
        raise InvalidInput("the model is wrapped already", where="wrap", fix="wrap the plain model again, with the other policy")
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(model, nn.Module) or not model_type or not hasattr(model, "base_model"):
        raise UnknownFamily(
            f"{type(model).__name__} is not a Hugging Face model",
            where="wrap",
            fix=f"pass a transformers model of a known family ({', '.join(known_families())}); for any other nn.Module call"
            " privtensors.protect on its parameters and inputs yourself",
        )
    family = family_of(model_type)
    chosen = session or current_session()
    from privtensors.hf import attention  # imports transformers only when called

    private = copy_structure(model)
    fronts = client_modules(private, family)
    check_state(private, family, fronts)
    fold_batch_norms(private, family)
    protect_weights(private, fronts, technique, chosen, progress=progress)
    attention.register()
    Boundary(family, technique, chosen, policy.receiver).install(private, fronts)
    return PrivateModel(private, policy, family, technique, chosen, tuple(fronts))


def computing_technique(policy: Policy) -> Technique:
    """The one technique that computes linear and nonlinear layers in the ``infer`` stage.

    Raises:
        PolicyError: There is no such stage, or no such technique, or it has no backend.
    """
    if not policy.infer:
        raise PolicyError("it has no infer stage", where="wrap", fix="Policy(infer=[MPC()])")
    technique, linear = policy.holder("infer", Role.NONLINEAR), policy.holder("infer", Role.LINEAR)
    if technique is None or technique != linear or technique.backend is None:
        names = ", ".join(t.name for t in policy.infer)
        what = f"no single technique of {names} computes the whole model"
        raise PolicyError(what, where="wrap, policy.infer", fix="use MPC() in the infer stage")
    return technique
