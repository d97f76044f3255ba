"""What travels between phone, developer and cloud: `schemas` (JSON) and `tensors` (safetensors)."""
