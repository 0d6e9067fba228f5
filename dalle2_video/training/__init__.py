"""One training loop for all stages on native DeepSpeed ZeRO-3, with exact resumption at any world size."""
