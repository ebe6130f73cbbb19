"""The network that judges windows: features in, graph, node and edge logits, type and denoised state out.

Flow:    batch (Experience -> GraphBatch) -> temporal -> gat -> unet -> model (heads) -> losses
"""
