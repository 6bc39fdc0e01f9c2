"""Shards: one simulation over several processes or GPUs, by torch.distributed."""
