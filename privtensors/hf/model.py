"""``PrivateModel``: a stock model whose weights are protected, with the calling convention it had."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from privtensors.core.backend import TechniqueSpec
from privtensors.core.session import Session
from privtensors.errors import InvalidInput, PolicyError
from privtensors.hf import argmax
from privtensors.hf.card import save_client
from privtensors.hf.families import Family
from privtensors.hf.fit_options import FitOptions
from privtensors.policy import Explanation, Policy
from privtensors.policy.assets import Outputs

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig
    from transformers.utils.generic import ModelOutput

    from privtensors.train.data import Collate
    from privtensors.train.preparation import OnBudget
    from privtensors.train.result import FitResult
    from privtensors.train.roles import Batch


class PrivateModel:
    """What :func:`privtensors.wrap` returns. Call it as the model it was made from.

    Attributes:
        model: The private copy; its class is the stock class. The client's submodules hold plain tensors, every other
            parameter is a SafeTensor. It can stand wherever the stock model could, e.g. in a transformers pipeline.
        policy: The policy it obeys.
        family: Its layout.
        technique: The technique that computes it.
        session: Session with its backend, meter and recorder.
    """

    def __init__(
        self, model: Any, policy: Policy, family: Family, technique: TechniqueSpec, session: Session, fronts: tuple[str, ...]
    ) -> None:
        self._model, self.policy, self.family, self.technique, self.session = model, policy, family, technique, session
        self._fronts = fronts

    @property
    def model(self) -> Any:
        """The private copy."""
        return self._model

    @property
    def config(self) -> PreTrainedConfig:
        """The copy's configuration."""
        config: PreTrainedConfig = self.model.config
        return config

    def __call__(self, *args: Any, **inputs: Any) -> ModelOutput:
        """Run the model on plain inputs.

        Token ids stay with the client; shapes and the attention mask are public. One ledger row per call.

        Args:
            args: Positional arguments of the stock class.
            inputs: Its keyword arguments: ``input_ids``, ``attention_mask``, ``token_type_ids``, ``position_ids``,
                ``past_key_values``, ``use_cache``, ``logits_to_keep``; or ``pixel_values``; and ``output_hidden_states``,
                ``output_attentions``. With ``labels`` it is a training step's forward: gradients are recorded, nothing is
                revealed, and ``loss`` and ``logits`` of the result are SafeTensors. Dropout stays off.

        Returns:
            The stock output object. Task outputs (logits, last hidden state, pooler output) are plain: they were revealed
            to ``policy.receiver``. Hidden states, attentions and the cache stay SafeTensors.

            Under ``Policy(outputs="argmax")`` the logits and every other task output stay SafeTensors too, and the object
            has one more entry: ``predictions``, int64, plain, the index of the largest logit of each row (of a causal
            language model: at the last attended position); ``start_predictions`` and ``end_predictions`` for question answering.

        Raises:
            InvalidInput: An input is malformed or not supported.
            OutOfRange: An id outside the vocabulary, too many tokens, or a value the backend cannot represent.
            UnsupportedOp: The model uses an operation for which the backend has no kernel.
        """
        with torch.set_grad_enabled(inputs.get("labels") is not None):
            output: ModelOutput = self.model(*args, **inputs)
        return output

    def fit(
        self,
        dataset: Any,
        *,
        epochs: float | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
        schedule: Literal["constant", "linear"] = "linear",
        warmup: float = 0.0,
        microbatch: int = 32,
        engine: Literal["auto", "bookkeeping", "loop", "opacus"] = "auto",
        precision: Literal["float32", "bfloat16"] = "float32",
        on_budget: OnBudget = "refuse",
        collate: Collate | None = None,
        loss: Callable[[nn.Module, Batch], Tensor] | None = None,
        public: Batch | None = None,
        eval_dataset: Any = None,
        evaluate_every: int | None = None,
        progress: bool | None = None,
    ) -> FitResult:
        """Fine-tune by DP-SGD (Abadi et al. 2016), where the policy's ``train`` stage is ``DP``: in place, the model's class stays.

        What is promised stands in ``DP``; nothing here changes it. The planned steps are reserved on the session's ledger before
        the first, and those that ran are settled, after an error or Ctrl-C too. No loss or metric of training data is shown:
        it would leave without noise. Guarantee class: statistical (DP under zero-out), with continuous noise in floating point.

        Args:
            dataset: A torch Dataset, an HF data set, a list of mappings or a mapping of columns. No DataLoader: batches are Poisson
                samples.
            epochs: Length of the run in passes over the data, on average; 3 where ``steps`` is not given either.
            steps: Length of the run in steps.
            batch_size: Expected number of examples (users) in a step; default 256, or all where there are fewer.
            learning_rate: Of AdamW; not used with ``optimizer``.
            weight_decay: Of AdamW; not used with ``optimizer``.
            optimizer: Makes any torch optimizer of the trainable parameters.
            schedule: Learning rate after the warm-up: falling to 0, or constant.
            warmup: Share of the steps over which the learning rate rises from 0.
            microbatch: Examples that fit into memory at once.
            engine: How gradients are bounded; see ``train.bounding``.
            precision: bfloat16 computes forward and backward passes under autocast; clipping and noise stay in float32.
            on_budget: What to do with a run that does not fit the data set's budget: refuse it, run the steps that fit, or add noise.
            collate: Makes a batch of a list of examples, e.g. ``DataCollatorWithPadding(tokenizer)``.
            loss: Of the model and a batch, the mean of what each example says alone; default that of the model's task, with tokens
                averaged within each example.
            public: Two public examples, as a batch, on which ``loss`` is tried; made at random by default.
            eval_dataset: Held-out data for loss and accuracy. The promise does not cover it.
            evaluate_every: Evaluate every so many steps; default at the end only.
            progress: Show a bar; default only where stderr is a terminal.

        Returns:
            What was spent, and on what. See :class:`~privtensors.train.result.FitResult`.

        Raises:
            PolicyError: The policy does not train with ``DP`` alone; or ``epsilon=inf`` on a data set that has a budget.
            BudgetExceeded: The run, or not even one step, fits the data set's budget; the message says what is left.
            AccountingError: A DataLoader was given, or no noise reaches the target.
            InvalidInput: The data set, the model (all frozen, batch normalisation) or the loss (it mixes examples) cannot be used.
            ParameterError: An option is out of range.
            LedgerError: The session has no ledger, or it cannot be read or written.
            MissingExtra: dp-accounting is not installed.
        """
        options = FitOptions(
            epochs, steps, batch_size, learning_rate, weight_decay, optimizer, schedule, warmup, microbatch, engine, precision,
            on_budget, collate, loss, public, eval_dataset, evaluate_every, progress,
        )  # fmt: skip
        return self._fit(dataset, options)

    def _fit(self, dataset: Any, options: FitOptions) -> FitResult:
        what = "the policy's train stage is not DP"
        raise PolicyError(what, where="fit", fix='wrap the plain model with Policy(train=[DP(epsilon=3.0, dataset="…")])')

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that train, as SafeTensors, for a stock optimizer: those that had ``requires_grad`` when it was wrapped.

        None unless the policy's ``train`` stage names the technique that computes the model.
        """
        return (parameter for _, parameter in self.named_parameters())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As :meth:`parameters`, with their names in the stock model."""
        return ((name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad)

    def generate(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        generation_config: GenerationConfig | None = None,
    ) -> Tensor:
        """Continue token sequences with the stock ``generate``, greedily or by sampling.

        The logits of every step are revealed to the client, who picks the token: one ledger row per step. Under
        ``Policy(outputs="argmax")`` only the index of the largest is, so the search is greedy and nothing may change the
        scores. The server sees how many steps there are, hence the length of the answer.

        Args:
            input_ids: int64, (batch, tokens).
            attention_mask: 0 or 1, same shape; public.
            max_new_tokens: Largest number of steps.
            do_sample: Sample instead of taking the largest logit.
            generation_config: transformers' object for everything else; beams are not supported.

        Returns:
            int64, (batch, tokens + new tokens), plain at the client.

        Raises:
            InvalidInput: The model cannot generate, or beams were asked for.
            PolicyError: The policy reveals to another party than the client, or less than the search needs.
        """
        if not (self.family.decoder and self.model.can_generate()):
            raise InvalidInput(f"{type(self.model).__name__} does not generate", where="generate", fix="wrap a causal language model")
        if self.policy.receiver != "client":
            what = f"the policy reveals logits to {self.policy.receiver!r}, but the client must pick the next token"
            raise PolicyError(what, where="generate", fix="Policy(infer=[...], receiver='client')")
        config = generation_config or self.model.generation_config
        if (config.num_beams or 1) > 1:
            what = "beams would be reordered by values that only the client knows"
            raise InvalidInput(what, where="generate, num_beams", fix="use num_beams=1: greedy search or sampling")
        options = {"attention_mask": attention_mask, "max_new_tokens": max_new_tokens, "do_sample": do_sample}
        given = {name: value for name, value in options.items() if value is not None}
        if self.policy.outputs == Outputs.FULL:
            tokens: Tensor = self.model.generate(input_ids, generation_config=generation_config, **given)
            return tokens
        argmax.check_generation(config, do_sample)
        hook = self.model.register_forward_hook(argmax.as_logits)
        try:
            tokens = self.model.generate(input_ids, generation_config=generation_config, **given)
        finally:
            hook.remove()
        return tokens

    def explain(self, *, collude: Iterable[str] = frozenset(), deployment: Literal["simulated", "deployed"] = "simulated") -> Explanation:
        """Who sees what under the policy, with what is particular to this model. See ``Policy.explain``."""
        found = self.policy.explain(collude=collude, deployment=deployment)
        if self.family.tables:
            held = "The client runs nothing in plain: it looks its token ids up in the server's tables"
        else:
            held = f"The client runs in plain: {', '.join(self._fronts)}" if self._fronts else "The client shares the pixels"
        mine = [f"{held}; every other parameter of {type(self.model).__name__} is the server's and protected"]
        if self.family.decoder and self.model.can_generate():
            what = "logits" if self.policy.outputs == Outputs.FULL else "index of the largest logit"
            mine.append(f"generate reveals the {what} of every step to {self.policy.receiver}; the server sees the number of steps")
        return dataclasses.replace(found, remarks=(*found.remarks, *(("infer", text) for text in mine)))

    def save_pretrained(self, save_directory: str | Path, *, party: str = "client") -> None:
        """Write what the client owns in plain, and the privacy card. No weight of the server is written.

        Files: ``config.json``, ``embeddings.safetensors`` (the client's tables under the stock names; absent for models
        without any), ``policy.toml``, ``privacy_card.json`` (policy, who sees what, ledger head, versions).

        Args:
            save_directory: Folder; made if it does not exist.
            party: Who is calling; only ``"client"``. The server's plain weights are in the model that was wrapped.

        Raises:
            InvalidInput: Another party, or ``save_directory`` is a file.
        """
        save_client(self, Path(save_directory), party=party)

    def __repr__(self) -> str:
        return f"PrivateModel({type(self.model).__name__}, technique={self.technique.name!r}, receiver={self.policy.receiver!r})"
