"""Engines: one optimiser step over ranks, by DDP, DeepSpeed's ZeRO or FSDP2."""
