"""The backend of Hugging Face transformers: any causal model that it knows, in this process.

Random weights are drawn in fp32 on the CPU and then cast, so that one configuration and seed are
the same model in every precision and on every device.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llem.campaign import ServedModel, Serving
from llem.campaign.conflicts import conflicts
from llem.errors import Fault, InputError, UnavailableError
from llem.serving.generating.abilities import PRECISIONS, installed, missing_abilities, quantising
from llem.serving.generating.batching import Batching, Queue
from llem.serving.generating.splitting import split_over
from llem.serving.log import Log
from llem.serving.replica import Replica
from llem.serving.requests import Request, Tokenizer
from llem.serving.tokenizers import tokenizer_of

# What transformers raises where it cannot make or load a model as asked.
LOAD_ERRORS = (ValueError, OSError, ImportError, KeyError, NotImplementedError, TypeError)


class TransformersBackend:
    """Serves one replica with `generation`; see `llem.serving.backend.Backend`."""

    sees_forwards = True

    def __init__(self, run: Serving, replica: Replica) -> None:
        absent = [name for name in ("torch", "transformers") if not installed(name)]
        if absent:
            raise UnavailableError(
                f"backend transformers needs {' and '.join(absent)}",
                remedy="pip install 'llem[serve]', or an image that has it",
            )
        self.run = run
        self.replica = replica
        self.options = run.deployment.effective
        self.asked = {k: v for k, v in run.deployment.options.items() if v is not None}
        self.batching = Batching.of(self.options)
        wrong = conflicts(run.deployment.backend, self.options, model=run.deployment.model,
                          prompts=run.deployment.prompts)  # fmt: skip
        missing = missing_abilities(self.options, cuda=replica.world.device.type == "cuda")
        if faults := [*wrong, *missing]:
            raise InputError(f"run {run.run_id}", faults)
        # Libraries are no part of what the model takes of memory, or of loading it.
        self.config = _config(run.deployment.model)
        self.model: Any = None
        self._generator: Any = None
        # Of this process, which serves other runs after this one.
        self._was_tf32: bool | None = None

    @staticmethod
    def prepare(run: Serving) -> None:
        """transformers, and its code of the model: seconds that no run should pay for alone."""
        _config(run.deployment.model)

    def load(self) -> None:
        import torch

        self._was_tf32 = self._tf32()
        torch.backends.cuda.matmul.allow_tf32 = bool(self.options.get("tf32"))
        try:
            self.model = self._loaded()
        except (UnavailableError, InputError, torch.OutOfMemoryError):
            raise
        except LOAD_ERRORS as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"model {self.run.deployment.model.name}", [said[:1000]]) from error
        self.model.eval()
        self._generator = self._make_generator()

    def tokenizer(self) -> Tokenizer:
        return tokenizer_of(self.run.deployment.model)

    def effective(self) -> dict[str, Any]:
        found = {
            **self.options,
            "precision": self._precision(),
            "attention": getattr(self.model.config, "_attn_implementation", None),
            "quantisation": self._quantised(),
            "tf32": self._tf32() if self.replica.world.device.type == "cuda" else None,
            "batch_size": self.batching.batch_size,
            "batching": self.batching.kind,
            "tensor_parallel": self.replica.size,
            "device": str(self.replica.world.device.type),
            "parameters": int(self.model.num_parameters()),
        }
        return {key: value for key, value in found.items() if value is not None}

    def _precision(self) -> str:
        """What most weights are in that are not whole numbers: what is computed in."""
        dtypes: dict[str, int] = {}
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            if tensor.dtype.is_floating_point:
                name = str(tensor.dtype).removeprefix("torch.")
                dtypes[name] = dtypes.get(name, 0) + tensor.numel()
        most = max(dtypes, key=lambda name: dtypes[name]) if dtypes else "none"
        return {long: name for name, long in PRECISIONS.items()}.get(most, most)

    def _quantised(self) -> str | None:
        """What was asked for, or how the weights on disk are quantised."""
        told = getattr(self.model.config, "quantization_config", None)
        if told is None:
            return None
        own = told.get("quant_method") if isinstance(told, dict) else told.quant_method
        return self.options.get("quantisation") or str(getattr(own, "value", own))

    @staticmethod
    def _tf32() -> bool:
        import torch

        return bool(torch.backends.cuda.matmul.allow_tf32)

    def warmup_requests(self, requests: Sequence[Request]) -> Sequence[Request]:
        """A whole batch, with the longest prompts: what memory and kernels must be ready for."""
        longest = sorted(requests, key=lambda r: (-len(r.tokens), r.number))
        return longest[: self.batching.batch_size]

    def serve(self, requests: Sequence[Request], log: Log) -> None:
        import torch

        # Also where nothing is drawn: a sampled run must not depend on what came before it.
        torch.manual_seed(self.run.seed * 1_000_003 + self.replica.index)
        queue = Queue(requests, self.batching)
        while len(queue):
            found = self.replica.first(lambda: None if log.stopping() else queue.take(log.now_s()))
            if found is None:
                log.left(queue.rest())
                return
            if isinstance(found, float):
                log.wait_until(found)
                continue
            if not self.replica.lead:
                queue.drop(found)
            self._generator.generate(found, log)

    def close(self) -> None:
        self.model = self._generator = None
        gc.collect()
        import torch

        if self._was_tf32 is not None:
            torch.backends.cuda.matmul.allow_tf32 = self._was_tf32
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # loading

    def _loaded(self) -> Any:
        import torch

        model = self.run.deployment.model
        precision = self.asked.get("precision")
        plain = not (self.options.get("quantisation") or self.replica.size > 1)
        if model.source == "config" and plain and not self.options.get("device_map"):
            made = self._from_config()
            own = getattr(made.config, "dtype", None) or torch.float32
            dtype = getattr(torch, PRECISIONS[precision]) if precision else own
            return made.to(device=self.replica.world.device, dtype=dtype)
        with self._folder() as folder:
            return self._from_folder(folder, precision)

    def _from_config(self) -> Any:
        """The model with random weights, fp32 on the CPU."""
        import torch
        from transformers import AutoModelForCausalLM

        from llem.serving.generating.randomweights import repeated_weights

        own = getattr(self.config, "dtype", None)
        torch.manual_seed(self.run.deployment.model.weights_seed)
        more = self._attention()
        with repeated_weights():
            made = AutoModelForCausalLM.from_config(self.config, dtype=torch.float32, **more)
        made.config.dtype = own
        return made

    @contextmanager
    def _folder(self) -> Iterator[str]:
        """Where the weights lie; those of a configuration are written first, since transformers
        quantises and shards while it reads."""
        model = self.run.deployment.model
        if model.source == "path":
            yield str(model.path)
            return
        from safetensors.torch import save_model

        with TemporaryDirectory(prefix="llem-model-") as folder:
            made = self._from_config()
            # Not by save_pretrained, which writes on the first of all ranks alone.
            Path(folder, "config.json").write_text(made.config.to_json_string(use_diff=False))
            save_model(made, str(Path(folder, "model.safetensors")), metadata={"format": "pt"})
            del made
            yield folder

    def _from_folder(self, folder: str, precision: str | None) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        world = self.replica.world
        more: dict[str, Any] = {**self._attention(), **quantising(self.options, precision)}
        more["dtype"] = getattr(torch, PRECISIONS[precision]) if precision else "auto"
        kind: Any = AutoModelForCausalLM
        if self.replica.size > 1:
            kind, split = split_over(self.replica, self.config)
            more |= split
        elif self.options.get("device_map"):
            more["device_map"] = self.options["device_map"]
        elif self.options.get("quantisation"):
            more["device_map"] = {"": world.device}
        made = kind.from_pretrained(folder, local_files_only=True, **more)
        if self.replica.size == 1 and "device_map" not in more:
            made = made.to(world.device)
        return made

    def _attention(self) -> dict[str, Any]:
        asked = self.asked.get("attention")
        return {"attn_implementation": asked} if asked else {}

    # generating

    def _make_generator(self) -> Any:
        import torch

        from llem.serving.generating.beams import Beams, BeamSearch
        from llem.serving.generating.decoding import Decoding
        from llem.serving.generating.generation import Generator
        from llem.serving.generating.lookup import PromptLookup

        options, forward = self.options, None
        if options.get("compile"):
            # Of a function so many forms are compiled and no more, those of runs before this one
            # included: what comes then would not be compiled, without a word.
            torch._dynamo.reset()
            mode = options.get("compile_mode")
            forward = torch.compile(
                self.model,
                mode=None if mode == "default" else mode,
                backend=options.get("compile_backend") or "inductor",
            )
        ends = frozenset() if options.get("ignore_eos", True) else self._ends()
        common: dict[str, Any] = {
            "replica": self.replica,
            "make_cache": self._cache_maker(),
            "decoding": Decoding.of(options, ends=ends),
            "forward": forward,
        }
        if int(options.get("beams") or 1) > 1:
            beams = Beams(
                count=options["beams"],
                length_penalty=options.get("length_penalty", 1.0),
                early_stopping=options.get("early_stopping", False),
            )
            return BeamSearch(self.model, beams=beams, **common)
        if guesses := options.get("prompt_lookup_tokens"):
            ngram = options.get("prompt_lookup_ngram", 2)
            return PromptLookup(self.model, guesses=guesses, ngram=ngram, **common)
        return Generator(self.model, **common)

    def _ends(self) -> frozenset[int]:
        generation = getattr(self.model, "generation_config", None)
        ids = getattr(generation, "eos_token_id", None)
        ids = getattr(self.model.config, "eos_token_id", None) if ids is None else ids
        return frozenset(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids])

    def _cache_maker(self) -> Callable[[int, int], Any] | None:
        from transformers import DynamicCache, StaticCache

        if not self.options.get("kv_cache", True):
            return None
        config, kind = self.model.config, self.options.get("cache", "dynamic")
        if kind == "static":
            return _Static(lambda length: StaticCache(config=config, max_cache_len=length))
        if kind == "quantized":
            from transformers import QuantizedCache

            bits = self.options.get("cache_bits", 4)
            return lambda rows, length: QuantizedCache("quanto", config, nbits=bits)
        offloading = kind == "offloaded"
        return lambda rows, length: DynamicCache(config=config, offloading=offloading)


class _Static:
    """Static caches by their shape, each used again: compiled code holds on to one."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make
        self._made: dict[tuple[int, int], Any] = {}

    def __call__(self, rows: int, length: int) -> Any:
        # One length serves all that are not longer; its tail is masked.
        for (its_rows, its_length), cache in self._made.items():
            if its_rows == rows and its_length >= length:
                cache.reset()
                return cache
        return self._made.setdefault((rows, length), self._make(length))


def _config(model: ServedModel) -> Any:
    """The model's configuration, with the code of its class imported. Raises InputError."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        if model.source == "path":
            config = transformers.AutoConfig.from_pretrained(model.path, local_files_only=True)
        else:
            values = dict(model.config)
            config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
        known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    except LOAD_ERRORS as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"model {model.name}", [said[:1000]]) from error
    if known is None:
        text = f"transformers has no causal model of type {config.model_type!r}"
        raise InputError(f"model {model.name}", [Fault("model_type", text)])
    return config
