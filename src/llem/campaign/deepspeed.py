"""A user's own settings of DeepSpeed: which there are, which llem sets, which change results.

Checked where the campaign is read, on a login node without DeepSpeed, so that a wrong key costs no
job. The keys are those of DeepSpeed 0.17 to 0.19 for ZeRO.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from llem.errors import Fault, did_you_mean

# What the run itself says, and where in a campaign's file it is said.
OWNED: Final[Mapping[str, str]] = {
    "train_batch_size": "training.batch_tokens",
    "train_micro_batch_size_per_gpu": "layout.micro_batch",
    "gradient_accumulation_steps": "layout.micro_batch",
    "gradient_clipping": "training.clip_norm",
    "optimizer": "training.optimiser",
    "scheduler": "training.schedule",
    "fp16": "training.precision",
    "bf16": "training.precision",
    "amp": "training.precision",
    "torch_autocast": "training.precision",
    "zero_allow_untested_optimizer": "training.optimiser",
    "zero_optimization.stage": "layout.zero_stage",
}

# What each rank computes is rounded or sent otherwise than without them: part of a run's name.
CHANGING: Final = frozenset(
    {
        "communication_data_type",
        "data_types",
        "gradient_predivide_factor",
        "prescale_gradients",
        "zero_optimization.zero_quantized_gradients",
        "zero_optimization.zero_quantized_nontrainable_weights",
        "zero_optimization.zero_quantized_weights",
    }
)

_TOP: Final = (
    "aio", "checkpoint", "comms_logger", "csv_monitor", "disable_allgather", "dump_state",
    "flops_profiler", "memory_breakdown", "sparse_gradients", "steps_per_print", "tensorboard",
    "wall_clock_breakdown", "wandb", "zero_force_ds_cpu_optimizer", "zero_optimization",
)  # fmt: skip
_ZERO: Final = (
    "allgather_bucket_size", "allgather_partitions", "contiguous_gradients",
    "ignore_unused_parameters", "log_trace_cache_warnings", "memory_efficient_linear",
    "offload_optimizer", "offload_param", "overlap_comm", "reduce_bucket_size", "reduce_scatter",
    "round_robin_gradients", "stage3_max_live_parameters", "stage3_max_reuse_distance",
    "stage3_module_granularity_threshold", "stage3_param_persistence_threshold",
    "stage3_prefetch_bucket_size", "sub_group_size", "use_multi_rank_bucket_allreduce",
    "zero_hpz_partition_size",
)  # fmt: skip
KNOWN: Final = frozenset({*_TOP, *(f"zero_optimization.{key}" for key in _ZERO), *CHANGING})
# Below these nothing is looked at: DeepSpeed checks what is in them itself.
_ZERO_SECTION: Final = "zero_optimization"


def faults_of(settings: Mapping[str, Any], path: str = "training.deepspeed") -> list[Fault]:
    """Everything that is wrong with a user's settings, at once."""
    faults = []
    section = settings.get(_ZERO_SECTION, {})
    if not isinstance(section, Mapping):
        faults.append(Fault(f"{path}.{_ZERO_SECTION}", "expected a mapping of keys to values"))
    for key, _ in _leaves(settings):
        if key in OWNED:
            faults.append(Fault(f"{path}.{key}", "llem sets it from the run", f"set {OWNED[key]}"))
        elif key not in KNOWN:
            known = _siblings(key)
            near = did_you_mean(key.rpartition(".")[2], known)
            hint = near or f"known keys: {', '.join(known)}"
            faults.append(Fault(f"{path}.{key}", "unknown key", hint))
    return faults


def _siblings(key: str) -> list[str]:
    """What may stand where `key` does, by the last part of its name."""
    section = key.rpartition(".")[0]
    known = {*KNOWN, *OWNED}
    return sorted({k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == section})


def changing_results(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings, by dotted key, without which the result would be another one."""
    return {key: value for key, value in _leaves(settings) if key in CHANGING}


def _leaves(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if key == _ZERO_SECTION and isinstance(value, Mapping):
            for inner, setting in value.items():
                yield f"{key}.{inner}", setting
        else:
            yield str(key), value
