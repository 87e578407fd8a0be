"""A model of transformers split over the ranks of one replica, by its own tensor-parallel plan.

transformers (5.13 and later) splits a model over all ranks of a job. Where these are several
replicas, the mesh that it is given is that of one: a class of its own, made from the model's, says
so where transformers asks.
"""

from __future__ import annotations

from typing import Any

from llem.serving.replica import Replica


def split_over(replica: Replica, config: Any) -> tuple[Any, dict[str, Any]]:
    """What loads a model of this configuration on the ranks of `replica`, and what it is told.

    Called by every rank of the job at the same time.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    try:
        from transformers.distributed import DistributedConfig

        told: dict[str, Any] = {"distributed_config": DistributedConfig(tp_size=replica.size)}
    except (ImportError, TypeError):  # before 5.13, which takes the mesh as it is
        alone = replica.count == 1
        mesh = {} if alone else {"device_mesh": _mesh(replica)["tp"]}
        return AutoModelForCausalLM, {"tp_plan": "auto", **mesh}
    if replica.count == 1:
        return AutoModelForCausalLM, told
    return _of_replica(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], replica), told


def _of_replica(model: Any, replica: Replica) -> Any:
    """The model's class, for which a job's ranks are those of the replica."""
    from transformers.distributed.utils import TransformersDeviceMesh

    mesh, device = _mesh(replica), replica.world.device

    def prepare(cls: Any, config: Any, device_map: Any = None) -> tuple[Any, Any, Any]:
        return config, device, TransformersDeviceMesh(mesh, mesh)

    own = {"prepare_distribute_model": classmethod(prepare), "__module__": model.__module__}
    return type(model.__name__, (model,), own)


def _mesh(replica: Replica) -> Any:
    """The ranks of one replica, in the dimensions that transformers names; all but the last have
    one rank."""
    from torch.distributed.device_mesh import init_device_mesh

    names = ("pp", "dp_replicate", "fsdp", "tp")
    whole = init_device_mesh(
        replica.world.device.type,
        (replica.count, 1, 1, 1, replica.size),
        mesh_dim_names=("replica", *names),
    )
    return whole[names]
