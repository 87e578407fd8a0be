"""Peak memory of one rank of a run, from what the training engine really allocates.
"""

from __future__ import annotations

from dataclasses import dataclass

from llem.campaign import Layout
from llem.campaign.architecture import Architecture, Decoder
from llem.campaign.run import Recipe


@dataclass(frozen=True)
class Memory:
    moment: str
    weights: float = 0.0
    gradients: float = 0.0
    optimiser: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    buffers: float = 0.0

    @property
    def of_run(self) -> float:
        return self.weights+self.gradients+self.optimiser+self.activations+self.logits+self.buffers


def memory_of(model: Architecture, recipe: Recipe, layout: Layout, *, cpu: bool) -> Memory:
    P=model.params; R=layout.ranks; n=layout.micro_batch*model.context
    bf=recipe.precision=="bf16"; b=2 if bf else 4
    h,m,V,L=model.width,model.mlp_width,model.vocabulary,model.layers
    Pb=4*h*h+3*h*m
    block=n*((16 if cpu else 8)*h+b*(8*h+4*m)+4*model.heads+8)
    last=n*((8 if cpu else 4)*h+b*h)
    ck=layout.activation_checkpointing
    inputs=L*4*h*n
    T=2*b*m*n+8*h*n
    W=4*P; M=8*P; G=4*P
    persist=R>1 or layout.grad_accum>1
    out=4*V*h
    copies=2*(L*Pb+V*h) if bf else 0
    copies_loss=2*V*h if (ck and bf) else copies
    e=max(model.context,4096//model.context*model.context)
    fl=(10 if bf else 8)*V*e
    ms=[
     Memory("loss",W+copies_loss,G if persist else 0,M,(inputs if ck else L*block)+last,12*V*n),
     Memory("last block",W+copies_loss,G if persist else out,M,(inputs+block-4*h*n if ck else L*block)+T),
     Memory("first block",W,(G if persist else G-4*Pb)+(out if persist else 0),M,block+T),
     Memory("embedding",W,G+(out if model.tied_embeddings or persist else 0),M,8*h*n),
     Memory("evaluation",W+copies,G if R>1 else 0,M,e*(12*h+4*b*m),b*V*e),
     Memory("evaluation loss",W+copies,G if R>1 else 0,M,e*4*h,fl),
    ]
    return max(ms,key=lambda x:x.of_run)
